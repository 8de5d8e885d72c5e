"""The figures: one bar per module, every α a point, no text over another."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread
from report_samples import resnet_modules, scan, summary, sweep

from rift.report.figures import BLUE, GREY, ORANGE, alpha_figure, mrc_figure, save_figure

WRN = ["conv1"] + [
    f"block{block}.layer.{layer}.{part}"
    for block in (1, 2, 3)
    for layer in range(5)
    for part in (["conv1", "conv2", "convShortcut"] if layer == 0 else ["conv1", "conv2"])
]  # fmt: skip
MODULES = {
    "small": ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "fc"],
    "resnet18": resnet_modules("resnet18"),
    "resnet34": resnet_modules("resnet34"),
    "wrn34_10": [*WRN, "fc"],
}


def overlaps(texts, figure):
    """Pairs of texts that cover each other in the drawn figure."""
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    return [(a, b) for (a, box), (b, other) in itertools.combinations(boxes, 2) if box.overlaps(other)]


@pytest.mark.parametrize("name", MODULES)
def test_one_bar_per_module_in_network_order(name):
    modules = MODULES[name]
    entries = scan(modules, least=modules[3])
    figure = mrc_figure(summary(mrc=entries, model=name))
    drops, mrcs = figure.axes
    assert [label.get_text() for label in drops.get_yticklabels()] == modules
    assert [bar.get_width() for bar in drops.patches] == [100 * e["robust_accuracy_drop"] for e in entries]
    assert [bar.get_width() for bar in mrcs.patches] == [e["mrc"] for e in entries]
    assert drops.get_ylim()[0] > drops.get_ylim()[1]  # the first module on top
    most = max(entries, key=lambda entry: entry["mrc"])["module"]
    for axes in figure.axes:
        colours = dict(
            zip(modules, (to_hex(bar.get_facecolor()).upper() for bar in axes.patches), strict=True)
        )
        assert colours.pop(modules[3]) == BLUE
        assert colours.pop(most) == ORANGE
        assert set(colours.values()) == {GREY}
        assert overlaps([*axes.texts, *axes.get_yticklabels()], figure) == []
        values = [text.get_window_extent() for text in axes.texts]
        assert max(box.x1 for box in values) <= axes.get_window_extent().x1  # no number runs out of its panel
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:2] == [f"least critical: {modules[3]}", f"most critical: {most}"]


def test_the_scans_own_rank_decides_what_stands_out():
    entries = scan(MODULES["small"], least="conv1")
    for rank, entry in enumerate(reversed(entries), start=1):
        entry["rank"] = rank
    legend = [text.get_text() for text in mrc_figure(summary(mrc=entries)).legends[0].get_texts()]
    assert legend[:2] == ["least critical: fc", "most critical: conv1"]


def test_the_papers_two_values_are_marked_for_its_run_alone():
    figure = mrc_figure(summary())
    drops, mrcs = figure.axes
    rows = {module: row for row, module in enumerate(MODULES["resnet18"])}
    places = [rows["layer2.1.conv2"], rows["layer4.1.conv1"]]
    assert sorted((*line.get_ydata(), *line.get_xdata()) for line in drops.lines) == [
        (places[0], 2.86),
        (places[1], 53.03),
    ]
    assert sorted((*line.get_ydata(), *line.get_xdata()) for line in mrcs.lines) == [
        (places[0], 0.09),
        (places[1], 12.94),
    ]
    assert "paper, Figure 3" in [text.get_text() for text in figure.legends[0].get_texts()]
    other = mrc_figure(summary(dataset="cifar100"))
    assert all(not axes.lines for axes in other.axes)


def test_zero_negative_and_undefined_values_are_drawn(tmp_path):
    entries = scan(MODULES["small"], least="fc")
    entries[0] |= {"mrc": 0.0, "robust_accuracy_drop": -0.01}
    entries[1]["mrc"] = math.inf
    drops, mrcs = (figure := mrc_figure(summary(mrc=entries, dataset="digits"))).axes
    assert drops.get_xlim()[0] < -1
    assert [text.get_text() for text in mrcs.texts][:2] == ["0.000", "inf"]
    save_figure(figure, tmp_path / "f.png")
    flat = [entry | {"mrc": 0.0, "robust_accuracy_drop": 0.0} for entry in entries]
    save_figure(mrc_figure(summary(mrc=flat)), tmp_path / "g.png")


@pytest.mark.parametrize("steps", [4, 10, 20])
def test_the_curve_its_labels_and_the_tolerance(steps):
    points = sweep(steps)
    alpha = points[-2]["alpha"]
    figure = alpha_figure(summary(sweep=list(reversed(points)), alpha=alpha, alpha_tolerance=0.001))
    (axes,) = figure.axes
    expected = [[100 * p["clean_accuracy"], 100 * p["robust_accuracy"]] for p in points]
    assert np.allclose(axes.lines[0].get_xydata(), expected)
    assert axes.lines[1].get_ydata() == pytest.approx([53.53, 53.53])  # AT's 53.63 less 0.1 points
    assert np.allclose(axes.lines[2].get_xydata(), [expected[-2]])
    texts = [text.get_text() for text in axes.texts]
    assert texts[:3] == [f"α* = {alpha}", "AT (α = 0)", "FT (α = 1)"]
    assert len(texts) == len(points)  # every point has a label
    assert overlaps(axes.texts, figure) == []
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "tolerance: AT − 0.10 points" in legend


def test_points_that_coincide_share_a_label():
    still = [{"alpha": i / 10, "clean_accuracy": 0.9, "robust_accuracy": 0.5} for i in range(11)]
    figure = alpha_figure(summary(sweep=still, alpha=1.0))
    assert [text.get_text() for text in figure.axes[0].texts] == ["α* = 1.0 (FT)", "AT (α = 0)", "0.1–0.9"]
    assert overlaps(figure.axes[0].texts, figure) == []


def test_no_choice_and_no_tolerance_leave_the_curve_alone():
    figure = alpha_figure(summary(alpha=None, alpha_tolerance=None))
    assert len(figure.axes[0].lines) == 1


def test_titles_name_the_run():
    for figure in (mrc_figure(summary(smoke=True)), alpha_figure(summary(smoke=True))):
        assert "resnet18-cifar10-pgd_at-s0 (smoke run: not a result)" in figure.get_suptitle()


def test_files_are_images_and_reproducible(tmp_path):
    first = save_figure(alpha_figure(summary()), tmp_path / "a" / "alpha.png")
    second = save_figure(alpha_figure(summary()), tmp_path / "b" / "alpha.png")
    assert [path.name for path in first] == ["alpha.png", "alpha.pdf"]
    pixels = imread(first[0])
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 900
    assert pixels[..., :3].std() > 0.02  # not a blank page
    assert first[1].read_bytes().startswith(b"%PDF")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_only_the_forms_that_are_wanted_are_written(tmp_path):
    assert save_figure(alpha_figure(summary()), tmp_path / "a.png", forms=["png"]) == [tmp_path / "a.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
