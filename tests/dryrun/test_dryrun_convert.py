"""The allocator's history becomes a trace that memfit reads; what blocks hold is found by address and time."""

import gzip
import json
from types import SimpleNamespace

from dryrun_cases import BACKWARD, FORWARD, FRAMES, MIB, TABLE, entry, history
from hypothesis import given
from hypothesis import strategies as st

from memfit.mirage.run.hook.memfit_hook import convert
from memfit.trace.files import load


def label(address, at, component, name="w", shape=(2, 3), dtype="float32"):
    return SimpleNamespace(
        time_us=at, address=address, component=component, name=name, shape=shape, dtype=dtype, device=0
    )


def traced(tmp_path, entries, labels=(), uses=(), vocabulary=()):
    made = convert.History(entries, TABLE)
    made.label(labels)
    made.use(uses)
    path = tmp_path / "x.trace.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump(convert.document(made, vocabulary, seconds=1.0, settings={"torch": "2.13.0"}), file)
    return load(path)


def test_a_history_reads_back_as_a_trace(tmp_path):
    trace = traced(tmp_path, history(), [label(4096, 5, "parameters")])
    assert [(e.id, e.bytes, e.phase, e.step) for e in trace.events] == [
        (0, 4 * MIB, "load", -1), (1, 3 * MIB, "forward", 0), (1, -3 * MIB, "backward", 0),
    ]  # fmt: skip
    assert trace.peak_allocated == 7 * MIB
    first, second = trace.blocks[0], trace.blocks[1]
    assert (first.component, first.module, first.shape, first.dtype) == ("parameters", "w", (2, 3), "float32")
    assert (second.component, second.op, second.source) == ("activations", "Linear.forward", "/home/x/train.py:12")


def test_an_address_that_is_used_again_is_labelled_by_time():
    entries = []
    for at in (10_000, 20_000, 30_000):
        entries += [entry("alloc", 4096, MIB, at=at), entry("free_requested", 4096, MIB, at=at + 5000)]
    made = convert.History(entries, TABLE)
    assert [made.block_at(4096, at) for at in (12_000, 22_000, 35_001, 36_999)] == [0, 1, 2, 2]
    assert made.block_at(4096, 50_000) is None
    assert made.block_at(512, 12_000) is None


def test_the_first_label_of_a_block_counts():
    made = convert.History(history(), TABLE)
    made.label([label(4096, 3, "gradients"), label(4096, 4, "parameters"), label(1, 4, "optimizer")])
    assert [block.component for block in made.blocks] == ["gradients", ""]


def test_a_use_by_another_stream_stands_between_allocation_and_free(tmp_path):
    use = SimpleNamespace(time_us=5, address=4096 + 4 * MIB, stream=77, device=0)
    trace = traced(tmp_path, history(), uses=[use])
    assert [(e.id, e.bytes > 0, e.bytes < 0) for e in trace.events if e.id == 1] == [
        (1, True, False), (1, False, False), (1, False, True),
    ]  # fmt: skip
    assert next(e.stream for e in trace.events if not e.bytes) == 1


def test_memory_of_threads_that_nobody_met_belongs_to_the_backward():
    made = convert.History([entry("alloc", 1, MIB, place=1), entry("alloc", 2, MIB, user_metadata="")], TABLE)
    assert [block.context[0] for block in made.blocks] == ["forward", "backward"]


def test_what_holds_a_value_per_word_outside_of_layers_is_logits(tmp_path):
    head = ("forward", 0, False, "lm_head", "Linear")
    entries = [entry("alloc", 1, 1000 * 64, place=1), entry("alloc", 2, 1000 * 64, place=0)]
    made = convert.History(entries, [head, FORWARD])
    assert [convert.component_of(b, (1000,), 1) for b in made.blocks] == ["activations", "logits"]


def test_a_workspace_is_kept_and_has_a_known_size():
    kept = entry("alloc", 1, 33_554_432, place=1)
    gone = [entry("alloc", 2, 33_554_432, place=1), entry("free_requested", 2, 33_554_432, at=1, place=1)]
    made = convert.History(
        [kept, *gone, entry("alloc", 3, 512, place=2)], [*TABLE[:2], ("optimizer", 1, False, "", "")]
    )
    assert [convert.component_of(b, (), 1) for b in made.blocks] == ["workspace", "activations", "workspace"]


def test_private_pools_and_failed_requests_are_counted():
    made = convert.History([entry("alloc", 1, MIB, pool_id=(0, 3)), entry("oom", 5, 2 * MIB)], TABLE)
    assert (made.private_bytes, made.num_oom) == (MIB, 1)


def test_the_operation_of_a_backward_is_its_node_unless_it_recomputes():
    assert convert.operation_of(FRAMES, BACKWARD) == "MmBackward0"
    assert convert.operation_of(FRAMES, ("backward", 0, True, "layers.0", "Linear")) == "Linear.forward"
    assert convert.operation_of([], ("load", -1, False, "", "")) == "torch"


@given(st.lists(st.tuples(st.sampled_from(["alloc", "free_requested", "free_completed", "segment_map", "oom"]),
                          st.integers(0, 5), st.integers(1, 9), st.integers(0, 4)), max_size=60))  # fmt: skip
def test_frees_follow_allocations_whatever_the_history_says(steps):
    entries = [
        entry(action, address, size, at=i, place=place) for i, (action, address, size, place) in enumerate(steps)
    ]
    made = convert.History(entries, TABLE)
    held = {}
    for block, size, _, _ in made.events:
        assert (block in held) == (size < 0)
        held.pop(block) if size < 0 else held.update({block: size})
    document = convert.document(made, (1000,), seconds=0.0, settings={})
    assert len(document["blocks"]["id"]) == len(made.blocks)
    assert set(document["events"]["phase"]) | set(document["blocks"]["op"]) <= set(range(len(document["words"])))
