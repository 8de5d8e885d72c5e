"""Metrics out to W&B. The result files are the truth; this sink may be absent, offline, or fail."""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rift.explain import exit_code
from rift.network import PATIENCE, is_reachable

log = logging.getLogger(__name__)

INIT_TIMEOUT = 30  # seconds that W&B's server has to take up a run
FINISH_TIMEOUT = 120  # and to take what is left at its end, which lies on the disk too

# Each stage's own horizontal axis.
AXES = {
    "at": "epoch",
    "mrc": "index",
    "joint": "index",
    "gains": "index",
    "finetune": "epoch",
    "interpolate": "alpha",
    "evaluate_at": "run",
    "evaluate_rift": "run",
    "auto_attack_at": "run",
    "auto_attack_rift": "run",
    "corruptions_at": "index",
    "corruptions_rift": "index",
    "cifar10_1_at": "run",
    "cifar10_1_rift": "run",
}
# What a curve leaves in the summary: its best value, where it is plain which one that is.
_BEST = {
    "train_loss": "min",
    "train_robust_accuracy": "max",
    "clean_accuracy": "max",
    "accuracy": "min",
    "robust_accuracy": "max",
    "mrc": "min",
    "robust_accuracy_drop": "min",
}


class Tracker:
    """Takes metrics and does nothing with them: `logger=none`."""

    where: Path | None = None
    has_history = False  # whether the sink knows the rows of an earlier attempt already

    def row(self, section: str, row: Mapping[str, Any]) -> None:
        """One line of a stage's metrics; `section` is a key of `AXES`."""

    def ranking(self, modules: list[dict[str, Any]]) -> None:
        """The MRC of every module, as a table and a bar chart."""

    def sweep(self, points: list[dict[str, Any]]) -> None:
        """Clean against robust accuracy along α."""

    def corruptions(self, about: Mapping[str, Any]) -> None:
        """Accuracy under every corruption and severity, as a table."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """The job's final numbers."""

    def figures(self, paths: list[Path]) -> None:
        """PNG files."""

    def close(self, code: int = 0) -> None:
        """After the last word; `code` is what the job exits with."""


def _forgiving(method: Callable[..., None]) -> Callable[..., None]:
    """Whatever W&B does, the run goes on: the first failure is said, then the sink is silent."""

    @wraps(method)
    def call(self: WandbTracker, *args: Any) -> None:
        if self.broken:
            return
        try:
            method(self, *args)
        except Exception as error:  # anything may come out of a network client
            self.broken = True
            log.warning(
                "W&B failed (%s); the run goes on, its metrics are in the result files", _first_line(error)
            )

    return call


class WandbTracker(Tracker):
    """One W&B run per job, its id the job's key, so that a resumed job continues its run."""

    def __init__(self, run: Any) -> None:
        import wandb  # only here and where a run begins: `logger=none` does without, installed or not

        self.run, self.wandb = run, wandb
        self.broken = False
        self._defined: set[str] = set()
        self.where = Path(run.settings.sync_dir)
        self.has_history = bool(getattr(run, "resumed", False))
        for section, axis in AXES.items():
            run.define_metric(f"{section}/{axis}", hidden=True)
            run.define_metric(f"{section}/*", step_metric=f"{section}/{axis}")

    @_forgiving
    def row(self, section: str, row: Mapping[str, Any]) -> None:
        for name in row.keys() & _BEST:
            self._leave_best(section, name)
        self.run.log({f"{section}/{name}": value for name, value in row.items()})

    def _leave_best(self, section: str, name: str) -> None:
        """W&B's patterns know no endings, so a curve is defined when it first appears."""
        metric = f"{section}/{name}"
        if metric not in self._defined:
            self._defined.add(metric)
            # Of several attack runs the worst counts.
            best = "min" if section.startswith("evaluate_") else _BEST[name]
            self.run.define_metric(metric, step_metric=f"{section}/{AXES[section]}", summary=best)

    @_forgiving
    def ranking(self, modules: list[dict[str, Any]]) -> None:
        columns = ["module", "rank", "mrc", "robust_accuracy_drop", "relative_norm"]
        table = self.wandb.Table(
            columns=columns, data=[[entry[name] for name in columns] for entry in modules]
        )
        chart = self.wandb.plot.bar(table, "module", "mrc", title="Module robust criticality")
        self.run.log({"mrc/ranking": table, "mrc/chart": chart})

    @_forgiving
    def sweep(self, points: list[dict[str, Any]]) -> None:
        columns = ["alpha", "clean_accuracy", "robust_accuracy"]
        table = self.wandb.Table(
            columns=columns, data=[[point[name] for name in columns] for point in points]
        )
        title = "Along α"
        self.run.log(
            {
                "interpolate/chart": self.wandb.plot.line(
                    table, "clean_accuracy", "robust_accuracy", title=title
                )
            }
        )

    @_forgiving
    def corruptions(self, about: Mapping[str, Any]) -> None:
        networks = [which for which in ("at", "rift") if which in about]
        data = [
            [*version.split("/"), about["kind"], *(about[which]["accuracy"][version] for which in networks)]
            for version in about["at"]["accuracy"]
        ]
        columns = ["corruption", "severity", "images", *networks]
        self.run.log({"corruptions/table": self.wandb.Table(columns=columns, data=data)})

    @_forgiving
    def summary(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))

    @_forgiving
    def figures(self, paths: list[Path]) -> None:
        self.run.log({f"figures/{path.stem}": self.wandb.Image(str(path)) for path in paths})

    def close(self, code: int = 0) -> None:
        try:
            self.run.finish(exit_code=code)
        except Exception as error:  # see _forgiving
            what = "W&B could not close the run (%s); all is in the result files, `wandb sync` sends the rest"
            log.warning(what, _first_line(error))


