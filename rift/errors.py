"""What a user did wrong, said in one sentence."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST_SENTENCE = 1500  # characters; some list every choice


class UserError(ValueError):
    """A mistake that the user can mend. The message is one sentence: what is wrong, where, what to do.

    The entry points print it without a traceback and exit with a non-zero code; anything else that
    is raised is a bug and keeps its traceback. Messages quote names from elsewhere, so as text they are
    `shown`.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


class JobFailed(Exception):
    """One job of a sweep failed, for a reason that has been said; the other jobs run all the same."""


def choose_from(name: str, valid: Iterable[str]) -> str:
    """Returns the part of a message that names the nearest valid choice, then all of them."""
    valid = list(valid)
    near = get_close_matches(name, valid, n=1, cutoff=0.5)
    listing = ", ".join(valid)
    return f"did you mean '{near[0]}'? Valid: {listing}" if near else f"valid: {listing}"


def shown(text: str) -> str:
    """The text with everything that a terminal would obey or could not print (ESC, newlines, …) escaped."""
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    # Wide and unbreakable spaces are not "printable" but harmless, and file names have them.
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()


def printable(sentence: str) -> str:
    """The sentence as a terminal may have it: no control characters, and not longer than a screen."""
    said, half = shown(sentence), LONGEST_SENTENCE // 2
    return said if len(said) <= LONGEST_SENTENCE else f"{said[:half]} … {said[-half:]}"
