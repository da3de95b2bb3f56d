"""JSON against the shipped schemas, and the HTML fragment."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_fixtures import GOLDEN, make, pipeline, reading, serve, sweep
from schema_check import faults, surface

import memfit
from memfit.errors import JobError, JobErrors, MemfitError
from memfit.job import parse
from memfit.report.html import estimate_html
from memfit.report.json import dumps, error_document, result, schema
from memfit.report.sweep import sweep_document
from memfit.report.timeline import moments

SURFACE = Path(__file__).parent / "schema_surface.txt"
NAMES = ("estimate", "error", "sweep", "trace", "plan", "diff")
JOBS = {
    "train": {"model": "llama-3.1-8b", "gpu": "8xh100", "zero": 3, "seq_len": 8192},
    "no card": {"model": "qwen3-0.6b"},
    "pipeline": {"model": "llama-3.1-70b", "gpu": "16xh100", "pp": 4, "tp": 4, "grad_accum": 8},
    "qlora": {"model": "llama-3.1-8b", "gpu": "rtx-4090", "method": "qlora", "checkpointing": "full"},
    "serve": {"model": "qwen3-30b-a3b", "kind": "serve", "gpu": "h100", "context": 8192},
}


def test_the_schemas_are_frozen():
    """A change here is a change for everybody who reads the documents: add fields, never take them away."""
    lines = [f"{name}: {line}" for name in NAMES for line in surface(schema(name))]
    assert lines == SURFACE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", sorted(JOBS))
@pytest.mark.parametrize("full", [True, False])
def test_results_keep_to_the_schema(name, full):
    estimate = memfit.estimate(**JOBS[name])
    document = json.loads(dumps(result(estimate, "id-1", full=full)))
    assert faults(document, schema("estimate")) == []
    assert document["id"] == "id-1"
    assert ("serving" in document) == (name == "serve")
    assert bool(document["changes"]) == full


@pytest.mark.parametrize("name", sorted(JOBS))
def test_results_add_up(name):
    document = json.loads(dumps(result(memfit.estimate(**JOBS[name]), full=False)))
    for part in (*document["stages"], document):
        assert sum(c["bytes"] for c in part["components"]) == part["peak_bytes"]["device"]
    fullest = document["stages"][document["fullest_stage"]]
    assert fullest["components"] == document["components"]
    assert max(s["peak_bytes"]["reserved"] for s in document["stages"]) == document["peak_bytes"]["reserved"]


def test_a_timeline_keeps_to_the_schema():
    estimate = memfit.estimate(**JOBS["train"])
    document = json.loads(dumps({**result(estimate, full=False), "timeline": moments(estimate)}))
    assert faults(document, schema("estimate")) == []
    assert max(m["bytes"] for m in document["timeline"]) == document["peak_bytes"]["allocated"]
    assert all(sum(m["components"].values()) == m["bytes"] for m in document["timeline"])


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("full", [True, False])
def test_sweeps_keep_to_the_schema(axes, full):
    made = sweep(axes)
    broken = type(made)(axes=made.axes, cells=(MemfitError("no", hint="yes"), *made.cells[1:]))
    for one in (made, broken):
        document = json.loads(dumps(sweep_document(one, full=full)))
        assert faults(document, schema("sweep")) == []
        assert len(document["cells"]) == 4
        for cell in document["cells"]:
            assert "result" not in cell or faults(cell["result"], schema("estimate")) == []


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 10**5000, "x" * 10**6, {"a": [1]}, [[]], b"bytes", object(), "\ud800", None, True],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_any_value_are_json(value):
    error = JobErrors([JobError("strategy.zero", "is wrong", value=value, hint="h")])
    text = dumps(error_document(error), line=True)
    assert len(text) < 10_000
    assert text.isascii()
    assert faults(json.loads(text), schema("error")) == []


def test_real_errors_keep_to_the_schema():
    with pytest.raises(JobErrors) as caught:
        parse({"task": {"seq_len": -1}, "strategy": {"zerro": 1}, "modle": 3})
    document = json.loads(dumps(error_document(caught.value)))
    assert faults(document, schema("error")) == []
    assert [e["path"] for e in document["error"]["errors"]] == ["task.seq_len", "strategy.zerro", "modle"]


def test_the_checker_finds_faults():
    """A checker that finds nothing would let everything pass."""
    document = json.loads(dumps(result(make(), full=True)))
    document["verdict"] = "maybe"
    document["extra"] = 1
    document["peak_bytes"]["device"] = -1
    document["stages"][0]["components"][0]["bytes"] = "7"
    del document["versions"]
    assert len(faults(document, schema("estimate"))) == 5


def test_html_golden():
    assert estimate_html(pipeline()) + "\n" == (GOLDEN / "estimate.html").read_text(encoding="utf-8")


class _Balance(HTMLParser):
    """Collects tags and checks that they close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes = [], set(), set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("build", [make, pipeline, serve])
def test_html_is_well_formed_and_static(build):
    parser = _Balance()
    parser.feed(estimate_html(build()))
    assert parser.open == []
    assert {"table", "svg", "rect"} <= parser.seen
    assert not parser.seen & {"script", "iframe", "object", "img", "link", "style", "a"}
    assert not any(name.startswith("on") or name in ("href", "src") for name in parser.attributes)


def test_html_escapes_what_comes_from_outside():
    bad = "<script>alert(1)</script>\"'&\x1b"
    page = estimate_html(make((reading(label=bad, moment=bad),), warnings=(bad,)))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;" in page


def test_html_bar_ends_at_the_total():
    page = estimate_html(make())
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="22"', page)]
    book = make().ledger
    assert sum(widths) == pytest.approx(640 * book.device_bytes / book.capacity_bytes, abs=0.5)


def test_notebooks_get_the_fragment():
    assert make()._repr_html_() == estimate_html(make())