@contextmanager
def ended(tracker: Tracker) -> Iterator[None]:
    """Closes the tracker when the job ends, with the exit code that it ends with."""
    code = 0
    try:
        yield
    except BaseException as error:
        code = exit_code(error)
        raise
    finally:
        tracker.close(code)


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def has_credentials() -> bool:
    """Whether W&B would find a key in the environment or the netrc file; nobody is asked."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        host = urlparse(_server()).netloc  # W&B keeps the port
        path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        found = netrc.netrc(str(path)).authenticators(host)
    except Exception:  # no home, no file, a damaged one, another user's: whatever it is, there is no key
        return False
    return found is not None and bool(found[2])


def _resolved(mode: str) -> str:
    return os.environ.get("WANDB_MODE", "online") if mode == "auto" else mode


def is_wanted(name: str, mode: str) -> bool:
    """Whether these settings ask for a W&B run."""
    return name != "none" and _resolved(mode) != "disabled"


def earlier_run(folder: Path, key: str) -> Path | None:
    """The folder of the last W&B run with this id that began in a job's folder, if any did."""
    runs = folder.glob(f"wandb/*run-*-{key}")
    return max(runs, key=lambda path: path.name.partition("run-")[2], default=None)


def open_tracker(
    name: str,
    *,
    mode: str,
    project: str,
    entity: str | None,
    tags: list[str],
    folder: Path,
    job: str,
    key: str,
    study: str,
    job_type: str = "",
    config: Mapping[str, Any],
) -> Tracker:
    """The tracker that the configuration asks for; never asks anything back.

    Args:
        name: `wandb` or `none`.
        mode: `auto`, `online` or `offline`; without credentials, or without a server in reach, online is
            offline. `WANDB_MODE` wins over auto.
        project, entity, tags, job_type: W&B's.
        folder: the job's; offline runs lie below its `wandb/`.
        job: the run's name for people.
        key: the run's id.
        study: the run's group.
        config: what was typed, resolved; holds no secrets.
    """
    if not is_wanted(name, mode):
        return Tracker()
    mode = _resolved(mode)
    if (reason := _import_error()) is not None:
        log.warning("W&B cannot be imported (%s); metrics go to the result files alone", reason)
        return Tracker()
    if mode == "online" and (reason := _obstacle()):
        mode = "offline"  # online, W&B would ask for a key, or try for minutes, and lose the run
        log.info("W&B: offline (%s); `wandb sync` sends the run later", reason)

    run = {"project": project, "entity": entity, "tags": tags, "dir": str(folder), "id": key, "name": job}
    run |= {"group": study, "job_type": job_type or None, "resume": "allow", "config": dict(config)}
    try:
        return WandbTracker(_start(mode, run))
    except Exception as error:  # no network, a wrong key, a full disk, a broken install: the run matters more
        log.warning("W&B could not start %s (%s)", mode, _first_line(error))
    if mode == "offline":
        return Tracker()
    try:
        import wandb

        wandb.teardown()  # else its service holds the id of the run that it could not start
        return WandbTracker(_start("offline", run))
    except Exception as error:  # likewise
        log.warning(
            "W&B could not start offline either (%s); metrics go to the result files alone",
            _first_line(error),
        )
        return Tracker()


def _start(mode: str, run: Mapping[str, Any]) -> Any:
    import wandb

    # W&B counts its own use through this library, which tells a broken .netrc by a traceback, every minute.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    settings = wandb.Settings(
        console="off", silent=True, disable_git=True, save_code=False,
        init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT, finish_timeout_raises=True,
    )  # fmt: skip
    return wandb.init(mode=mode, settings=settings, **run)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _import_error() -> str | None:
    """Why there is no W&B in this environment, if so."""
    try:
        import wandb  # noqa: F401
    except Exception as error:  # not installed, or with libraries that it does not go with
        return _first_line(error)
    return None


def _obstacle() -> str | None:
    """Why W&B cannot be online here, if so."""
    if not has_credentials():
        return "no credentials found"
    return None if is_reachable(_server()) else f"no answer from {_server()} in {PATIENCE:.0f} s"
