"""Interconnects: bytes per second of one port, link or GPU, one direction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from memfit.errors import UnknownNameError
from memfit.hardware.data import read


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One kind of interconnect.

    Attributes:
        name: e.g. ``infiniband-ndr``; aliases are other names.
        kind: ``gpu`` (between the GPUs of a node), ``host`` (to the CPU) or ``network`` (between nodes).
        bytes_per_s: one direction; of a GPU for ``gpu``, of a 16-lane slot for ``host``, of a port for ``network``
            (EFA rows: the share of one GPU).
        source, date: where the rate comes from.
    """

    name: str
    kind: Literal["gpu", "host", "network"]
    bytes_per_s: int
    source: str
    date: str
    aliases: tuple[str, ...] = ()


@cache
def links() -> tuple[Link, ...]:
    """All interconnects that memfit knows."""
    return tuple(Link(**{**row, "aliases": tuple(row["aliases"])}) for row in read("links"))


def link_bytes_per_s(name: str) -> int:
    """The rate of an interconnect by name, e.g. ``infiniband-ndr`` or ``ib-ndr``.

    Raises:
        UnknownNameError: no interconnect has that name.
    """
    table = {n: link for link in links() for n in (link.name, *link.aliases)}
    found = table.get(name.strip().lower())
    if found is None:
        raise UnknownNameError("interconnect", name[:60], table)
    return found.bytes_per_s
