"""What a framework can do, read from ``data/capabilities.toml``: which values its levers have."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from memfit.errors import UnknownNameError
from memfit.formula import profile as profiles


@dataclass(frozen=True, kw_only=True, slots=True)
class Capability:
    """What one framework can do; see the data file for each field.

    ``name`` is the framework's, also of a variant.
    """

    name: str
    source: str
    tp: bool = False
    pp: bool = False
    cp: bool = False
    ep: bool = False
    schedules: tuple[str, ...] = ("1f1b",)
    uneven: bool = False
    splits: bool = False
    pp_accum: bool = False
    cp_heads: bool = False
    zero: tuple[int, ...] = (0,)
    hsdp: tuple[int, ...] = ()
    reshard: tuple[bool, ...] = (True,)
    sequence_parallel: tuple[bool, ...] = (False,)
    checkpointing: tuple[str, ...] = ("none", "full")
    every: bool = False
    loss: tuple[str, ...] = ("eager",)
    attention: tuple[str, ...] = ("flash",)
    compile: tuple[bool, ...] = (False,)
    offload: tuple[tuple[str, ...], ...] = ((),)
    in_backward: bool = False
    optimizers: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


@cache
def rows() -> dict[str, Any]:
    """The data file as it is."""
    return profiles.read_data("capabilities.toml")


def _row(name: str) -> dict[str, Any]:
    row = dict(rows()["framework"][name])
    row.pop("of", None)
    base = row.pop("like", None)
    return {**(_row(base) if base else {}), **row}


def frozen(value: Any) -> Any:
    """Lists as tuples, however deep."""
    return tuple(frozen(v) for v in value) if isinstance(value, list) else value


@cache
def names() -> tuple[str, ...]:
    """Frameworks with a row; variants are left out."""
    return tuple(name for name, row in rows()["framework"].items() if "of" not in row)


@cache
def _of(name: str, framework: str) -> Capability:
    known = {f.name for f in fields(Capability)}
    row = {k: frozen(v) for k, v in _row(name).items()}
    assert set(row) < known, sorted(set(row) - known)
    return Capability(name=framework, **row)


def capability(framework: str) -> Capability:
    """What a framework can do.

    Raises:
        UnknownNameError: it has no row.
    """
    if framework not in names():
        raise UnknownNameError("training framework to plan for", framework, names())
    return _of(framework, framework)


def variant(framework: str, version: str | None) -> Capability:
    """What a framework of a version can do.

    Args:
        framework: by name.
        version: what the job says of its version.
    """
    name = profiles.select(framework, version)
    return _of(name if name in rows()["framework"] else framework, framework)
