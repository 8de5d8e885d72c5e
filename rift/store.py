"""Result folders: named by what decides the result, shared by all jobs, finished or resumable.

<output>/store/<stage>/<name>-<key>/
    options.json      what decides the result; the key is its digest
    result.json       what came out, and the circumstances
    metrics.jsonl     one line per epoch, module or α
    *.safetensors     weights and per-image data
    resume.safetensors   while the stage runs: where to go on (resume.before.safetensors: the point before)
    manifest.json     SHA-256 of every file, written last: the mark of completion

Of several processes one, the writer, reads and writes the files; the others ask it (`runtime.distributed`).

`python -m rift.store` joins and checks such folders: see `rift.store_command`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rift.checkpoint import file_digest, load_tensors, save_json, save_tensors, write_atomically
from rift.errors import UserError, shown
from rift.locks import held, holder_named
from rift.resume_point import BEFORE, RESUME, drop_resume_points, read_resume_point, write_resume_point
from rift.runtime import distributed
from rift.saving import BackgroundSaver

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# Versions of stages whose algorithm has changed, so that what was made before is not taken for it; a stage
# that is not named has version 1, and no mark in its key.
ALGORITHMS: dict[str, int] = {}
_ALWAYS = ("options.json", "result.json", "metrics.jsonl")


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits that stand for any value that JSON can hold; key order does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def lock_of(folder: Path) -> Path:
    """The lock of a result folder: beside it, since the folder comes and goes."""
    return folder.parent / f".{folder.name}.lock"


def _holder(path: Path) -> str:
    """Who has written this file and works on the folder beside it; it may be gone, or only half there."""
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        pid, host, since = noted["pid"], noted["host"], noted["since"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return holder_named(None, None, None)
    return shown(holder_named(pid if isinstance(pid, int) else None, str(host), str(since)))


class StageFolder:
    """One stage's result, finished or on its way. Made by `Store.folder`."""

    def __init__(self, path: Path, stage: str, key: str, options: Mapping[str, Any]) -> None:
        self.path = path
        self.stage = stage
        self.key = key
        self.options = dict(options)
        self.resumed = False
        self.on_row: Callable[[Mapping[str, Any]], None] = lambda row: None
        self.on_restored: Callable[[list[dict[str, Any]]], None] = lambda rows: None
        self._rows: list[dict[str, Any]] = []
        self._saver = BackgroundSaver(write_resume_point)

    # -- completion ------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the completion mark is there."""
        return distributed.from_writer((self.path / MANIFEST).is_file)

    @property
    def begun(self) -> bool:
        """Whether somebody has worked on it before."""
        return distributed.from_writer((self.path / "options.json").is_file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Waits until no other job works on this folder, then holds it."""
        with self._held() if distributed.is_writer() else nullcontext():
            distributed.from_writer(lambda: None)  # the others wait for it here
            yield

    @contextmanager
    def _held(self) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        holder = lock_of(self.path).with_suffix(".holder")

        def tell() -> None:
            log.info("%s: %s is working on %s, waiting for it", self.stage, _holder(holder), self.path)

        with held(lock_of(self.path), tell):
            try:
                with suppress(OSError):  # only who waits wants to know
                    since = datetime.now(UTC).isoformat(timespec="seconds")
                    who = {"pid": os.getpid(), "host": platform.node(), "since": since}
                    holder.write_text(json.dumps(who), encoding="utf-8")
                yield
            finally:
                holder.unlink(missing_ok=True)

    def begin(self) -> None:
        """Records what the folder is for.

        Raises:
            UserError: the folder holds something else, or is damaged.
        """
        if not distributed.is_writer():
            return
        stored = self.path / "options.json"
        if stored.is_file():
            try:
                found = json.loads(stored.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(
                    f"{stored} is damaged: delete that folder and give the command again to make it anew."
                ) from error
            if found != self.options:
                raise UserError(f"{self.path} holds a result of other options: move it away and try again.")
        save_json(stored, self.options)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the result, sets the completion mark, and only then drops the resume point."""
        if not distributed.is_writer():
            return
        self.settle()
        save_json(self.path / "result.json", dict(result))
        self._write_rows()
        files = {path.name: file_digest(path) for path in sorted(self._contents())}
        save_json(self.path / MANIFEST, {"files": files})
        self.tidy()  # last: a kill before loses nothing

    def tidy(self) -> None:
        """Removes what a kill at the very end has left beside a finished result."""
        if distributed.is_writer():
            drop_resume_points(self.path)

    def _contents(self) -> Iterator[Path]:
        passing = (MANIFEST, RESUME, BEFORE)
        for path in self.path.iterdir():
            if path.is_file() and path.name not in passing and not path.name.endswith(".partial"):
                yield path

    def verify(self) -> None:
        """Checks every file of a finished folder against the manifest, and the manifest against the folder.

        Raises:
            UserError: a file is missing or differs, or the manifest does not vouch for it.
        """
        if not distributed.is_writer():
            return
        try:
            files = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))["files"]
            damaged = [
                name
                for name, sha in files.items()
                if not (self.path / name).is_file() or file_digest(self.path / name) != sha
            ]
            present = {path.name for path in self._contents()}
            if not {*_ALWAYS, *present} <= files.keys():
                damaged.append(MANIFEST)
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged = [MANIFEST]
        if damaged:
            raise UserError(
                f"{self.path / damaged[0]} is missing or damaged: delete that folder and give the command "
                "again to make it anew."
            )

    # -- contents --------------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """The finished stage's result."""
        path = self.path / "result.json"
        return distributed.from_writer(lambda: json.loads(path.read_text(encoding="utf-8")))

    def save(self, name: str, tensors: Mapping[str, Tensor], note: Any = None) -> None:
        """Writes `<name>.safetensors`."""
        if distributed.is_writer():
            save_tensors(self.path / f"{name}.safetensors", tensors, note)

    def load(self, name: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Reads `<name>.safetensors`."""
        path = self.path / f"{name}.safetensors"
        tensors, _ = distributed.tensors_from_writer(lambda: load_tensors(path, device), device)
        return tensors

    # -- metrics ---------------------------------------------------------------------------------

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Appends one line to the metrics, and tells `on_row`."""
        self._rows.append(dict(row))
        self.on_row(row)
        if not distributed.is_writer():
            return
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The metrics so far; of a finished folder, all of them."""
        if self._rows or not self.finished:
            return list(self._rows)
        path = self.path / "metrics.jsonl"
        lines = distributed.from_writer(lambda: path.read_text(encoding="utf-8").splitlines())
        return [json.loads(line) for line in lines]

    def _write_rows(self) -> None:
        if not distributed.is_writer():
            return
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in self._rows)
        write_atomically(
            self.path / "metrics.jsonl", lambda partial: partial.write_text(text, encoding="utf-8")
        )

    # -- resumption ------------------------------------------------------------------------------

    def save_resume_point(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Replaces the resume point, in the background; the metrics so far are part of it."""
        if distributed.is_writer():
            self._saver.save(self.path / RESUME, tensors, {"note": dict(note), "rows": list(self._rows)})

    def settle(self) -> None:
        """Until the last resume point is durable.

        Raises:
            OSError: it could not be written.
        """
        self._saver.wait()

    def load_resume_point(
        self, device: torch.device | str = "cpu"
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last resume point, or None; lines written after it are taken back."""
        self._rows = []
        found = distributed.tensors_from_writer(lambda: read_resume_point(self.path, device), device)
        if found is not None:
            tensors, note = found
            self._rows = note["rows"]
            self.resumed = True
            found = tensors, note["note"]
            self.on_restored(self.rows())
        self._write_rows()
        return found


class Store:
    """All stage results below one output folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def unfinished(self, folder: StageFolder, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Results of the same stage and name that were begun with other options: where, and which."""
        for path in sorted(folder.path.parent.glob(f"{glob.escape(name)}-*")):
            if path != folder.path and not (path / MANIFEST).exists() and (path / RESUME).is_file():
                with suppress(OSError, ValueError):
                    yield path, json.loads((path / "options.json").read_text(encoding="utf-8"))

    def folder(self, stage: str, name: str, options: Mapping[str, Any]) -> StageFolder:
        """The folder of the result that `options` decide; it need not exist.

        Args:
            stage: `at`, `mrc`, …: a folder of the store, and part of the key.
            name: for people, e.g. `resnet18-cifar10-pgd_at-s0`.
            options: everything that decides the result, and nothing else.
        """
        # Through JSON once, so that what is compared later is what was digested.
        version = {"algorithm": ALGORITHMS[stage]} if ALGORITHMS.get(stage, 1) > 1 else {}
        plain = json.loads(json.dumps({"stage": stage, **version, **options}, allow_nan=False))
        key = digest(plain)
        return StageFolder(self.root / stage / f"{name}-{key}", stage, key, plain)


if __name__ == "__main__":
    import sys

    from rift.store_command import main

    sys.exit(main())
