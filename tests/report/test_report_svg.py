"""The timeline as a picture."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.job import from_kwargs
from memfit.ledger import COMPONENTS
from memfit.report.html import COLORS
from memfit.report.svg import POINTS, sampled, stretches, timeline_svg
from memfit.trace import Block, RawEvent, Trace
from memfit.trace.answer import answer, described

NAMES = ("parameters", "gradients", "optimizer", "activations", "logits", "workspace", "communication")
SVG = "{http://www.w3.org/2000/svg}"
PHASES = ("load", "forward", "backward", "optimizer")


def make(sizes, *, module="model.layers.0.mlp", scale=1 << 20):
    """Blocks of the given sizes; every third one is freed right away."""
    events, blocks = [], {}
    for uid, size in enumerate(sizes):
        phase, step = PHASES[4 * uid // len(sizes)], 0 if 4 * uid >= len(sizes) else -1
        events.append(RawEvent(uid, size * scale, 0, phase, step))
        blocks[uid] = Block(
            id=uid, bytes=size * scale, op="aten::mm", module=module, phase=phase, step=step, shape=(size,),
            dtype="uint8", component=NAMES[uid % len(NAMES)], source="model.py:1",
        )  # fmt: skip
        if uid % 3 == 0:
            events.append(RawEvent(uid, -size * scale, 0, phase, step))
    return Trace(events=tuple(events), blocks=blocks, engine="meta", steps=1, settings={"torch": "2.13.0"})


def drawn(trace, **job):
    if job:
        trace = described(trace, from_kwargs(**job), rank=0, stage=0)
    text = timeline_svg(answer(trace))
    return text, ElementTree.fromstring(text)


def texts(root):
    return [node.text or "" for node in root.iter(f"{SVG}text")]


@given(sizes=st.lists(st.integers(1, 900), min_size=1, max_size=60))
def test_moments_keep_the_peak_and_add_up(sizes):
    trace = make(sizes)
    for most in (1, 7, POINTS):
        points = sampled(trace, NAMES, most)
        assert len(points) <= most
        assert max(p.total for p in points) == trace.peak_allocated
        assert all(sum(p.components) == p.total for p in points)
        assert [p.at for p in points] == sorted(p.at for p in points)


@given(sizes=st.lists(st.integers(1, 900), min_size=1, max_size=60))
def test_stretches_cover_all_events(sizes):
    trace = make(sizes)
    found = stretches(trace)
    assert found[0].begin == 0
    assert found[-1].end == len(trace.events)
    assert all(a.end == b.begin for a, b in pairwise(found))


@given(sizes=st.lists(st.integers(1, 900), min_size=1, max_size=60))
def test_nothing_is_drawn_outside_of_the_picture(sizes):
    _, root = drawn(make(sizes))
    width, height = (float(v) for v in root.get("viewBox").split()[2:])
    for node in root.iter(f"{SVG}path"):
        if not node.get("fill"):
            continue
        for x, y in re.findall(r"([\d.-]+) ([\d.-]+)", node.get("d")):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height


def test_the_picture_says_what_it_shows():
    text, root = drawn(make(list(range(1, 60))), model="llama-3.1-8b", gpu="rtx-4090", precision="bf16")
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "title desc"
    assert root.find(f"{SVG}title").text.startswith("llama-3.1-8b, rank 0; fits: needs ")
    assert "stacked by component" in root.find(f"{SVG}desc").text
    shown = texts(root)
    assert any(t.startswith("peak ") and "of step 1, mm" in t for t in shown)
    assert any(t.startswith("reserved at most: ") for t in shown)
    assert {"load", "forward", "backward", "optimizer"} <= set(shown)
    assert {"GiB", "module", "line", "layers.*.mlp"} <= set(shown)
    filled = {node.get("fill") for node in root.iter(f"{SVG}path")}
    assert {COLORS[name] for name in NAMES} <= filled
    assert "<script" not in text


@pytest.mark.parametrize(("scale", "unit"), [(1 << 20, "MiB"), (1 << 30, "GiB")])
def test_the_axis_takes_the_unit_that_suits(scale, unit):
    _, root = drawn(make([3, 5, 7, 9], scale=scale))
    assert unit in texts(root)


def test_the_line_of_the_card_is_there_when_it_is_near():
    near = [300] * 60  # about 12 GiB of 24
    _, root = drawn(make(near), model="llama-3.1-8b", gpu="rtx-4090", precision="bf16")
    assert any(t.startswith("the card leaves ") for t in texts(root))
    _, root = drawn(make([1, 2]), model="llama-3.1-8b", gpu="rtx-4090", precision="bf16")
    assert not any(t.startswith("the card leaves ") for t in texts(root))


def test_names_from_outside_are_escaped():
    text, root = drawn(make([900, 800, 700], module="a<b>&\"'\x1b[0m\u202e" + "x" * 500))
    assert "<b>" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert any(t.startswith("a<b>&\"'[0m") and t.endswith("…") for t in texts(root))


def test_a_large_trace_makes_a_small_picture():
    text, _ = drawn(make([k % 97 + 1 for k in range(20_000)]))
    assert len(text) < 400_000


def test_every_component_has_a_colour():
    assert COLORS.keys() >= COMPONENTS.keys()
