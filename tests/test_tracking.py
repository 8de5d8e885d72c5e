"""Metrics out to W&B: the offline file holds what the JSON lines hold, and no failure stops a job."""

from __future__ import annotations

import json
import logging
import socket
import struct
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import wandb
from tiny_jobs import TINY, command
from wandb.proto import wandb_internal_pb2

from rift import tracking
from rift.errors import UserError
from rift.network import is_reachable
from rift.store import digest
from rift.summary import final_numbers
from rift.tracking import AXES, Tracker, WandbTracker, ended, has_credentials, open_tracker

OPTIONS = {
    "project": "rift",
    "entity": None,
    "tags": [],
    "job": "resnet_small-digits-pgd_at-s0",
    "key": "0123456789abcdef",
    "study": "demo",
    "config": {"seed": 0},
}


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


# -- the offline file -----------------------------------------------------------------------------------


def records(path: Path):
    """Every record of a `.wandb` file: blocks of 32 KiB, as in LevelDB's log, after a header of 7 bytes."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, part = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # no room for a head: the rest of the block is padding
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            yield record
            part = b""


def history_and_summary(path: Path) -> tuple[list[dict], dict]:
    """What was logged, entry by entry, and the final summary."""
    history, summary = [], {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = record.history.item
            history.append(
                {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in items}
            )
        elif kind == "summary":
            for item in record.summary.update:
                summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return history, summary


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A tiny job with `logger=wandb`, on a machine where nobody is logged in; its output folder."""
    output = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", str(output / "netrc"))
        measured = (
            "stage.evaluate.measure=[pgd,corruptions]",
            "stage.evaluate.corruption_set=[contrast,fog]",
            "stage.evaluate.ood=evaluated",
        )
        assert command(*TINY, *measured, "logger=wandb", f"output={output}") == 0
    return output


def offline_file(output: Path) -> Path:
    wandb.teardown()  # some versions write what they still hold only when their service ends
    (path,) = output.glob("jobs/demo/*/wandb/offline-run-*/*.wandb")
    return path


def test_the_run_is_the_job(job):
    (folder,) = job.glob("jobs/demo/*")
    (run,) = [r.run for r in records(offline_file(job)) if r.WhichOneof("record_type") == "run"][:1]
    key = folder.name.rpartition("-")[2]
    assert run.run_id == digest([key, "demo"])
    assert run.display_name == folder.name.removesuffix(f"-{key}")
    assert (run.project, run.run_group) == ("rift", "demo")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["attack"]["epsilon"] == "0.15" and config["stage"]["at"]["epochs"] == 2


def test_every_metric_of_every_stage_is_in_it(job):
    summary = json.loads(next(job.glob("jobs/demo/*/summary.json")).read_text())
    assert set(summary["stages"]) == {
        name for name in AXES if not name.startswith(("cifar10_1", "auto_attack", "joint", "gains"))
    }
    history, _ = history_and_summary(offline_file(job))
    checked = 0
    for section, folder in summary["stages"].items():
        logged = [
            {name.removeprefix(f"{section}/"): value for name, value in entry.items()}
            for entry in history
            if f"{section}/{AXES[section]}" in entry  # of the charts too, which are no rows
            and not any(name.endswith("._type") for name in entry)
        ]
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        assert rows and len(logged) == len(rows)
        for row, entry in zip(rows, logged, strict=True):
            assert {name: entry.get(name) for name in row} == row
            checked += sum(isinstance(value, (int, float)) for value in row.values())
    assert checked > 100


def test_each_stage_has_its_own_axis(job):
    steps = {}
    for record in records(offline_file(job)):
        if record.WhichOneof("record_type") == "metric" and record.metric.glob_name:
            steps[record.metric.glob_name] = record.metric.step_metric
    for section, axis in AXES.items():
        assert steps[f"{section}/*"] == f"{section}/{axis}"


