"""The snapshot is PyTorch's: plain data, protocol 4, and torch's own reader opens it."""

from __future__ import annotations

import io
import pickle
import pickletools

import pytest

from memfit.allocator import ALLOC, EMPTY_CACHE, FREE, POOL_BEGIN, POOL_END, USE, replay

MIB, GIB = 1 << 20, 1 << 30
FRAMES = [{"filename": "train.py", "line": 7, "name": "forward"}]
EVENTS = [
    (ALLOC, 0, 30 * MIB, 0),
    (ALLOC, 1, 100, 0),
    (ALLOC, 2, 3 * MIB, 0x1000),
    (POOL_BEGIN, 4, None, False),
    (ALLOC, 3, 5 * MIB, 0),
    (POOL_END, 4),
    (USE, 2, 0),
    (FREE, 2),
    (FREE, 0),
    (EMPTY_CACHE,),
    (ALLOC, 4, 40 * MIB, 0),
    (USE, 4, 0x1000),
    (FREE, 4),
    (ALLOC, 5, 2 * GIB, 0),
]


class Plain(pickle.Unpickler):
    def find_class(self, module, name):
        raise AssertionError(f"the snapshot holds an object of {module}.{name}")


@pytest.fixture(params=["", "expandable_segments:True"])
def result(request):
    return replay(EVENTS, request.param, GIB, history=True, lag=None, frames=lambda event: FRAMES)


def test_keys_states_and_actions(result, tmp_path):
    path = tmp_path / "snapshot.pickle"
    result.write_snapshot(path)
    data = path.read_bytes()
    snapshot = Plain(io.BytesIO(data)).load()
    assert next(pickletools.genops(data))[1] == 4
    assert snapshot == result.snapshot()
    assert set(snapshot) == {"segments", "device_traces", "allocator_settings", "external_annotations"}
    assert sum(s["total_size"] for s in snapshot["segments"]) == result.reserved
    assert {s["segment_pool_id"] for s in snapshot["segments"]} == {(0, 0), (0, 4)}
    assert {s["segment_type"] for s in snapshot["segments"]} == {"small", "large"}
    actions = [entry["action"] for entry in snapshot["device_traces"][0]]
    expandable = result.allocator.config.expandable_segments
    names = {"segment_map", "segment_unmap"} if expandable else {"segment_alloc", "segment_free"}
    assert set(actions) == {"alloc", "free_requested", "free_completed", "oom", *names}
    assert actions.count("alloc") == 5
    last = snapshot["device_traces"][0][-1]
    assert last["action"] == "oom"
    assert (last["size"], last["device_free"]) == (2 * GIB, result.allocator.device.free)
    assert "addr" not in last
    frames = [b["frames"] for s in snapshot["segments"] for b in s["blocks"] if b["state"] == "active_allocated"]
    assert frames == [FRAMES, FRAMES]


def test_history_balances(result):
    held, mapped = {}, 0
    for entry in result.snapshot()["device_traces"][0]:
        if entry["action"] == "alloc":
            assert entry["addr"] not in held
            held[entry["addr"]] = entry["size"]
        elif entry["action"] == "free_completed":
            assert held.pop(entry["addr"]) == entry["size"]
        elif entry["action"] in ("segment_alloc", "segment_map"):
            mapped += entry["size"]
        elif entry["action"] in ("segment_free", "segment_unmap"):
            mapped -= entry["size"]
    assert sum(held.values()) == result.allocator.requested
    assert mapped == result.reserved


def test_a_block_used_by_another_stream_is_pending():
    states = [b["state"] for s in replay(EVENTS[:13], lag=None).segments() for b in s["blocks"]]
    assert states.count("active_pending_free") == 1
    assert "active_pending_free" not in [
        b["state"] for s in replay([*EVENTS[:13], (EMPTY_CACHE,)], lag=None).segments() for b in s["blocks"]
    ]


@pytest.mark.slow
def test_torch_opens_the_snapshot(result, tmp_path):
    viz = pytest.importorskip("torch.cuda._memory_viz")
    path = tmp_path / "snapshot.pickle"
    result.write_snapshot(path)
    snapshot = pickle.loads(path.read_bytes())
    assert "total_allocated: 5.0MiB" in viz.segsum(snapshot)
    assert "raise OutOfMemoryError # 2.0GiB requested" in viz.trace(snapshot)
    for page in (viz.trace_plot(snapshot), viz.segment_plot(snapshot)):
        assert "MemoryViz" in page
