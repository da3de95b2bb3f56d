"""Framework profiles, precision schemes, optimizers and storage dtypes, read from the data files beside."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import resources
from typing import Any

from memfit.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """Bytes per parameter of one precision scheme; 0 stands for the compute dtype (except ``master`` and ``reduce``).

    ``weight`` resident weights, ``grad`` gradients between backward and step, ``master`` and ``state`` the optimizer's,
    ``fresh`` gradients as the backward makes them, ``gathered`` and ``reduce`` copies under ZeRO-3, ``step_grad`` the
    copy of the local gradients that the optimizer step makes.
    """

    source: str
    weight: int
    grad: int
    master: int
    state: int
    fresh: int
    gathered: int = 0
    reduce: int = 0
    step_grad: int = 0
    autocast: bool = False
    always: bool = False
    fused_accumulation: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharding:
    """How a framework shards over data parallelism; see the data file for each field."""

    source: str
    live_units: int = 0
    copy_in: int = 0
    reduce_units: int = 0
    flat_on_reduce: bool = False
    root: bool = False
    max_live: int = 0
    bucket_elements: int = 0
    sub_group: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Copies of the logits that a loss makes: (their dtype, fp32) at its forward, kept, and at its backward.

    ``slice`` parts of the tokens or ``chunk`` tokens of each sequence (``across``: of all) are worked on at a time, by
    ``columns`` of the vocabulary; ``part_*`` is what one part makes besides; ``list``: the head makes them one by one;
    ``swap``: what is kept turns into the gradient; ``packed``: the hidden states with a label are copied out and kept;
    ``head_parts``: each part has a gradient of the whole head; ``float_grads``: gradients are summed up in fp32.
    """

    source: str
    forward: tuple[int, int] = (0, 0)
    kept: tuple[int, int] = (0, 0)
    backward: tuple[int, int] = (0, 0)
    slice: int = 0
    chunk: int = 0
    part_forward: tuple[int, int] = (0, 0)
    part_backward: tuple[int, int] = (0, 0)
    columns: int = 0
    across: bool = False
    packed: bool = False
    head_parts: bool = False
    float_grads: bool = False
    list: bool = False
    swap: bool = False
    recompute: bool = False
    at_once: bool = False
    fused: bool = False

    @property
    def held(self) -> bool:
        """The whole logits exist."""
        return not (self.fused or self.recompute)


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """One framework's rows."""

    name: str
    source: str
    modules: str = "transformers"
    fused_qkv: bool = False
    copy_q: bool = False
    joined: bool = False
    leaf: bool = False
    expand_kv: bool = False
    norm: str = "composite"
    mlp: str = "eager"
    rope: str = "composite"
    experts: str = "local"
    split_experts: bool = True
    sharding: str = "none"
    sharding_adapters: str = ""
    optimizer_impl: str = "foreach"
    vocab_parallel: bool = False
    gather_inputs: bool = False
    norm_code: str = "low"
    rope_cat: bool = False
    pad_qkv: bool = False
    dropouts: bool = True
    hold_logits: bool = False
    loop_logits: bool = False
    loop_graph: bool = False
    float_output: bool = False
    adapter_fp32: bool = False
    adapter_dropout: float = 0.0
    kbit_fp32: bool = False
    kbit_inputs: bool = False
    kbit_bytes: int = 0
    kbit_embedding: bool = False
    quantize_head: bool = False
    reference: bool = False
    balance_cost: bool = False
    pipeline_ends: tuple[int, int] = (0, 0)
    expandable: bool = False
    no_sync: bool = False
    pp_no_sync: bool = False
    whole_tensors: bool = False
    untied: bool = False
    bucket: int = 0
    schemes: Mapping[str, str] = field(hash=False)
    sharded: Mapping[str, str] = field(hash=False)
    loss: Mapping[str, str] = field(hash=False)
    loss_tp: Mapping[str, str] = field(hash=False)
    loss_adapters: Mapping[str, str] = field(hash=False)
    loss_compiled: Mapping[str, str] = field(hash=False)
    defaults: Mapping[str, Any] = field(hash=False)
    pipeline: Mapping[str, Any] = field(hash=False)


