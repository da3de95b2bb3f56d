"""A trace as text and as a document."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schema_check import faults
from test_report_svg import make

from memfit.job import from_kwargs
from memfit.report.json import dumps, schema
from memfit.report.page import Page, cells
from memfit.report.trace import TENSORS, headline, trace_document, trace_text
from memfit.trace.answer import answer, described

JOBS = {
    "fits": {"model": "llama-3.1-8b", "gpu": "rtx-4090", "precision": "bf16"},
    "does not fit": {"model": "llama-3.1-8b", "gpu": "rtx-4050-laptop", "precision": "bf16"},
    "unknown": {"model": "llama-3.1-8b"},
}


def of(sizes, verdict="", **more):
    trace = make(sizes, **more)
    return answer(described(trace, from_kwargs(**JOBS[verdict]), rank=0, stage=0) if verdict else trace)


@pytest.mark.parametrize("verdict", sorted(JOBS))
def test_documents_keep_to_the_schema(verdict):
    found = of([300] * 60, verdict)
    document = json.loads(dumps(trace_document(found)))
    assert faults(document, schema("trace")) == []
    assert document["verdict"] == verdict
    assert (document["out_of_memory"] is not None) == (verdict == "does not fit")


@given(sizes=st.lists(st.integers(1, 900), min_size=1, max_size=40))
def test_any_trace_gives_a_document_that_adds_up(sizes):
    found = of(sizes)
    document = json.loads(dumps(trace_document(found)))
    assert faults(document, schema("trace")) == []
    assert sum(c["bytes"] for c in document["components"]) == document["peak_bytes"]["device"]
    assert document["peak_bytes"]["requested"] <= document["peak_bytes"]["allocated"]
    assert document["needed_bytes"][0] <= document["peak_bytes"]["device"]


@pytest.mark.parametrize("verdict", ["", *sorted(JOBS)])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_texts_keep_to_the_width(verdict, width):
    found = of([300] * 60, verdict)
    text = trace_text(Page(width=width), found)
    assert text.splitlines()[0].startswith(found.verdict)
    assert max(map(cells, text.splitlines())) <= width
    assert headline(found).split(",")[0] in " ".join(text.split())


def test_all_tensors_are_shown_on_demand():
    found = of(list(range(1, 120)))
    short, long = (trace_text(Page(width=120, verbose=verbose), found) for verbose in (False, True))
    left = len(found.tensors) - TENSORS
    assert left > 0
    assert f"{left} more with " in short
    assert " more with " not in long
    assert len(long.splitlines()) == len(short.splitlines()) + left - 1


def test_text_from_outside_cannot_move_the_cursor():
    found = of([900, 800, 700], "fits", module="a\x1b[2Jb\u202e")
    text = trace_text(Page(width=100), found)
    assert "\x1b" not in text
    assert "\u202e" not in text
