"""Many jobs in one table: grouping, statistics over seeds, duplicates."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from report_samples import accuracies, corruptions, summary

from rift.report.cells import MISSING
from rift.report.results import Job
from rift.report.settings import settings_texts
from rift.report.study import jobs_frame, one_job_per_seed, study_frame
from rift.report.study_cells import study_caption, study_cells
from rift.report.texts import mean_text


def job(name="a", written=0.0, **changes):
    return Job(Path(name), summary(**({"overrides": {}} | changes)), written)


def three_seeds():
    clean, robust, alphas = (0.80, 0.81, 0.82), (0.50, 0.52, 0.54), (0.6, 0.7, 0.8)
    return [
        job(
            f"s{seed}",
            seed=seed,
            key=f"k{seed}",
            overrides={"seed": seed},
            alpha=alphas[seed],
            at=accuracies(clean[seed], robust[seed], robust[seed] - 0.01),
            rift=accuracies(clean[seed] + 0.02 + 0.01 * seed, robust[seed] - 0.001, robust[seed] - 0.02),
        )
        for seed in range(3)
    ]


def table(jobs):
    kept, warnings = one_job_per_seed(jobs_frame(jobs))
    return kept, warnings


def test_mean_and_std_over_seeds():
    kept, warnings = table(three_seeds())
    assert warnings == []
    row = study_frame(kept).iloc[0]
    assert (row["n"], row["seeds"]) == (3, "0 1 2")
    expected = {
        "clean_at": (81.0, 1.0), "clean_rift": (84.0, 2.0), "clean_delta": (3.0, 1.0),
        "robust_at": (52.0, 2.0), "robust_rift": (51.9, 2.0), "robust_delta": (-0.1, 0.0),
        "robust_per_image_delta": (-1.0, 0.0), "alpha": (0.7, 0.1),
    }  # fmt: skip
    for name, (mean, std) in expected.items():
        assert row[f"{name}_mean"] == pytest.approx(mean), name
        assert row[f"{name}_std"] == pytest.approx(std, abs=1e-9), name
    assert row["paper_clean_delta"] == pytest.approx(1.98)

    cells = study_cells(kept, stacked=False).iloc[0]
    assert cells["clean AT"] == "81.00 ± 1.00"
    assert cells["clean Δ"] == "+3.00 ± 1.00"
    assert cells["robust Δ"] == "-0.10 ± 0.00"
    assert cells["α*"] == "0.70 ± 0.10"
    assert cells["paper robust RiFT"] == "53.65"
    stacked = study_cells(kept, stacked=True).iloc[0]
    assert stacked["AT"] == "81.00 ± 1.00\n81.46\n52.00 ± 2.00\n53.63"
    assert stacked["Δ"] == "+3.00 ± 1.00\n+1.98\n-0.10 ± 0.00\n+0.02"
    assert "3 seeds, α* = 0.70 ± 0.10" in stacked["setting"]


def test_one_seed_has_no_deviation():
    kept, _ = table([job()])
    assert math.isnan(study_frame(kept).iloc[0]["clean_at_std"])
    assert study_cells(kept, stacked=False).iloc[0]["clean AT"] == "81.00"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "resnet34"},
        {"dataset": "cifar100"},
        {"method": "trades"},
        {"protocol": "holdout"},
        {"target": "all"},
        {"options": {"stage.finetune.lr": 0.01}},
        {"attack": summary()["attack"] | {"name": "pgd20", "steps": 20}},
        {"smoke": True},
    ],
)
def test_different_settings_are_never_averaged(change):
    kept, warnings = table([job("a"), job("b", key="other", **change)])
    assert warnings == []
    assert study_frame(kept)["n"].tolist() == [1, 1]


def test_what_was_typed_does_not_split_the_seeds():
    typed = {"runtime.threads": "8", "dataset.root": "/x", "experiment": "short"}
    kept, _ = table([job("a"), job("b", seed=1, overrides=typed)])
    assert study_frame(kept)["n"].tolist() == [2]


def test_rows_are_told_apart_by_the_resolved_options_in_which_they_differ():
    shared = {"stage.at.lr": 0.1, "attack.steps": 10, "evaluation_attack.steps": 10}
    first = shared | {"stage.finetune.lr": 0.01, "stage.at.milestones": [100, 105]}
    second = shared | {"stage.finetune.lr": 0.001, "stage.at.milestones": [5]}
    assert settings_texts(["a", "a"], [first, second]) == [
        "stage.at.milestones=[100, 105] stage.finetune.lr=0.01",
        "stage.at.milestones=[5] stage.finetune.lr=0.001",
    ]
    assert settings_texts(["a", "b"], [first, second]) == ["", ""]  # another column tells them apart
    assert settings_texts(["a", "a"], [first, first]) == ["", ""]


def test_an_attack_that_follows_the_training_attack_is_no_setting_of_its_own():
    three, ten = ({"attack.steps": n, "evaluation_attack.steps": n} for n in (3, 10))
    assert settings_texts(["a", "a"], [three, ten]) == ["attack.steps=3", "attack.steps=10"]
    other = three | {"evaluation_attack.steps": 20}
    assert settings_texts(["a", "a"], [three, other]) == ["", "evaluation_attack.steps=20"]


def test_the_same_seed_twice_warns_and_uses_the_newest():
    old = job("old", 1.0, key="k1", at=accuracies(0.5, 0.4, 0.4))
    new = job("new", 2.0, key="k2", at=accuracies(0.6, 0.4, 0.4))
    for jobs in ([old, new], [new, old]):
        kept, warnings = table(jobs)
        assert kept["folder"].tolist() == ["new"]
        assert len(warnings) == 1
        assert "seed 0 of resnet18-cifar10-pgd_at-s0 has 2 jobs; used new, not old" in warnings[0]
        row = study_frame(kept).iloc[0]
        assert (row["n"], row["clean_at_mean"]) == (1, pytest.approx(60.0))


def test_a_newer_partial_job_does_not_hide_a_complete_one():
    complete, partial = (
        job("complete", 1.0),
        job("partial", 2.0, key="k2", rift=None, paired=None, alpha=None),
    )
    kept, warnings = table([complete, partial])
    assert kept["folder"].tolist() == ["complete"]
    assert len(warnings) == 1


def test_copies_of_one_job_are_one_job_without_a_warning():
    kept, warnings = table([job("a", 1.0), job("copy", 2.0)])
    assert len(kept) == 1
    assert warnings == []


def test_partial_jobs_show_dashes_and_say_how_many_seeds_a_cell_has():
    only_at = job("b", seed=1, rift=None, paired=None, alpha=None)
    cells = study_cells(table([job("a"), only_at])[0], stacked=False).iloc[0]
    assert cells["clean AT"] == "81.00 ± 0.00"
    assert cells["clean RiFT"] == "83.75 (1 seed)"
    cells = study_cells(table([only_at])[0], stacked=False).iloc[0]
    assert cells["clean RiFT"] == cells["clean Δ"] == cells["α*"] == MISSING


def test_columns_without_content_are_left_out():
    columns = set(study_cells(table([job(dataset="digits")])[0], stacked=False))
    assert not any(name.startswith("paper") for name in columns)
    assert "settings" not in columns
    assert study_cells(table([job(dataset="digits")])[0], stacked=True).iloc[0]["AT"] == "81.00\n53.00"


def test_caption_names_the_attack_and_the_papers_tables():
    kept, _ = table([job("a"), job("b", method="trades")])
    caption = study_caption(kept)
    assert "the worst run of pgd10, linf, 8/255, step 2/255, 3 runs" in caption
    assert "Paper: Table 1; Table 2." in caption


def test_published_and_generated_images_have_columns_of_their_own():
    published = job("a", at=accuracies(0.81, 0.53, 0.52) | {"ood_accuracy": 0.73})
    generated = job("b", at=accuracies(0.81, 0.53, 0.52) | {"ood_accuracy_generated": 0.72}, dataset="digits")
    cells = study_cells(table([published, generated])[0], stacked=False).set_index("dataset")
    assert cells.loc["cifar10", "OOD AT"] == "73.00" and cells.loc["cifar10", "OOD generated AT"] == MISSING
    assert cells.loc["digits", "OOD generated AT"] == "72.00" and cells.loc["digits", "OOD AT"] == MISSING
    assert cells.loc["cifar10", "paper OOD AT"] == "73.56"
    tabled = table([job("d", corruptions=corruptions("published"))])[0]
    assert "OOD: mean over paper15, severities 1–5." in study_caption(tabled)
    stacked = study_cells(table([published])[0], stacked=True).iloc[0]
    assert stacked[""].splitlines() == ["clean", "  paper", "OOD", "  paper", "robust", "  paper"]
    assert not any("OOD" in name for name in study_cells(table([job("c")])[0], stacked=False))


def test_what_ood_is_the_mean_of_tells_rows_apart():
    def measured(name, severities, **changes):
        options = {"stage.evaluate.ood": "paper15", "stage.evaluate.severities": severities}
        return job(name, options=options, dataset="digits", **changes)

    kept, warnings = table([measured("a", [5]), measured("b", [1, 5]), measured("c", [5], target="all")])
    assert warnings == [] and study_frame(kept)["n"].tolist() == [1, 1, 1]
    cells = study_cells(kept, stacked=False)
    assert sorted(cells["ood"]) == [
        "paper15, severities 1, 5",
        "paper15, severities 5",
        "paper15, severities 5",
    ]
    stacked = study_cells(kept, stacked=True)["setting"]
    assert all("OOD: paper15, severities" in setting for setting in stacked)
    assert "OOD:" not in study_cells(table([measured("a", [5])])[0], stacked=True)["setting"].iloc[0]


@pytest.mark.parametrize(
    ("severities", "words"),
    [
        ([5, 1, 3, 2, 4], "1–5"),
        ([1, 2], "1, 2"),
        ([1, 3, 5], "1, 3, 5"),
        ([], ""),
        ([0, 1, 10**15], f"0, 1, {10**15}"),
    ],
)
def test_severities_in_a_row_are_told_by_their_ends(severities, words):
    """Also of a summary from elsewhere, whose severities may be anything."""
    assert mean_text("paper15", severities) == f"paper15, severities {words}"
