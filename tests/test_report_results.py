"""Reading summaries: what is found, what is refused."""

from __future__ import annotations

import json

import pytest
from report_samples import accuracies, summary, write

from rift.errors import UserError
from rift.report.results import read_jobs, read_summary

LEAK = {"parameters": 0.0, "num_parameters": 5, "statistics": 0.0}


def test_finds_summaries_at_any_depth_and_each_once(tmp_path):
    inner = write(tmp_path / "study" / "deep", "a")
    other = write(tmp_path, "b")
    jobs, warnings = read_jobs([tmp_path, tmp_path / "study", inner / "summary.json"])
    assert [job.folder for job in jobs] == [other, inner]
    assert warnings == []
    assert jobs[0].summary == json.loads((other / "summary.json").read_text())


def test_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_jobs([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        ("\xff\xfe", "cannot be read"),
        ("[1]", "is not a job's summary"),
        (json.dumps(summary(format=1)), "has format 1"),
        (json.dumps(summary(model=None)), "no text under 'model'"),
        (json.dumps(summary(seed="0")), "no whole number under 'seed'"),
        (json.dumps(summary(at=[1])), "an object under 'at'"),
        (json.dumps(summary(rift=accuracies(83.4, 0.5, 0.5))), "83.4 as 'rift.clean_accuracy'"),
        (json.dumps(summary(at=accuracies(float("nan"), 0.5, 0.5))), "nan as 'at.clean_accuracy'"),
        (json.dumps(summary(mrc=[{"module": "conv1"}])), "malformed list under 'mrc'"),
        (json.dumps(summary(sweep={"alpha": 0.0})), "malformed list under 'sweep'"),
        (json.dumps(summary(target_modules="conv1")), "a list of texts under 'target_modules'"),
        (json.dumps(summary(target_modules=[["conv1"]])), "a list of texts under 'target_modules'"),
        (json.dumps(summary(leak=0.5)), "an object under 'leak'"),
        (json.dumps(summary(leak={"parameters": 0.0, "num_parameters": 5})), "under 'leak.statistics'"),
        (json.dumps(summary(leak=LEAK | {"statistics": "0"})), "under 'leak.statistics'"),
        (json.dumps(summary(target=["conv1"])), "something else than a text under 'target'"),
        (json.dumps(summary(protocol=[1])), "something else than a text under 'protocol'"),
        (json.dumps(summary(key={"a": 1})), "something else than a text under 'key'"),
        (json.dumps(summary(alpha="0.7")), "something else than a number under 'alpha'"),
        (json.dumps(summary(corruptions={"a": 1})), "under 'corruptions.ood'"),
    ],
)
def test_a_bad_file_is_skipped_with_one_line_that_names_it(tmp_path, content, reason):
    good = write(tmp_path, "good")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "summary.json").write_text(content, encoding="latin-1")
    jobs, warnings = read_jobs([tmp_path])
    assert [job.folder for job in jobs] == [good]
    assert len(warnings) == 1
    assert str(bad / "summary.json") in warnings[0]
    assert reason in warnings[0]
    assert "\n" not in warnings[0]


def test_what_fine_tuning_moved_is_read_as_it_is_written(tmp_path):
    folder = write(tmp_path, leak=LEAK, target_modules=[])
    read = read_summary(folder / "summary.json")
    assert read["leak"] == LEAK and read["target_modules"] == []


@pytest.mark.parametrize("part", ["at", "rift", "paired", "mrc", "sweep", "alpha", "overrides", "provenance"])
def test_every_part_may_be_absent_or_null(tmp_path, part):
    folder = write(tmp_path, **{part: None})
    assert part not in read_summary(folder / "summary.json")
    (folder / "summary.json").write_text(json.dumps(summary() | {part: None}))
    assert read_summary(folder / "summary.json")[part] is None
