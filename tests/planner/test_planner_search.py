"""The search against brute force, and what the search rests on."""

from __future__ import annotations

import numpy as np
import pytest
from planner_cases import SMALL, brute_force, every_candidate, limit_of, simplest, space_of

from memfit.formula.slack import most_needed, need_band
from memfit.job import from_kwargs
from memfit.planner import levers
from memfit.planner.search import TIE, Search
from memfit.planner.space import _candidates, _worth
from memfit.speed import step_time


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_search_finds_what_brute_force_finds(name):
    space = space_of(SMALL[name])
    for share in (1.0, 0.6):
        limit = int(limit_of(space) * share)
        outcome = Search(space, limit_bytes=limit).run()
        found = outcome.fastest.seconds if outcome.fastest else np.inf
        assert found == pytest.approx(brute_force(name, limit), rel=1e-12), (name, share)
        assert all(c.need_bytes <= limit for c in (*outcome.best, *outcome.front))


@pytest.mark.parametrize("name", sorted(SMALL))
def test_of_plans_that_tie_the_simplest_comes_first(name):
    space = space_of(SMALL[name])
    outcome = Search(space, limit_bytes=limit_of(space)).run()
    border = outcome.fastest.seconds * (1 + TIE)
    assert outcome.best[0].seconds <= border
    assert outcome.best[0].simple[:2] == simplest(name, limit_of(space), border)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_reserved_memory_stays_on_the_card_too(name):
    space = space_of(SMALL[name])
    limit, calm = limit_of(space), (space.base.capacity_bytes, 0.01)
    outcome = Search(space, limit_bytes=limit, calm=calm).run()
    found = outcome.fastest.seconds if outcome.fastest else np.inf
    assert found == pytest.approx(brute_force(name, limit, capacity=calm[0]), rel=1e-12)
    assert found >= brute_force(name, limit)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_bounds_are_bounds(name):
    """No candidate is faster than its branch at its fastest, none leaner than its branch at its leanest."""
    space = space_of(SMALL[name])
    judge = Search(space, limit_bytes=1 << 62)
    bounds = {}
    for whole, columns, seconds, need, _ in every_candidate(name):
        branch = {n: whole[n] for n in (*levers.STRUCTURAL, *levers.BRANCHED)}
        key = (tuple(map(str, branch.values())), len(columns["tp"]), tuple(columns["dp_shard"]))
        if key not in bounds:
            fast = judge._fast(branch, levers.BOUNDED)
            lean = np.min([judge._memory(c, columns)[0] for c in judge._lean(branch, levers.BOUNDED)], axis=0)
            bounds[key] = judge._time(fast, columns), lean
        fastest, leanest = bounds[key]
        assert (seconds >= fastest * (1 - 1e-12)).all(), whole
        assert (need >= leanest).all(), whole


@pytest.mark.parametrize("name", ["torchtitan", "deepspeed", "megatron", "megatron-uneven"])
def test_the_chain_of_checkpointing_is_one(name):
    """Along the chain time never falls and need never grows."""
    space = space_of(SMALL[name])
    judge = Search(space, limit_bytes=1 << 62)
    for chosen, layout in space.roots():
        values = {**{n: layout.static[n] for n in levers.STRUCTURAL}, **chosen}
        base = judge._fast(values, levers.BOUNDED)
        chain = levers.chain(space.options("checkpointing", values))
        rows = [({**base, "checkpointing": v}) for v in chain]
        needs = np.array([judge._memory(r, layout.columns)[0] for r in rows])
        times = np.array([judge._time(r, layout.columns) for r in rows])
        assert (np.diff(needs, axis=0) <= 0).all()
        assert (np.diff(times, axis=0) >= -1e-12 * times[:-1]).all()


@pytest.mark.parametrize(("framework", "gpu"), [("torch", "2xh100"), ("torchtune", "2xh100"), ("torchtitan", "4xh100")])
def test_branches_that_are_left_out_are_never_better(framework, gpu):
    """A compiled loss against an eager one, 1F1B against GPipe."""
    fields = {"model": "llama-3.2-1b", "gpu": gpu, "framework": framework, "seq_len": 2048, "global_batch": 8, "cp": 1}
    space = space_of(fields, zero=3, pp_schedule=None, checkpointing="full")
    judge = Search(space, limit_bytes=1 << 62)
    seen = set()
    for chosen, layout in space.roots():
        values = {**{n: layout.static[n] for n in levers.STRUCTURAL}, **chosen}
        better = {**values, "loss": "compiled"} if values["loss"] == "eager" else values
        better = {**better, "pp_schedule": "1f1b"} if values["pp_schedule"] == "gpipe" else better
        if better == values or values["pp_schedule"] == "interleaved":
            continue
        seen |= {n for n in better if better[n] != values[n]}
        for compile_ in space.values["compile"]:
            rest = {"checkpointing": "full", "offload": (), "reshard": True, "compile": compile_}
            if space.forbidden({**values, **rest}):
                continue
            worse, good = {**values, **rest}, {**better, **rest}
            assert (judge._time(good, layout.columns) <= judge._time(worse, layout.columns) * (1 + 1e-9)).all()
            assert (judge._memory(good, layout.columns)[0] <= judge._memory(worse, layout.columns)[0]).all()
    assert seen == ({"loss", "pp_schedule"} if framework == "torchtitan" else {"loss"})


