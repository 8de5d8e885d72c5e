"""The last words of a job: known verdicts from verdicts of images that are made by hand."""

from __future__ import annotations

import io
from dataclasses import asdict

import pytest
import torch
from report_samples import summary, write
from rich.console import Console

from rift.comparison import paired_bootstrap
from rift.report import conclusion_lines, job_report, print_conclusion

IMAGES = 400


def compared(gained, lost):
    """The interval of two networks that differ on `gained` + `lost` of 400 images."""
    first, second = torch.zeros(2, IMAGES)
    second[:gained] = 1
    first[gained : gained + lost] = 1
    found = paired_bootstrap(first, second)
    return {**asdict(found), "verdict": found.verdict}


def last(clean, robust, **changes):
    intervals = {"clean": compared(*clean), "robust": compared(*robust)}
    return conclusion_lines(summary(intervals=intervals, **changes))[-1]


# Six images that all change one way may be chance (2 · 2⁻⁶ = 0.031 is not, 2 · 2⁻⁵ = 0.063 is).
@pytest.mark.parametrize(
    ("clean", "robust", "said"),
    [
        ((6, 0), (3, 3), "RiFT is better in clean accuracy, no difference seen in robust accuracy"),
        ((5, 0), (0, 5), "within noise; these test images do not tell RiFT from AT"),
        ((40, 10), (0, 30), "RiFT is better in clean accuracy, worse in robust accuracy"),
        ((0, 6), (0, 6), "RiFT is worse in clean and robust accuracy"),
    ],
)
def test_the_last_line_says_what_the_differences_come_to(clean, robust, said):
    assert last(clean, robust) == f"Verdict: {said}."


def test_each_difference_has_its_interval_and_its_images():
    lines = conclusion_lines(summary(intervals={"clean": compared(400, 0), "robust": compared(0, 0)}))
    assert lines[:2] == [  # resampling cannot move what is the same for every image
        "clean +100.00 points (+100.00 … +100.00, n = 400 images): better",
        "robust +0.00 points (+0.00 … +0.00, n = 400 images): no difference seen",
    ]


def test_an_interval_off_zero_that_the_sign_test_does_not_bear_out_says_so():
    (line, _) = conclusion_lines(summary(intervals={"clean": compared(5, 0)}))
    assert line.startswith("clean +1.25 points (+0.")
    assert line.endswith(", n = 400 images): no difference seen (sign test: p = 0.062)")  # 2 · 2⁻⁵


def test_a_choice_on_the_test_images_is_said_where_something_is_claimed():
    on_test = {"options": {"stage.interpolate.selection_split": "test"}}
    assert last((6, 0), (0, 0), **on_test).endswith("chosen on the same images, which flatters it.")
    assert "flatters" not in last((6, 0), (0, 0), options={"stage.interpolate.selection_split": "holdout"})
    assert "within noise" in last((5, 0), (0, 0), **on_test)


def test_no_step_and_a_smoke_run_are_no_findings():
    assert "RiFT is AT itself (α* = 0)" in last((0, 0), (0, 0), alpha=0.0)
    assert last((40, 0), (0, 0), smoke=True) == "Verdict: smoke run: not a result."


def test_nothing_is_concluded_where_nothing_was_compared():
    assert conclusion_lines(summary()) == conclusion_lines(summary(intervals={})) == []


def test_it_is_printed_without_breaks_and_stands_on_the_page(tmp_path):
    run = summary(intervals={"clean": compared(6, 0), "robust": compared(3, 3)})
    console = Console(file=io.StringIO(), width=40, color_system=None)
    print_conclusion(console, run)
    assert console.file.getvalue().splitlines() == conclusion_lines(run)
    page = job_report(write(tmp_path, intervals=run["intervals"]))["page"].read_text()
    assert all(f"- {line}\n" in page for line in conclusion_lines(run))
