"""What adversarial training and fine-tuning share: epochs that can stop and go on, the best and the last."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rift import signals
from rift.errors import UserError
from rift.runtime import Runtime, distributed, random_state, restore_random_state, seed_everything
from rift.stage_options import TrainingConfig
from rift.stages.folder import Folder
from rift.stages.loss_watch import LossWatch, check_finite
from rift.stages.optimizers import make_optimizer, make_schedule, moving_average

RANDOM_STATE = "random."


class Training:
    """A network on its way through the epochs of one stage.

    Keeps the best and the last weights, appends each epoch to the metrics, and can stop and go on
    between any two steps. With a moving average, best and last are weights of the average.

    Several processes have a `Training` each and the same weights in it, save and stop at the same step, and
    what one number of them has saved any other goes on from.

    Args:
        folder: the stage's result folder.
        network: trained in place.
        parameters: those that the optimiser moves; none is allowed.
        options: optimiser, schedule, epochs.
        stage: the name of the stage in the configuration.
        score: the metric by which an epoch is the best.
        runtime: where tensors live.
        average: decay of a moving average of the weights, if there is to be one.
        patience: epochs without a better score after which no epoch remains; None: all do.
        start_epoch: epochs that the network has behind it already.
    """

    def __init__(
        self,
        folder: Folder,
        network: nn.Module,
        parameters: Iterable[nn.Parameter],
        options: TrainingConfig,
        stage: str,
        score: str,
        runtime: Runtime,
        average: float | None = None,
        patience: int | None = None,
        start_epoch: int = 0,
    ) -> None:
        self.folder, self.network, self.score_name, self.stage = folder, network, score, stage
        self.epochs, self.patience = options.epochs, patience
        parameters = list(parameters)
        self.optimizer = make_optimizer(parameters, options, stage) if parameters else None
        self.schedule = make_schedule(self.optimizer, options, stage) if self.optimizer else None
        self.best: dict[str, Tensor] = {}
        self.best_row: dict[str, Any] | None = None
        self.last_row: dict[str, Any] | None = None
        self.next_epoch, self.updates = start_epoch, 0
        self.steps, self.seconds = 0, 0.0  # of the epoch that is being done
        # Loss and hits of this process's share of the epoch.
        self.totals = torch.zeros(2, dtype=torch.float64, device=runtime.device)
        self._random_state: dict[str, Tensor] = {}
        self._began = time.monotonic()
        self.average = None if average is None else moving_average(network, average)
        self._watch = LossWatch(stage)
        self._save_seconds, self._saved = runtime.save_seconds, time.monotonic()
        self._resume(runtime.device)

    def remaining(self) -> Iterable[int]:
        """The epochs still to be done, each with its learning rate set."""
        while self.next_epoch < self.epochs and not self.stopped_early:
            if self.schedule is not None:
                self.schedule.step(self.next_epoch)
            yield self.next_epoch

    def begin_epoch(self, *seed: int | str) -> None:
        """Seeds the global generators; in the midst of an epoch, they go on where they were.

        Dropout is another one in each process, as it would be for other images.
        """
        rank = distributed.rank()
        seed_everything(*seed, *(("process", rank) if rank else ()))
        if self._random_state and rank == 0:
            restore_random_state(self._random_state)
        self._random_state = {}
        self._began = time.monotonic() - self.seconds

    @contextmanager
    def step(self, batch_size: int) -> Iterator[None]:
        """Around one update: an update that does not fit into memory says which batch size to try.

        Args:
            batch_size: of the update.

        Raises:
            UserError: out of memory.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"The device has no room for an update with stage.{self.stage}.batch_size={batch_size}: try "
                f"{max(1, batch_size // 2)} (and a learning rate that goes with it), or "
                "runtime.precision=bfloat16."
            ) from error

    @property
    def epoch_seconds(self) -> float:
        """That this epoch has taken, with what it took before an interruption."""
        return time.monotonic() - self._began

    def end_step(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """To be called after each update: counts it, and saves if it is time, or if somebody wants to stop.

        Args:
            loss: mean over the batch.
            logits, labels: (B, K) and (B,), for the accuracy; on the device, which is not waited for.

        Raises:
            UserError: the loss is no number any more.
            Stopped: somebody wants the process to stop; all of it is saved.
        """
        self._watch.see(loss, self.next_epoch + 1, self.steps + 1)
        self.totals += torch.stack([loss * len(labels), (logits.argmax(dim=1) == labels).sum()])
        self.steps += 1
        due = 0 < self._save_seconds <= time.monotonic() - self._saved
        stop, due = distributed.largest(signals.number(), due)  # all of several at the same step
        if stop or due:
            self._save()
        if stop:
            self.folder.settle()
            signals.request(stop)
            signals.check()

    def epoch_totals(self) -> list[float]:
        """Of the epoch so far: the loss summed over the images, and how many were right. Waits for a GPU."""
        return distributed.summed(self.totals).tolist()

    @property
    def stopped_early(self) -> bool:
        """Whether the last epoch that was scored is too long after the best one."""
        if self.patience is None or self.best_row is None or self.score_name not in self.last_row:
            return False
        return self.last_row["epoch"] - self.best_row["epoch"] >= self.patience

    @property
    def judged(self) -> nn.Module:
        """The network that is scored and handed on: the moving average where there is one."""
        return self.network if self.average is None else self.average.module

    def updated(self) -> None:
        """To be called after each update of the weights: the average follows."""
        self.updates += 1
        if self.average is not None:
            self.average.update(self.network, step=self.updates)

    @property
    def lr(self) -> float:
        """The present learning rate."""
        return self.optimizer.param_groups[0]["lr"] if self.optimizer else 0.0

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Takes an epoch's metrics, keeps the weights if they are the best, and now and then saves all of it.

        Saved is a new best, the end, and else at most every `runtime.save_seconds`.

        Raises:
            UserError: the loss is no number any more.
        """
        self._watch.settle()
        self.folder.add_row(row)
        self.last_row = row
        score, is_best = row.get(self.score_name), False
        if score is not None and (self.best_row is None or score > self.best_row[self.score_name]):
            self.best_row = row
            self.best = {name: value.detach().clone() for name, value in self.judged.state_dict().items()}
            is_best = True
        self.next_epoch = row["epoch"]
        self.steps, self.seconds = 0, 0.0
        self.totals.zero_()
        ended = self.next_epoch == self.epochs or self.stopped_early
        (due,) = distributed.largest(time.monotonic() - self._saved >= self._save_seconds)
        if is_best or ended or due:
            self._save()

    def finish(self) -> dict[str, Any]:
        """Writes the weights of the best and of the last epoch; their metrics are part of the result.

        Of an averaged training they are the average's; the last weights themselves are kept beside them.
        """
        self.folder.save("last", self.judged.state_dict())
        self.folder.save("best", self.best or self.judged.state_dict())
        if self.average is not None:
            self.folder.save("last_not_averaged", self.network.state_dict())
        return {"best": self.best_row, "last": self.last_row}

    def _save(self) -> None:
        self._watch.settle()
        check_finite(self.network.state_dict(), self.stage, self.next_epoch + (self.steps > 0))
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.judged.state_dict().items()}
        plain: dict[str, dict[str, Any]] = {}
        for index, state in (self.optimizer.state_dict()["state"] if self.optimizer else {}).items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
                else:
                    plain.setdefault(str(index), {})[name] = value
        if self.steps:
            tensors |= {"totals": distributed.summed(self.totals)}
            tensors |= {RANDOM_STATE + name: value for name, value in random_state().items()}
        note = {
            "next_epoch": self.next_epoch,
            "steps": self.steps,
            "seconds": self.epoch_seconds if self.steps else 0.0,
            "updates": self.updates,
            "best_row": self.best_row,
            "last_row": self.last_row,
            "optimizer": plain,
        }
        self.folder.save_resume_point(tensors, note)
        self._saved = time.monotonic()

    def _resume(self, device: torch.device) -> None:
        found = self.folder.load_resume_point(device)
        if found is None:
            return
        tensors, note = found

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        self.best = part("best.")
        self.best_row, self.last_row = note["best_row"], note["last_row"]
        self.next_epoch, self.updates = note["next_epoch"], note["updates"]
        self.steps, self.seconds = note["steps"], note["seconds"]
        if self.steps:
            if distributed.rank() == 0:  # those of all processes, however many they were
                self.totals.copy_(tensors["totals"])
            self._random_state = part(RANDOM_STATE)
        if self.average is not None:
            self.average.module.load_state_dict(part("average."))
        if self.optimizer is not None:
            state: dict[int, dict[str, Any]] = {
                int(index): dict(plain) for index, plain in note["optimizer"].items()
            }
            for name, value in part("optimizer.").items():
                index, _, field = name.partition(".")
                # A step counter on the GPU would be waited for in every step.
                state.setdefault(int(index), {})[field] = value if value.dim() else value.cpu()
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            _lay_out_like_parameters(self.optimizer)


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Puts an optimiser's loaded state into the parameters' memory formats; the values stay.

    Files hold plain row-major tensors. Torch's fused kernels walk parameter and momentum by address, and
    would silently pair a channels-last weight with the wrong elements of a row-major momentum.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
