"""A training stopped between two steps of an epoch, told to stop, or gone out of the numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
import test_stages_at as at
import test_stages_finetune as finetune
import torch
from tiny_jobs import Killed, results_of, same_bits, stage_folder, subprocess_arguments, tiny_session
from torch import nn

from rift import signals
from rift.data import batches, load_dataset
from rift.errors import UserError
from rift.resume_point import read_resume_point
from rift.stages.loss_watch import LossWatch, check_finite
from rift.store import StageFolder

EVERY_STEP = 1e-9  # seconds


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", root=".", mean=[0.3], std=[0.38], train_limit=150, test_limit=80)


def dying_after(monkeypatch, saves):
    real, count = StageFolder.save_resume_point, []

    def dying(self, tensors, note):
        real(self, tensors, note)
        self.settle()
        count.append(note)
        if len(count) == saves:
            raise Killed

    monkeypatch.setattr(StageFolder, "save_resume_point", dying)
    return count


def without_times(rows):
    return [{name: value for name, value in row.items() if name not in at.TIMES} for row in rows]


@pytest.mark.parametrize(
    ("saves", "method", "average"),
    [
        (1, "pgd_at", "null"),
        (2, "pgd_at", "0.9"),
        (5, "awp", "null"),
        (7, "n_fgsm", "0.9"),
    ],
)
def test_adversarial_training_goes_on_from_any_step(digits, tmp_path, monkeypatch, saves, method, average):
    options = at.options_of(f"stage.at.average={average}", "stage.at.lr=0.01", "stage.at.evaluate_every=1")
    whole = stage_folder(tmp_path / "whole")
    expected = at.train(tiny_session(digits), whole, options, method=method)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        notes = dying_after(patch, saves)
        session = tiny_session(digits, save_seconds=EVERY_STEP)
        at.train(session, stage_folder(tmp_path / "killed"), options, method=method)
    assert (notes[-1]["steps"] > 0) == (saves % 4 != 0)  # three steps an epoch, and its end
    torch.manual_seed(99)
    continued = stage_folder(tmp_path / "killed")
    found = at.train(tiny_session(digits, save_seconds=EVERY_STEP), continued, options, method=method)
    for name in ("best", "last"):
        assert same_bits(whole.load(name), continued.load(name))
    assert without_times(whole.rows()) == without_times(continued.rows())
    assert without_times([expected["best"]]) == without_times([found["best"]])


class WithDropout(nn.Module):
    """Random numbers of torch's global generator in every step."""

    def __init__(self):
        super().__init__()
        self.normalize = nn.Identity()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(8 * 64, 10)

    def forward(self, x):
        return self.fc(self.dropout(torch.relu(self.conv(x)).flatten(1)))


def test_dropout_goes_on_in_the_midst_of_an_epoch(digits, tmp_path, monkeypatch):
    options = at.options_of("stage.at.lr=0.01")

    def session(**runtime):
        found = tiny_session(digits, **runtime)

        def network():
            torch.manual_seed(3)
            return WithDropout()

        return type(found)(found.dataset, found.runtime, 0, network)

    whole = stage_folder(tmp_path / "whole")
    at.train(session(), whole, options)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dying_after(patch, 6)
        at.train(session(save_seconds=EVERY_STEP), stage_folder(tmp_path / "killed"), options)
    torch.manual_seed(99)
    continued = stage_folder(tmp_path / "killed")
    at.train(session(save_seconds=EVERY_STEP), continued, options)
    assert same_bits(whole.load("last"), continued.load("last"))


def test_fine_tuning_goes_on_from_a_step(digits, tmp_path, monkeypatch):
    session = tiny_session(digits)
    theta_at = {name: value.clone() for name, value in session.new_network().state_dict().items()}
    whole = stage_folder(tmp_path / "whole")
    finetune.tune(session, whole, theta_at, [finetune.MODULE])
    slow = tiny_session(digits, save_seconds=EVERY_STEP)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dying_after(patch, 2)
        finetune.tune(slow, stage_folder(tmp_path / "killed"), theta_at, [finetune.MODULE])
    continued = stage_folder(tmp_path / "killed")
    finetune.tune(slow, continued, theta_at, [finetune.MODULE])
    for name in ("best", "last"):
        assert same_bits(whole.load(name), continued.load(name))
    assert without_times(whole.rows()) == without_times(continued.rows())


