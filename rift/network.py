"""Whether there is a network at all: asked once, for seconds, before libraries try for minutes."""

from __future__ import annotations

from http.client import HTTPException
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

PATIENCE = 5.0  # seconds that a server has to answer at all


def is_reachable(url: str, patience: float = PATIENCE) -> bool:
    """Whether any server answers at an address, whatever it says; known after `patience` seconds at most."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            with urlopen(Request(url, method="HEAD"), timeout=patience):  # noqa: S310 (addresses of ours)
                answers.append(True)
        except HTTPError:
            answers.append(True)
        except (OSError, ValueError, HTTPException):
            answers.append(False)

    # In a thread, because looking up a name takes as long as it likes.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    return answers == [True]
