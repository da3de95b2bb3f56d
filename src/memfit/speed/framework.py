"""How each framework runs a step, as rows of ``data/frameworks.toml``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Literal

from memfit.formula.profile import lineage
from memfit.speed.data import read


@dataclass(frozen=True, kw_only=True, slots=True)
class Framework:
    """One framework's rows; see the data file for each field."""

    source: str
    host: float
    compiled_host: float
    attention: str
    fused_softmax: bool
    early_stop: bool
    ddp: Literal["overlap", "after"]
    bucket_bytes: float
    gather_by: Literal["bucket", "tensor"]
    gather_beside: bool
    zero3_by: Literal["block", "tensor"]
    each_micro: bool
    prefetch: bool
    tp_forward: float
    tp_backward: float
    p2p_messages: int
    p2p_sync: bool
    p2p_scatter: bool
    p2p_overlap: bool


@lru_cache(maxsize=1024)
def framework(name: str, version: str | None = None) -> Framework:
    """The rows of a profile: its own over those of the profiles that it is like, over the defaults.

    Args:
        name: of the profile.
        version: the text of ``framework_version``; rows ``of`` the profile hold when it has one of their words.
    """
    table = read("frameworks")
    row = dict(table["default"])
    for ancestor in reversed(lineage(name)):
        row |= table.get(ancestor, {})
    text = (version or "").lower()
    for other in table.values():
        if other.get("of") == name and any(word in text for word in other["match"]):
            row |= other
    return Framework(**{f.name: row[f.name] for f in fields(Framework)})
