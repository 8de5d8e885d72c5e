"""`python -m rift.report --html`: what is on the page, and that nothing of a file becomes markup."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_samples import INTERVALS, accuracies, corruptions, scan, summary, sweep, write

from rift.report.__main__ import main
from rift.report.results import Job
from rift.report.study import jobs_frame
from rift.report.web import numbered
from rift.report.web.rows import curve_rows, scan_rows, training_rows

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>{{7*7}}\"'&"
NAMES = ["conv1", "layer1.0.conv1", HOSTILE]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("altair") is None or importlib.util.find_spec("vl_convert") is None,
    reason="needs the packages of the extra `html`",
)


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def shown(*summaries, root=Path("outputs/jobs/study")):
    return numbered(jobs_frame(Job(root / f"job{i}", one, 0.0) for i, one in enumerate(summaries)))


def page(folder, *arguments):
    assert main([str(folder / "jobs"), "--html", "--output", str(folder / "out"), *arguments]) == 0
    return report(folder)


def report(folder):
    return (folder / "out" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The page of two seeds of a job in which every free text is an attack on it; its folder."""
    tmp_path = tmp_path_factory.mktemp("hostile")
    for seed in (0, 1):
        write(
            tmp_path / "jobs" / "study", f"job{seed}", name=HOSTILE, model=HOSTILE, study=HOSTILE, seed=seed,
            mrc=scan(NAMES, NAMES[2]), target=HOSTILE, target_modules=[HOSTILE], notes=[HOSTILE],
            differences=[HOSTILE], options={HOSTILE: seed, "stage.finetune.lr": HOSTILE},
            provenance={
                "command": HOSTILE, "commit": HOSTILE, "device": HOSTILE, "finished": HOSTILE,
                "versions": {HOSTILE: HOSTILE}, "data": {"classes": [HOSTILE], "counts": {"test": 10000}},
            },
            corruptions={
                **corruptions(), "at": {"means": {HOSTILE: 0.5}, "accuracy": {f"{HOSTILE}/1": 0.5}},
                "rift": {"means": {HOSTILE: 0.6}, "accuracy": {f"{HOSTILE}/1": 0.6}},
            },
        )  # fmt: skip
    page(tmp_path)
    return tmp_path


def test_no_text_of_a_file_becomes_markup(hostile):
    elements = Elements(report(hostile))
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 3  # the data, the library, the page's own
    assert "img" not in tags
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert elements.text.count(HOSTILE) > 10  # and it is shown as it stands
    assert not [a for _, a in elements.found if "src" in a or a.get("href", "#")[0] != "#"]


def test_jobs_without_results_are_named_with_their_reason(tmp_path):
    done = write(tmp_path / "jobs" / "study", "done")
    failed = done.with_name("failed")
    failed.mkdir()
    about = json.loads((done / "summary.json").read_text())
    about |= {"name": "other", "options": about["options"] | {"stage.at.epochs": 6}}
    state = {"state": "failed", "began": "2026-01-01T00:00:00+00:00", "reason": HOSTILE, "about": about}
    (failed / "state.json").write_text(json.dumps(state))
    text = Elements(page(tmp_path)).text
    assert "1 job, written" in text and "Jobs without results" in text and HOSTILE in text
    assert "at.epochs=6" in text  # the job that is done has five
    (failed / "state.json").unlink()
    assert "Jobs without results" not in page(tmp_path)


