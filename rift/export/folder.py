"""The folder of an export: what may lie there before, and what is written in which order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rift import foreign
from rift.checkpoint import save_json, write_atomically
from rift.errors import UserError
from rift.export.card import CARD, CONFIG, NETWORKS, PAGE, WEIGHTS, load_exported, network_of, read_card
from rift.export.contents import Handed, contents
from rift.export.page import page
from rift.export.timm_form import timm_arguments, timm_config


def export_job(job: Path, output: Path | None = None, licence: str | None = None) -> Path:
    """Writes θ_AT and, where the job has one, θ* of a finished job; see `rift.export.card` for the layout.

    Args:
        job: its folder, or the summary in it.
        output: the folder to write; None means `export` in the job's. What an export of the same job has
            left there is replaced.
        licence: of the weights, for the card; None says that nothing is said.

    Returns:
        The folder, after each network in it has been loaded once.

    Raises:
        UserError: the job is unfinished, its results are not whole, or the folder holds something else.
        OSError: it cannot be written.
    """
    job = (job.parent if job.name == foreign.SUMMARY else job).resolve()
    output = job / "export" if output is None else output
    handed, card = contents(job, licence)
    _check_output(output, card)
    for one in handed.values():  # before anything that is there gives way
        if foreign.sha256(one.path) != one.sha256:
            raise _damaged(one.path)
    _write(output, handed, card)
    for name in handed:
        load_exported(output, name)
    return output


def _check_output(output: Path, card: Mapping[str, Any]) -> None:
    """Raises `UserError` if the folder holds anything but an export of the same job, whole or begun."""
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise UserError(f"{output} is no folder: give another --output.")
    ours = {f"{name}/{file}" for name in NETWORKS for file in (WEIGHTS, CONFIG)} | {*NETWORKS, CARD}
    if (output / CARD).exists():  # comes before the page
        ours.add(PAGE)
    present = (path.relative_to(output).as_posix() for path in sorted(output.rglob("*")))
    others = [name for name in present if name not in ours and not name.endswith(".partial")]
    if others:
        raise UserError(f"{output} holds something else ({others[0]}): give an empty or a new --output.")
    if (output / CARD).exists() and read_card(output / CARD).get("job") != card["job"]:
        raise UserError(f"{output} holds the export of another job: give an empty or a new --output.")


def _write(output: Path, handed: Mapping[str, Handed], card: Mapping[str, Any]) -> None:
    """Weights, then the card, so that a folder with a card is whole; what was there before goes first."""
    for file in (PAGE, CARD, *(f"{name}/{file}" for name in NETWORKS for file in (WEIGHTS, CONFIG))):
        (output / file).unlink(missing_ok=True)
    network = network_of(card, output / CARD)
    arguments = timm_arguments(network)
    config = None if arguments is None else timm_config(network, *arguments)
    for name, one in handed.items():
        (output / name).mkdir(parents=True, exist_ok=True)
        _copy(one, output / name / WEIGHTS)
        if config is not None:
            save_json(output / name / CONFIG, config)
    save_json(output / CARD, card)
    text = page(card, arguments)
    write_atomically(output / PAGE, lambda partial: partial.write_text(text, encoding="utf-8"))


def _copy(one: Handed, target: Path) -> None:
    """Byte by byte, and digested on the way."""

    def write(partial: Path) -> None:
        found = hashlib.sha256()
        with partial.open("wb") as file:
            for chunk in foreign.chunks(one.path):
                found.update(chunk)
                file.write(chunk)
        if found.hexdigest() != one.sha256:
            raise _damaged(one.path)

    write_atomically(target, write)


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is damaged, its SHA-256 is not the one in the manifest: delete that folder and give the "
        "job's command again."
    )