TABLES = ("schemes", "sharded", "loss", "loss_tp", "loss_adapters", "loss_compiled", "defaults", "pipeline")
"""Rows that are tables: a variant's entries go over those of the profile it is like."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """State slots of an optimizer; see the data file for each field."""

    name: str
    source: str
    slots: int
    bits: int = 0
    block: int = 0
    matrix_only: bool = False
    rest: str = ""
    largest_temp: int = 0
    paged: bool = False
    rank: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Dtype:
    """Storage of weights: ``num / den`` bits per element."""

    name: str
    source: str
    num: int
    den: int = 1
    keep16: str = "none"

    def bytes_of(self, numel: Any) -> Any:
        """Bytes of ``numel`` elements, rounded up."""
        return -(-numel * self.num // (8 * self.den))


def read_data(name: str) -> dict[str, Any]:
    """A data file of the memory model by name."""
    text = resources.files("memfit.formula").joinpath("data", name).read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def _profiles() -> dict[str, Any]:
    return read_data("profiles.toml")


@cache
def data_version() -> str:
    """Date of the profile data."""
    return str(_profiles()["meta"]["date"])


@cache
def _raw(name: str) -> dict[str, Any]:
    table = _profiles()["profile"]
    row = {k: v for k, v in table[name].items() if k not in ("of", "match", "before")}
    parent = row.pop("like", None)
    if not parent:
        return row
    base = _raw(parent)
    merged = {**base, **row}
    for key in TABLES:
        merged[key] = {**base.get(key, {}), **row.get(key, {})}
    return merged


@cache
def lineage(name: str) -> tuple[str, ...]:
    """A profile and the profiles whose rows it inherits, nearest first."""
    parent = _profiles()["profile"].get(name, {}).get("like")
    return (name, *lineage(parent)) if parent else (name,)


@cache
def names() -> tuple[str, ...]:
    """Frameworks that train; variants are left out."""
    return tuple(name for name, row in _profiles()["profile"].items() if "of" not in row)


@lru_cache(maxsize=1024)
def select(framework: str, version: str | None) -> str:
    """The profile of a framework: a variant when the version text has one of its words, else the framework's own."""
    text = (version or "").lower()
    for name, row in _profiles()["profile"].items():
        if row.get("of") != framework:
            continue
        if any(word in text for word in row.get("match", ())) or _older(text, framework, row.get("before")):
            return str(name)
    return framework


def _older(text: str, framework: str, limit: str | None) -> bool:
    """Whether a version text that is a version, alone or behind the framework's name, is older than ``limit``."""
    found = re.match(rf"(?:.*\b{re.escape(framework)}[ =<>~v-]{{0,4}})?(\d{{1,4}})\.(\d{{1,4}})", text)
    if limit is None or found is None:
        return False
    return (int(found[1]), int(found[2])) < tuple(int(n) for n in limit.split("."))


@cache
def profile(name: str) -> Profile:
    """The profile of a framework.

    Raises:
        UnknownNameError: no profile has this name.
    """
    if name not in _profiles()["profile"]:
        raise UnknownNameError("training framework", name, names())
    row = _raw(name)
    parts = {key: row.get(key, {}) for key in TABLES}
    rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k not in parts}
    return Profile(name=name, **rest, **parts)


@cache
def scheme(name: str) -> Scheme:
    """A precision scheme by name."""
    return Scheme(**_profiles()["scheme"][name])


@cache
def sharding(name: str) -> Sharding:
    """A sharding mechanism by name."""
    return Sharding(**_profiles()["sharding"][name]) if name in _profiles()["sharding"] else sharding("none")


@cache
def loss(name: str) -> Loss:
    """A loss by the name of its row."""
    row: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in _profiles()["loss"][name].items()}
    return Loss(**row)


@cache
def optimizer(name: str) -> Optimizer:
    """An optimizer's rows."""
    return Optimizer(name=name, **read_data("optimizers.toml")[name])


@cache
def dtypes() -> dict[str, Dtype]:
    """All storage dtypes."""
    return {k: Dtype(name=k, **v) for k, v in read_data("dtypes.toml").items() if k != "meta"}


def dtype(name: str | Mapping[str, float]) -> Dtype:
    """A storage dtype by name, or from ``{"bpw": bits}``.

    Raises:
        UnknownNameError: no dtype has this name.
    """
    if isinstance(name, Mapping):
        return Dtype(name="bpw", source="stated bits per weight", num=round(float(name["bpw"]) * 1000), den=1000)
    if name not in dtypes():
        raise UnknownNameError("weights dtype", name, dtypes())
    return dtypes()[name]
