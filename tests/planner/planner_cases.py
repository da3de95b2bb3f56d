"""Small questions whose whole space can be tried."""

from __future__ import annotations

import numpy as np

from memfit.formula.slack import most_needed
from memfit.hardware import lookup_gpu
from memfit.job import from_kwargs
from memfit.planner import levers
from memfit.planner.search import Search
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


def every_candidate(space, **limits):
    """(static values, columns, seconds, need) of the whole space, one structure at a time.

    With ``limits`` of a search the need of what does not fit is huge.
    """
    judge = Search(space, **{"limit_bytes": 1 << 62, **limits})
    for chosen, layout in space.roots():
        values = {**{n: layout.static[n] for n in levers.STRUCTURAL}, **chosen}
        for leaf in space.leaves(values):
            whole = {**values, **leaf}
            need, fits, _ = judge._memory(whole, layout.columns)
            need = np.where(fits, need, 1 << 62) if limits else need
            yield whole, layout.columns, judge._time(whole, layout.columns), need


def brute_force(space, limit, **limits):
    """Seconds of the fastest candidate that fits; infinite when none does."""
    best = np.inf
    for _, _, seconds, need in every_candidate(space, **limits):
        fitting = seconds[need <= limit]
        best = min(best, fitting.min(initial=np.inf))
    return float(best)


def simplest(space, limit, border):
    """The least (tp * pp * cp, offloaded tensors) of all candidates that fit and take at most ``border`` seconds."""
    found = set()
    for whole, columns, seconds, need in every_candidate(space):
        good = (need <= limit) & (seconds <= border)
        found |= {(int(m), len(whole["offload"])) for m in (columns["tp"] * columns["cp"] * whole["pp"])[good]}
    return min(found)
