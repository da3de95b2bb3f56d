"""Job lines: each answer is that of a single estimate, in order, whatever stands beside it."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.formula import batch
from memfit.formula.estimate import estimate
from memfit.job import from_kwargs, to_dict
from strategies import jobs


def line(job_id, **fields):
    return json.dumps({"id": job_id, "job": to_dict(from_kwargs(**fields))}).encode()


def expected(job_id, fields):
    return msgspec.json.encode(estimate(**fields).to_dict(job_id, full=False))


@settings(max_examples=15)
@given(st.lists(jobs(gpu="h100"), min_size=1, max_size=3))
def test_a_line_is_the_single_answer_to_the_byte(found):
    lines = [line(str(i), **job) for i, job in enumerate(found)]
    assert list(batch.run(lines)) == [expected(str(i), job) for i, job in enumerate(found)]


@settings(max_examples=20)
@given(jobs(gpu="a100-80gb", micro_batch=1, seq_len=1024, dp=1, cp=1))
def test_lines_of_one_structure_are_answered_together_and_alike(job):
    rows = [{**job, "micro_batch": b, "seq_len": s} for b, s in ((1, 512), (2, 1024), (8, 128), (1, 8192), (3, 512))]
    lines = [line(i, **row) for i, row in enumerate(rows)]
    assert list(batch.run(lines)) == [expected(i, row) for i, row in enumerate(rows)]


def test_order_is_kept_over_groups_bad_lines_and_chunks(monkeypatch):
    monkeypatch.setattr(batch, "CHUNK", 5)
    base = {"model": "llama-3.2-1b", "framework": "torch", "gpu": "rtx-4090"}
    lines = []
    for i in range(17):
        if i % 4 == 1:
            lines.append(b'{"id": "%d", "job": {"model": {"name": "no-such-model-%d"}}}' % (i, i))
        else:
            lines.append(line(str(i), **base, micro_batch=i + 1, checkpointing="full" if i % 2 else "none"))
    answers = [json.loads(a) for a in batch.run([*lines[:3], b"", b"  \n", *lines[3:]])]
    assert [a["id"] for a in answers] == [str(i) for i in range(17)]
    assert [("error" in a) for a in answers] == [i % 4 == 1 for i in range(17)]
    assert answers[5]["line"] == 8  # two empty lines stand before it


BAD = [
    (b"{", "input-file"),
    (b"[1, 2]", "input-file"),
    (b'"text"', "input-file"),
    (b"\xff\xfe", "input-file"),
    (b"[" * 100_000, "input-file"),
    (b'{"job": 3}', "job"),
    (b'{"job": {}}', "job"),
    (b'{"model": {"name": "llama-3.1-8b"}, "strategy": {"zero": 9}}', "job"),
    (b'{"model": {"name": "llama-3.1-8b"}, "strategy": {"tp": 3}, "hardware": {"gpus": 8}}', "job"),
    (b'{"model": {"name": "llama-3.1-8b"}, "hardware": {"gpu": "h1000000"}}', "unknown-name"),
    (b'{"model": {"config": {"model_type": "who-knows"}}}', "config"),
    (b'{"model": {"name": "llama-3.1-8b", "extra": {"images": "many"}}}', "job"),
    (b'{"model": {"name": "llama-3.1-8b", "extra": {"moe_imbalance": "high"}}}', "job"),
    (b'{"model": {"name": "llama-3.1-8b", "extra": {"images": -3}}}', "job"),
]


def test_a_bad_line_is_an_error_line_and_the_rest_go_on():
    good = line("good", model="gpt2", framework="torch")
    answers = [json.loads(a) for a in batch.run([part for bad, _ in BAD for part in (bad, good)])]
    assert len(answers) == 2 * len(BAD)
    assert all(a["id"] == "good" and "error" not in a for a in answers[1::2])
    for number, (answer, (text, code)) in enumerate(zip(answers[::2], BAD, strict=True)):
        assert answer["line"] == 2 * number + 1
        assert "error" in answer, text[:80]
        assert answer["error"]["code"] in (code, "config" if code == "unknown-name" else code), (text[:80], answer)
        assert answer["error"]["message"]


def test_serving_lines_and_full_answers():
    serve = {"model": "llama-3.2-1b", "kind": "serve", "gpu": "rtx-4090", "context": 2048}
    train = {"model": "llama-3.2-1b", "framework": "torch", "gpu": "rtx-4090"}
    plain = list(batch.run([line("s", **serve), line("t", **train)]))
    assert plain == [expected("s", serve), expected("t", train)]
    full = list(batch.run([line("t", **train)], full=True))
    assert full == [msgspec.json.encode(estimate(**train).to_dict("t"))]


def test_a_record_without_a_job_key_is_a_job():
    job = to_dict(from_kwargs(model="gpt2", framework="torch"))
    assert list(batch.run([json.dumps({**job, "id": 7}).encode()])) == [
        expected(7, {"model": "gpt2", "framework": "torch"})
    ]
