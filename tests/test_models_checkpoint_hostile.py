"""Checkpoints that mean harm are refused in one sentence, within bounded time and memory, and run nothing.

A process of its own reads them all, with a limit on its address space; what it may not do is watched by an
audit hook.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hostile_checkpoints import FILES, GADGETS, MIB, make_gadgets

ROOM = 1024 * MIB  # of address space beyond what the process takes before it reads
PEAK = 160 * MIB  # of memory that a file may take, in bytes
SECONDS = 20  # of processor time

READER = """
import json, resource, sys, time
from pathlib import Path
from rift.errors import UserError
from rift.models import build_model, load_foreign_checkpoint

def status(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024

harm, watching = [], False
HARMFUL = ("os.", "subprocess.", "shutil.", "socket.", "ctypes.", "exec", "compile", "import", "pty.")
def watch(event, arguments):
    written = event == "open" and arguments[1] not in (None, "r", "rb")
    if watching and (event.startswith(HARMFUL) or written):
        harm.append(f"{event} {arguments!r}"[:200])
sys.addaudithook(watch)

model = build_model("resnet_small", num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3, width=4)
paths = [Path(line) for line in sys.stdin.read().splitlines()]
"".encode("cp437")  # imports what zipfile would
limit = status("VmSize") + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in paths:
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before, start = status("VmRSS"), time.process_time()
    harm, watching = [], True
    try:
        load_foreign_checkpoint(model, path)
        said = None
    except UserError as error:
        said = str(error)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    watching = False
    print(json.dumps({
        "name": path.name, "said": said, "seconds": time.process_time() - start,
        "peak": status("VmHWM") - before, "harm": harm,
    }), flush=True)
"""


def read_in_a_process(paths):
    """What the process tells of each file, by the file's name."""
    done = subprocess.run(
        [sys.executable, "-c", READER, str(ROOM)],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        timeout=500,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(paths), f"ended with {done.returncode} after {told[-1:]}: {done.stderr[-2000:]}"
    return {about["name"]: about for about in told}


def assert_refused_cheaply(about):
    said = about["said"]
    assert said is not None and said.isprintable() and said.startswith(("The ", "There ")), said
    assert ". " not in said and said.endswith(".") and len(said) < 1000
    assert about["seconds"] < SECONDS and about["peak"] < PEAK and not about["harm"], about


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    for name, make in FILES.items():
        make(folder / name)
    return read_in_a_process([folder / name for name in FILES])


@pytest.mark.parametrize("name", FILES)
def test_hostile_files_cost_little_and_end_in_a_sentence(told, name):
    assert_refused_cheaply(told[name])


def test_no_gadget_runs(tmp_path):
    told = read_in_a_process(make_gadgets(tmp_path))
    assert len(told) == 3 * len(GADGETS) == 90
    for name, about in told.items():
        assert_refused_cheaply(about)
        assert "which is never loaded" in about["said"], name
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    links = {
        "pipe": "pipe.pt",
        "device": "/dev/zero",
        "nowhere": "none",
        "circle": "circle.pt",
        "folder": ".",
    }
    for name, goal in links.items():
        (tmp_path / f"{name}{'_link' if name == 'pipe' else ''}.pt").symlink_to(goal)
    said = {
        "pipe.pt": "a pipe or a device",
        "pipe_link.pt": "a pipe or a device",
        "device.pt": "a pipe or a device",
        "nowhere.pt": "no file at",
        "circle.pt": "no file that can be read",
        "folder.pt": "a folder",
    }
    told = read_in_a_process([tmp_path / name for name in said])
    for name, words in said.items():
        assert_refused_cheaply(told[name])
        assert words in told[name]["said"]
