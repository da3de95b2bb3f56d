import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from memfit.trace import Block, RawEvent, Trace, group, rounded
from memfit.trace.result import any_layer

PHASES = ("load", "forward", "backward", "optimizer")


def make(sizes, lifetimes):
    """A trace that allocates ``sizes`` in order; each block is freed after ``lifetimes`` more allocations, or never."""
    events, blocks, due = [], {}, {}
    for uid, (size, life) in enumerate(zip(sizes, lifetimes, strict=True)):
        phase, step = PHASES[uid % 4], 0 if uid % 4 else -1
        events += [RawEvent(old, -sizes[old], 0, phase, step) for old in due.pop(uid, ())]
        events.append(RawEvent(uid, size, 0, phase, step))
        blocks[uid] = Block(
            id=uid, bytes=size, op="aten::mm", module=f"layers.{uid}.mlp", phase=phase, step=step,
            shape=(size,), dtype="uint8", component="activations", hidden=uid % 5 == 0,
        )  # fmt: skip
        if life:
            due.setdefault(uid + life, []).append(uid)
    return Trace(events=tuple(events), blocks=blocks, engine="meta", steps=1)


TRACES = st.lists(st.tuples(st.integers(1, 1 << 20), st.integers(0, 6)), min_size=1, max_size=40).map(
    lambda pairs: make([size for size, _ in pairs], [life for _, life in pairs])
)


@given(trace=TRACES)
def test_the_readings_of_a_trace_agree_with_each_other(trace):
    index, peak = trace.peak()
    assert sum(rounded(b.bytes) for b in trace.live(index)) == peak == trace.peak_allocated
    assert sum(trace.components(index).values()) == peak
    assert max(trace.phase_peaks().values()) == peak
    assert trace.peak_requested <= peak
    assert trace.peak(hidden=False)[1] <= peak
    assert trace.ledger().allocated_bytes == peak
    assert trace.timeline().peak == (index, peak)


@given(trace=TRACES)
def test_the_allocator_reserves_at_least_what_is_allocated(trace):
    result = trace.simulate()
    assert result.requested_peak == trace.peak_requested
    assert result.reserved_peak >= result.allocated_peak >= trace.peak_allocated
    ledger = trace.ledger(simulated=result)
    assert ledger.reserved_bytes == result.reserved_peak
    assert trace.peak_requested <= trace.smallest_capacity() <= result.reserved_peak


def test_equal_blocks_of_different_layers_are_grouped():
    trace = make([512, 512, 512], [0, 0, 0])
    found = group(trace.live(2))
    assert [(g.num_blocks, g.rounded_bytes) for g in found if g.shape == (512,)] == [(3, 1536)]
    assert any_layer("model.layers.12.mlp") == "model.layers.*.mlp"


def test_held_is_what_the_forward_made_and_the_backward_finds():
    trace = make([512, 1024, 2048, 512, 512, 512, 512], [0, 0, 0, 0, 0, 0, 0])
    assert [b.id for b in trace.held(step=0)] == [1]


def test_a_use_by_another_stream_is_passed_on_and_holds_no_memory():
    trace = make([512, 1024], [0, 0])
    used = Trace(events=(*trace.events, RawEvent(1, 0, 3, "backward", 0)), blocks=trace.blocks, engine="meta", steps=1)
    assert used.peak() == trace.peak()
    assert used.allocator_events()[-1][1:] == (1, 3)
    assert len(used.timeline()) == len(trace.timeline())


def test_importing_the_package_loads_neither_torch_nor_numpy():
    code = "import sys, memfit.trace; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
