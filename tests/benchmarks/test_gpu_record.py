"""The recorder for machines with a GPU: its matrix, its files and its pipeline. Nothing here measures anything."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
sys.path.insert(0, str(GPU))

import _matrix  # noqa: E402
import _predict  # noqa: E402
import _results  # noqa: E402
import record  # noqa: E402
from _meter import SMOKE  # noqa: E402
from _smoke import smoke_cases  # noqa: E402
from _worker import save_snapshot, scrub  # noqa: E402

import accuracy  # noqa: E402
from memfit.formula.estimate import estimate  # noqa: E402
from memfit.job import complete, parse  # noqa: E402
from memfit.models import catalog  # noqa: E402

GIB = 1 << 30
H200 = _matrix.Card(name="h200", total_bytes=int(139.8 * GIB))
MEASURED = {
    "outcome": "ok",
    "peak_bytes": {"allocated": 20 * GIB, "reserved": 22 * GIB, "device": 23 * GIB},
    "outside_bytes": GIB,
    "step_s": 0.25,
    "tokens_per_s": 16384.0,
}
SERVED = {**MEASURED, "weights_bytes": 2 * GIB, "kv_bytes": GIB // 4, "first_token_s": 0.02, "token_s": 0.01}
ENVIRONMENT = {"gpu": "NVIDIA H200", "torch": "2.11.0", "transformers": "5.17.0", "driver": "580", "memfit": "0.1.0"}


def command(*arguments, python=(sys.executable,)):
    return subprocess.run(
        [*python, str(GPU / "record.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        timeout=900,
    )


def cases(card=H200):
    return _matrix.matrix(card, _predict.predict)


def a_run(case, result=MEASURED, **change):
    return {
        "case": case.name, "kind": case.kind, "group": "gpu NVIDIA H200", "job": case.job,
        "settings": dict(case.settings), "apart": case.apart, "predicted": {"allocated": 20.5}, "result": result,
        "environment": ENVIRONMENT, **change,
    }  # fmt: skip


def named(part):
    return next(case for case in cases() if part in case.name)


def test_the_list_needs_the_standard_library_alone_and_shows_predictions():
    done = command("--list", python=(sys.executable, "-S"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases()) + 2
    case = named("llama-3.1-8b/bf16/none")
    found = next(line for line in lines if line.startswith(f"{case.name} "))
    assert f"{estimate(case.job).allocated_bytes / GIB:.2f}" in found.split()


@pytest.mark.parametrize(("option", "code"), [(("--gpu", "no-such-card"), 2), (("--gpu", "rtx-4090"), 0)])
def test_the_list_is_for_any_card_of_the_catalog(option, code):
    done = command("--list", *option)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_without_a_gpu_nothing_is_measured_and_one_line_says_so():
    done = command()
    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "GPU" in done.stderr


def test_every_job_of_the_matrix_is_accepted_whole_and_predicted():
    found = cases()
    assert len({case.name for case in found}) == len(found) > 60
    for case in found:
        if case.job is None:
            continue
        parsed = parse(case.job)
        complaints = [w for w in complete(parsed).warnings if "has no effect" in w]
        # a plain generation has no setting for its attention; the record says all the same which one it was
        assert not complaints, (case.name, complaints)
        assert _predict.predict(case.job) is not None, case.name


def test_a_small_card_gets_small_models_and_is_told_what_is_left_out():
    small = _matrix.Card(name="rtx-4090", total_bytes=24 * GIB)
    found = cases(small)
    assert not any(c.name.startswith("train/llama-3.1-8b/bf16/none/s4096") for c in found)
    for case in found:
        if case.job and not case.skip and "edge" not in case.name:
            assert _predict.predict(case.job)["need"] <= 1.05 * 24
    assert any("memfit expects" in case.skip for case in found)


def test_edges_fill_the_share_of_the_card_that_they_state():
    for case in cases():
        if "edge-" in case.name:
            share = float(case.name.rpartition("edge-")[2])
            assert _predict.predict(case.job)["need"] * GIB / H200.total_bytes == pytest.approx(share, abs=0.05)


def test_the_models_are_those_of_the_catalog():
    for name, model in _matrix.models().items():
        entry = catalog.lookup(name)
        assert {**model["config"], **{k: v for k, v in entry.config.items() if k == "torch_dtype"}} == entry.config
        job = {"schema": 1, "model": {"config": model["config"]}, "task": {"kind": "train"}}
        assert model["params"] == estimate(job).resolved.arch.num_params == entry.params


@pytest.mark.parametrize(
    ("part", "result", "kinds"),
    [
        ("llama-3.1-8b/bf16/none", MEASURED, ["allocated", "reserved", "device"]),
        ("generate/llama-3.2-1b", SERVED, ["allocated", "reserved", "device"]),
        ("sharded/", MEASURED, ["allocated", "reserved"]),
        ("edge-1.1", {"outcome": "oom", "error": "CUDA out of memory"}, ["allocated"]),
        ("gemm", {"outcome": "ok"}, []),
    ],
)
def test_a_run_becomes_truth_records_that_the_accuracy_benchmark_scores(part, result, kinds):
    records = _results.truth_records(a_run(named(part), result))
    assert [r["measured"]["kind"] for r in records] == kinds
    scorer = accuracy.Scorer()
    for entry in records:
        assert _results.faults(entry) == []
        scorer.add(entry)
    assert scorer.scores.skipped == []
    if result["outcome"] == "ok":
        peaks = [r for r in scorer.scores.rows if r.quantity.rpartition(":")[2] in kinds]
        assert [r.measured_gib for r in peaks] == [20, 22, 23][: len(kinds)]
    else:
        assert [o.ran for o in scorer.scores.outcomes] == [False]


def test_times_stand_in_one_record_of_a_run():
    records = _results.truth_records(a_run(named("llama-3.1-8b/bf16/none")))
    assert [r["measured"].get("step_s") for r in records] == [0.25, None, None]


def test_what_no_field_of_a_job_states_is_not_scored():
    records = _results.truth_records(a_run(named("backend-math")))
    assert {(r["score"], r["reason"]) for r in records} == {
        (False, "no field of a job states the kernel of scaled_dot_product_attention")
    }


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: r.pop("id"), "`id`"),
        (lambda r: r["measured"].update(kind="total"), "kind"),
        (lambda r: r["measured"].update(outcome="fine"), "outcome"),
        (lambda r: r["measured"].update(peak_gib=-1), "peak_gib"),
        (lambda r: r["measured"].update(peak_gib=float("nan")), "peak_gib"),
        (lambda r: r["measured"].pop("peak_gib"), "no peak"),
        (lambda r: r["job"]["task"].update(seq_length=1), "job"),
        (lambda r: r.update(notes="see /home/me/runs"), "folder"),
        (lambda r: r.update(environment={"smoke": SMOKE}), "not measured"),
        (lambda r: r.update(score=False), "reason"),
    ],
)
def test_a_spoilt_record_is_found(spoil, words):
    entry = json.loads(json.dumps(_results.truth_records(a_run(named("llama-3.1-8b/bf16/none")))[0]))
    assert _results.faults(entry) == []
    spoil(entry)
    (fault,) = _results.faults(entry)
    assert words in fault


def folder_faults(folder):
    """Faults of all result files below a folder."""
    found, seen = [], set()
    for path in sorted(folder.glob("*/truth.jsonl")):
        for entry in _results.read_lines(path):
            found += [f"{path.parent.name}: {fault}" for fault in _results.faults(entry)]
            found += [f"{entry['id']} twice"] if entry["id"] in seen else []
            seen.add(entry["id"])
    for path in sorted(folder.glob("*/*.pickle.gz")):
        found += [f"{path.name} is too large"] if path.stat().st_size > 16 << 20 else []
        names = gzip.decompress(path.read_bytes())
        found += [
            f"{path.name} names a folder" for part in (b"/home/", b"/root/", b"/opt/", b"/work/") if part in names
        ]
    return found


def test_the_results_that_are_here_are_truth_records():
    assert folder_faults(record.RESULTS) == []


def test_faults_of_result_files_are_found(tmp_path):
    entry = _results.truth_records(a_run(named("llama-3.1-8b/bf16/none")))[0]
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "truth.jsonl").write_text(f"{json.dumps(entry)}\n" * 2)
    with gzip.open(tmp_path / "card" / "x.pickle.gz", "wb") as file:
        file.write(b"/opt/python")
    assert [f.split()[-1] for f in folder_faults(tmp_path)] == ["twice", "folder"]


def test_a_case_that_is_run_again_replaces_what_it_gave_before(tmp_path):
    one, other = named("llama-3.1-8b/bf16/none"), named("llama-3.1-8b/bf16/full")
    _results.put(tmp_path, a_run(one, {"outcome": "failed", "error": "stopped"}), [])
    _results.put(tmp_path, a_run(other), [])
    assert _results.done(_results.read_lines(tmp_path / "runs.jsonl")) == {other.name}
    _results.put(tmp_path, a_run(one), [])
    runs, truth = (_results.read_lines(tmp_path / f"{name}.jsonl") for name in ("runs", "truth"))
    assert _results.done(runs) == {one.name, other.name}
    assert len(runs) == 2
    assert len({r["id"] for r in truth}) == len(truth) == 6
    _results.put(tmp_path, a_run(named("gemm"), {"outcome": "ok"}), [{"table": "gemm", "us": 1}])
    _results.put(tmp_path, a_run(named("gemm"), {"outcome": "ok"}), [{"table": "gemm", "us": 2}])
    assert _results.read_lines(tmp_path / "kernels.jsonl") == [{"case": "gemm", "table": "gemm", "us": 2}]


def test_a_line_that_was_cut_is_passed_over(tmp_path):
    (tmp_path / "out.jsonl").write_text('{"row": 1}\n{"row": 2}\n{"resu')
    assert _results.read_lines(tmp_path / "out.jsonl") == [{"row": 1}, {"row": 2}]


def test_rows_carry_their_share_of_what_the_maker_states():
    peaks = {"bf16": 1e15, "memory_bytes_per_s": 4e12}
    assert _results.with_share({"dtype": "bf16", "tflops": 800}, peaks)["of_peak"] == 0.8
    assert _results.with_share({"kernel": "fill", "gb_per_s": 3000}, peaks)["of_peak"] == 0.75
    assert "of_peak" not in _results.with_share({"kernel": "host to device, pinned", "gb_per_s": 50}, peaks)
    assert "of_peak" not in _results.with_share({"dtype": "fp64", "tflops": 30}, peaks)


def test_patterns_name_cases_whole_in_part_or_with_stars():
    found = cases()
    assert [c.name for c in record.chosen(found, "gemm")] == ["gemm"]
    assert {c.kind for c in record.chosen(found, "generate,sharded")} == {"generate", "sharded"}
    assert all(c.name.endswith("/eager") for c in record.chosen(found, "*/eager"))
    assert record.chosen(found, None) == found


START = [
    "import json, os, pathlib, sys",
    "pathlib.Path(sys.argv[1]).touch()",
    "case = json.loads(sys.stdin.readline() or 'null') or sys.exit(0)",
]
CRASH = "os.write(2, b'Segmentation fault\\n'); os._exit(139)"
WRITE = "open(case['out'], 'a').write(json.dumps({'row': {'n': 1}}) + '\\n')"
ENDS = {
    "crash": (CRASH, "ended with 139: Segmentation fault"),
    "hang": ("import time; time.sleep(60)", "stopped after 1 s"),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_case_that_crashes_or_hangs_costs_only_itself_and_keeps_its_rows(how, tmp_path, monkeypatch):
    end, words = ENDS[how]
    (tmp_path / "_worker.py").write_text("\n".join([*START, WRITE, end]))
    monkeypatch.setattr(record, "HERE", tmp_path)
    table, result = record.Worker().run(_matrix.Case(name="x", kind="gemm"), 1, None)
    assert table == [{"n": 1}]
    assert result == {"outcome": "failed", "error": words}


def test_the_recorder_runs_in_order_writes_at_once_and_stops_in_time(tmp_path, monkeypatch, capsys):
    lines = [
        *START,
        "result = {'outcome': 'ok', 'allocator': os.environ.get('PYTORCH_CUDA_ALLOC_CONF', ''),"
        " 'peak_bytes': {k: 2**30 for k in ('allocated', 'reserved', 'device')}}",
        "open(case['out'], 'a').write(json.dumps({'result': result}) + '\\n')",
    ]
    (tmp_path / "_worker.py").write_text("\n".join(lines))
    monkeypatch.setattr(record, "HERE", tmp_path)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync")
    plain, expandable, adapters = named("llama-3.1-8b/bf16/none"), named("s4096b1/expandable"), named("lora")
    recorder = record.Recorder(tmp_path / "out", ENVIRONMENT, time.monotonic() + 60, prepare=True)
    recorder.run([plain, expandable, adapters])
    runs = _results.read_lines(tmp_path / "out" / "runs.jsonl")
    assert [(run["case"], run["result"]["allocator"]) for run in runs] == [
        (plain.name, ""),
        (expandable.name, "expandable_segments:True"),
    ]
    assert runs[0]["predicted"]["allocated"] == estimate(plain.job).allocated_bytes / GIB
    assert "skipped: peft not installed" in capsys.readouterr().out
    record.Recorder(tmp_path / "out", ENVIRONMENT, time.monotonic() - 1, prepare=True).run([plain])
    assert f"1 cases left for another run of the command, first {plain.name}" in capsys.readouterr().out


def test_a_smoke_run_is_never_a_result(tmp_path):
    for folder in (record.RESULTS, record.RESULTS / "card"):
        with pytest.raises(ValueError, match="never"):
            record.Recorder(folder, {"smoke": SMOKE}, 0, prepare=False)
    run = a_run(smoke_cases()[0], environment={**ENVIRONMENT, "smoke": SMOKE})
    for entry in _results.truth_records(run):
        assert (entry["score"], entry["reason"]) == (False, SMOKE)
        assert _results.faults(entry) == [f"not measured: {SMOKE}"]


def test_folders_of_the_machine_do_not_get_into_results(tmp_path):
    text = "/opt/x/.venv/lib/python3.12/site-packages/torch/nn.py and /root/r/benchmarks/gpu/_steps.py, 1/2"
    assert scrub(text) == "site-packages/torch/nn.py and benchmarks/gpu/_steps.py, 1/2"
    frame = {"filename": "/home/me/src/memfit/x.py", "name": "f", "line": 1}
    save_snapshot({"device_traces": [[{"frames": [frame]}]], "segments": []}, tmp_path / "s.gz")
    assert b"/home" not in gzip.decompress((tmp_path / "s.gz").read_bytes())


@pytest.mark.slow
def test_the_pipeline_runs_on_the_processor_and_leaves_nothing():
    before = sorted(record.RESULTS.rglob("*"))
    done = command("--smoke", "--only", "train/plain,train/snapshot,generate/plain,context,launch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(SMOKE)
    assert "9 records" in done.stdout
    assert "5 ok, 0 oom, 0 failed, 0 skipped" in done.stdout
    assert sorted(record.RESULTS.rglob("*")) == before
