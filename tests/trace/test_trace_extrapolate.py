import random
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from trace_programs import GPT2, LLAMA, MIXTRAL, traced

from memfit.trace import Block, RawEvent, Trace
from memfit.trace.extrapolate import FROM_LAYERS, NotUniformError, align, extrapolate, trace_deep


class Builder:
    """Writes a trace of a made-up model by hand."""

    def __init__(self):
        self.events, self.blocks = [], {}

    def alloc(self, size, module, phase="forward", step=0):
        uid = len(self.blocks)
        self.events.append(RawEvent(uid, size, 0, phase, step))
        self.blocks[uid] = Block(
            id=uid, bytes=size, op="aten::mm", module=module, phase=phase, step=step, shape=(size,), dtype="uint8",
            component="activations",
        )  # fmt: skip
        return uid

    def free(self, uid, phase="backward", step=0):
        self.events.append(RawEvent(uid, -self.blocks[uid].bytes, 0, phase, step))

    def trace(self, **more):
        return Trace(events=tuple(self.events), blocks=self.blocks, engine="meta", steps=1, **more)


def model(num_layers, sizes, *, order="reversed", odd=None, head=700):
    """Layers keep one block of each size in the forward; the backward frees them and makes a gradient for each.

    Then the optimizer takes lists over all layers: a temporary for each gradient, freed from the first to the last.
    """
    b = Builder()
    b.alloc(5000, "embed")
    kept = []
    for layer in range(num_layers):
        extra = [odd] if odd and layer == num_layers - 1 else []
        inside = [b.alloc(size, f"layers.{layer}.part{k}") for k, size in enumerate([*sizes, *extra])]
        b.free(b.alloc(3 * sizes[0], f"layers.{layer}"), "forward")
        kept.append(inside)
    top = b.alloc(head, "head")
    b.free(top)
    gradients = []
    for layer in reversed(range(num_layers)) if order == "reversed" else range(num_layers):
        for uid in reversed(kept[layer]):
            gradients.append(b.alloc(b.blocks[uid].bytes, f"layers.{layer}", "backward"))
            b.free(uid)
    temporaries = [b.alloc(b.blocks[g].bytes, "", "optimizer") for g in gradients]
    for uid in (*temporaries, *gradients):
        b.free(uid, "optimizer")
    return b.trace()


def same(found, full):
    """Equal in everything that does not name a single layer."""
    assert [e[1:] for e in found.events] == [e[1:] for e in full.events]
    assert found.peak_allocated == full.peak_allocated
    assert found.phase_peaks() == full.phase_peaks()
    assert found.components(found.peak()[0]) == full.components(full.peak()[0])
    for config in ("", "expandable_segments:True"):
        a, b = found.simulate(config), full.simulate(config)
        assert (a.reserved_peak, a.num_segments_peak, a.reserved) == (b.reserved_peak, b.num_segments_peak, b.reserved)
    assert found.smallest_capacity() == full.smallest_capacity()


SHAPES = {
    "num_layers": st.integers(5, 20),
    "order": st.sampled_from(["reversed", "forward"]),
    "head": st.integers(1, 4 << 20),
}
SIZES = st.integers(1, 4 << 20)


@given(sizes=st.lists(SIZES, min_size=1, max_size=5, unique=True), **SHAPES)
def test_equal_layers_are_repeated_exactly(sizes, num_layers, order, head):
    assume(head not in sizes)
    traces = [model(n, sizes, order=order, head=head) for n in (3, 4, 5)]
    same(extrapolate(traces, (3, 4, 5), num_layers), model(num_layers, sizes, order=order, head=head))


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=5), **{**SHAPES, "head": st.integers(1, 3)})
def test_what_looks_alike_is_repeated_exactly_or_refused(sizes, num_layers, order, head):
    traces = [model(n, sizes, order=order, head=head) for n in (3, 4, 5)]
    try:
        found = extrapolate(traces, (3, 4, 5), num_layers)
    except NotUniformError:
        return
    same(found, model(num_layers, sizes, order=order, head=head))


def test_the_result_says_where_it_comes_from():
    found = extrapolate([model(n, [600, 700]) for n in (3, 4, 5)], (3, 4, 5), 12)
    assert found.settings["layers"] == 12
    assert found.notes[-1] == "12 equal layers, repeated from traces of 3, 4 and 5"
    assert {b.module for b in found.blocks.values()} == {"embed", "layers.*.part0", "layers.*.part1", "layers.*",
                                                         "head", ""}  # fmt: skip


def test_layers_that_differ_are_refused():
    uniform = [model(n, [600, 700]) for n in (3, 4, 5)]
    with pytest.raises(NotUniformError):  # a size that grows with the depth
        extrapolate([model(n, [600, 700], head=n * 10_000) for n in (3, 4, 5)], (3, 4, 5), 12)
    with pytest.raises(NotUniformError):  # the fourth layer is of another kind
        extrapolate([uniform[0], model(4, [600, 700], odd=900), uniform[2]], (3, 4, 5), 12)
    with pytest.raises(NotUniformError):  # the fifth is
        extrapolate([*uniform[:2], model(5, [600, 700], odd=900)], (3, 4, 5), 12)
    with pytest.raises(ValueError, match="consecutive"):
        extrapolate(uniform, (3, 4, 6), 12)


