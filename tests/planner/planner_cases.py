"""Small questions whose whole space can be tried."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from memfit.formula import arrays
from memfit.formula.slack import calm_bytes, most_needed
from memfit.hardware import lookup_gpu
from memfit.job import from_kwargs
from memfit.planner import levers
from memfit.planner.search import Search, at
from memfit.planner.space import make_space

SMALL = {
    "trl": {"model": "llama-3.2-1b", "gpu": "4xrtx-4090", "framework": "trl", "seq_len": 2048, "global_batch": 8,
        "zero": 3},
    "trl-qlora": {
        "model": "llama-3.1-8b", "gpu": "2xrtx-4090", "framework": "trl", "method": "qlora", "seq_len": 4096,
        "global_batch": 8, "loss": "chunked",
    },
    "axolotl-lora": {
        "model": "llama-3.1-8b", "gpu": "2xrtx-4090", "framework": "axolotl", "method": "lora", "seq_len": 4096,
        "global_batch": 4, "loss": "fused", "zero": 3, "attention": "flash",
    },
    "torchtitan": {
        "model": "llama-3.2-1b", "gpu": "4xrtx-4090", "framework": "torchtitan", "seq_len": 4096, "global_batch": 4,
        "pp_schedule": "1f1b", "compile": True, "zero": 3, "loss": "compiled",
    },
    "megatron": {"model": "llama-3.1-8b", "gpu": "8xh100", "framework": "megatron", "seq_len": 8192, "global_batch": 8,
        "cp": 1, "sequence_parallel": True, "zero": 1, "virtual_pp": 1},
    "megatron-uneven": {"model": "llama-3.1-8b", "gpu": "8xh100", "framework": "megatron", "seq_len": 4096,
        "global_batch": 32, "cp": 1, "tp": 1, "zero": 1, "sequence_parallel": False, "offload": ()},
    "deepspeed": {"model": "llama-3.2-1b", "gpu": "4xa100", "framework": "deepspeed", "seq_len": 8192,
        "global_batch": 8, "loss": "fused", "attention": "flash", "compile": True},
    "torch": {"model": "gpt2", "gpu": "2xrtx-3090", "framework": "torch", "seq_len": 1024, "global_batch": 16,
        "loss": "compiled", "attention": "flash"},
}  # fmt: skip


def space_of(fields, **more):
    job = from_kwargs(**{**fields, **more})
    return make_space(job, lookup_gpu(job.hardware.gpu)[0], job.hardware.gpus, allow=frozenset())


def limit_of(space, risk=0.01):
    return most_needed(space.base.capacity_bytes, risk)


class Rows(NamedTuple):
    """Candidates of one structure: their values, columns, seconds, need, and the capacity from which all is calm."""

    values: dict[str, Any]
    columns: dict[str, Any]
    seconds: Any
    need: Any
    calm: Any


@cache
def every_candidate(name):
    """The whole space of a small question, one structure at a time; calm with a risk of 1 %."""
    space = space_of(SMALL[name])
    judge = Search(space, limit_bytes=1 << 62)
    found = []
    for chosen, layout in space.roots():
        values = {**{n: layout.static[n] for n in levers.STRUCTURAL}, **chosen}
        for leaf in space.leaves(values):
            whole = {**values, **leaf}
            peaks = arrays.evaluate(at(space.base, whole), **layout.columns)
            calm = calm_bytes(peaks.reserved, peaks.device - peaks.reserved, 0.01, sharded=whole["zero"] >= 3)
            found.append(Rows(whole, layout.columns, judge._time(whole, layout.columns), peaks.need, calm))
    return tuple(found)


def brute_force(name, limit, capacity=None):
    """Seconds of the fastest candidate that fits, in a capacity for calm if one is given; infinite when none does."""
    best = np.inf
    for rows in every_candidate(name):
        fits = rows.need <= limit
        if capacity is not None:
            fits &= rows.calm <= capacity
        best = min(best, rows.seconds[fits].min(initial=np.inf))
    return float(best)


def simplest(name, limit, border):
    """The least (tp * pp * cp, offloaded tensors) of all candidates that fit and take at most ``border`` seconds."""
    found = set()
    for rows in every_candidate(name):
        good = (rows.need <= limit) & (rows.seconds <= border)
        meshes = rows.columns["tp"] * rows.columns["cp"] * rows.values["pp"]
        found |= {(int(mesh), len(rows.values["offload"])) for mesh in meshes[good]}
    return min(found)
