"""What a set of shared libraries needs of CUDA: by library, the functions and their version tags."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from memfit.mirage.elf import SharedLibrary, read_elf
from memfit.mirage.settings import DATA

_VENDOR = re.compile(r"lib(cu[a-zA-Z]|nccl|nvrtc|nvshmem|nvJitLink|nvToolsExt|nvidia|npp|nvjpeg|nvfatbin)\w*.*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How a generated function answers; ``data/libraries.toml`` explains the fields."""

    match: re.Pattern[str]
    returns: int = 0
    text: str | None = None
    sets: Mapping[int, str | int]
    bits: int = 64
    kernels: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One CUDA library that memfit knows; ``data/libraries.toml`` explains the fields."""

    stem: str
    prefixes: tuple[str, ...]
    sources: tuple[str, ...] = ()
    kernels: bool = False
    soname: str | None = None
    functions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class NeededLibrary:
    """One library to be made.

    Attributes:
        soname: its name, e.g. "libcudart.so.13".
        family: what is known of it, None for a library that memfit does not know.
        functions: name to version tag ("" for none).
    """

    soname: str
    family: Family | None
    functions: Mapping[str, str]


def needed_libraries(paths: Iterable[Path]) -> tuple[NeededLibrary, ...]:
    """The CUDA libraries that the given ones need, sorted by SONAME.

    A function belongs to the library that the ELF version table names; without one, to the family with the longest
    fitting prefix. Functions that one of the given libraries defines are left out.

    Raises:
        InputFileError: one of the files is no readable ELF shared library.
    """
    read = [_read(path) for path in paths]
    defined = frozenset().union(*(library.defined for library in read)) if read else frozenset()
    present = {library.soname for library in read if library.soname}
    names = {name for library in read for name in library.needed if _VENDOR.fullmatch(name)} - present
    names |= {family.soname for family in families() if family.soname}
    functions: dict[str, dict[str, str]] = {name: {} for name in names}
    for family in families():
        if family.soname is not None:
            functions[family.soname].update(dict.fromkeys(family.functions, ""))
    for library in read:
        for soname, name, version in _wanted(library, defined, names):
            functions[soname].setdefault(name, version)
            if version:
                functions[soname][name] = version
    return tuple(
        NeededLibrary(soname=name, family=family_of(name), functions=dict(sorted(functions[name].items())))
        for name in sorted(functions)
    )


def found_elsewhere(paths: Iterable[Path], sonames: Iterable[str]) -> bool:
    """Whether the search paths inside of libraries, which go before ``LD_LIBRARY_PATH``, hold one of some others.

    Raises:
        InputFileError: one of the files is no readable ELF shared library.
    """
    wanted = tuple(sonames)
    folders = {
        Path(entry.replace("$ORIGIN", str(path.parent)).replace("${ORIGIN}", str(path.parent)))
        for path in paths
        for entry in _read(path).search
    }
    return any((folder / name).exists() for folder in folders for name in wanted)


def _wanted(library: SharedLibrary, defined: frozenset[str], names: set[str]) -> Iterable[tuple[str, str, str]]:
    stems = {name.split(".so")[0]: name for name in sorted(names)}
    for symbol in library.undefined:
        if symbol.library in names:
            yield symbol.library, symbol.name, symbol.version
        elif not symbol.library and symbol.name not in defined:
            family = owner(symbol.name)
            if family is not None and family.stem in stems:
                yield stems[family.stem], symbol.name, ""


def owner(function: str) -> Family | None:
    """The family whose longest prefix begins the name of a function."""
    best: tuple[int, Family | None] = (0, None)
    for family in families():
        for prefix in family.prefixes:
            if len(prefix) > best[0] and re.match(re.escape(prefix) + r"[A-Z_]", function):
                best = len(prefix), family
    return best[1]


def family_of(soname: str) -> Family | None:
    """What is known of a library."""
    stem = soname.split(".so")[0]
    return next((family for family in families() if family.stem == stem), None)


def rule_for(function: str) -> Rule | None:
    """The first rule whose pattern is the whole name of a function."""
    return next((rule for rule in rules() if rule.match.fullmatch(function)), None)


@cache
def _read(path: Path) -> SharedLibrary:
    """A library, read once: those of PyTorch have 100,000 symbols."""
    return read_elf(path)


@cache
def families() -> tuple[Family, ...]:
    """The known libraries."""
    return tuple(
        Family(**{**row, **{key: tuple(row.get(key, ())) for key in ("prefixes", "sources", "functions")}})
        for row in _table()["library"]
    )


@cache
def rules() -> tuple[Rule, ...]:
    """How generated functions answer, in order."""
    return tuple(
        Rule(
            **{
                **row,
                "match": re.compile(row["match"]),
                "sets": {int(argument): value for argument, value in row.get("sets", {}).items()},
            }
        )
        for row in _table()["answer"]
    )


def _table() -> dict[str, Any]:
    with (DATA / "libraries.toml").open("rb") as file:
        return tomllib.load(file)
