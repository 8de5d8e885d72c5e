"""An experiment by its name: which jobs fill its cells, what stands beside the paper, what is not run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from report_samples import accuracies, resnet_modules, scan, summary, write

from rift.report import joint, stability
from rift.report.__main__ import main
from rift.report.experiment_command import render
from rift.report.experiment_page import figures, sections
from rift.report.experiment_table import NOT_RUN, experiment_cells, experiment_frame, footnotes
from rift.report.experiments import arm_options, experiment_names, filled_cells, load_experiment
from rift.report.results import Job
from rift.report.tradeoff import dominated_area, harmonic_mean

STAGES = dict.fromkeys(("at", "mrc", "joint", "finetune", "interpolate", "evaluate_at"), "store/x")
PROTOCOL = {"stage.finetune.batchnorm": "frozen"}


def job(name="a", written=0.0, **changes):
    return Job(Path(name), summary(**({"overrides": {}, "differences": []} | changes)), written)


def seeds(count=3, **changes):
    return [
        job(
            f"s{seed}",
            seed=seed,
            at=accuracies(0.81 + 0.001 * seed, 0.53, 0.52),
            rift=accuracies(0.83 + 0.001 * seed, 0.53, 0.52),
            **changes,
        )
        for seed in range(count)
    ]


def cells_of(name, jobs):
    return filled_cells(load_experiment(name), jobs)


# -- one number for two accuracies -------------------------------------------------------------------


def test_harmonic_mean_and_dominated_area_have_their_closed_forms():
    assert harmonic_mean(0.8, 0.4) == pytest.approx(2 * 0.32 / 1.2)
    assert harmonic_mean(0.0, 0.0) == 0
    assert harmonic_mean(None, 0.5) is None
    assert dominated_area([(0.8, 0.5)]) == pytest.approx(0.4)
    # A staircase: 0.5 high up to 0.8, and what 0.6 at 0.7 adds.
    assert dominated_area([(0.8, 0.5), (0.7, 0.6)]) == pytest.approx(0.4 + 0.07)
    assert dominated_area([(0.7, 0.6), (0.8, 0.5), (0.6, 0.4)]) == pytest.approx(0.47)  # dominated, any order
    assert dominated_area([]) == 0


# -- cells -------------------------------------------------------------------------------------------


def test_every_sweep_of_the_configuration_is_an_experiment():
    assert set(experiment_names()) >= {"table1", "table2", "table3", "table4", "figure1", "figure3"}
    assert set(experiment_names()) >= {"bn_ablation", "protocol_gap", "mrc_stability", "joint_mrc"}
    assert "demo" not in experiment_names()
    for name in experiment_names():
        assert cells_of(name, []), name


def test_table_1_has_nine_cells_of_three_seeds_and_the_papers_numbers_without_any_run():
    cells = cells_of("table1", [])
    assert len(cells) == 9
    assert {cell.seeds for cell in cells} == {(0, 1, 2)}
    frame = experiment_frame(cells)
    clean = frame[
        (frame["model"] == "wrn34_10") & (frame["dataset"] == "cifar10") & (frame["metric"] == "clean")
    ]
    assert clean[["at_paper", "rift_paper"]].to_numpy().tolist() == [[87.41, 87.89]]
    assert clean["n"].tolist() == [0]
    shown = experiment_cells(cells, stacked=False)
    assert set(shown["AT ours"]) == {NOT_RUN}


@pytest.mark.parametrize("name", ["table2", "table3", "table4"])
def test_every_cell_of_the_papers_other_tables_has_its_reported_row(name):
    frame = experiment_frame(cells_of(name, []))
    clean = frame[frame["metric"] == "clean"]
    known = clean[~clean["target"].isin(["random"])]
    assert known["rift_paper"].notna().all()
    assert len(known) == {"table2": 8, "table3": 4, "table4": 4}[name]


def test_the_papers_main_row_is_a_cell_of_several_tables_by_what_ran():
    jobs = seeds(study="default", options=PROTOCOL)
    for name, filled in (("table1", 1), ("table3", 1), ("table4", 1), ("figure1", 1)):
        cells = cells_of(name, jobs)
        assert [len(cell.jobs) for cell in cells].count(3) == filled, name
    assert not any(len(cell.jobs) for cell in cells_of("table2", jobs))


def test_a_module_given_by_name_counts_as_least_critical_only_if_the_authors_found_it():
    named = seeds(1, target="layer2.1.conv2")
    other = seeds(1, target="layer1.0.conv1")
    assert sum(len(cell.jobs) for cell in cells_of("table1", named)) == 1
    assert sum(len(cell.jobs) for cell in cells_of("table1", other)) == 0


def test_ours_the_papers_and_their_difference():
    frame = experiment_frame(cells_of("table1", seeds()))
    row = frame[(frame["metric"] == "clean") & (frame["n"] == 3)].iloc[0]
    assert row["at_mean"] == pytest.approx(81.1)
    assert row["at_std"] == pytest.approx(0.1)
    assert row["at_difference"] == pytest.approx(81.1 - 81.46)
    assert row["delta_mean"] == pytest.approx(2.0)
    assert row["delta_difference"] == pytest.approx(2.0 - 1.98)
    assert (row["seen"], row["delta_vs_paper"]) == ("better", "agrees")
    robust = frame[(frame["metric"] == "robust") & (frame["n"] == 3)].iloc[0]
    assert (robust["seen"], robust["at_vs_paper"]) == ("no difference seen", "below")
    harmonic = frame[(frame["metric"] == "harmonic") & (frame["n"] == 3)].iloc[0]
    assert harmonic["at_paper"] == pytest.approx(2 * 81.46 * 53.63 / (81.46 + 53.63))


def test_missing_seeds_are_counted_and_missing_metrics_not_run():
    cells = cells_of("table1", seeds(2))
    shown = experiment_cells(cells, stacked=False)
    row = shown[shown["cell"].str.contains("2 of 3 seeds")].iloc[0]
    assert "(2 seeds)" in row["AT ours"]
    assert row["seen"] == "too few seeds"
    ood = shown.iloc[shown.index.get_loc(row.name) + 2]
    assert (ood["metric"], ood["AT ours"], ood["AT paper"]) == ("OOD", NOT_RUN, "73.56")


def test_cells_that_differ_from_the_paper_are_marked_and_the_mark_says_how():
    jobs = seeds(differences=["stage.at.epochs = 5 (paper: 110)", "stage.finetune.target = all (paper: x)"])
    cells = cells_of("table1", jobs)
    (note,) = footnotes(cells)
    assert note == "[a] stage.at.epochs = 5 (paper: 110)"
    shown = experiment_cells(cells, stacked=False)
    assert shown["cell"].str.contains(r"\[a\]").sum() == 1


def test_of_several_jobs_of_a_cell_the_ones_nearest_to_the_paper_count():
    short = seeds(
        differences=["stage.at.epochs = 5 (paper: 110)"], options={"stage.at.epochs": 5}, study="table1"
    )
    whole = seeds(2, options={"stage.at.epochs": 110})
    cells = cells_of("table1", short + whole)
    filled = next(cell for cell in cells if len(cell.jobs))
    assert len(filled.jobs) == 2
    assert filled.others == 3
    assert "3 finished jobs of these cells have other options" in footnotes(cells)[-1]


def test_another_network_of_the_same_study_is_shown_in_place_of_rows_that_nobody_ran():
    small = seeds(
        study="table4", model="resnet_small", dataset="digits", target="top_k", target_modules=["a", "b"]
    )
    cells = cells_of("table4", small)
    assert {cell.setting["model"] for cell in cells} == {"resnet_small"}
    assert [len(cell.jobs) for cell in cells] == [0, 3, 0, 0]  # k = 1, 2, 3, 5
    both = cells_of("table4", small + seeds())
    assert len(both) == 8


def test_a_value_that_the_file_does_not_sweep_has_cells_of_its_own():
    small = seeds(study="table1", model="resnet_small", dataset="digits")
    cells = cells_of("table1", small)
    assert [cell.label for cell in cells] == ["resnet_small digits pgd_at paper least_critical"]
    assert len(cells[0].jobs) == 3
    other = seeds(
        study="table1", dataset="digits"
    )  # a swept network on another set: the file's networks on it
    assert [len(cell.jobs) for cell in cells_of("table1", other)] == [3, 0, 0]


# -- arms --------------------------------------------------------------------------------------------


def arm_job(arm, seed, **changes):
    options = PROTOCOL | arm_options(arm)
    return job(f"{arm}{seed}", seed=seed, study="x", options=options, **changes)


def test_jobs_belong_to_an_arm_by_their_options():
    jobs = [arm_job(arm, seed) for arm in ("moving", "frozen", "kept") for seed in (0, 1, 2)]
    jobs += [arm_job("only_statistics", 0, target="none")]
    filled = {cell.arm: len(cell.jobs) for cell in cells_of("bn_ablation", jobs)}
    assert filled == {"moving": 3, "frozen": 3, "only_statistics": 1, "kept": 3}


def stability_jobs():
    """The first arm ranks like the reference; the second the other way round; seeds agree."""
    modules = resnet_modules("resnet18")
    ranked = scan(modules, "layer2.1.conv2")
    turned = [row | {"mrc": 1 / row["mrc"]} for row in ranked]
    gains = [
        {
            "module": row["module"], "mrc": row["mrc"], "rank": row["rank"], "alpha": 0.5,
            "delta_clean": -0.001 * row["mrc"], "end_delta_clean": 0.001 * row["mrc"],
            "end_delta_robust": 0.0,
        }
        for row in ranked
    ]  # fmt: skip
    jobs = []
    for seed in range(3):
        jobs += [arm_job("scan", seed, mrc=ranked, gains=gains, at=None, rift=None, sweep=None)]
        jobs += [arm_job("scan_half_radius", seed, mrc=ranked, at=None, rift=None, sweep=None)]
        jobs += [arm_job("scan_projected", seed, mrc=turned, at=None, rift=None, sweep=None)]
    return jobs


def test_rank_correlations_of_the_ranking_and_of_the_gain():
    cells = cells_of("mrc_stability", stability_jobs())
    frame = stability.stability_frame(cells).groupby("change_of")[
        ["spearman", "kendall", "same_least", "change"]
    ]
    means = frame.mean()
    assert means.loc["a weight ball of half the radius"].tolist() == [1, 1, 1, 0]
    assert means.loc["projected ascent instead of Algorithm 1", "spearman"] == pytest.approx(-1)
    assert means.loc["projected ascent instead of Algorithm 1", "same_least"] == 0
    assert means.loc["another seed", "spearman"] == pytest.approx(1)
    relations = stability.relation_frame(cells)
    assert relations["delta_clean"].tolist() == pytest.approx([-1] * 3)
    assert relations["end_delta_clean"].tolist() == pytest.approx([1] * 3)
    assert relations["end_delta_robust"].isna().all()  # constant: no order to compare
    seen = stability.relation_cells(relations).set_index("MRC against")["seen"]
    assert seen["Δ clean to α*, test split"] == "falls with MRC"
    assert seen["Δ clean to α = 1"] == "rises with MRC"
    assert seen["Δ robust to α = 1"] == "too few seeds"
    assert relations["best_rank"].tolist() == [1, 1, 1]
    alone = stability.relation_cells(relations[:1]).set_index("MRC against")["seen"]
    assert alone["Δ clean to α = 1"] == "too few seeds; in this network p < 0.0001 over 21 modules"
    assert alone["Δ robust to α = 1"] == "too few seeds"


def test_a_scan_experiment_has_no_accuracy_table_and_one_that_evaluates_has():
    cells = cells_of("mrc_stability", stability_jobs())
    found = sections(load_experiment("mrc_stability"), cells)
    assert all(r"\toprule" in render(section, "latex", paper) for section in found for paper in (True, False))
    names = [section.name for section in found]
    assert names == ["mrc_stability-ranking", "mrc_stability-gains", "mrc_stability-choice"]
    cells = cells_of("table1", seeds())
    assert [section.name for section in sections(load_experiment("table1"), cells)] == ["table1"]


def test_sets_of_modules_side_by_side():
    def entry(modules, mrc):
        return {"modules": modules, "mrc": mrc, "robust_accuracy_drop": mrc / 10, "relative_norm": 0.1}

    scans = {
        "greedy": [entry(["a"], 0.1), entry(["a", "c"], 0.3)],
        "top_k": [entry(["a"], 0.1), entry(["a", "b"], 0.5)],
    }
    jobs = [
        job(
            f"{target}{seed}", seed=seed, target=target, target_modules=["a", "c"], joint=scans,
            stages=STAGES | {"joint": f"{target}/store/joint/{seed}"}, study="joint_mrc",
        )
        for target in ("joint_k", "top_k")
        for seed in (0, 1)
    ]  # fmt: skip
    frame = joint.joint_frame(cells_of("joint_mrc", jobs))
    assert len(frame) == 2 * 2 * 2  # two jobs of a network share one scan
    shown = joint.joint_cells(frame).set_index("modules")
    assert shown.loc["2", "joint MRC, k lowest"].startswith("0.500")
    assert shown.loc["2", "joint MRC, greedy"].startswith("0.300")
    assert shown["same set"].to_dict() == {"1": "2 of 2", "2": "0 of 2"}


# -- the command -------------------------------------------------------------------------------------


def test_the_command_writes_every_form_and_the_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        write(tmp_path / "outputs" / "jobs", f"s{seed}", seed=seed, overrides={})
    assert main(["table1"]) == 0
    folder = tmp_path / "outputs" / "report"
    names = {path.name for path in folder.iterdir()}
    assert {"table1.txt", "table1.md", "table1.csv", "table1.tex", "table1.png", "table1.pdf"} <= names
    assert "81.46" in (folder / "table1.md").read_text()
    assert r"\toprule" in (folder / "table1.tex").read_text()
    numbers = pd.read_csv(folder / "table1.csv")
    assert set(numbers["metric"]) >= {"clean", "robust", "ood", "harmonic", "area"}
    out = capsys.readouterr().out
    assert "not run" in out and "[a]" in out and "outputs/report/table1.png" in out


def test_one_form_alone_is_printed_and_nothing_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "outputs" / "jobs", overrides={})
    assert main(["table3", "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("## The paper's Table 3")
    assert not (tmp_path / "outputs" / "report").exists()


def test_nothing_run_yet_still_prints_the_papers_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["table2", "--format", "csv"]) == 0
    assert "81.54" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tabel1"], "'tabel1' is neither an experiment nor a folder: did you mean 'table1'?"),
        (["table1", "table2"], "name one at a time"),
        (["--collect"], "--collect needs the name of an experiment"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


def state(folder, state, **about):
    folder.mkdir(parents=True, exist_ok=True)
    own = {
        "study": "table4", "model": "resnet18", "dataset": "cifar10", "method": "pgd_at", "protocol": "paper",
        "smoke": False, "seed": 0, "target": "top_k", "options": {"stage.finetune.top_k": 2},
    }  # fmt: skip
    note = {"state": state, "began": "2026-11-26T07:00:00+00:00", "about": own | about}
    note["reason"] = "the disk is full" if state == "failed" else None
    (folder / "state.json").write_text(json.dumps(note))


def test_collect_tells_how_each_job_stands_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = tmp_path / "outputs" / "jobs"
    write(jobs, "done", study="table4", target="top_k", target_modules=["a", "b"], overrides={}, options={})
    state(jobs / "failed", "failed", seed=1)
    state(jobs / "killed", "running", seed=2)  # nobody holds its lock
    state(jobs / "other", "running", seed=0, options={"stage.finetune.top_k": 7})
    before = sorted(tmp_path.rglob("*"))
    assert main(["table4", "--collect"]) == 1
    out = capsys.readouterr().out
    assert "1 of 12 done, 1 failed, 1 stopped, 9 missing." in out
    assert "the disk is full" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_figures_have_what_the_cells_have(tmp_path):
    drawn = dict(figures(load_experiment("figure1"), cells_of("figure1", seeds())))
    assert set(drawn) == {"figure1", "figure1-curves"}
    curves = drawn["figure1-curves"].axes[0].lines
    assert len(curves) == 1
    assert math.isclose(curves[0].get_xdata()[0], 81.46)
    scans = [
        job(f"s{seed}", seed=seed, mrc=scan(resnet_modules("resnet18"), "layer2.1.conv2", seed))
        for seed in (0, 1)
    ]
    drawn = dict(figures(load_experiment("figure3"), cells_of("figure3", scans)))
    assert set(drawn) == {"figure3-scan"}
    assert len(drawn["figure3-scan"].axes[0].patches) == 21
    assert figures(load_experiment("figure3"), cells_of("figure3", [])) == []
    drawn = dict(figures(load_experiment("mrc_stability"), cells_of("mrc_stability", stability_jobs())))
    assert {"mrc_stability-gains", "mrc_stability-scan"} == set(drawn)


# -- what must not be mixed ------------------------------------------------------------------------------


def test_arms_of_other_trainings_are_never_compared():
    """Many arms of a short training, and a single scan of the paper's: the short ones belong together."""
    short = {"stage.at.epochs": 5}
    jobs = [
        job(f"{arm}{seed}", seed=seed, study="mrc_stability", options=arm_options(arm) | short,
            differences=["stage.at.epochs = 5 (paper: 110)"])
        for arm in ("scan", "scan_projected") for seed in (0, 1)
    ]  # fmt: skip
    jobs.append(job("long", study="mrc_stability", options=arm_options("scan") | {"stage.at.epochs": 110}))
    for cell in cells_of("mrc_stability", jobs):
        for one in cell.jobs["job"]:
            assert one.summary["options"]["stage.at.epochs"] == 5
    images = "stage.mrc.max_images"  # a scan of others is no reference either
    jobs = [
        job("all", options=arm_options("scan") | {images: None}),
        job("half", study="mrc_stability", options=arm_options("scan_half_radius") | {images: 2000}),
    ]
    assert [len(cell.jobs) for cell in cells_of("mrc_stability", jobs)].count(1) == 1