def test_blocks_freed_in_no_order_at_all_are_extrapolated_by_what_they_are():
    """A cache that is emptied frees in any order; the allocator ends in the same state."""

    def shuffled(num_layers, seed):
        trace = model(num_layers, [600, 3 << 20])
        events = list(trace.events)
        run = [i for i, e in enumerate(events) if e.bytes < 0 and e.phase == "optimizer"]
        mixed = random.Random(seed).sample([events[i] for i in run], len(run))
        for i, event in zip(run, mixed, strict=True):
            events[i] = event
        return replace(trace, events=tuple(events))

    found = extrapolate([shuffled(n, n) for n in (3, 4, 5)], (3, 4, 5), 12)
    full = shuffled(12, 1)
    assert found.phase_peaks() == full.phase_peaks()
    assert found.simulate().reserved_peak == full.simulate().reserved_peak
    assert found.simulate().allocated == full.simulate().allocated


def test_blocks_kept_in_another_order_are_refused():
    """The sequence alone looks alike; which block a free means does not."""

    def twice(num_layers, pick):
        b = Builder()
        kept = [b.alloc(600, f"layers.{k}") for k in range(num_layers)]
        for k in pick:
            b.free(kept[k])
            b.free(b.alloc(900, "layers.0", "backward"))
        return b.trace()

    orders = ([2, 1, 0], [3, 2, 1, 0], [4, 0, 3, 1, 2])
    with pytest.raises(NotUniformError, match="order"):
        extrapolate([twice(n, order) for n, order in zip((3, 4, 5), orders, strict=True)], (3, 4, 5), 9)


@given(
    parts=st.lists(
        st.tuples(st.lists(st.integers(0, 3), max_size=4), st.lists(st.integers(0, 3), min_size=1, max_size=5)),
        min_size=1, max_size=4,
    ),
    n=st.integers(2, 4),
)  # fmt: skip
def test_an_alignment_turns_the_shorter_text_into_the_longer(parts, n):
    def text(times):
        return [(x,) for fixed, repeated in parts for x in (*fixed, *repeated * times)]

    short, long = text(n), text(n + 1)
    inserts = align(short, long)
    left = list(long)
    for insert in reversed(inserts):
        assert long[insert.at : insert.at + insert.length] == long[insert.at - insert.length : insert.at]
        del left[insert.at : insert.at + insert.length]
    assert left == short


def test_only_deep_uniform_models_are_extrapolated():
    asked = []

    def trace(layers):
        asked.append(layers)
        return model(layers or 60, [600, 700])

    deep = trace_deep(trace, 60, uniform=True)
    assert asked == [3, 4, 5]
    same(deep, model(60, [600, 700]))
    for num_layers, uniform, full in ((FROM_LAYERS, True, False), (60, False, False), (60, True, True)):
        asked.clear()
        trace_deep(trace, num_layers, uniform=uniform, full=full)
        assert asked == [None]


def test_a_model_that_turns_out_not_to_be_uniform_is_traced_in_full():
    def trace(layers):
        return model(layers or 60, [600, 700], head=(layers or 60) * 10_000)

    found = trace_deep(trace, 60, uniform=True)
    assert found.peak_allocated == trace(None).peak_allocated
    assert "all layers were traced" in found.notes[-1]


STRATEGIES = {
    "plain": {},
    "recomputed": {"checkpointing": 1},
    "fused, accumulated": {"optimizer": "adamw-fused", "grad_accum": 2},
    "lora": {"lora": {"r": 8, "target_modules": "all-linear"}},
    "sharded": {"ranks": 8, "shard": True, "params": "fp32", "compute": "bf16", "reduce": "fp32"},
    "sharded, tensor parallel": {"ranks": 4, "shard": True, "tp": 2, "checkpointing": 1},
    "8-bit states": {"optimizer": "adamw-8bit"},
    "in the backward": {"optimizer_in_backward": True},
    "experts": {"config": MIXTRAL},
    "gpt2": {"config": GPT2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_real_model_from_three_depths_is_the_full_trace(name):
    pytest.importorskip("torch")
    fields = STRATEGIES[name]
    shallow = [traced(num_layers=n, **fields) for n in (3, 4, 5)]
    same(extrapolate(shallow, (3, 4, 5), 9), traced(num_layers=9, **fields))


@pytest.mark.slow
def test_autocast_from_three_depths_is_the_full_trace():
    """Not event for event: the order in which its cache is emptied changes from run to run."""
    pytest.importorskip("torch")
    fields = {"checkpointing": 1, "params": "fp32", "autocast": "bf16"}
    found = extrapolate([traced(num_layers=n, **fields) for n in (3, 4, 5)], (3, 4, 5), 9)
    full = traced(num_layers=9, **fields)
    assert found.phase_peaks() == full.phase_peaks()
    assert found.simulate().reserved_peak == full.simulate().reserved_peak


@pytest.mark.slow
def test_flat_buckets_do_not_grow_by_layer_and_are_refused():
    pytest.importorskip("torch")
    wide = {**LLAMA, "hidden_size": 512}
    with pytest.raises(NotUniformError):
        extrapolate([traced(config=wide, num_layers=n, ranks=8) for n in (3, 4, 5)], (3, 4, 5), 9)


@pytest.mark.slow
def test_the_peak_of_llama_8b_from_a_few_layers_to_the_byte():
    """81,420,428,800 B and 65,467,621,376 B are what torch's own allocator gave; see memfit.trace.reference."""
    pytest.importorskip("torch")
    from memfit.trace.reference import references
    from memfit.trace.training import Training

    config = references()["model"]
    for optimizer, peak in (("adamw-foreach", 81_420_428_800), ("adamw-fused", 65_467_621_376)):
        plan = Training(config=config, optimizer=optimizer, checkpointing=1, keep_outputs=True)
        from memfit.trace.program import run_training

        shallow = [run_training(replace(plan, num_layers=n)) for n in (3, 4, 5)]
        assert extrapolate(shallow, (3, 4, 5), 32).peak_allocated == peak
