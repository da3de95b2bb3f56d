"""The arithmetic of the accuracy score, on records whose answer is known by hand."""

import csv
import json
from types import SimpleNamespace

import pytest

import accuracy
from memfit.errors import UnknownNameError
from memfit.ledger import Entry, Ledger
from memfit.units import GIB


def row(group, measured, predicted, quantity="reserved", **more):
    return accuracy.Row(
        id=f"{group}-{measured}", group=group, quantity=quantity, measured_gib=measured, predicted_gib=predicted, **more
    )


def ledger(parameters, slack=0.0, runtime=0.0):
    return Ledger.of(
        [
            Entry(component="parameters", name="weights", bytes=int(parameters * GIB)),
            Entry(component="slack", name="slack", bytes=int(slack * GIB)),
            Entry(component="runtime", name="context", bytes=int(runtime * GIB)),
        ]
    )


def estimate(*stages, framework="torch", serving=None, p_oom=0.0, stated_dp=None, **strategy):
    degrees = {"tp": 1, "pp": len(stages), "cp": 1, **strategy}
    return SimpleNamespace(
        stages=stages,
        stage_phases=("backward",) * len(stages),
        fullest=0,
        p_oom=p_oom,
        serving=serving,
        job=SimpleNamespace(strategy=SimpleNamespace(framework=framework, **degrees)),
        resolved=SimpleNamespace(stated=SimpleNamespace(strategy=SimpleNamespace(dp=stated_dp))),
    )


def record(name="a", group="g", job=None, **more):
    base = {"id": name, "group": group, "certainty": "high", "job": job or {"for": name}}
    return {**base, "measured": {"kind": "reserved", "scope": "per GPU", "peak_gib": 10.0, "outcome": "ok"}, **more}


@pytest.fixture
def answers(monkeypatch):
    """Estimates by the record's name instead of the memory model."""
    table = {}

    def answer(job):
        found = table[job["for"]]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(accuracy, "_estimate", answer)
    return table


def scored(*records, certainty=("high",), groups=()):
    scorer = accuracy.Scorer(certainty, groups)
    for one in records:
        scorer.add(one, "file.jsonl")
    return scorer.scores


def test_a_long_table_counts_as_one_group():
    rows = [row("long", 10, 15)] * 97 + [row("a", 10, 11), row("b", 10, 9.8)]
    summary = accuracy.summarise(rows)
    assert summary.records == 99
    assert summary.groups == 3
    assert summary.median_abs_error == pytest.approx(0.10)  # of 0.5, 0.1 and 0.02
    assert summary.bias == pytest.approx(0.10)  # of +0.5, +0.1 and -0.02
    assert summary.by_group["long"]["records"] == 97


def test_errors_are_averaged_within_a_group_before_the_median():
    summary = accuracy.summarise([row("a", 10, 12), row("a", 10, 9), row("b", 10, 10.4)])
    assert summary.by_group["a"]["mean_abs_error"] == pytest.approx(0.15)
    assert summary.by_group["a"]["bias"] == pytest.approx(0.05)
    assert summary.median_abs_error == pytest.approx((0.15 + 0.04) / 2)
    assert summary.bias == pytest.approx((0.05 + 0.04) / 2)


def test_under_predictions_are_counted_by_rows_and_only_beyond_ten_percent():
    rows = [row("a", 100, 91), row("a", 100, 89), row("b", 100, 50), row("b", 100, 150)]
    assert accuracy.summarise(rows).under_share == 0.5


def test_percentile_interpolates_between_neighbours():
    assert accuracy.percentile([4, 1, 3, 2, 5], 0.9) == pytest.approx(4.6)
    assert accuracy.percentile([7], 0.9) == 7


@pytest.mark.parametrize(
    ("kind", "predicted"), [("allocated", 8), ("active", 8), ("reserved", 9), ("device", 11), ("unknown", 9)]
)
def test_a_measurement_is_compared_with_its_own_kind(answers, kind, predicted):
    answers["a"] = estimate(ledger(8, slack=1, runtime=2))
    scores = scored(record(measured={"kind": kind, "peak_gib": 10.0, "outcome": "ok"}))
    (one,) = scores.rows
    assert one.predicted_gib == predicted
    assert one.quantity == kind
    assert one.apart == (kind == "unknown")


