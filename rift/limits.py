"""What a typed value may be; a value that cannot be is refused in one sentence that names its option."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from rift.errors import UserError, choose_from


def require(condition: bool, sentence: str) -> None:
    """Raises `UserError(sentence)` unless the condition holds."""
    if not condition:
        raise UserError(sentence)


def one_of(option: str, value: str, valid: Sequence[str]) -> None:
    """Raises `UserError` unless `value` is among `valid`."""
    require(value in valid, f"{option}={value} is not known: {choose_from(value, valid)}.")


LARGEST = 2**31 - 1  # of a count, as the libraries below us have it
LARGEST_SEED = 2**63 - 1


def at_least(option: str, value: float | None, low: float, high: int = LARGEST) -> None:
    """Raises `UserError` if `value` is not finite, below `low`, or a count above `high`; None is no value."""
    if value is not None:
        finite(option, value)
        require(value >= low, f"{option}={value} is too small: give {low} or more.")
        too_many = isinstance(value, int) and value > high
        require(not too_many, f"{option}={value} is too large: give {high} or less.")


def finite(option: str, value: float) -> None:
    """Raises `UserError` for what is infinite or no number at all."""
    # A whole number too large for a float is finite all the same.
    ordinary = isinstance(value, int) or math.isfinite(value)
    require(ordinary, f"{option}={value} is not finite: give an ordinary number.")


def positive(option: str, value: float) -> None:
    """Raises `UserError` unless `value` is above zero and finite."""
    require(value > 0 and math.isfinite(value), f"{option}={value} is no positive number: give one above 0.")


def share(option: str, value: float) -> None:
    """Raises `UserError` unless `value` is in [0, 1)."""
    require(0 <= value < 1, f"{option}={value} is no share: give a number in [0, 1).")


def number(option: str, text: str) -> float:
    """A budget such as `8/255` or `0.03` as a number; never evaluated as code."""
    try:
        value = float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise UserError(
            f"{option}={text} is no number: write a fraction such as 8/255 or a decimal."
        ) from error
    at_least(option, value, 0)
    return value


def within_pixels(option: str, text: str) -> None:
    """Raises `UserError` if a distance under ℓ∞ is longer than the whole range of a pixel, [0, 1]."""
    value = number(option, text)
    meant = (
        f"did you mean {text.strip()}/255?" if value.is_integer() and value <= 255 else "write 8/255, say."
    )
    require(value <= 1, f"{option}={text} is more than a pixel's whole range, which is [0, 1] here: {meant}")


def folder_name(option: str, text: str) -> None:
    """Raises `UserError` unless the text can be the name of one folder in its place."""
    plain = re.fullmatch(r"\w[\w.+ -]*", text) is not None
    sentence = (
        "is no plain folder name: use letters, digits, '.', '-' and '_', and output=FOLDER for the place."
    )
    require(plain, f"{option}={text} {sentence}")
