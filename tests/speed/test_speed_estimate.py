"""Estimates with their time, in Python, in batches and on the command line."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from memfit import Estimate, estimate
from memfit.cli.app import app
from memfit.formula import batch
from memfit.formula.estimate import Estimate as MemoryEstimate
from memfit.job import from_kwargs, to_dict
from memfit.speed import step_time
from memfit.speed.estimate import documents_of, timed


def run(*words):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "100"})


JOB = {"model": "llama-3.2-1b", "gpu": "8xh100", "zero": 3, "seq_len": 4096}


def test_an_estimate_knows_its_time():
    found = estimate(**JOB)
    assert isinstance(found, Estimate)
    assert isinstance(found, MemoryEstimate)
    assert found.step_s == step_time(from_kwargs(**JOB)).step_s
    document = found.to_dict(full=False)
    assert document["step_s"] == found.step_s
    assert document["tokens_per_s_per_gpu"] == found.tokens_per_s_per_gpu
    assert sum(p["seconds"] for p in document["time"]["parts"]) == pytest.approx(found.step_s)
    assert document["time"]["ttft_s"] is None


def test_without_a_card_there_is_no_time():
    found = estimate(model="gpt2")
    assert found.time is None
    assert found.step_s is found.tokens_per_s_per_gpu is None
    assert found.to_dict(full=False)["time"] is None


def test_timing_changes_nothing_about_memory():
    from memfit.formula.estimate import estimate as memory

    plain = memory(**JOB)
    assert {k: v for k, v in timed(plain).to_dict().items() if k in plain.to_dict()} == plain.to_dict()


def test_batches_know_the_time_too():
    jobs = [{**JOB, "micro_batch": b} for b in (1, 2, 4, 8, 16)] + [{"model": "gpt2"}]
    jobs += [{**JOB, "gpu": "8xa100", "micro_batch": 2}, {"model": "gpt2", "kind": "serve", "gpu": "l4"}]
    lines = [json.dumps({"id": i, "job": to_dict(from_kwargs(**job))}).encode() for i, job in enumerate(jobs)]
    answers = [json.loads(a) for a in batch.run(lines, more=documents_of)]
    for job, answer in zip(jobs, answers, strict=True):
        assert answer["step_s"] == estimate(**job).step_s


def test_the_command_line_says_it_in_a_line():
    words = ["estimate", "llama-3.2-1b", "--gpu", "h100"]
    short, long = run(*words), run(*words, "-v")
    assert short.exit_code == long.exit_code == 0
    assert "time:" in short.stdout
    assert "matrix products" not in short.stdout
    assert "matrix products" in long.stdout
