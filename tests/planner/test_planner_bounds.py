"""Bounds of whole spaces: no candidate undercuts them, and what rests on them is what brute force finds."""

from __future__ import annotations

import random

import numpy as np
import pytest
from planner_cases import SMALL, every_candidate, limit_of, space_of

from memfit.formula import arrays
from memfit.planner import levers
from memfit.planner.bounds import Bounds, at
from memfit.planner.search import Search

LARGER = {
    "windows, two kinds": {"model": "gemma-3-27b", "gpu": "16xh100", "framework": "torchtitan", "cp": 1},
    "dense layers first": {"model": "deepseek-v3", "gpu": "256xh100", "framework": "megatron", "global_batch": 512,
        "cp": 1, "tp": 8},
    "experts": {"model": "qwen3-30b-a3b", "gpu": "16xh100", "framework": "megatron", "global_batch": 64, "cp": 1},
    "every n-th layer": {"model": "llama-3.2-1b", "gpu": "2xh100", "framework": "torch", "global_batch": 8},
    "tied ends": {"model": "qwen3-0.6b", "gpu": "8xl40s", "framework": "torchtitan", "global_batch": 16},
    "ZeRO-1 and 2": {"model": "llama-3.1-8b", "gpu": "8xh100", "framework": "deepspeed", "global_batch": 16},
    "autocast": {"model": "qwen3-4b", "gpu": "4xa100", "framework": "transformers", "global_batch": 16},
    "adapters": {"model": "llama-3.1-8b", "gpu": "4xh100", "framework": "torchtitan", "method": "lora",
        "global_batch": 16},
    "last layers": {"model": "llama-3.2-1b", "gpu": "2xh100", "framework": "torch", "method": "freeze", "trainable": 4,
        "global_batch": 8},
    "images": {"model": "qwen2.5-vl-7b", "gpu": "4xh100", "framework": "trl", "global_batch": 8},
    "encoder": {"model": "bert-base-uncased", "gpu": "2xl40s", "framework": "transformers", "seq_len": 512,
        "global_batch": 32},
    "micro-batch stated": {"model": "llama-3.1-8b", "gpu": "8xh100", "micro_batch": 2, "grad_accum": 4},
}  # fmt: skip


def check(space, whole, layout, bounds, judge):
    """Of some candidates: seconds, need, pinned host memory."""
    peaks = arrays.evaluate(at(space.base, whole), **layout.columns)
    need, host = bounds.memory(whole, layout)
    assert (need <= peaks.need).all(), whole
    assert (host <= peaks.host).all(), whole
    assert (bounds.seconds(whole, layout) <= judge._time(whole, layout.columns)).all(), whole
    return need / peaks.need


@pytest.mark.parametrize("name", sorted(SMALL))
def test_no_candidate_undercuts_the_bounds_of_its_space(name):
    space = space_of(SMALL[name])
    bounds, judge = Bounds(space, space.layouts), Search(space, limit_bytes=1 << 62)
    for chosen, layout in space.roots():
        values = {**{n: layout.static[n] for n in levers.STRUCTURAL}, **chosen}
        for leaf in space.leaves(values):
            check(space, {**values, **leaf}, layout, bounds, judge)


@pytest.mark.parametrize("name", sorted(LARGER))
def test_no_candidate_of_a_larger_space_undercuts_its_bounds(name):
    space = space_of(LARGER[name])
    bounds, judge = Bounds(space, space.layouts), Search(space, limit_bytes=1 << 62)
    some = random.Random(0)
    close = []
    for chosen, layout in some.sample(roots := list(space.roots()), min(len(roots), 12)):
        values = {**{n: layout.static[n] for n in levers.STRUCTURAL}, **chosen}
        for leaf in some.sample(leaves := list(space.leaves(values)), min(len(leaves), 4)):
            close.append(check(space, {**values, **leaf}, layout, bounds, judge))
    assert np.median(np.concatenate(close)) > 0.1  # a bound of nothing would bound nothing out


def test_rows_of_no_interest_have_no_bound():
    space = space_of(SMALL["megatron"])
    chosen, layout = next(iter(space.roots()))
    values = {**{n: layout.static[n] for n in levers.STRUCTURAL}, **chosen}
    whole = {**values, **next(iter(space.leaves(values)))}
    every, some = Bounds(space, space.layouts), Bounds(space, space.layouts)
    seconds = every.seconds(whole, layout)
    within = float(np.median(seconds))
    need, _ = every.memory(whole, layout)
    assert np.array_equal(some.memory(whole, layout, within=within)[0], np.where(seconds <= within, need, 0))


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_leanest_and_the_fastest_are_what_brute_force_finds(name):
    space = space_of(SMALL[name])
    found = every_candidate(name)
    assert Search(space, limit_bytes=-1).least_need() == min(int(rows.need.min()) for rows in found)
    outcome = Search(space, limit_bytes=limit_of(space) // 2).run()
    assert outcome.unlimited.seconds == pytest.approx(min(float(rows.seconds.min()) for rows in found), rel=1e-12)


@pytest.mark.parametrize("name", ["trl-qlora", "torchtitan", "megatron"])
def test_a_host_that_is_too_small_is_bounded_too(name):
    space = space_of(SMALL[name])
    fewest = min(
        int(arrays.evaluate(at(space.base, rows.values), **rows.columns).host[rows.need <= limit_of(space)].min())
        for rows in every_candidate(name)
        if (rows.need <= limit_of(space)).any()
    )
    for host in (0, 1 << 28, 1 << 31, 1 << 36):
        search = Search(space, limit_bytes=limit_of(space), host_bytes=host)
        assert search.fits_at_all() == (fewest <= host)
        assert bool(search.run().best) == (fewest <= host)
