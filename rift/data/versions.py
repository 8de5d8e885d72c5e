"""Checks of the corruptions and severities that are asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rift.corruption_names import ALL, SEVERITIES
from rift.errors import UserError, choose_from


def check_names(
    corruptions: Sequence[str], severities: Sequence[int]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Both without repetitions, or a UserError on the first that does not exist."""
    for corruption in corruptions:
        if corruption not in ALL:
            raise UserError(f"unknown corruption '{corruption}': {choose_from(corruption, ALL)}.")
    for severity in severities:
        if severity not in SEVERITIES:
            raise UserError(f"severity {severity} is not among {SEVERITIES}: choose from these.")
    if not corruptions or not severities:
        what = "severities" if corruptions else "corruptions"
        raise UserError(f"no {what} are given: name at least one.")
    return tuple(dict.fromkeys(corruptions)), tuple(dict.fromkeys(severities))


def check_version(
    corruption: str, severity: int, batch_size: int, opened: Collection[tuple[str, int]]
) -> None:
    """Refuses a version that a set was not opened for, and batches of nothing, with a UserError."""
    if (corruption, severity) not in opened:
        raise UserError(
            f"{corruption} at severity {severity} is not among the {len(opened)} versions opened: add it "
            "to the corruptions and severities."
        )
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is below 1: set it to at least 1.")
