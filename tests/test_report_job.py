"""One job's table and page: exact cells from known numbers."""

from __future__ import annotations

import io
import math
import re

import pandas as pd
import pytest
from report_samples import INTERVALS, accuracies, corruptions, resnet_modules, summary, write
from rich.console import Console

from rift.errors import UserError
from rift.report import job_frame, job_report, print_job, print_job_table
from rift.report.cells import MISSING, mean_and_std, number, p_value, paired_error


def shown(run, width=140):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_job_table(console, run)
    return console.file.getvalue()


def test_cells_of_a_full_summary():
    frame = job_frame(summary()).set_index("accuracy (%)")
    assert list(frame.index) == ["clean", "robust (worst run of 3)", "robust (worst per image of 3)"]
    assert list(frame.columns) == ["AT", "RiFT", "Δ (points)", "paper AT", "paper RiFT", "paper Δ"]
    # sqrt(0.81 * 0.19 / 10 000) = 0.00392; paired: sqrt((525 - 275² / 10 000) / 10 000²) = 0.00227
    assert frame.loc["clean"].tolist() == [
        "81.00 ± 0.39", "83.75 ± 0.37", "+2.75 ± 0.23 (p < 0.0001)", "81.46", "83.44", "+1.98",
    ]  # fmt: skip
    assert frame.loc["robust (worst run of 3)"].tolist() == [
        "53.00 ± 0.50", "53.05 ± 0.50", "+0.05", "53.63", "53.65", "+0.02",
    ]  # fmt: skip
    assert frame.loc["robust (worst per image of 3)"].tolist() == [
        "52.00 ± 0.50", "51.95 ± 0.50", "-0.05 ± 0.11 (p = 0.71)", MISSING, MISSING, MISSING,
    ]  # fmt: skip


def test_with_one_restart_both_readings_carry_the_paired_test():
    run = summary(attack=summary()["attack"] | {"restarts": 1}, at=accuracies(0.81, 0.52, 0.52))
    run["rift"] = accuracies(0.83, 0.5195, 0.5195)
    assert job_frame(run)["Δ (points)"].tolist()[1:] == ["-0.05 ± 0.11 (p = 0.71)"] * 2


def test_missing_parts_are_dashes():
    frame = job_frame(summary(rift=None, paired=None, alpha=None, dataset="digits")).set_index("accuracy (%)")
    assert list(frame.columns) == ["AT", "RiFT", "Δ (points)"]
    assert frame.loc["clean"].tolist() == ["81.00 ± 0.39", MISSING, MISSING]
    frame = job_frame(summary(at=None, rift=None, paired=None))
    assert frame[["AT", "RiFT", "Δ (points)"]].to_numpy().tolist() == [[MISSING] * 3] * 3
    at = {"clean_accuracy": 0.5, "robust_accuracy": 0.0}  # no image count: no error; zero is a number
    assert job_frame(summary(at=at, rift=None))["AT"].tolist() == ["50.00", "0.00", MISSING]


def test_number_formats():
    assert number(-0.001, signed=True) == "+0.00"
    assert number(None) == number(math.nan) == MISSING
    assert p_value(0.0321) == "p = 0.032"
    assert p_value(0.0001) == "p = 0.0001"
    assert p_value(1.0) == "p = 1"
    assert paired_error(10, 10, 100) == pytest.approx(math.sqrt(0.2 / 100))
    assert paired_error(0, 100, 100) == 0.0  # every image changes the same way: no spread


def test_mean_and_std_use_the_sample_deviation():
    assert mean_and_std(pd.Series([1.0, 2.0, 3.0]), expected=3) == "2.00 ± 1.00"
    assert mean_and_std(pd.Series([2.0]), expected=1) == "2.00"
    assert mean_and_std(pd.Series([1.0, None, 3.0]), expected=3, signed=True) == "+2.00 ± 1.41 (2 seeds)"
    assert mean_and_std(pd.Series([None, None], dtype=float), expected=2) == MISSING