def test_an_experiments_page_names_its_jobs_without_results(tmp_path):
    root = tmp_path / "jobs" / "study"
    about = json.loads((write(root, "done") / "summary.json").read_text())
    for name, own in (("failed", {"seed": 1}), ("of_none", {"seed": 1, "model": "another"})):
        (root / name).mkdir()
        state = {"state": "failed", "began": "2026-01-01T00:00:00+00:00", "reason": f"{name}: disk full"}
        (root / name / "state.json").write_text(json.dumps(state | {"about": about | own}))

    def rows(*arguments):
        assert main(["table1", str(root), "--html", "--output", str(tmp_path / "out"), *arguments]) == 0
        section = report(tmp_path).split('<section id="jobs">')[1].split("</section>")[0]
        table = section.split("<h3>Jobs without results")[1]
        cells = re.findall(r"<tr>(<td.*?)</tr>", table, re.DOTALL)
        return [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in cells], table

    found, text = rows()
    assert "1 of 27 done, 1 failed, 25 missing." in text
    states = [row[2] for row in found]
    assert (len(found), states.count("failed"), states.count("missing")) == (26, 1, 25)
    (failed,) = [row for row in found if row[2] == "failed"]
    assert (failed[1], failed[4]) == ("1", f"{root / 'failed'}\nfailed: disk full")
    assert "of_none" not in text
    found, _ = rows("--where", "model=resnet18")  # of a part nobody knows what is missing
    assert [row[2] for row in found] == ["failed"]


def test_policy_allows_only_the_scripts_of_the_page(hostile):
    (policy,) = [
        attributes["content"]
        for tag, attributes in Elements(report(hostile)).found
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "connect-src" not in policy


def test_curve_rows_carry_the_binomial_error_of_the_split_where_alpha_was_chosen():
    options = {"stage.interpolate.selection_split": "holdout"}
    data = {"data": {"counts": {"holdout": 1000, "test": 10}}}
    rows = curve_rows(shown(summary(options=options, provenance=data, sweep=sweep(2), alpha=0.5)))
    assert [row["alpha"] for row in rows] == [0.0, 0.5, 1.0]
    assert [row["chosen"] for row in rows] == [False, True, False]
    assert rows[0]["clean"] == pytest.approx(81.46)
    assert rows[0]["clean_error"] == pytest.approx(100 * (0.8146 * 0.1854 / 1000) ** 0.5)


def test_jobs_that_differ_in_their_target_share_a_network():
    jobs = shown(summary(), summary(target="all", target_modules=["conv1"]), summary(model="resnet34"))
    assert [one.series for one in jobs] == [
        "resnet18, least_critical",
        "resnet18, all",
        "resnet34, least_critical",
    ]
    assert [one.network for one in jobs] == ["resnet18", "resnet18", "resnet34"]
    rows = scan_rows(jobs)
    assert list(rows) == ["resnet18", "resnet34"]
    chosen = {(row["job"], row["module"]) for row in rows["resnet18"] if row["chosen"]}
    assert chosen == {("#1", "layer2.1.conv2"), ("#2", "conv1")}
    # The paper's Figure 3 has values for the first network.
    assert [row["module"] for row in rows["resnet18"] if row["job"] == "#1" and "paper_mrc" in row] == [
        "layer2.1.conv2",
        "layer4.1.conv1",
    ]


def scanned(folder, **options):
    stages = {"at": "store/at/net-1", "mrc": f"store/mrc/{folder}"}
    return summary(
        options={f"stage.finetune.{name}": value for name, value in options.items()}, stages=stages
    )


def test_jobs_that_share_a_scan_are_one_network_and_names_say_what_differs():
    jobs = shown(scanned("net-2", batchnorm="frozen", lr=0.1), scanned("net-2", batchnorm="train", lr=0.1))
    assert [one.series for one in jobs] == ["finetune.batchnorm=frozen", "finetune.batchnorm=train"]
    assert [one.network for one in jobs] == ["resnet18, cifar10, pgd_at"] * 2


def test_two_scans_never_share_a_name():
    found = [
        ("net-2", "frozen", 0.1),
        ("net-2", "train", 0.1),
        ("net-3", "frozen", 0.2),
        ("net-3", "train", 0.2),
    ]
    jobs = shown(*(scanned(folder, batchnorm=how, lr=rate) for folder, how, rate in found))
    assert [one.network for one in jobs] == ["finetune.lr=0.1"] * 2 + ["finetune.lr=0.2"] * 2
    found = [
        ("net-2", "frozen", 0.1),
        ("net-2", "train", 0.2),
        ("net-3", "frozen", 0.2),
        ("net-3", "train", 0.3),
    ]
    networks = [one.network for one in shown(*(scanned(f, batchnorm=how, lr=rate) for f, how, rate in found))]
    assert len(set(networks)) == 2 and networks[0] == networks[1] and networks[2] == networks[3]


def test_training_curves_come_from_the_store_beside_the_jobs_alone(tmp_path):
    elsewhere = "/somewhere/else/store/at/net-12"  # the machine that wrote the summary
    lines = [{"epoch": e, "train_loss": 2.0 / e, "clean_accuracy": 0.1 * e, "lr": 0.1} for e in (1, 2)]
    folder = tmp_path / "store" / "at" / "net-12"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[0]))
    places = [elsewhere, str(folder) + "/../../..", "/etc/passwd"]
    jobs = shown(
        *(summary(stages={"at": at}, seed=i) for i, at in enumerate(places)), root=tmp_path / "jobs" / "s"
    )
    rows, absent = training_rows(jobs, "at")
    assert absent == ["#2", "#3"]
    assert [(row["epoch"], row["metric"], row["value"]) for row in rows] == [
        (1, "clean, selection", 10.0),
        (1, "loss", 2.0),
        (2, "clean, selection", 20.0),
        (2, "loss", 1.0),
    ]


