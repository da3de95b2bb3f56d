"""The regret metric on arenas whose answer is known by hand."""

import json

import pytest

import regret


def candidate(name, speed, step=None, p=0.0, **more):
    shape = {"tp": 1, "pp": 1, "cp": 1, "micro_batch": 1, **more}
    return regret.Candidate(id=name, arena="a", tokens_per_s=speed, failed=not speed, step_s=step, p_oom=p, shape=shape)


ARENA = [
    candidate("best", 100.0, 2.0),
    candidate("good", 90.0, 1.9),
    candidate("slow", 50.0, 1.0),
    candidate("dead", 0.0, 0.5, p=0.9),
]


def test_the_pick_is_the_fastest_that_passes():
    key = regret.memfit_key(0.01, ARENA)
    assert regret.lost(ARENA, key) == (pytest.approx(0.5), 0.0)
    assert regret.lost(ARENA, key, top=2)[0] == pytest.approx(0.1)
    assert regret.lost(ARENA, key, top=3)[0] == 0.0


def test_of_ties_the_one_that_splits_the_model_least_is_picked():
    arena = [candidate("wide", 70.0, 1.0, tp=4), candidate("plain", 100.0, 1.015), candidate("slow", 90.0, 1.03)]
    assert regret.lost(arena, regret.memfit_key(0.01, arena)) == (0.0, 0.0)
    assert regret.lost(arena, lambda c: c.step_s)[0] == pytest.approx(0.3)


def test_a_failing_pick_loses_everything():
    assert regret.lost(ARENA, lambda c: c.step_s) == (1.0, 1.0)


def test_when_nothing_passes_the_least_likely_to_fail_is_picked():
    risky = [candidate("a", 100.0, 1.0, p=0.4), candidate("b", 80.0, 2.0, p=0.2), candidate("c", 0.0, 0.1, p=0.9)]
    assert regret.lost(risky, regret.memfit_key(0.01, risky))[0] == pytest.approx(0.2)


def test_nothing_that_can_be_picked_loses_everything():
    assert regret.lost(ARENA, lambda c: None) == (1.0, 1.0)


def test_ties_are_averaged():
    assert regret.lost(ARENA, lambda c: 1.0)[0] == pytest.approx(1 - 0.6)
    assert regret.random_loss(ARENA) == pytest.approx(0.4)
    # the best of three out of four: 100 in three choices of four, 90 in the other
    assert regret.lost(ARENA, lambda c: 1.0, top=3)[0] == pytest.approx(1 - 0.975)
    assert regret.lost(ARENA, lambda c: 1.0)[1] == pytest.approx(0.25)


def test_small_losses_are_ties():
    near = [candidate("a", 100.0, 2.0), candidate("b", 98.5, 1.0)]
    assert regret.lost(near, lambda c: c.step_s)[0] == 0.0


def test_the_rules_know_what_runs():
    arena = [
        candidate("dead", 0.0, micro_batch=8),
        candidate("one", 70.0, micro_batch=4),
        candidate("two", 100.0, tp=8, micro_batch=2),
        candidate("three", 60.0, tp=16),
    ]
    least_, tp_first = ((lambda c, f=f: regret._rule(c, f)) for f in (False, True))
    assert regret.lost(arena, least_)[0] == pytest.approx(0.3)
    assert regret.lost(arena, tp_first)[0] == 0.0


def test_kendalls_tau():
    assert regret.kendall([(1, 1), (2, 2), (3, 3)]) == 1.0
    assert regret.kendall([(1, 3), (2, 2), (3, 1)]) == -1.0
    assert regret.kendall([(1, 1), (2, 3), (3, 2)]) == pytest.approx(1 / 3)
    assert regret.kendall([(1, 1), (1, 2)]) is None or regret.kendall([(1, 1), (1, 2)]) == 0


def test_feasibility_looks_at_arenas_with_failures():
    rows = [*ARENA, candidate("wrong", 0.0, 1.0, p=0.1)]
    found = regret.feasibility(rows)
    assert (found["candidates"], found["failed"]) == (5, 2)
    assert found["precision"] == pytest.approx(3 / 4)
    assert found["recall"] == 1.0
    assert found["brier"] == pytest.approx((0.1**2 + 0.9**2) / 5)
    assert regret.feasibility([candidate("a", 1.0)])["candidates"] == 0


def test_step_time_errors_before_and_after_one_row():
    rows = [regret.Timing(id=str(i), group="g", measured=m, predicted=100.0) for i, m in enumerate((80.0, 80.0, 88.0))]
    found = regret.score_times(rows)["g"]
    assert found["mape"] == pytest.approx((0.2 + 0.2 + 0.12) / 3)
    assert found["bias"] == pytest.approx(-0.2)
    assert found["mape_calibrated"] == pytest.approx((0 + 0.1) / 2)


def test_arenas_that_are_too_small_do_not_count():
    few = {"x-1": ARENA[:2], "y-1": ARENA}
    assert regret.score_arenas(few, 0.01, [])["arenas"] == {}


def record(name, micro, speed, arena="demo-1"):
    job = {
        "model": {"name": "llama-3.2-1b"},
        "task": {"kind": "train", "seq_len": 2048, "global_batch": 16},
        "strategy": {"framework": "torch", "micro_batch": micro, "checkpointing": "full"},
        "hardware": {"gpu": "h100", "gpus": 1},
    }
    measured = {"tokens_per_s_per_gpu": speed, "outcome": "ok"} if speed else {"outcome": "oom"}
    return {"id": name, "group": "g", "certainty": "high", "job": job, "measured": measured, "arena": arena}


def test_files_end_to_end(tmp_path, capsys):
    lines = [record("a", 1, 30000), record("b", 2, 32000), record("c", 4, 33000)]
    serve = {
        "id": "s", "group": "s", "certainty": "high", "measured": {"ttft_ms": 30.0, "tpot_ms": 7.0},
        "job": {"model": {"name": "llama-3.1-8b"}, "task": {"kind": "serve", "prompt": 512, "output": 64},
                "strategy": {"framework": "vllm"}, "hardware": {"gpu": "h100"}},
    }  # fmt: skip
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(map(json.dumps, [*lines, serve])))
    assert regret.main([str(path), "--json", "--rows", str(tmp_path / "rows.csv")]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["planners"]["memfit"]["demo"]["arenas"] == 1
    assert scores["planners"]["memfit"]["demo"]["top3"] == 0.0
    assert scores["times"]["g"]["records"] == 3
    assert scores["latency"]["vllm h100"]["records"] == 1
    assert (tmp_path / "rows.csv").read_text().count("\n") == 4
    assert regret.main([str(path)]) == 0
    text = capsys.readouterr().out
    assert "Lost throughput: demo, 1 arenas" in text
    assert "TPOT" in text


def test_a_missing_file_is_an_error(capsys):
    assert regret.main(["no-such-file.jsonl"]) == 2
    assert "no-such-file" in capsys.readouterr().err