def test_the_summary_has_the_final_numbers_under_names_of_their_own(job):
    expected = json.loads(next(job.glob("jobs/demo/*/summary.json")).read_text())
    history, found = history_and_summary(offline_file(job))
    at, rift, paired = expected["at"], expected["rift"], expected["paired"]
    for which, numbers in (("at", at), ("rift", rift)):
        assert found[f"final/{which}_clean"] == numbers["clean_accuracy"]
        assert found[f"final/{which}_robust"] == numbers["robust_accuracy"]
        assert found[f"final/{which}_robust_per_image"] == numbers["robust_accuracy_per_image"]
    assert found["final/delta_clean"] == rift["clean_accuracy"] - at["clean_accuracy"]
    assert found["final/delta_robust"] == rift["robust_accuracy"] - at["robust_accuracy"]
    assert found["final/p_clean"] == paired["clean"]["p_value"]
    assert found["final/p_robust_per_image"] == paired["robust"]["p_value"]
    assert found["final/alpha"] == expected["alpha"]
    assert found["final/modules"] == expected["target_modules"]
    for section, seconds in expected["wall_seconds"].items():
        assert found[f"seconds/{section}"] == seconds
    curves = {name for entry in history for name in entry}
    assert not {name for name in found if name.startswith(("final/", "seconds/"))} & curves


def test_a_job_without_an_evaluation_has_the_final_numbers_that_there_are():
    assert final_numbers({"wall_seconds": {"at": 3.0}, "at": {}}) == {"seconds/at": 3.0}


def test_a_curve_leaves_its_best_value_not_its_last(job):
    history, summary = history_and_summary(offline_file(job))
    expected = {"at/robust_accuracy": max, "at/train_loss": min, "interpolate/clean_accuracy": max}
    for name, best in expected.items():
        values = [entry[name] for entry in history if name in entry]
        (found,) = summary[name].values()
        assert len(values) > 1 and found == best(values)
    runs = [entry["evaluate_at/robust_accuracy"] for entry in history if "evaluate_at/run" in entry]
    assert list(summary["evaluate_at/robust_accuracy"].values()) == [min(runs)]  # the worst run counts


def test_the_run_is_typed_and_tagged_and_says_where_it_comes_from(job):
    (run, *_) = [r.run for r in records(offline_file(job)) if r.WhichOneof("record_type") == "run"]
    assert run.job_type == "rift"
    assert list(run.tags) == ["official"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["provenance"]["versions"]["torch"] and "commit" in config["provenance"]


def exit_codes(output: Path) -> list[int]:
    return [r.exit.exit_code for r in records(offline_file(output)) if r.WhichOneof("record_type") == "exit"]


def test_a_run_that_was_finished_ends_with_zero(job):
    assert exit_codes(job) == [0]


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("diverged"), 2), (KeyboardInterrupt(), 130), (ZeroDivisionError(), 1)]
)
def test_a_run_that_fails_ends_with_the_job_s_exit_code(tmp_path, error, code):
    tracker = opened(tmp_path / "jobs" / "demo" / "x")
    with pytest.raises(type(error)), ended(tracker):
        raise error
    assert exit_codes(tmp_path) == [code]