def test_a_job_without_a_scan_and_one_without_an_evaluation(tmp_path):
    root = tmp_path / "jobs" / "study"
    write(root, "only_scan", at=None, rift=None, sweep=None, alpha=None, paired=None, target_modules=None)
    write(root, "no_scan", model="resnet34", mrc=None, stages={"at": "/gone/at/x"})
    text = page(tmp_path)
    for heading in ("Results", "Jobs", "Along α", "Criticality", "Options that differ", "Provenance"):
        assert f"<h2>{heading}</h2>" in text or heading == "Options that differ"
    assert "no curve of #2" in text
    assert "Under corruption" not in text


LONG = "a_value_without_a_blank" * 8


def far_off(lowest):
    """A sweep that ends far from those of others."""
    return [{"alpha": a, "clean_accuracy": 0.8, "robust_accuracy": 0.5 - (0.5 - lowest) * a} for a in (0, 1)]


@pytest.fixture(scope="module")
def outlier(tmp_path_factory):
    """The folder of a page of four jobs: three with long names, and one that flattens the figures."""
    tmp_path = tmp_path_factory.mktemp("outlier")
    for i in range(3):
        own = {"stage.finetune.option_with_a_long_name": f"{i}_and_{LONG}", "stage.at.lr": i}
        write(
            tmp_path / "jobs" / "s", f"job{i}", seed=i, options=own, corruptions=corruptions(),
            at=accuracies(0.81, 0.53, 0.52) | {"auto_attack_accuracy": 0.5, "ood_accuracy_generated": 0.7},
            rift=accuracies(0.83, 0.53, 0.52) | {"auto_attack_accuracy": 0.5, "ood_accuracy_generated": 0.7},
        )  # fmt: skip
    write(tmp_path / "jobs" / "s", "outlier", target="all", target_modules=NAMES * 3, sweep=far_off(0.1))
    page(tmp_path)
    return tmp_path


def test_a_legend_has_an_entry_for_each_series_with_its_jobs_and_a_colour_of_its_own(outlier):
    legend = report(outlier).split('<ul class="legend"')[1].split("</ul>")[0]
    jobs = re.findall(r'data-jobs="([^"]*)"', legend)
    series = re.findall(r'data-series="([^"]*)"', legend)
    assert jobs == ["#1", "#2", "#3", "#4"]
    assert series[0] == "all"
    assert series[1] == "least_critical, at.lr=0, finetune.option_with_a_long_name=0_and_" + LONG
    assert len(set(re.findall(r'fill="([^"]*)"', legend))) == 4
    assert report(outlier).count('<ul class="legend"') == 1  # for all three figures along α


