"""The job files that come with memfit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memfit import MemfitError, estimate
from memfit.job import load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
JOBS = sorted(path.name for path in EXAMPLES.glob("*.toml"))


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_read_and_estimated_without_a_warning(name):
    result = estimate(EXAMPLES / name)
    assert not result.warnings
    assert result.fits
    assert result.ledger.device_bytes + result.ledger.free_bytes == result.capacity_bytes


@pytest.mark.parametrize("name", JOBS)
def test_a_job_file_begins_with_what_it_is(name):
    first, second = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# ")
    assert second == "schema = 1"


def test_the_demo_shows_the_two_jobs_it_promises():
    full, qlora = load(EXAMPLES / "llama-3.1-8b-8xh100.toml"), load(EXAMPLES / "qlora-rtx-4090.toml")
    assert (full.model.name, full.task.method, full.hardware.gpus) == ("llama-3.1-8b", "full", 8)
    assert (qlora.task.method, qlora.hardware.gpu) == ("qlora", "rtx-4090")


def test_the_batch_has_good_jobs_and_one_bad_one():
    good, bad = [], []
    for line in (EXAMPLES / "jobs.jsonl").read_text(encoding="utf-8").splitlines():
        job = json.loads(line)
        name = job.pop("id")
        try:
            estimate(job)
            good.append(name)
        except MemfitError:
            bad.append(name)
    assert good == ["full", "lora", "qlora"]
    assert bad == ["typo"]


def test_the_batch_answers_line_by_line():
    from click.testing import CliRunner

    from memfit.cli.app import app

    told = CliRunner().invoke(app, ["estimate", "--batch", str(EXAMPLES / "jobs.jsonl")])
    answers = [json.loads(line) for line in told.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == ["full", "lora", "qlora", "typo"]
    assert ["error" in answer for answer in answers] == [False, False, False, True]
