"""What a user did wrong, said in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake that the user can mend. The message is one sentence: what is wrong, where, what to do.

    The entry points print it without a traceback and exit with a non-zero code; anything else that
    is raised is a bug and keeps its traceback. What a file says of itself may be part of a message, so
    characters that a terminal would obey stand in it as escapes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class JobFailed(Exception):
    """One job of a sweep failed, for a reason that has been said; the other jobs run all the same."""


def printable(text: str) -> str:
    r"""Returns `text` with line breaks and all else that a terminal would obey as escapes: `\x1b[2J`."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


def choose_from(name: str, valid: Iterable[str]) -> str:
    """Returns the part of a message that names the nearest valid choice, then all of them."""
    valid = list(valid)
    near = get_close_matches(name, valid, n=1, cutoff=0.5)
    listing = ", ".join(valid)
    return f"did you mean '{near[0]}'? Valid: {listing}" if near else f"valid: {listing}"