def test_a_count_of_seeds_is_headed_seeds_and_many_modules_are_counted(outlier):
    heads = re.findall(r"<button type=\"button\">([^<]*)</button>", report(outlier))
    assert heads.count("seeds") == 2  # of the means, and of the tests
    assert "n" not in heads
    assert '<td class="text">9 modules</td>' in report(outlier)


def test_data_sets_share_no_figure_and_what_was_not_tested_has_no_row(tmp_path):
    root = tmp_path / "jobs" / "study"
    for dataset in ("cifar10", "cifar100"):
        write(root, dataset, dataset=dataset, options={"dataset.name": dataset}, sweep=sweep())
    text = page(tmp_path)
    for which in ("Clean against robust accuracy", "Clean accuracy", "Robust accuracy"):
        assert re.findall(rf"<figcaption>{which}(:.*?)</figcaption>", text) == [": cifar10", ": cifar100"]
    assert re.findall(r'data-jobs="([^"]*)">\s*<figcaption>Clean acc', text) == ["#1", "#2"]
    tests = text.split("Tests over seeds, and over images</h3>")[1].split("</tbody>")[0]
    assert re.findall(r'<td class="text">(clean|robust|OOD)[^<]*</td>', tests) == ["clean", "robust"] * 2


def test_differing_options_name_their_jobs(tmp_path):
    root = tmp_path / "jobs" / "study"
    for i, lr in enumerate((0.1, 0.01, 0.1)):
        write(root, f"job{i}", seed=i, options={"stage.finetune.lr": lr, "same": 1})
    cells = re.findall(
        r"<td[^>]*>([^<]*)</td>", page(tmp_path).split('id="options"')[1].split("</section>")[0]
    )
    assert cells == ["stage.finetune.lr", "0.01", "#1", "1", "stage.finetune.lr", "0.1", "#2–#3", "2"]


