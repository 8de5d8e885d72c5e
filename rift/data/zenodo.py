"""Archives over the network: gone on with after a cut, checked, and unpacked whole or not at all."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rift.data.download import fetching
from rift.data.md5 import file_md5
from rift.data.unpack import check_space, unpack
from rift.errors import UserError
from rift.network import is_reachable

log = logging.getLogger(__name__)

ATTEMPTS = 5  # connections in a row that bring nothing
PAUSE = 1.0  # seconds before the second connection; doubled for each further one
REPORT_EVERY = 20.0  # seconds between two log lines
_TIMEOUT = 30.0  # seconds without a byte after which a connection counts as cut
_BLOCK = 1 << 20  # bytes
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP answers that a later try may not get


@dataclass(frozen=True)
class Archive:
    """A published tar file: its address, the MD5 sum of its bytes, and their number if it is known."""

    url: str
    md5: str
    size: int | None = None

    @property
    def file(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]


class _CutError(Exception):
    """A connection ended before all bytes came; another may bring the rest."""


def fetch_folder(archive: Archive, root: Path, folder: str, needs: tuple[str, ...] = ()) -> None:
    """Brings `<root>/<folder>` out of an archive that holds it, by one process at a time.

    Unpacked beside and renamed when whole, so a killed run leaves no half set. Where the folder exists, the
    entries in it that are missing are added and nothing is overwritten. An archive that lay in `root` before
    is used and stays there; a fetched one is removed.

    Args:
        archive: what to fetch.
        root: where `folder` is to lie.
        folder: top folder in the archive.
        needs: entries of the folder without which it is fetched though it exists.

    Raises:
        UserError: no network, no space, or an archive that is damaged, foreign or unsafe.
    """
    with fetching(folder, root):
        place = root / folder
        if place.is_dir() and all((place / name).exists() for name in needs):
            return  # another process was faster
        tar = root / archive.file
        brought_by_hand = tar.exists()
        fetch_archive(archive.url, tar, size=archive.size, md5=archive.md5)
        unpacking = root / f".{folder}-unpacking"
        shutil.rmtree(unpacking, ignore_errors=True)  # of a killed run
        try:
            unpack(tar, unpacking)
            if not (unpacking / folder).is_dir():
                raise UserError(f"{tar} holds no folder {folder}: remove it and fetch the published archive.")
            _move_in(unpacking / folder, place)
        finally:
            shutil.rmtree(unpacking, ignore_errors=True)
        if not brought_by_hand:
            tar.unlink()


def _move_in(source: Path, place: Path) -> None:
    if not place.exists():
        source.replace(place)
        return
    for entry in source.iterdir():
        if not (place / entry.name).exists():
            entry.replace(place / entry.name)


def fetch_archive(url: str, target: Path, *, size: int | None, md5: str) -> None:
    """Fetches a file; what has come already waits in `<target>.part` and is gone on with.

    Args:
        url: its address.
        target: where it is to lie; if it is there it is checked, and not fetched.
        size: its bytes; None takes the server's word.
        md5: the sum that it must have.

    Raises:
        UserError: no answer within seconds, a connection that stays cut, another size or sum, or less space
            than the archive and what is in it need.
    """
    with fetching(target.name, target.parent):
        if target.exists():
            if file_md5(target) != md5:
                raise UserError(
                    f"{target} is not the published archive (its md5 sum is not {md5}): remove it, or put "
                    f"the one from {url} there."
                )
            return
        part = target.with_name(target.name + ".part")
        _download(url, part, size)
        if file_md5(part) != md5:
            part.unlink()  # nothing tells which bytes are wrong
            raise UserError(f"{url} did not arrive whole (its md5 sum is not {md5}): try again.")
        part.replace(target)


def _download(url: str, part: Path, size: int | None) -> None:
    if part.exists() and _length(part) == size:
        return
    if not is_reachable(url):
        raise UserError(
            f"nothing answers at {url}: check the connection, or put the archive into {part.parent} by hand."
        )
    failures = 0
    while True:
        have = _length(part)
        try:
            _receive(url, part, have, size)
            return
        except _CutError as cut:
            failures = 0 if _length(part) > have else failures + 1
            if failures == ATTEMPTS:
                raise UserError(
                    f"{url} could not be fetched ({cut}); {_length(part) / 1e6:.0f} MB wait in {part}: check "
                    "the connection and give the same command again, which goes on from there."
                ) from cut
            log.warning("the connection to %s was cut (%s): going on", url, cut)
            time.sleep(PAUSE * 2**failures)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _receive(url: str, part: Path, have: int, size: int | None) -> None:
    """One connection: appends what it brings to `part`, or starts over if the server knows no ranges."""
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        response = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)  # noqa: S310 (addresses of ours)
    except HTTPError as error:
        if error.code == 416:  # there is nothing after what we have, so what we have is something else
            part.unlink()
        elif error.code not in _PASSING:
            raise UserError(
                f"{url} could not be fetched (HTTP {error.code} {error.reason}): bring the archive by hand."
            ) from error
        raise _CutError(f"HTTP {error.code}") from error
    except (OSError, HTTPException) as error:
        raise _CutError(str(error) or type(error).__name__) from error
    with response:
        start = have if response.status == 206 else 0
        left = response.headers.get("Content-Length", "")
        total = start + int(left) if left.isdecimal() else size
        if size is not None and total != size:
            part.unlink(missing_ok=True)
            raise UserError(
                f"{url} offers {total} bytes instead of the published {size}: check that no proxy stands "
                "between, and try again."
            )
        if total is not None:
            check_space(part.parent, 2 * total - start, f"{part.stem} (the archive and what is in it)")
        _write(response, part, start, total)


def _write(response: HTTPResponse, part: Path, start: int, total: int | None) -> None:
    done, began = start, time.monotonic()
    said = began
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        while True:
            try:
                block = response.read(_BLOCK)
            except (OSError, HTTPException) as error:
                raise _CutError(str(error) or type(error).__name__) from error
            if not block:
                break
            file.write(block)
            done += len(block)
            now = time.monotonic()
            if now - said >= REPORT_EVERY:
                said = now
                log.info("%s: %s", part.stem, _progress(done, total, (done - start) / (now - began)))
    if total is not None and done < total:
        raise _CutError(f"after {done} of {total} bytes")


def _progress(done: int, total: int | None, rate: float) -> str:
    """`rate` in bytes per second."""
    if total is None:
        return f"{done / 1e9:.2f} GB, {rate / 1e6:.1f} MB/s"
    minutes, seconds = divmod(round((total - done) / rate), 60)
    return (
        f"{done / 1e9:.2f} of {total / 1e9:.2f} GB, {rate / 1e6:.1f} MB/s, {minutes}:{seconds:02d} min left"
    )