def test_a_newer_job_that_did_less_does_not_hide_a_scan():
    scanned = [job(f"s{seed}", seed=seed, written=1.0, at=None, rift=None, sweep=None) for seed in range(3)]
    less = job("at", seed=0, written=9.0, at=None, rift=None, sweep=None, mrc=None)
    cells = cells_of("figure3", [*scanned, less])
    assert [bool(one.summary.get("mrc")) for one in cells[0].jobs["job"]] == [True] * 3


def test_a_job_without_the_stages_of_a_cell_does_not_fill_it():
    only_at = job("at", stages={"at": "x"}, at=None, rift=None)
    assert not any(len(cell.jobs) for cell in cells_of("table1", [only_at]))


def test_seeds_are_not_torn_apart_by_options_that_decide_nothing():
    plain = {"stage.at.epochs": 110}
    measured = {"stage.evaluate.auto_attack": "standard", "stage.joint.size": 3}
    more = ["stage.evaluate.measure = ['pgd'] (paper: x)"]
    jobs = [
        job("a", seed=0, options=plain | measured, differences=more),
        job("b", seed=1, options=plain | {"stage.joint.size": 5}),
        job("c", seed=2, options=plain),
    ]
    (cell,) = [cell for cell in cells_of("table1", jobs) if len(cell.jobs)]
    assert len(cell.jobs) == 3


def test_two_jobs_of_a_seed_are_said():
    twice = [job("a", key="1"), job("b", key="2", written=5.0, at=accuracies(0.7, 0.5, 0.5))]
    assert any("has 2 jobs" in note for note in footnotes(cells_of("table1", twice)))


def test_a_path_that_is_not_there_and_a_study_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["table1", "outputs/typo"]) == 2
    assert main(["table1", "--study", "x"]) == 2
    assert main(["figure3", "--format", "terminal"]) == 0
    out = capsys.readouterr()
    assert "'outputs/typo' is neither an experiment nor a folder" in out.err
    assert "every study" in out.err
    assert "not run" in out.out


@pytest.mark.parametrize(
    "part",
    [{"gains": [{}]}, {"joint": {"greedy": [{}]}}, {"differences": 5}, {"stages": 3}, {"joint": {"x": 1}}],
)
def test_a_malformed_summary_is_skipped_with_a_warning(tmp_path, capsys, part):
    write(tmp_path / "jobs", **part)
    assert main(["mrc_stability", str(tmp_path / "jobs"), "--format", "terminal"]) == 0
    assert "skipped" in capsys.readouterr().err
