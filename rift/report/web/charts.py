"""The page's figures as Vega-Lite specifications; the browser averages over the seeds of the jobs it keeps.

Text from files stands in the data alone, never in a field's name or an expression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from rift.report.figures import BLUE, GREEN, GREY, ORANGE
from rift.report.web.rows import Row

_COLOURS = [BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#B58900", "#7F7F7F", "#8C564B"]
_MANY = [  # Tableau's twenty, in pairs of a dark and a light one
    "#4c78a8", "#9ecae9", "#f58518", "#ffbf79", "#54a24b", "#88d27a", "#b79a20", "#f2cf5b", "#439894",
    "#83bcb6", "#e45756", "#ff9d98", "#79706e", "#bab0ac", "#d67195", "#fcbfd2", "#b279a2", "#d6a5c9",
    "#9e765f", "#d8b5a5",
]  # fmt: skip
_STAR = "M0,-1L0.23,-0.32L0.95,-0.31L0.37,0.12L0.59,0.81L0,0.4L-0.59,0.81L-0.37,0.12L-0.95,-0.31L-0.23,-0.32Z"
_FADED = 0.12  # opacity of what the legend has not picked
_ROW = 17  # pixels, of a module or a corruption
_LABEL = 150  # pixels of an axis' names
_APART = {"labelFlush": False, "labelOverlap": "greedy", "labelSeparation": 6}  # numbers under a narrow axis
_CONFIG = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "axis": {
        "gridColor": "#8883",
        "domainColor": "#8888",
        "tickColor": "#8888",
        "labelFontSize": 11,
        "titleFontWeight": "normal",
    },
    "legend": {
        "orient": "top",
        "direction": "vertical",
        "title": None,
        "labelFontSize": 12,
    },
    "view": {"stroke": None},
}


def series_colours(rows: Sequence[Row]) -> dict[str, str]:
    """The colour of each series, in the order of the rows; they come again after twenty."""
    series = list(dict.fromkeys(row["series"] for row in rows))
    colours = _COLOURS if len(series) <= len(_COLOURS) else _MANY
    return {name: colours[index % len(colours)] for index, name in enumerate(series)}


def tradeoff_chart(rows: Sequence[Row], colours: Mapping[str, str]) -> dict[str, Any]:
    """Clean against robust accuracy along α with error bars, a line per series; stars where α was chosen."""
    x = alt.X("clean:Q", title="clean accuracy (%)").scale(zero=False).axis(**_APART)
    y = alt.Y("robust:Q", title="robust accuracy (%)").scale(zero=False)
    base = _along_alpha(rows, colours)
    points = _points(base.encode(x=x, y=y), _curve_tooltip("clean", "robust"))
    bar = {"strokeWidth": 1, "strokeOpacity": 0.45}
    return _specification(
        base.mark_rule(**bar).encode(x=alt.X("clean_low:Q"), x2="clean_high:Q", y=y),
        base.mark_rule(**bar).encode(x=x, y=alt.Y("robust_low:Q"), y2="robust_high:Q"),
        base.mark_line(strokeWidth=1.5).encode(x=x, y=y, order="alpha:Q"),
        *points,
        height=420,
    )


def along_chart(rows: Sequence[Row], which: str, colours: Mapping[str, str]) -> dict[str, Any]:
    """`clean` or `robust` accuracy against α with an error band, a line per series; stars at chosen α."""
    y = alt.Y(f"{which}:Q", title=f"{which} accuracy (%)").scale(zero=False)
    base = _along_alpha(rows, colours)
    base = base.encode(x=alt.X("alpha:Q", title="α (0: AT, 1: fine-tuned)").axis(**_APART))
    return _specification(
        base.mark_area(fillOpacity=0.15).encode(y=alt.Y(f"{which}_low:Q"), y2=f"{which}_high:Q"),
        base.mark_line(strokeWidth=1.5).encode(y=y),
        *_points(base.encode(y=y), _curve_tooltip(which)),
        height=280,
    )


def scan_chart(rows: Sequence[Row], value: str, title: str) -> dict[str, Any]:
    """`mrc` or `drop` of each module in network order: bars are means, ticks seeds, diamonds the paper's.

    The modules that were fine-tuned stand out. Jobs that share a scan count once.
    """
    least, most = (end(row[value] for row in rows) for end in (min, max))
    log = least > 0 and most > 30 * least
    reported = any(f"paper_{value}" in row for row in rows)
    paper = {"paper": f"mean(paper_{value})"} if reported else {}
    seeds = _kept(rows).transform_aggregate(
        groupby=["module", "position", "seed"], value=f"mean({value})", chosen="sum(chosen)", jobs="count()",
        **paper,
    )  # fmt: skip
    means = seeds.transform_aggregate(
        groupby=["module", "position"], value="mean(value)", std="stdev(value)", n="count()",
        chosen="sum(chosen)", jobs="sum(jobs)", **({"paper": "mean(paper)"} if reported else {}),
    ).transform_calculate(
        role="datum.chosen > 0 ? 'yes' : 'no'",
        text=f"format(datum.value, '{'.3f' if value == 'mrc' else '.2f'}') + (datum.chosen == 0 ? '' : ' ★' +"
        "(datum.chosen < datum.jobs ? ' ' + datum.chosen + '/' + datum.jobs : ''))",
        spread="datum.n > 1 ? format(datum.std, '.3f') : '–'",
    )  # fmt: skip
    order = [row["module"] for row in sorted(rows, key=lambda row: row["position"])]
    y = alt.Y("module:N", sort=list(dict.fromkeys(order)), title=None)
    y = y.axis(labelLimit=_LABEL, ticks=False, domain=False)
    # On a logarithmic axis there is no zero for a bar to stand on.
    scale = alt.Scale(type="log", domainMin=least / 2) if log else alt.Scale()
    foot = {"x2": alt.datum(least / 2)} if log else {}
    x = alt.X("value:Q", title=title, scale=scale).axis(tickCount=5, labelOverlap="greedy")
    colour = alt.Color("role:N").scale(domain=["yes", "no"], range=[BLUE, GREY]).legend(None)
    tooltip = [
        alt.Tooltip("module:N"), alt.Tooltip("value:Q", title="mean", format=".4f"),
        alt.Tooltip("spread:N", title="std over seeds"), alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("chosen:Q", title="fine-tuned in (jobs)"), alt.Tooltip("jobs:Q", title="of (jobs)"),
    ]  # fmt: skip
    tooltip += [alt.Tooltip("paper:Q", title="paper", format=".4f")] if reported else []
    label = means.mark_text(align="left", dx=5, fontSize=10).encode(x=alt.value("width"), y=y, text="text:N")
    layers = [
        means.mark_bar(height={"band": 0.75}).encode(x=x, y=y, color=colour, tooltip=tooltip, **foot),
        label.properties(name="values"),
    ]
    if len({row["seed"] for row in rows}) > 1:
        told = [alt.Tooltip("module:N"), alt.Tooltip("seed:N"), alt.Tooltip("value:Q", format=".4f")]
        layers += [seeds.mark_tick(thickness=1.5, size=9, color=ORANGE).encode(x=x, y=y, tooltip=told)]
    if reported:
        diamond = {"shape": "diamond", "size": 46, "fill": "white", "stroke": "black", "opacity": 1}
        known = means.transform_filter("isValid(datum.paper)")
        layers += [known.mark_point(**diamond).encode(x=alt.X("paper:Q"), y=y, tooltip=tooltip)]
    return _specification(*layers, height=_ROW * len(set(order)), right=62)


def training_chart(rows: Sequence[Row], colours: Mapping[str, str], *, loss: bool) -> dict[str, Any]:
    """Against the epoch the loss, or accuracies told apart by their dashes; bands are one std over seeds.

    Args:
        rows: of the loss, or of accuracies.
        colours: as `series_colours` gives them.
        loss: which of the two.
    """
    keys = ["series", "metric", "epoch"]
    base = (
        _kept(rows)
        .transform_aggregate(groupby=[*keys, "seed"], value="mean(value)")
        .transform_aggregate(groupby=keys, value="mean(value)", std="stdev(value)", n="count()")
        .transform_calculate(half="datum.n > 1 ? datum.std : 0")
        .transform_calculate(low="datum.value - datum.half", high="datum.value + datum.half")
    )
    base = _coloured(base, colours)
    title = "training loss" if loss else "accuracy (%)"
    y = alt.Y("value:Q", title=title).scale(zero=False)
    base = base.encode(x=alt.X("epoch:Q").axis(tickMinStep=1, format="d"), detail="metric:N")
    dashes = {} if loss else {"strokeDash": alt.StrokeDash("metric:N")}
    tooltip = [
        alt.Tooltip("series:N"), alt.Tooltip("metric:N"), alt.Tooltip("epoch:Q"),
        alt.Tooltip("value:Q", format=".4f" if loss else ".2f"),
        alt.Tooltip("half:Q", title="±", format=".4f" if loss else ".2f"), alt.Tooltip("n:Q", title="seeds"),
    ]  # fmt: skip
    return _specification(
        base.mark_area(fillOpacity=0.12).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(strokeWidth=1.5).encode(y=y, **dashes),
        base.mark_point(filled=True, size=22).encode(y=y, tooltip=tooltip),
        height=260,
    )


def heat_chart(rows: Sequence[Row], value: str, title: str) -> dict[str, Any]:
    """`at` (%) or `delta` (points) of each corruption and severity, the mean over seeds."""
    signed = value == "delta"
    keys = ["corruption", "severity"]
    cells = (
        _kept(rows)
        .transform_aggregate(groupby=[*keys, "seed"], value=f"mean({value})")
        .transform_aggregate(groupby=keys, value="mean(value)", std="stdev(value)", n="count()")
        .transform_calculate(
            text=f"format(round(10 * datum.value) / 10 + 0, '{'+.1f' if signed else '.1f'}')"
        )  # no −0.0
    )
    reach = max(1.0, *(abs(row[value]) for row in rows))
    scale = (
        alt.Scale(scheme="purpleorange", domain=[reach, -reach])
        if signed
        else alt.Scale(scheme="viridis", domain=[0, 100])
    )
    dark = f"abs(datum.value) > {0.6 * reach}" if signed else "datum.value < 60"
    names = list(dict.fromkeys(row["corruption"] for row in rows))
    cells = cells.encode(
        x=alt.X("severity:O", title="severity").axis(labelAngle=0),
        y=alt.Y("corruption:N", sort=names, title=None).axis(labelLimit=_LABEL),
        tooltip=[
            alt.Tooltip("corruption:N"), alt.Tooltip("severity:O"),
            alt.Tooltip("value:Q", title=title, format="+.2f" if signed else ".2f"),
            alt.Tooltip("std:Q", title="std over seeds", format=".2f"), alt.Tooltip("n:Q", title="seeds"),
        ],
    )  # fmt: skip
    return _specification(
        cells.mark_rect().encode(color=alt.Color("value:Q", scale=scale).legend(None)),
        cells.mark_text(fontSize=10).encode(
            text="text:N", color=alt.condition(dark, alt.value("white"), alt.value("black"))
        ),
        height=_ROW * len(names),
    )


def _along_alpha(rows: Sequence[Row], colours: Mapping[str, str]) -> alt.Chart:
    """Means over seeds by series and α; ± is a std over seeds, or of one seed its binomial error."""
    aggregated = {"n": "count()", "chosen": "sum(picked)"}
    for name in ("clean", "robust"):
        aggregated |= {name: f"mean({name})", f"{name}_std": f"stdev({name})"}
        aggregated |= {f"{name}_error": f"mean({name}_error)"}
    chart = _kept(rows).transform_calculate(picked="datum.chosen ? 1 : 0")
    chart = chart.transform_aggregate(groupby=["series", "alpha"], **aggregated)
    for name in ("clean", "robust"):
        half = f"datum.{name}_half"
        chart = chart.transform_calculate(
            **{f"{name}_half": f"datum.n > 1 ? datum.{name}_std : datum.{name}_error"}
        ).transform_calculate(
            **{f"{name}_low": f"datum.{name} - {half}", f"{name}_high": f"datum.{name} + {half}"}
        )
    return _coloured(chart, colours)


def _curve_tooltip(*names: str) -> list[alt.Tooltip]:
    found = [alt.Tooltip("series:N"), alt.Tooltip("alpha:Q", title="α")]
    for name in names:
        found += [alt.Tooltip(f"{name}:Q", title=f"{name} (%)", format=".2f")]
        found += [alt.Tooltip(f"{name}_half:Q", title=f"± {name}", format=".2f")]
    return [*found, alt.Tooltip("n:Q", title="seeds"), alt.Tooltip("chosen:Q", title="chosen in (jobs)")]


def _points(base: alt.Chart, tooltip: list[alt.Tooltip]) -> list[alt.Chart]:
    """A dot at each α, and a star where a job chose it."""
    stars = base.transform_filter("datum.chosen > 0")
    star = {"filled": True, "size": 260, "shape": _STAR, "stroke": "white", "strokeWidth": 0.5}
    return [
        base.mark_point(filled=True, size=36).encode(tooltip=tooltip),
        stars.mark_point(**star).encode(tooltip=tooltip),
    ]


def _kept(rows: Sequence[Row]) -> alt.Chart:
    """The rows of the jobs that the page's filter keeps."""
    return alt.Chart(alt.InlineData(values=list(rows))).transform_filter("indexof(kept, datum.job) >= 0")


def _coloured(chart: alt.Chart, colours: Mapping[str, str]) -> alt.Chart:
    """A colour for each series; those that the page's legend has not picked are faded.

    The legend is the page's own, since Vega's cuts a text that is wider than its place.
    """
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return chart.encode(
        color=alt.Color("series:N", scale=scale, legend=None),
        opacity=alt.condition(
            "length(picked) == 0 || indexof(picked, datum.series) >= 0", alt.value(1), alt.value(_FADED)
        ),
    )


def _specification(
    *layers: alt.Chart,
    height: int,
    right: int = 8,
) -> dict[str, Any]:
    """The layers as one figure that is as wide as its place on the page; `right` pixels are kept free."""
    told = (alt.param(name=name, value=[]) for name in ("kept", "picked"))  # by the page's script
    layers = (layers[0].add_params(*told), *layers[1:])
    chart = alt.layer(*layers).properties(
        width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        padding={"left": 4, "top": 4, "bottom": 4, "right": right},
    )  # fmt: skip
    # Checking a specification takes longer than making it, and the tests draw each kind in a browser.
    return chart.to_dict(validate=False) | {"config": _CONFIG}