@pytest.mark.parametrize(
    ("scope", "predicted", "stage"),
    [
        ("rank0, the first pipeline stage", 5, 0),
        ("one rank, as logged", 7, 1),
        ("per GPU", 7, 1),
        ("sum over GPUs, torch peak allocated", 5 + 7 + 6, 0),
    ],
)
def test_scope_says_whose_peak(answers, scope, predicted, stage):
    answers["a"] = estimate(ledger(5), ledger(7), ledger(6))
    (one,) = scored(record(measured={"kind": "allocated", "scope": scope, "peak_gib": 10})).rows
    assert one.predicted_gib == predicted
    assert one.stage == stage


def test_the_sum_over_gpus_counts_every_rank_of_every_stage_once(answers):
    measured = {"kind": "allocated", "scope": "sum over GPUs", "peak_gib": 40}
    answers["layers"] = estimate(ledger(5), pp=4)  # one ledger stands for all four stages
    answers["tensor"] = estimate(ledger(5), ledger(7), tp=2)
    answers["copies"] = estimate(ledger(5), stated_dp=3)
    rows = scored(*(record(name, measured=measured) for name in answers)).rows
    assert [r.predicted_gib for r in rows] == [20, 24, 15]


def test_excepted_keys_are_left_out_and_the_rest_is_scored(answers):
    serving = SimpleNamespace(weights=8 * GIB, kv=2 * GIB, kv_per_token=0, state=GIB)
    answers["a"] = estimate(ledger(11), framework="llama.cpp", serving=serving)
    measured = {"kind": "allocated", "scope": "", "weights_gib": 4.0, "kv_gib": 2.5, "state_gib": 0.8}
    rows = scored(record(measured=measured, score_except=["weights_gib"])).rows
    assert {r.quantity: round(r.error, 3) for r in rows} == {"serve:kv": -0.2, "serve:state": 0.25}


