"""What a framework can do and what changes results, read from the data files beside."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from memfit.errors import JobError, MemfitError, UnknownNameError
from memfit.formula.able import Capability, capability, frozen, names, rows, variant

__all__ = ["Capability", "capability", "names", "variant"]

ADAPTERS = frozenset({"lora", "qlora", "dora"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """How an engine spreads a model, and what it can store weights and cache in.

    Attributes:
        name, source: of the engine, and of what is known about it.
        split: ``tp`` (tensors), ``pp`` (layers), or both.
        weights, kv: storage types that it can bring weights and cache to.
    """

    name: str
    source: str
    split: tuple[str, ...]
    weights: tuple[str, ...]
    kv: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Never:
    """Values of levers that exclude each other: all of ``when`` at once cannot be."""

    when: Mapping[str, Any]
    source: str
    frameworks: frozenset[str] = frozenset()
    methods: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """A value of a lever that changes results, what it costs, and who says so."""

    lever: str
    value: str
    costs: str
    source: str


@cache
def _data(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files("memfit.planner").joinpath("data").joinpath(name).read_text("utf-8"))


@cache
def engine(name: str) -> Engine:
    """What an inference engine can do.

    Raises:
        UnknownNameError: it has no row.
    """
    table = rows()["engine"]
    if name not in table:
        raise UnknownNameError("engine to plan for", name, table)
    return Engine(name=name, **{k: frozen(v) for k, v in table[name].items()})


@cache
def nevers() -> tuple[Never, ...]:
    """All exclusions."""
    out = []
    for row in rows()["never"]:
        when = {k: v for k, v in row.items() if k not in ("source", "frameworks", "methods")}
        out.append(
            Never(
                when=when,
                source=row["source"],
                frameworks=frozenset(row.get("frameworks", ())),
                methods=frozenset(row.get("methods", ())),
            )
        )
    return tuple(out)


def excluded(framework: str, method: str, values: Mapping[str, Any]) -> Never | None:
    """The exclusion that a combination of values breaks; levers that are missing from ``values`` break none."""
    for rule in nevers():
        if rule.frameworks and framework not in rule.frameworks:
            continue
        if rule.methods and method not in rule.methods:
            continue
        if all(name in values and _matches(values[name], wanted) for name, wanted in rule.when.items()):
            return rule
    return None


def _matches(value: Any, wanted: Any) -> bool:
    if wanted == "many":
        return bool(value > 1)
    if isinstance(wanted, str):
        return wanted in value
    return value in wanted


def default_framework(method: str, gpus: int, *, kind: str = "", model: str | None = None) -> tuple[str, str]:
    """(framework, why) for a job that names none.

    Args:
        method: of the job.
        gpus: number of GPUs.
        kind: of the model: ``decoder``, ``encoder``, ``seq2seq`` or ``vision``; empty where it does not matter.
        model: its name in the catalog; None for a model that has none.
    """
    for row in rows()["default"]:
        if method not in row.get("methods", (method,)) or gpus > row.get("gpus", gpus):
            continue
        if kind not in row.get("kinds", (kind,)) or (not kind and "kinds" in row):
            continue
        known = capability(row["framework"]).models
        if not kind or not known or model in known:
            return str(row["framework"]), str(row["why"])
    raise AssertionError("the last default row has no conditions")


@cache
def qualities() -> tuple[Quality, ...]:
    """Everything that changes results."""
    return tuple(Quality(**row) for row in _data("quality.toml")["change"])


def quality(lever: str, value: Any) -> Quality | None:
    """What a value costs in quality; None for one that changes nothing."""
    text = "true" if value is True else str(value)
    return next((q for q in qualities() if q.lever == lever and q.value == text), None)


def allowed(words: frozenset[str], lever: str) -> tuple[str, ...]:
    """The values of a lever that ``--allow`` permits: all of a named lever, and those named themselves."""
    return tuple(q.value for q in qualities() if q.lever == lever and words & {lever, q.value, "all"})


def check_allowed(words: frozenset[str]) -> None:
    """Check the words of ``--allow``.

    Raises:
        UnknownNameError: a word is neither a lever nor a value that changes results.
    """
    known = sorted({q.lever for q in qualities()} | {q.value for q in qualities() if q.value != "true"} | {"all"})
    for word in sorted(words):
        if word not in known:
            raise UnknownNameError("change to allow", word[:60], known, hint=f"one of {', '.join(known)}")


def check_framework(framework: str) -> None:
    """Refuse a framework that has no row.

    Raises:
        MemfitError: nobody wrote down what it can do.
    """
    if framework not in names():
        raise MemfitError(f"`{framework}` cannot be planned for", hint=f"one of {', '.join(names())}")


def methods_of(framework: str) -> tuple[str, ...]:
    """The methods that a framework trains with."""
    cap = capability(framework)
    return ("full", *cap.adapters, *cap.methods)


def check_method(framework: str, method: str) -> None:
    """Refuse a method that the framework does not have.

    Raises:
        JobError: it has others.
    """
    if method in methods_of(framework):
        return
    able = [name for name in names() if method in methods_of(name)]
    hint = f"it has {', '.join(methods_of(framework))}; {method} is in {', '.join(able)}"
    raise JobError("task.method", f"{framework} does not train with {method}", value=method, hint=hint)


def assumed_host_bytes(kind: str) -> int:
    """Memory of a host that nobody stated, by the kind of its cards (``Gpu.kind``)."""
    gib: int = _data("host.toml")["memory_gib"][kind]
    return gib << 30
