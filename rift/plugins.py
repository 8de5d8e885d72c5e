"""Networks, methods, data sets and attacks of other installed packages, by their entry points' names.

An entry point of the group `rift.models`, `rift.methods`, `rift.datasets` or `rift.attacks` is a choice of
the group `model`, `method`, `dataset` or `attack`. Its name alone is read until it is chosen: `rift --help`
imports nothing of it. What a configuration names is looked up among what is installed.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rift.conf_files import CONF
from rift.errors import UserError, choose_from

GROUPS = ("model", "method", "dataset", "attack")


@functools.cache
def installed(group: str) -> dict[str, EntryPoint]:
    """What other packages offer for a group, by name; nothing is imported.

    Args:
        group: one of `GROUPS`.

    Raises:
        UserError: a name is rift's own, or no plain word, or two packages offer it.
    """
    own = {path.stem for path in (CONF / group).glob("*.yaml")}
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"rift.{group}s"):
        where = f"{_package(point)} offers a {group} named {point.name!r}"
        if point.name in own:
            raise UserError(f"{where}, which is rift's own: it has to be called otherwise, or uninstalled.")
        if not re.fullmatch(r"[a-z]\w*", point.name, re.ASCII) or point.name in ("true", "false", "null"):
            raise UserError(f"{where}, which is no plain word of small letters: uninstall or rename it.")
        known = found.setdefault(point.name, point)
        if known.value != point.value or _package(known) != _package(point):
            raise UserError(f"{where}, and so does {_package(known)}: uninstall one of them.")
    return found


def load(group: str, name: str) -> Callable[..., Any]:
    """The object that an installed entry point names.

    Raises:
        UserError: there is no such entry point, or its package cannot be imported.
    """
    points = installed(group)
    if name not in points:
        raise UserError(f"no installed package offers a {group} named '{name}': {choose_from(name, points)}.")
    try:
        found = points[name].load()
    except Exception as error:  # somebody's code, which fails in any way it likes
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{group}={name} of the package {_package(points[name])} cannot be imported ({reason}): mend or "
            "uninstall that package."
        ) from error
    if not callable(found):
        kind = type(found).__name__
        raise UserError(f"{group}={name} of the package {_package(points[name])} is a {kind}, no function.")
    return found


def with_options(group: str, name: str, options: Mapping[str, Any], given: tuple[str, ...]) -> dict[str, Any]:
    """A plugin's own options, checked: those keyword arguments of its function that have a default.

    Args:
        group, name: which plugin.
        options: what was typed.
        given: keyword arguments that rift gives itself; they are no options.

    Returns:
        Every option with its value, typed or not.

    Raises:
        UserError: an option that it does not have, or of another type than its default.
    """
    parameters = inspect.signature(load(group, name)).parameters.values()
    known = {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in given and p.default is not p.empty
    }
    for option, value in options.items():
        where = f"{group}.options.{option}"
        if option not in known:
            listing = choose_from(option, known) if known else "it has none"
            raise UserError(f"there is no option '{where}' of {group}={name}: {listing}.")
        default = known[option]
        wanted = (int, float) if isinstance(default, float) else type(default)
        fits = isinstance(value, wanted) and isinstance(value, bool) == isinstance(default, bool)
        if default is not None and not fits:
            raise UserError(f"{where}={value} is no {type(default).__name__}: its default is {default}.")
    return {**known, **options}


@functools.cache
def identity(group: str, name: str) -> tuple[tuple[str, str], ...]:
    """What stands for a plugin in keys and results: package, version, and the SHA-256 of its Python files.

    Empty for what is rift's own. Pairs, so that it can be hashed.
    """
    point = installed(group).get(name)
    if point is None:
        return ()
    name_of, version = _package(point).rsplit(" ", 1)
    return (("package", name_of), ("version", version), ("sha256", _digest(point.module)))


def identities(chosen: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The plugins among the choices of a run, by group; see `identity`."""
    found = {group: dict(identity(group, name)) for group, name in chosen.items()}
    return {group: about for group, about in found.items() if about}


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unnamed package 0"


def _digest(module: str) -> str:
    """Of every Python file of the package that a module belongs to, with their places in it."""
    try:
        spec = find_spec(module.partition(".")[0])  # of the outermost package: nothing is imported
    except (ImportError, ValueError):
        spec = None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    files = {str(path.relative_to(folder)): path for folder in folders for path in folder.rglob("*.py")}
    if spec and spec.origin and not folders:
        files = {Path(spec.origin).name: Path(spec.origin)}
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()