def test_skipped_batches_change_no_other(digits):
    options = {"epoch": 3, "seed": 1, "shuffle": True, "padding": 1, "flip": True}
    everything = list(batches(digits.train, 64, **options))
    rest = list(batches(digits.train, 64, skip=1, **options))
    assert len(rest) == len(everything) - 1
    for one, other in zip(everything[1:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -- out of the numbers --------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_at_its_step_and_what_was_saved_is_good(digits, tmp_path, monkeypatch):
    """Good for an epoch and a step; then the weights are made infinite."""
    seen = []
    real = LossWatch.see

    def poisoned(self, loss, epoch, batch):
        seen.append((epoch, batch))
        real(self, loss * float("nan") if (epoch, batch) == (2, 2) else loss, epoch, batch)

    monkeypatch.setattr(LossWatch, "see", poisoned)
    folder = stage_folder(tmp_path)
    session = tiny_session(digits, save_seconds=EVERY_STEP)
    with pytest.raises(UserError, match=r"diverged in epoch 2, batch 2 \(loss nan\): lower stage\.at\.lr"):
        at.train(session, folder, at.options_of())
    assert seen[-1] == (2, 2)
    folder.settle()
    tensors, note = read_resume_point(folder.path)
    assert (note["note"]["next_epoch"], note["note"]["steps"]) == (1, 1)
    assert all(torch.isfinite(value).all() for value in tensors.values() if value.is_floating_point())


@pytest.mark.parametrize("module", ["stage.at", "stage.finetune"])
def test_an_absurd_rate_ends_in_one_sentence_and_never_as_finished(digits, tmp_path, module):
    folder, session = stage_folder(tmp_path), tiny_session(digits)
    with pytest.raises(UserError, match=rf"diverged in epoch 1.*lower {module}\.lr"):
        if module == "stage.at":
            at.train(session, folder, at.options_of("stage.at.lr=1e20"))
        else:
            theta_at = {n: v.clone() for n, v in session.new_network().state_dict().items()}
            finetune.tune(session, folder, theta_at, [finetune.MODULE], "stage.finetune.lr=1e20")
    assert not (folder.path / "best.safetensors").exists()


def test_weights_that_are_not_finite_are_named():
    check_finite({"w": torch.ones(3), "n": torch.tensor(3)}, "at", 1)
    with pytest.raises(UserError, match=r"epoch 7: layer1\.bn1\.running_var is not finite"):
        check_finite({"layer1.bn1.running_var": torch.tensor([1.0, float("inf")])}, "at", 7)


def test_every_loss_is_judged_before_anything_is_saved():
    watch = LossWatch("at")
    for batch in range(1, 200):
        watch.see(torch.tensor(1.0), 1, batch)
    watch.settle()
    with pytest.raises(UserError, match="epoch 3, batch 5"):
        watch.see(torch.tensor(float("inf")), 3, 5)


# -- told to stop --------------------------------------------------------------------------------------

LONG = (
    "experiment=demo", "logger=none", "runtime.device=cpu", "runtime.threads=1", "stage=at",
    "stage.at.epochs=4", "model.width=8", "runtime.save_seconds=3600", "dataset.train_limit=1000",
)  # fmt: skip


def start(output):
    arguments = subprocess_arguments(*LONG, f"output={output}")
    return subprocess.Popen(**arguments, cwd=output.parent, stderr=subprocess.PIPE, text=True)


def read_until(process, text):
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError("".join(lines))


@pytest.fixture
def taken_over():
    before = {number: signal.getsignal(number) for number in (*signals.SIGNALS, signal.SIGALRM)}
    signals.install()
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)
    signals._requested = None


def test_a_signal_is_heard_between_two_steps_and_all_of_it_is_saved(digits, tmp_path, taken_over):
    options, session = at.options_of("stage.at.lr=0.01"), tiny_session(digits, save_seconds=3600)
    whole = stage_folder(tmp_path / "whole")
    at.train(session, whole, options)
    folder, count = stage_folder(tmp_path / "stopped"), []
    step = LossWatch.see

    def at_the_fifth(self, loss, epoch, batch):
        step(self, loss, epoch, batch)
        count.append(batch)
        if len(count) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(signals.Stopped) as stopped:
        patch.setattr(LossWatch, "see", at_the_fifth)
        at.train(session, folder, options)
    assert stopped.value.code == 143
    note = read_resume_point(folder.path)[1]["note"]
    assert (note["next_epoch"], note["steps"]) == (1, 2)
    signals.install()
    again = stage_folder(tmp_path / "stopped")
    at.train(session, again, options)
    assert same_bits(whole.load("last"), again.load("last"))


def test_where_nobody_asks_the_process_is_interrupted_in_time(monkeypatch, taken_over):
    monkeypatch.setattr(signals, "GRACE", 0.2)
    began = time.monotonic()
    with pytest.raises(signals.Stopped):
        os.kill(os.getpid(), signal.SIGUSR1)
        while time.monotonic() - began < 20:
            time.sleep(0.01)
    assert time.monotonic() - began < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)]
)
def test_a_process_that_is_told_to_stop_ends_in_time_and_goes_on_later(tmp_path, number, code):
    whole = tmp_path / "whole" / "out"
    whole.parent.mkdir()
    assert start(whole).wait() == 0
    output = tmp_path / "stopped" / "out"
    output.parent.mkdir()
    process = start(output)
    read_until(process, "at 1: ")
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(number)
    said = process.stderr.read()
    assert process.wait() == code
    assert time.monotonic() - began < 10
    assert "stopping after this step" in said and "goes on from here" in said
    assert "Traceback" not in said
    (state,) = output.glob("jobs/*/*/state.json")
    assert '"stopped"' in state.read_text()
    process = start(output)
    said = "".join(read_until(process, "resumed, goes on after")) + process.stderr.read()
    assert process.wait() == 0, said
    assert results_of(output) == results_of(whole)
    names = [path.relative_to(whole) for path in whole.glob("store/at/*/*.safetensors")]
    assert names and all((output / name).read_bytes() == (whole / name).read_bytes() for name in names)


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(tmp_path):
    (tmp_path / "x").mkdir()
    process = start(tmp_path / "x" / "out")
    read_until(process, "at 1: ")
    process.send_signal(signal.SIGTERM)
    read_until(process, "once more stops at once")  # two at once would be one
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait() == 143
    assert time.monotonic() - began < 5
