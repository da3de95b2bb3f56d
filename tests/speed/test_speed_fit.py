"""Refining figures from runs: what was put in is found again, and faulty files end in one clear error."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from memfit.cli.app import app
from memfit.errors import InputFileError
from memfit.job import from_kwargs, to_dict
from memfit.speed import step_time
from memfit.speed.calibration import default, load
from memfit.speed.fit import errors_of, fit, read_runs


def run(*words):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "100"})


JOBS = (
    {"model": "llama-3.2-1b", "gpu": "h100", "framework": "torch", "micro_batch": 4, "seq_len": 4096},
    {"model": "llama-3.1-8b", "gpu": "8xh100", "framework": "megatron", "tp": 8, "micro_batch": 2},
    {"model": "llama-3.2-1b", "gpu": "h100", "framework": "torch", "micro_batch": 1, "seq_len": 128},
)


def records(path, calibration, jobs=JOBS, key="tokens_per_s_per_gpu"):
    lines = []
    for index, fields in enumerate(jobs):
        found = step_time(from_kwargs(**fields), calibration=calibration)
        value = found.tokens_per_s_per_gpu if key == "tokens_per_s_per_gpu" else found.step_s
        job = to_dict(from_kwargs(**fields))
        lines.append(json.dumps({"id": f"run-{index}", "job": job, "measured": {key: value, "outcome": "ok"}}))
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("key", ["tokens_per_s_per_gpu", "step_s"])
def test_slower_products_are_found_again(tmp_path, key):
    truth = replace(default(), matmul=0.8, host_s=60e-6)
    runs, skipped = read_runs([records(tmp_path / "runs.jsonl", truth, key=key)])
    found = fit(runs)
    assert not skipped
    assert found.calibration.matmul == pytest.approx(0.8, rel=0.1)
    assert found.calibration.host_s == pytest.approx(60e-6, rel=0.15)
    assert max(map(abs, found.after)) < 0.02 < max(map(abs, found.before))


def test_one_run_is_enough_to_meet_it(tmp_path):
    path = records(tmp_path / "one.jsonl", replace(default(), matmul=0.75, memory=0.7), JOBS[:1])
    found = fit(read_runs([path])[0])
    assert abs(found.after[0]) < 0.03 < abs(found.before[0])
    assert set(found.changed()) & {"matmul", "attention", "memory"}
    assert "network" not in found.changed()  # a single card knows nothing of networks


def test_runs_that_are_met_move_nothing(tmp_path):
    found = fit(read_runs([records(tmp_path / "same.jsonl", default())])[0])
    assert found.calibration == default()
    assert found.changed() == {}


def test_the_command_writes_a_file_that_estimate_reads(tmp_path):
    truth = replace(default(), matmul=0.7)
    path, out = records(tmp_path / "runs.jsonl", truth), tmp_path / "figures.toml"
    answer = run("calibrate", str(path), "-o", str(out))
    assert answer.exit_code == 0
    assert "matmul" in answer.stdout
    assert max(map(abs, errors_of(read_runs([path])[0], load(out)))) < 0.02
    words = ["estimate", "llama-3.2-1b", "--gpu", "h100", "--json"]
    before, after = (json.loads(run(*w).stdout)["step_s"] for w in (words, [*words, "--calibration", str(out)]))
    assert after > before * 1.1


def test_an_existing_file_is_kept_unless_forced(tmp_path):
    path, out = records(tmp_path / "runs.jsonl", default()), tmp_path / "figures.toml"
    out.write_text("mine")
    answer = run("calibrate", str(path), "-o", str(out))
    assert answer.exit_code == 2
    assert "--force" in answer.stderr
    assert out.read_text() == "mine"
    answer = run("calibrate", str(path), "-o", str(out), "--force", "--json")
    assert json.loads(answer.stdout)["file"] == str(out)


@pytest.mark.parametrize("text", ["", "{}", "nonsense", '{"job": {}, "measured": 3}'])
def test_files_without_records_are_refused(tmp_path, text):
    path = tmp_path / "runs.jsonl"
    path.write_text(text)
    with pytest.raises(InputFileError, match="no records"):
        read_runs([path])


def test_records_without_a_speed_are_passed_over(tmp_path):
    job = to_dict(from_kwargs(**JOBS[0]))
    lines = [
        {"job": job, "measured": {"outcome": "oom"}},
        {"job": job, "measured": {"tokens_per_s_per_gpu": 5}, "score": False},
        {"job": {"model": {"name": "no-such-model"}}, "measured": {"step_s": 1}},
        {"job": to_dict(from_kwargs(model="gpt2")), "measured": {"step_s": 1}},
        {"job": to_dict(from_kwargs(model="gpt2", kind="serve", gpu="l4")), "measured": {"step_s": 1}},
        {"job": job, "measured": {"step_s": "fast"}},
    ]
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    runs, skipped = read_runs([path])
    assert runs == []
    assert len(skipped) == len(lines)
    with pytest.raises(InputFileError, match="no record states"):
        fit(runs, skipped)


@pytest.mark.parametrize(
    "text",
    ["matmul = 1", "[calibration]\nmatmul = -1", "[calibration]\nwarp = 1", "[calibration]\nmatmul = true", "[["],
)
def test_faulty_calibration_files_are_refused(tmp_path, text):
    path = tmp_path / "figures.toml"
    path.write_text(text)
    with pytest.raises(InputFileError):
        load(path)