def test_an_experiment_has_its_own_tables_first(tmp_path):
    write(tmp_path / "jobs" / "study", "job")
    assert main(["table1", str(tmp_path / "jobs"), "--html", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.index("The paper&#39;s Table 1") < text.index("Means over seeds")
    assert "not run" in text


def test_without_the_library_one_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    write(tmp_path / "jobs" / "study", "job")
    monkeypatch.setitem(sys.modules, "altair", None)
    monkeypatch.delitem(sys.modules, "rift.report.web.charts", raising=False)
    monkeypatch.delattr("rift.report.web.charts", raising=False)
    assert main([str(tmp_path / "jobs"), "--html", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --html needs the packages altair and vl-convert-python")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# -- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM} (Debian's package chromium)")
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


def opened(browser, folder, width=1280):
    """The page, drawn, with what it asked for and what it complained of."""
    tab = browser.new_context(viewport={"width": width, "height": 900}).new_page()
    asked, said = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto((folder / "out" / "report.html").as_uri())
    tab.wait_for_selector("html[data-drawn]", timeout=60_000)
    return tab, asked, said


@pytest.fixture(scope="module")
def table1(tmp_path_factory):
    """The folder of a page of 27 jobs, nine settings of three seeds."""
    tmp_path = tmp_path_factory.mktemp("table1")
    root = tmp_path / "jobs" / "table1"
    for model in ("resnet18", "resnet34", "wrn34_10"):
        for dataset in ("cifar10", "cifar100", "tiny_imagenet"):
            for seed in range(3):
                clean = 0.7 + 0.01 * seed
                write(
                    root, f"{model}-{dataset}-{seed}", model=model, dataset=dataset, seed=seed,
                    name=f"{model}-{dataset}-s{seed}", at=accuracies(clean, 0.5, 0.49),
                    mrc=scan(NAMES, "conv1", seed), target_modules=["conv1"], intervals=INTERVALS,
                    corruptions=corruptions(), provenance={"data": {"counts": {"test": 10_000}}},
                )  # fmt: skip
    page(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_page_of_27_jobs_in_a_browser(table1, browser):
    from playwright.sync_api import expect

    assert len(report(table1)) < 5_000_000
    tab, asked, said = opened(browser, table1)
    assert len(asked) == 1
    assert asked[0].startswith("file:")
    assert said == []
    drawn, count = tab.locator(".chart svg"), 3 * 3 + 2 * 9 + 2 * 9
    assert drawn.count() == int(tab.evaluate("document.documentElement.dataset.drawn")) == count

    column = "[...document.querySelectorAll('#jobs tbody tr:not([hidden])')].map(r => r.cells[{}].innerText)"
    headings = tab.locator("#jobs th").all_inner_texts()
    place = next(i for i, text in enumerate(headings) if text.startswith("clean AT"))
    tab.locator("#jobs th button").nth(place).click()
    first = [float(cell) for cell in tab.evaluate(column.format(place))]
    assert first == sorted(first)
    assert len(first) == 27
    tab.locator("#jobs th button").nth(place).click()
    assert tab.evaluate(column.format(place)) == [f"{value:.2f}" for value in reversed(first)]

    tab.fill("#filter", "resnet18 seed=1 tiny")
    expect(tab.locator("#kept")).to_have_text("1 of 27 jobs")
    assert len(tab.evaluate(column.format(0))) == 1
    assert tab.locator("figure:not([hidden])").count() == 3 + 2 + 2  # the others show nothing of it
    lines = tab.locator("#figure-6 .mark-line path")  # of Tiny-ImageNet, after three each of the others
    expect(lines).to_have_count(1)
    tab.fill("#filter", "")
    expect(lines).to_have_count(3)

    tab.locator("#figure-6 .role-mark.mark-symbol path").last.hover(force=True)
    tab.wait_for_selector("#vg-tooltip-element.visible", timeout=5000)
    assert re.search(r"series\s+wrn34_10, tiny_imagenet\s+α\s+0.7\s", tab.inner_text("#vg-tooltip-element"))
    assert said == []


ROBUST_AXIS = """[...document.querySelectorAll('#figure-2 .role-axis-label text')]
    .map(label => Number(label.textContent)).filter(value => value > 1)"""  # α's labels are not


@pytest.mark.slow
def test_a_word_with_a_minus_leaves_jobs_out_and_the_axes_follow(outlier, browser):
    from playwright.sync_api import expect

    tab, _, said = opened(browser, outlier)
    kept, entries = tab.locator("#kept"), tab.locator("#curves .legend li:visible")
    assert min(tab.evaluate(ROBUST_AXIS)) == 10
    tab.locator(".legend button").first.click()
    for text, count in (("-target=all", 3), ("-", 4), ("-#1", 3), ("least -seed=1 -seed=2", 1), ("--#1", 4)):
        tab.fill("#filter", text)
        expect(kept).to_have_text("" if text == "-" else f"{count} of 4 jobs")
        expect(entries).to_have_count(count)
        if text == "-target=all":
            expect(tab.locator("#figure-2 .mark-line path")).to_have_count(3)
            assert min(tab.evaluate(ROBUST_AXIS)) > 50
            # What was picked is gone: the others are seen.
            assert tab.locator("#figure-2 .mark-line path").first.get_attribute("opacity") in (None, "1")
    assert said == []


@pytest.mark.slow
def test_legends_are_whole_at_any_width_and_pick(outlier, browser):
    from playwright.sync_api import expect

    tab, _, said = opened(browser, outlier)
    for width in (1280, 390, 320):
        tab.set_viewport_size({"width": width, "height": 844})
        edges = tab.evaluate("""[...document.querySelectorAll('.legend button')]
            .map(own => [own.getBoundingClientRect().right, own.scrollWidth - own.clientWidth])""")
        assert all(right <= width and more <= 0 for right, more in edges)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator("#figure-0 .role-legend").count() == 0  # Vega's, which cuts
    seen = tab.locator("#curves .mark-line path:not([opacity='0.12'])")
    expect(seen).to_have_count(12)
    first, second = (tab.locator(".legend button").nth(i) for i in (0, 1))
    for button, pressed, count in ((first, "true", 3), (second, "true", 6), (first, "false", 3)):
        button.click()
        expect(button).to_have_attribute("aria-pressed", pressed)
        expect(seen).to_have_count(count)
    second.click()
    expect(seen).to_have_count(12)
    assert said == []


@pytest.mark.slow
def test_a_legend_is_for_the_figures_of_its_data_set_alone(tmp_path, browser):
    from playwright.sync_api import expect

    for number, (dataset, lr) in enumerate([("cifar10", 0.1), ("cifar10", 0.2), ("cifar100", 0.1)]):
        options = {"stage.finetune.lr": lr, "dataset.name": dataset}
        write(tmp_path / "jobs" / "s", f"job{number}", dataset=dataset, options=options, sweep=sweep())
    page(tmp_path)
    tab, _, said = opened(browser, tmp_path)
    bright = ".mark-line path:not([opacity='0.12'])"
    assert tab.locator(".legend").count() == 1  # the other data set has one curve
    tab.locator(".legend button").first.click()
    for figure in range(6):
        expect(tab.locator(f"#figure-{figure} .mark-line path")).to_have_count(2 if figure < 3 else 1)
        expect(tab.locator(f"#figure-{figure} {bright}")).to_have_count(1)
    assert said == []


@pytest.mark.slow
def test_no_table_is_cut_on_screen_or_on_paper(outlier, table1, browser):
    over = "[...document.querySelectorAll('table')].filter(one => {}).map(one => one.closest('section').id)"
    for folder in (outlier, table1):
        tab, _, said = opened(browser, folder)
        for width in (1280, 390):
            tab.set_viewport_size({"width": width, "height": 844})
            box = "one.parentElement.scrollHeight > one.parentElement.clientHeight"
            assert tab.evaluate(over.format(box)) == []
        tab.set_viewport_size({"width": 1032, "height": 703})  # A4 landscape within its margins
        tab.emulate_media(media="print")
        tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert tab.evaluate(over.format("one.scrollWidth > one.parentElement.clientWidth")) == []
        assert tab.locator("th button").count() == 0  # Chromium would not repeat the headings
        tab.evaluate("window.dispatchEvent(new Event('afterprint'))")
        tab.emulate_media(media="screen")
        tab.locator("#jobs th button").first.click()
        assert tab.locator("#jobs th").first.get_attribute("aria-sort") == "ascending"
        assert said == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs pdftotext (poppler-utils)")
def test_no_heading_stands_at_the_foot_of_a_sheet(table1, browser, tmp_path):
    tab, _, _ = opened(browser, table1)
    headings = set(tab.locator("h2, h3, figcaption, summary").all_inner_texts())
    introductions = tab.locator(".together:has(figure) > p").all_inner_texts()
    command = ["pdftotext", "-layout", tmp_path / "page.pdf", "-"]
    for height in range(600, 800, 40):
        tab.pdf(path=tmp_path / "page.pdf", width="1120px", height=f"{height}px")
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        sheets = [[line.strip() for line in sheet.splitlines() if line.strip()] for sheet in text.split("\f")]
        sheets = [sheet for sheet in sheets if sheet]
        assert len(sheets) > 10
        last = [sheet[-1] for sheet in sheets]
        assert [
            line for line in last if line in headings or any(line in text for text in introductions)
        ] == []


@pytest.mark.slow
def test_hostile_text_in_a_browser(hostile, browser):
    for width in (1280, 390):
        tab, asked, said = opened(browser, hostile, width)
        tab.locator(".mark-rect path").first.hover(force=True)
        tab.wait_for_selector("#vg-tooltip-element.visible")
        assert tab.evaluate("window.hacked") is None
        assert tab.locator("img").count() == 0
        assert len(asked) == 1
        assert said == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