def test_the_pool_of_an_engine_is_scored_per_token_or_not_at_all(answers):
    serving = SimpleNamespace(weights=8 * GIB, kv=2 * GIB, kv_per_token=GIB // 1000, state=0)
    answers["a"] = answers["b"] = estimate(ledger(11), framework="vllm", serving=serving)
    measured = {"kind": "allocated", "scope": "per GPU", "kv_gib": 50.0, "outcome": "ok"}
    scores = scored(record("a", measured={**measured, "kv_tokens": 50000}), record("b", measured=measured))
    (one,) = scores.rows
    assert one.quantity == "serve:kv/token"
    assert one.error == pytest.approx(0, abs=1e-4)
    assert [(s.id, "pool" in s.reason) for s in scores.skipped] == [("b", True)]


def test_the_whole_of_an_engine_that_is_not_modelled_stands_apart(answers):
    serving = SimpleNamespace(weights=0, kv=0, kv_per_token=0, state=0)
    answers["a"] = estimate(ledger(9), framework="llama.cpp", serving=serving)
    answers["b"] = estimate(ledger(9), framework="transformers", serving=serving)
    measured = {"kind": "device", "scope": "per GPU", "total_gib": 10.0, "outcome": "ok"}
    rows = scored(record("a", measured=measured), record("b", measured=measured)).rows
    assert [(r.quantity, r.apart) for r in rows] == [("serve:device (llama.cpp)", True), ("serve:device", False)]


def test_what_is_not_scored_is_listed_with_its_reason(answers):
    answers["unknown"] = UnknownNameError("model", "llama-9", ["llama-3"])
    answers["bug"] = ZeroDivisionError("division by zero")
    answers["zero"] = estimate(ledger(1))
    scores = scored(
        record("low", certainty="low"),
        record("no", score=False, reason="card full"),
        record("unknown"),
        record("bug"),
        record("zero", measured={"kind": "reserved", "peak_gib": 0, "outcome": "ok"}),
        record("nothing", measured={}),
        record("none", measured={"peak_gib": None}),
    )
    assert scores.rows == []
    reasons = {s.id: s.reason for s in scores.skipped}
    assert reasons["low"] == "certainty low"
    assert reasons["no"] == "not scored: card full"
    assert reasons["unknown"].startswith("cannot be read: unknown model `llama-9`")
    assert reasons["bug"] == "memfit failed: ZeroDivisionError: division by zero"
    assert reasons["zero"] == "peak_gib is 0"
    assert "nothing" in reasons
    assert "none" in reasons


def test_certainty_and_group_choose_records(answers):
    answers.update({name: estimate(ledger(9)) for name in "abc"})
    records = [record("a", "x", certainty="medium"), record("b", "x"), record("c", "y")]
    assert [r.id for r in scored(*records).rows] == ["b", "c"]
    assert [r.id for r in scored(*records, certainty=("high", "medium"), groups=("x",)).rows] == ["a", "b"]


def test_verdicts_are_scored_where_the_outcome_is_known(answers):
    chances = {"a": 0.0, "b": 0.2, "c": 0.1, "d": 0.9, "e": 1.0}
    answers.update({name: estimate(ledger(9), p_oom=p) for name, p in chances.items()})
    answers["failed"] = estimate(ledger(9), p_oom=1.0)
    answers["no card"] = estimate(ledger(9), p_oom=None)
    ran = {"a": "ok", "b": "ok", "c": "oom", "d": "ok", "e": "oom", "failed": "failed", "no card": "ok"}
    outcomes = scored(*(record(n, measured={"outcome": o}) for n, o in ran.items())).outcomes
    result = accuracy.feasibility(outcomes)
    assert (result["records"], result["ok"], result["oom"]) == (5, 3, 2)
    assert result["precision"] == pytest.approx(2 / 3)
    assert result["recall"] == pytest.approx(2 / 3)
    assert result["brier"] == pytest.approx((0 + 0.04 + 0.81 + 0.81 + 0) / 5)
    assert result["wrong"] == ["c", "d"]


def test_a_real_job_goes_through_all_outputs(tmp_path, capsys):
    job = {
        "schema": 1,
        "model": {
            "config": {
                "model_type": "llama",
                "hidden_size": 256,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 512,
                "vocab_size": 1000,
            }
        },
        "task": {"kind": "train", "method": "full", "seq_len": 128},
        "strategy": {"framework": "torch", "precision": "bf16", "micro_batch": 1},
        "hardware": {"gpu": "h100-sxm-80gb", "gpus": 1},
    }
    broken = {**job, "model": {"config": {"model_type": "no-such-thing"}}}
    file = tmp_path / "truth.jsonl"
    lines = [json.dumps(record("a", job=job)), "{", "[1]", "", '{"id": "x"}', json.dumps(record("b", job=broken))]
    file.write_text("\n".join(lines))
    table = tmp_path / "rows.csv"

    assert accuracy.main([str(file), "--rows", str(table)]) == 0
    printed = capsys.readouterr()
    assert "a [g] reserved: measured 10.00" in printed.out
    assert printed.err.count("\n") == 1
    assert "3 of 5 lines are not truth records (line 2: not JSON; line 3: not an object" in printed.err
    assert accuracy.main([str(file)]) == 0
    assert capsys.readouterr().out == printed.out

    assert accuracy.main([str(file), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["summary"]["reserved"]["records"] == 1
    assert [s["id"] for s in result["skipped"]] == ["b"]
    (line,) = csv.DictReader(table.read_text().splitlines())
    assert float(line["error"]) == pytest.approx(result["rows"][0]["error"], abs=1e-5)
    parts = sum(v for k, v in result["rows"][0]["components_gib"].items() if k not in ("runtime", "others"))
    assert parts == pytest.approx(result["rows"][0]["predicted_gib"])


@pytest.mark.parametrize("arguments", [["missing.jsonl"], ["--certainty", "sure", "x"], ["--worst", "-1", "x"]])
def test_bad_input_is_one_message_and_exit_code_2(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = accuracy.main(arguments)
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2
    assert "error: " in printed.err
    assert "Traceback" not in printed.err
