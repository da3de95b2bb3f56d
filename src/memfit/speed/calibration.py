"""The named figures of the time model that measurement refines, and files of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from memfit.errors import InputFileError
from memfit.readers import read_tree
from memfit.speed.data import read

MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Twelve figures; what each means, its bounds and its source stand in ``data/constants.toml``.

    Attributes:
        matmul, attention, memory: rates of matrix products, fused attention and memory-bound kernels, 1 = as tabled.
        kernel_s, host_s: device seconds per kernel, host seconds per launch.
        link, network: shares of the data sheet rates that large collectives reach inside and between nodes.
        hop_s, network_hop_s: seconds per step of a collective inside and between nodes.
        contention: slowdown of collectives inside training.
        interference: share of an overlapped collective that shows as slower computation.
        jitter: spread of one node's step time.
    """

    matmul: float
    attention: float
    memory: float
    kernel_s: float
    host_s: float
    link: float
    network: float
    hop_s: float
    network_hop_s: float
    contention: float
    interference: float
    jitter: float


NAMES = tuple(f.name for f in fields(Calibration))


def constant(name: str) -> Mapping[str, Any]:
    """``value``, ``low``, ``high``, ``doc`` and ``source`` of one figure."""
    row: Mapping[str, Any] = read("constants")[name]
    return row


@cache
def default() -> Calibration:
    """The figures as shipped."""
    return Calibration(**{name: constant(name)["value"] for name in NAMES})


def load(path: str | Path) -> Calibration:
    """A calibration file: a table ``[calibration]`` with some of the figures; the others keep their shipped values.

    Raises:
        InputFileError: the file cannot be read, names an unknown figure, or one is out of bounds.
    """
    tree = read_tree(path, limit=MAX_FILE_BYTES)
    table = tree.get("calibration") if isinstance(tree, Mapping) else None
    if not isinstance(table, Mapping):
        raise InputFileError(f"`{path}` is not a calibration file: it has no table `calibration`")
    values = {name: constant(name)["value"] for name in NAMES}
    for name, value in table.items():
        if name not in values:
            raise InputFileError(f"`{path}`: no figure is called `{str(name)[:60]}`", hint=f"one of {', '.join(NAMES)}")
        low, high = constant(name)["low"], constant(name)["high"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise InputFileError(f"`{path}`: {name} must be a number from {low:g} to {high:g}")
        values[name] = float(value)
    return Calibration(**values)
