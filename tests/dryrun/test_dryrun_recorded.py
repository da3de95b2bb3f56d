"""What CUDA builds of torch said on an imaginary GPU, and the simulation: the error text, character by character."""

import json
from pathlib import Path

import pytest

from memfit.allocator import ALLOC, FREE, parse_release, replay

RECORDED = Path(__file__).resolve().parents[1] / "mirage" / "recorded"
CASES = [
    pytest.param(said["torch"], case, id=f"{said['torch']} {case['config'] or 'defaults'}")
    for path in sorted(RECORDED.glob("said-by-torch-*.json"))
    for said in [json.loads(path.read_text())]
    for case in said["errors"]
]


def test_something_is_recorded():
    assert len(CASES) >= 8


@pytest.mark.parametrize(("torch", "case"), CASES)
def test_the_simulated_error_is_the_real_one(torch, case):
    kinds = {"alloc": ALLOC, "free": FREE}
    events = [(kinds[e[0]], *e[1:], *([0] if e[0] == "alloc" else [])) for e in case["events"]]
    simulated = replay(events, case["config"], case["total"], others=case["context"], release=parse_release(torch))
    assert simulated.oom is not None
    assert simulated.oom.index == len(events) - 1
    assert simulated.oom.text == case["text"]
