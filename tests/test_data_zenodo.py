"""Archives over the network: resumed, checked, unpacked whole, and never outside their folder."""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import tarfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from rift.data import zenodo
from rift.data.unpack import unpack
from rift.data.zenodo import Archive, fetch_archive, fetch_folder
from rift.errors import UserError

BODY = bytes(range(256)) * 4000
MD5 = hashlib.md5(BODY).hexdigest()
NOWHERE = "http://127.0.0.1:9/x.tar"  # nothing listens there
Usage = namedtuple("Usage", "total used free")


class Server(ThreadingHTTPServer):
    """Serves one body, with or without ranges, cutting connections after the given numbers of bytes."""

    body = BODY
    ranges = True
    status = None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts, self.asked = [], []

    def handle_error(self, *_):
        """Clients that stop listening are part of the tests."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/files/Fake-C.tar?download=1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        server, start = self.server, 0
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.status:
            self.send_error(server.status)
            return
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(server.body):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        stop = start + server.cuts.pop(0) if server.cuts else len(server.body)
        self.wfile.write(server.body[start:stop])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(zenodo, "PAUSE", 0.0)
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server, target, **options):
    fetch_archive(server.url, target, **{"size": len(BODY), "md5": MD5, **options})
    assert target.read_bytes() == server.body
    assert not target.with_name(target.name + ".part").exists()


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_a_cut_connection_is_gone_on_with(server, tmp_path, size):
    server.cuts = [300_000, 400_000]
    fetch(server, tmp_path / "a.tar", size=size)
    assert server.asked == [None, "bytes=300000-", "bytes=700000-"]


def test_what_a_killed_run_left_is_gone_on_with(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(BODY[:500_000])
    fetch(server, tmp_path / "a.tar")
    assert server.asked == ["bytes=500000-"]
    (tmp_path / "b.tar.part").write_bytes(BODY)  # killed before it was checked
    fetch(server, tmp_path / "b.tar")
    assert len(server.asked) == 1


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges, server.cuts = False, [300_000]
    fetch(server, tmp_path / "a.tar")
    assert server.asked == [None, "bytes=300000-"]


def test_more_than_there_is_starts_over(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(BODY + b"more")
    fetch(server, tmp_path / "a.tar")
    assert server.asked == [f"bytes={len(BODY) + 4}-", None]


def test_a_wrong_sum_is_removed_and_said(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(b"?" * 1000)
    with pytest.raises(UserError, match=r"did not arrive whole .*md5.*: try again"):
        fetch(server, tmp_path / "a.tar")
    assert not list(tmp_path.glob("a.tar*"))
    fetch(server, tmp_path / "a.tar")


def test_another_size_is_refused_before_it_is_fetched(server, tmp_path):
    with pytest.raises(UserError, match=f"offers {len(BODY)} bytes instead of the published 17"):
        fetch(server, tmp_path / "a.tar", size=17)
    assert not list(tmp_path.glob("a.tar*"))


def test_a_file_that_is_there_is_checked_and_kept(server, tmp_path):
    (tmp_path / "a.tar").write_bytes(BODY)
    fetch(server, tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"a\.tar is not the published archive"):
        fetch(server, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == b"mine" and not server.asked


def test_a_connection_that_stays_cut_keeps_what_came(server, tmp_path):
    server.cuts = [1000] + [0] * zenodo.ATTEMPTS
    with pytest.raises(
        UserError, match=r"could not be fetched .* wait in .*a\.tar\.part: .*goes on from there"
    ):
        fetch(server, tmp_path / "a.tar")
    assert (tmp_path / "a.tar.part").read_bytes() == BODY[:1000]
    fetch(server, tmp_path / "a.tar")


def test_an_answer_that_stays_is_said_at_once(server, tmp_path):
    server.status = 404
    with pytest.raises(UserError, match=r"HTTP 404 Not Found"):
        fetch(server, tmp_path / "a.tar")
    assert len(server.asked) == 1
    server.status = 503
    with pytest.raises(UserError, match="HTTP 503"):
        fetch(server, tmp_path / "a.tar")
    assert len(server.asked) == 1 + zenodo.ATTEMPTS


def test_no_network_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=f"nothing answers at {NOWHERE}") as error:
        fetch_archive(NOWHERE, tmp_path / "a.tar", size=None, md5=MD5)
    assert "\n" not in str(error.value)


def test_no_space_is_said_before_a_byte_is_written(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, len(BODY)))
    with pytest.raises(UserError, match=r"needs 0\.00 GB in .* only 0\.00 GB are free"):
        fetch(server, tmp_path / "a.tar")
    assert not list(tmp_path.glob("a.tar*"))


def test_progress_is_logged(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(zenodo, "REPORT_EVERY", 0.0)
    with caplog.at_level(logging.INFO):
        fetch(server, tmp_path / "a.tar")
    assert any("MB/s" in record.message and "left" in record.message for record in caplog.records)


def make_tar(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content
                tar.addfile(member)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("Fake-C/../../evil", b"x", "leads outside"),
        ("/tmp/evil", b"x", "leads outside"),
        ("Fake-C/link", (tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
        ("Fake-C/link", (tarfile.LNKTYPE, "Fake-C/good"), "is a link"),
        ("Fake-C/device", (tarfile.CHRTYPE, ""), "neither a file nor a folder"),
        ("Fake-C/pipe", (tarfile.FIFOTYPE, ""), "neither a file nor a folder"),
    ],
)
def test_an_unsafe_member_stops_all(tmp_path, name, content, words):
    make_tar(tmp_path / "a.tar", ("Fake-C/good", b"good"), (name, content))
    with pytest.raises(UserError, match=words) as error:
        unpack(tmp_path / "a.tar", tmp_path / "new")
    assert repr(name) in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_damaged_archive_is_one_sentence(tmp_path):
    make_tar(tmp_path / "a.tar", ("Fake-C/good", b"good" * 10_000))
    for content in (b"no archive", (tmp_path / "a.tar").read_bytes()[:5000]):
        (tmp_path / "b.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"b\.tar is not a whole tar archive") as error:
            unpack(tmp_path / "b.tar", tmp_path / "new")
        assert "\n" not in str(error.value)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)


def test_what_does_not_fit_is_not_unpacked(tmp_path, monkeypatch):
    make_tar(tmp_path / "a.tar", ("Fake-C/good", b"good"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 4095))
    with pytest.raises(UserError, match=r"what is in .*a\.tar needs"):
        unpack(tmp_path / "a.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def archive(server, tmp_path):
    make_tar(
        tmp_path / "source.tar", ("._Fake-C", b"a Mac's"), ("Fake-C/a", b"A" * 9000), ("Fake-C/d/b", b"B")
    )
    server.body = (tmp_path / "source.tar").read_bytes()
    return Archive(server.url, hashlib.md5(server.body).hexdigest(), len(server.body))


def test_a_folder_comes_whole_and_nothing_else_stays(archive, server, tmp_path):
    root = tmp_path / "root"
    (root / ".Fake-C-unpacking" / "Fake-C").mkdir(parents=True)  # what a killed run left
    fetch_folder(archive, root, "Fake-C")
    assert (root / "Fake-C/a").read_bytes() == b"A" * 9000 and (root / "Fake-C/d/b").read_bytes() == b"B"
    assert [path.name for path in root.iterdir() if not path.name.endswith(".lock")] == ["Fake-C"]
    fetch_folder(archive, root, "Fake-C")
    assert len(server.asked) == 1


def test_processes_that_start_together_fetch_once(archive, server, tmp_path):
    threads = [Thread(target=fetch_folder, args=(archive, tmp_path / "root", "Fake-C")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1 and (tmp_path / "root/Fake-C/d/b").read_bytes() == b"B"


def test_a_killed_unpacking_leaves_no_folder(archive, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    whole = tarfile.TarFile.makefile

    def die(tar, member, target):
        if member.name.endswith("b"):
            raise Killed
        whole(tar, member, target)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "makefile", die)
        with pytest.raises(Killed):
            fetch_folder(archive, tmp_path / "root", "Fake-C")
    assert not (tmp_path / "root/Fake-C").exists() and (tmp_path / "root/Fake-C.tar").exists()
    fetch_folder(archive, tmp_path / "root", "Fake-C")
    assert (tmp_path / "root/Fake-C/d/b").read_bytes() == b"B"


def test_missing_entries_are_added_and_nothing_is_overwritten(archive, tmp_path):
    root = tmp_path / "root"
    (root / "Fake-C").mkdir(parents=True)
    (root / "Fake-C/a").write_bytes(b"mine")
    fetch_folder(archive, root, "Fake-C", needs=("a", "d"))
    assert (root / "Fake-C/a").read_bytes() == b"mine" and (root / "Fake-C/d/b").read_bytes() == b"B"


def test_an_archive_brought_by_hand_is_used_and_stays(archive, server, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "Fake-C.tar").write_bytes(server.body)
    fetch_folder(archive, root, "Fake-C")
    assert (root / "Fake-C/a").exists() and (root / "Fake-C.tar").exists() and not server.asked


def test_an_archive_of_something_else_is_said(archive, tmp_path):
    with pytest.raises(UserError, match="holds no folder Other-C"):
        fetch_folder(archive, tmp_path / "root", "Other-C")
    assert not (tmp_path / "root/.Other-C-unpacking").exists()