def test_tables_charts_and_figures_are_in_it(job):
    history, _ = history_and_summary(offline_file(job))
    names = {name.partition(".")[0] for entry in history for name in entry if name.endswith("._type")}
    assert {"mrc/ranking", "mrc/chart_table", "interpolate/chart_table"} <= names
    assert {"figures/mrc", "figures/alpha"} <= names
    media = offline_file(job).parent / "files" / "media"
    (table,) = media.rglob("ranking*.table.json")
    summary = json.loads(next(job.glob("jobs/demo/*/summary.json")).read_text())
    content = json.loads(table.read_text())
    assert content["columns"][:3] == ["module", "rank", "mrc"]
    assert [row[:3] for row in content["data"]] == [
        [e["module"], e["rank"], e["mrc"]] for e in summary["mrc"]
    ]
    (table,) = media.rglob("table*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["corruption", "severity", "images", "at", "rift"]
    assert {tuple(row[:3]) for row in content["data"]} == {
        (name, str(severity), "generated") for name in ("contrast", "fog") for severity in range(1, 6)
    }
    assert {path.name.partition("_")[0] for path in media.rglob("*.png")} == {"mrc", "alpha", "corruptions"}


def test_that_it_is_offline_is_said_in_one_line(job):
    log = next(job.glob("jobs/demo/*/job.log")).read_text()
    said = [line for line in log.splitlines() if "W&B" in line]
    assert len(said) == 1 and "offline (no credentials found)" in said[0]


# -- failures -------------------------------------------------------------------------------------------


class FailingRun:
    """A W&B run whose every call fails from some point on."""

    def __init__(self, folder, good_calls=0):
        self.settings = SimpleNamespace(sync_dir=str(folder))
        self.summary = SimpleNamespace(update=self.log)
        self.calls, self.good_calls = 0, good_calls

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, values):
        self.calls += 1
        if self.calls > self.good_calls:
            raise ConnectionError("the network is gone")

    def finish(self, exit_code):
        raise RuntimeError("service died")


def test_a_failing_run_is_said_once_and_then_left_alone(tmp_path, caplog):
    run = FailingRun(tmp_path, good_calls=1)
    tracker = WandbTracker(run)
    caplog.set_level(logging.WARNING, logger="rift")
    for epoch in range(5):
        tracker.row("at", {"epoch": epoch})
    tracker.summary({"alpha": 0.5})
    tracker.close()
    assert run.calls == 2
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert "the network is gone" in said[0] and "the run goes on" in said[0]
    assert "service died" in said[1]


def test_a_failing_sink_does_not_stop_a_job(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: FailingRun(tmp_path, good_calls=3))
    assert command(*TINY, "logger=wandb", "stage=at", f"output={tmp_path}") == 0
    summary = json.loads(next(tmp_path.glob("jobs/demo/*/summary.json")).read_text())
    assert Path(summary["stages"]["at"], "manifest.json").is_file()
    assert "the run goes on" in next(tmp_path.glob("jobs/demo/*/job.log")).read_text()


def recorded(monkeypatch, *, failing=()):
    """Replaces `wandb.init`; returns the modes it is called with."""
    modes = []

    def init(mode, **_):
        modes.append(mode)
        if mode in failing:
            raise wandb.errors.CommError("cannot reach the server")
        return FailingRun(Path("/nonexistent"))

    monkeypatch.setattr(wandb, "init", init)
    return modes


def opened(tmp_path, mode="auto", name="wandb"):
    tmp_path.mkdir(parents=True, exist_ok=True)
    return open_tracker(name, mode=mode, folder=tmp_path, **OPTIONS)


@pytest.mark.parametrize("mode", ["auto", "online", "offline"])
@pytest.mark.parametrize("environment", [None, "online", "offline"])
def test_without_credentials_w_and_b_is_never_online(tmp_path, monkeypatch, mode, environment):
    """Online it would ask for a key, and a batch job would wait for ever."""
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    modes = recorded(monkeypatch)
    assert isinstance(opened(tmp_path, mode), WandbTracker)
    assert modes == ["offline"]


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", None, "online"),
        ("auto", "offline", "offline"),
        ("online", "offline", "online"),
        ("offline", "online", "offline"),
    ],
)
def test_with_credentials_the_configuration_decides_then_the_environment(
    tmp_path, monkeypatch, mode, environment, expected
):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "is_reachable", lambda url: True)
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    modes = recorded(monkeypatch)
    opened(tmp_path, mode)
    assert modes == [expected]