@pytest.mark.parametrize("width", [80, 140])
def test_printed_table_fits_and_says_how_the_run_differs(width):
    text = shown(summary(), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for cell in ("81.00 ± 0.39", "+2.75 ± 0.23", "(p < 0.0001)", "81.46", "83.44", "+1.98", "53.65"):
        assert cell in text
    assert "- trained for 5 epochs, not 110" in text
    assert "Note: the AT epoch was selected on the test set" in text
    assert "layer2.1.conv2 (least_critical)" in text
    assert "α* = 0.70" in text
    assert "smoke" not in text


def printed(run, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_job(console, run)
    return console.file.getvalue()


TRAINING = {
    "epochs": 110,
    "selection_split": "test",
    "attack": "pgd10",
    "best": {"epoch": 101, "clean_accuracy": 0.8146, "robust_accuracy": 0.5363},
}


def test_a_job_that_went_no_further_than_training_says_what_it_reached():
    text = printed(summary(at=None, rift=None, mrc=None, sweep=None, alpha=None, training=TRAINING))
    assert "θ_AT (epoch 101 of 110): clean 81.46 %, robust 53.63 % (pgd10, one run, test split)." in text
    assert "criticality" not in text and "accuracy (%)" not in text


@pytest.mark.parametrize("width", [80, 160])
def test_a_job_that_went_no_further_than_the_scan_prints_the_ranking(width):
    run = summary(at=None, rift=None, sweep=None, alpha=None, training=TRAINING)
    text = printed(run, width)
    lines = [line.split() for line in text.splitlines() if line.split()[:1] and "." in line.split()[0]]
    ranked = sorted(run["mrc"], key=lambda entry: entry["mrc"])
    modules = [words[0] for words in lines if words[0] in {entry["module"] for entry in ranked}]
    assert modules == [entry["module"] for entry in ranked if "." in entry["module"]]
    assert max(map(len, text.splitlines())) <= width


def test_a_job_that_went_no_further_than_the_sweep_prints_alpha():
    text = printed(summary(at=None, rift=None, training=TRAINING))
    assert "α* = 0.70: clean 83.42 %, robust 53.60 % on the selection split." in text


def test_smoke_runs_are_marked(tmp_path):
    assert "smoke run: not a result" in shown(summary(smoke=True))
    page = job_report(write(tmp_path, smoke=True, mrc=None, sweep=None))["page"]
    assert "**Smoke run: not a result.**" in page.read_text()


def test_markup_in_a_name_is_printed_as_it_is():
    assert "run[/bold]" in shown(summary(name="run[/bold]", notes=["[red]note[/red]"]))
    assert "[red]note[/red]" in shown(summary(notes=["[red]note[/red]"]))


def test_job_report_writes_the_page_and_both_figures(tmp_path):
    folder = write(tmp_path)
    report = job_report(folder)
    assert "81.00 ± 0.39" in report["page"].read_text()
    figures = [path.relative_to(folder).as_posix() for path in report["figures"]]
    assert figures == ["figures/mrc.png", "figures/mrc.pdf", "figures/alpha.png", "figures/alpha.pdf"]
    page = report["page"].read_text()
    assert report["page"] == folder / "report.md"
    for link in ("![mrc](figures/mrc.png)", "![alpha](figures/alpha.png)"):
        assert link in page
    assert all(f"`{module}`" in page for module in resnet_modules("resnet18"))
    assert "0.70 *" in page
    assert "commit: `abc123` with uncommitted changes" in page
    assert "seconds: at 10.2, mrc 3.0" in page


def test_job_report_of_a_training_alone_has_no_figures(tmp_path):
    folder = write(tmp_path, rift=None, paired=None, mrc=None, sweep=None, alpha=None, differences=None)
    assert job_report(folder)["figures"] == []
    assert not (folder / "figures").exists()
    assert "![" not in (folder / "report.md").read_text()


def test_job_report_refuses_a_folder_without_a_summary(tmp_path):
    with pytest.raises(UserError, match=r"summary\.json cannot be read"):
        job_report(tmp_path)


def with_ood(kind):
    suffix = {"published": "", "generated": "_generated"}[kind]
    run = summary(corruptions=corruptions(kind), intervals=INTERVALS)
    run["at"][f"ood_accuracy{suffix}"], run["rift"][f"ood_accuracy{suffix}"] = 0.7356, 0.7566
    return run


def test_the_third_column_of_published_images_stands_beside_the_paper_s():
    row = job_frame(with_ood("published")).set_index("accuracy (%)").loc["OOD (published images)"]
    assert row.tolist() == ["73.56", "75.66", "+2.10", "+1.70 … +2.50: better", "73.56", "75.69", "+2.13"]


def test_generated_images_never_do():
    frame = job_frame(with_ood("generated")).set_index("accuracy (%)")
    row = frame.loc["OOD (generated images)"]
    assert row[["paper AT", "paper RiFT", "paper Δ"]].tolist() == [MISSING] * 3
    text = shown(with_ood("generated"))
    assert "not the published images, so not to be compared with published numbers" in " ".join(text.split())


def test_every_difference_has_an_interval_and_a_verdict():
    frame = job_frame(with_ood("published")).set_index("accuracy (%)")
    assert frame["Δ, 95 % interval"].tolist() == [
        "+2.35 … +3.15: better",
        "-0.25 … +0.35: no difference seen (n = 10000 images)",
        "-0.35 … +0.25: no difference seen (n = 10000 images)",
        "+1.70 … +2.50: better",
    ]
    said = " ".join(shown(with_ood("published")).split())
    assert "Δ OOD − Δ clean: -0.65 points (-0.85 … -0.45, n = 10000 images): OOD gains less" in said


@pytest.mark.parametrize("width", [80, 100, 160])
def test_three_columns_fit_the_terminal(width):
    text = shown(with_ood("published"), width)
    assert max(map(len, text.splitlines())) <= width
    assert all(cell in text for cell in ("81.00 ± 0.39", "75.66", "+2.10"))


def longest_row(text):
    """Lines of the longest row of the tables in a text: a row begins where the first column does."""
    rows, longest = 0, 0
    for line in text.splitlines():
        begins = line.startswith((" clean", " robust", " OOD", " AutoAttack"))
        rows = 1 if begins else rows + 1 if rows and line.strip() else 0
        longest = max(longest, rows)
    return longest


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
@pytest.mark.parametrize("width", [80, 100, 120])
def test_in_a_narrow_terminal_no_row_is_higher_than_three_lines_and_nothing_is_left_out(width, dataset):
    run = with_ood("published") | {"dataset": dataset}
    text = shown(run, width).split("  Attack:")[0]
    assert max(map(len, text.splitlines())) <= width and longest_row(text) <= 3
    said = " ".join(text.split())
    for row in job_frame(run).to_numpy().tolist():
        cells = [part for cell in row[1:] for part in re.split(r" \(|: ", cell)]
        missing = [cell for cell in cells if cell.removesuffix(")") not in said]
        assert not missing, missing


def test_each_row_is_a_line_where_there_is_room():
    assert longest_row(shown(with_ood("published"), 120).split("  Attack:")[0]) == 1


def test_the_page_has_every_version_and_every_mean(tmp_path):
    folder = write(tmp_path, corruptions=corruptions(), intervals=INTERVALS)
    report = job_report(folder)
    page = report["page"].read_text()
    assert "## Under corruption" in page and "![corruptions](figures/corruptions.png)" in page
    for mean in ("15x5", "15_severity5", "18x5"):
        assert f"| {mean} " in page
    assert "| fog " in page and "79.0 / 80.0" in page
    assert (folder / "figures" / "corruptions.pdf").is_file()
