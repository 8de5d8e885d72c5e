"""The tab key, as bash asks for it."""

from __future__ import annotations

import os

import pytest
from tiny_jobs import command


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("rift model=resn", ["model=resnet18", "model=resnet34", "model=resnet_small"]),
        ("rift protocol=o", ["protocol=official"]),
        ("rift stage.finetune.epo", ["stage.finetune.epochs="]),
    ],
)
def test_groups_choices_and_options_are_completed(capsys, monkeypatch, typed, offered):
    monkeypatch.setitem(os.environ, "COMP_LINE", typed)
    monkeypatch.setitem(os.environ, "COMP_POINT", str(len(typed)))
    assert command("-sc", "query=bash") == 0
    assert capsys.readouterr().out.split() == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_its_installation_is_printed(capsys, shell):
    assert command("-sc", f"install={shell}") == 0
    assert "-sc query=" in capsys.readouterr().out