@pytest.fixture
def server():
    """Opens a local server that answers HEAD, and everything else with a status of one's choice."""
    servers = []

    def serve(status: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                self.send_response(200 if self.command == "HEAD" else status)
                self.end_headers()

            do_HEAD = do_GET = do_POST = answer

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for one in servers:
        one.shutdown()
        one.server_close()


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_who_answers_is_reachable_whatever_the_answer(server):
    assert is_reachable(server(500))
    assert not is_reachable(closed_port())
    assert not is_reachable("http://no-such-host.invalid")
    assert not is_reachable("no address")


def test_a_server_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert not is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", patience=0.3)
        assert time.monotonic() - began < 3


def test_with_a_key_but_no_network_the_run_is_offline_in_seconds(tmp_path, monkeypatch, caplog):
    """A compute node: the real W&B, whose server is out of reach."""
    caplog.set_level(logging.INFO, logger="rift")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", closed_port())
    tracker = opened(tmp_path / "jobs" / "demo" / "x")
    tracker.row("at", {"epoch": 1, "clean_accuracy": 0.5})
    tracker.close()
    history, _ = history_and_summary(offline_file(tmp_path))
    assert [entry["at/clean_accuracy"] for entry in history] == [0.5]
    (said,) = [record.message for record in caplog.records if record.name.startswith("rift")]
    assert "offline (no answer from http://127.0.0.1" in said and "wandb sync" in said


def test_a_server_that_refuses_the_run_leaves_it_offline_under_the_same_id(
    tmp_path, monkeypatch, caplog, server
):
    """W&B's service would hold the id of the run that it could not start."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server(404))
    monkeypatch.setattr(tracking, "INIT_TIMEOUT", 3)
    tracker = opened(tmp_path / "jobs" / "demo" / "x")
    assert isinstance(tracker, WandbTracker)
    tracker.row("at", {"epoch": 1, "clean_accuracy": 0.5})
    tracker.close()
    assert offline_file(tmp_path).name == f"run-{OPTIONS['key']}.wandb"
    assert len(history_and_summary(offline_file(tmp_path))[0]) == 1
    assert any("could not start online" in record.message for record in caplog.records)


@pytest.mark.parametrize("key", [None, "0" * 40])
def test_w_and_b_that_cannot_start_at_all_is_absent(tmp_path, monkeypatch, key):
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
        monkeypatch.setattr(tracking, "is_reachable", lambda url: True)
    recorded(monkeypatch, failing=("online", "offline"))
    assert type(opened(tmp_path)) is Tracker


@pytest.mark.parametrize(("name", "environment"), [("none", None), ("wandb", "disabled")])
def test_no_logger_never_calls_w_and_b(tmp_path, monkeypatch, name, environment):
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    modes = recorded(monkeypatch)
    assert type(opened(tmp_path, name=name)) is Tracker
    assert modes == []


@pytest.mark.parametrize(
    ("netrc", "base", "found"),
    [
        (None, None, False),
        ("machine api.wandb.ai login user password abc", None, True),
        ("machine example.com login user password abc", None, False),
        ("machine api.wandb.ai login user password abc", "https://wandb.example.com", False),
        ("machine localhost:8080 login user password abc", "http://localhost:8080", True),
        ("machine localhost login user password abc", "http://localhost:8080", False),  # as W&B reads it
        ("this is no netrc", None, False),
    ],
)
def test_credentials_are_found_where_w_and_b_looks(tmp_path, monkeypatch, netrc, base, found):
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
        (tmp_path / "netrc").chmod(0o600)
    if base is not None:
        monkeypatch.setenv("WANDB_BASE_URL", base)
    assert has_credentials() is found


def test_an_api_key_is_a_credential(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_credentials()


def test_sections_of_the_pipeline_have_axes():
    measured = {
        f"{what}_{of}"
        for what in ("evaluate", "auto_attack", "corruptions", "cifar10_1")
        for of in ("at", "rift")
    }
    assert set(AXES) == {"at", "mrc", "joint", "gains", "finetune", "interpolate"} | measured
    assert tracking.AXES["interpolate"] == "alpha"