@pytest.mark.parametrize("name", ["trl", "torchtitan"])
def test_the_answer_does_not_depend_on_chance(name):
    space = space_of(SMALL[name])
    first, again = (Search(space_of(SMALL[name]), limit_bytes=limit_of(space)).run() for _ in range(2))
    assert first == again


@pytest.mark.parametrize("name", ["trl", "torchtitan", "megatron", "trl-qlora"])
def test_whether_anything_fits(name):
    space = space_of(SMALL[name])
    for limit in (limit_of(space), 1 << 30):
        search = Search(space, limit_bytes=limit)
        assert search.fits_at_all() == bool(Search(space, limit_bytes=limit).run().best)


def test_a_limit_is_kept_to_the_byte():
    capacity = 80 << 30
    for risk in (0.001, 0.01, 0.1):
        most = most_needed(capacity, risk)
        assert need_band(most).p_above(capacity) <= risk < need_band(most + 1000).p_above(capacity)
    assert most_needed(capacity, 0.01) < 0.9 * capacity


def test_the_size_of_a_space_is_what_brute_force_walks():
    space = space_of(SMALL["trl"])
    assert space.size == sum(len(rows.seconds) for rows in every_candidate("trl"))


def test_layouts_divide():
    space = space_of(SMALL["torchtitan"])
    for layout in space.layouts:
        c, pp = layout.columns, layout.static["pp"]
        assert (c["dp"] * c["tp"] * c["cp"] * pp == 4).all()
        assert (c["micro_batch"] * c["grad_accum"] * c["dp"] == 4).all()
        assert (c["dp"] % c["dp_shard"] == 0).all()


def test_ranks_hold_all_layers():
    space = space_of(SMALL["megatron-uneven"])
    splits = {layout.static["pp"]: layout.static["pp_layers"] for layout in space.layouts if layout.static["pp_layers"]}
    assert splits
    for pp, split in splits.items():
        assert len(split) == pp
        assert sum(split) == 32


@pytest.mark.parametrize("framework", ["megatron", "torchtitan"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "gemma-3-27b"])
@pytest.mark.parametrize(("pp", "virtual"), [(2, 1), (4, 1), (8, 1), (16, 1), (4, 2)])
def test_no_faster_split_is_left_out(framework, model, pp, virtual):
    """Of all splits with up to two layers fewer on the first and the last rank, the fastest is searched."""
    gpu, gpus = "h100", pp * 4
    schedule = "interleaved" if virtual > 1 else "1f1b"
    space = space_of({"model": model, "framework": framework, "gpu": f"{gpus}x{gpu}", "global_batch": 256})
    shape = {"gpu": f"{gpus}x{gpu}", "pp": pp, "tp": 4, "pp_schedule": schedule, "virtual_pp": virtual}

    def seconds(split):
        job = from_kwargs(model=model, framework=framework, **shape, pp_layers=split, global_batch=256, zero=1)
        return step_time(job).step_s

    layers = space.base.arch.num_layers
    every = list(_candidates(layers, pp, virtual, own=framework == "torchtitan" or layers % (pp * virtual) == 0))
    loss = space.base.values["loss"]
    searched = [split for split, losses in _worth(space, pp, schedule, virtual).items() if loss in losses]
    assert set(searched) <= set(every)
    assert min(map(seconds, searched)) <= min(map(seconds, every)) * (1 + 1e-9)


def test_the_host_bounds_what_is_offloaded():
    space = space_of(
        {"model": "llama-3.1-70b", "gpu": "2xrtx-4090", "method": "qlora", "seq_len": 2048, "global_batch": 4}
    )
    limit = limit_of(space)
    free = Search(space, limit_bytes=limit).run()
    assert free.best[0].values["offload"]
    assert not Search(space, limit_bytes=limit, host_bytes=1 << 30).run().best
    assert not Search(space, limit_bytes=limit, host_bytes=1 << 30).fits_at_all()
