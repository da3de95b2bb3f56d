"""`memfit plan` in this process: what it prints, writes, refuses, and exits with."""

import json

import pytest
from schema_check import faults
from test_cli_commands import ok, refused, run

from memfit import estimate
from memfit.report.json import schema

SMALL = ["llama-3.2-1b", "--gpu", "rtx-4090", "--seq", "2k", "--global-batch", "8", "-f", "trl", "--no-trace"]
TODAY = """
[model]
name = "qwen3-0.6b"
[task]
seq_len = 4096
[strategy]
framework = "trl"
micro_batch = 4
grad_accum = 2
checkpointing = "none"
loss = "eager"
[hardware]
gpu = "rtx-4090"
"""


def test_a_plan_is_written_and_reads_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plan.toml"
    text = ok("plan", *SMALL, "--out", "plan.toml")
    assert text.startswith("fastest: ")
    assert "written: " in text
    assert estimate(str(path)).verdict == "fits"
    assert "exists" in refused("plan", *SMALL, "--out", "plan.toml")
    for ending in ("yaml", "json"):
        other = tmp_path / f"plan.{ending}"
        ok("plan", *SMALL, "--out", str(other), "-q")
        assert estimate(str(other)).device_bytes == estimate(str(path)).device_bytes


def test_documents_keep_to_the_schema():
    document = json.loads(
        ok("plan", *SMALL, "--json", "--tokens", "1B", "--price", "0.4", "--explain", "checkpointing")
    )
    assert faults(document, schema("plan")) == []
    assert document["possible"] is True
    best = document["plans"][0]
    assert faults(best["estimate"], schema("estimate")) == []
    assert sum(best["time"].values()) == pytest.approx(best["step_s"])
    assert best["usd_of_run"] == pytest.approx(best["hours_of_run"] * 0.4)
    assert best["need_bytes"][1] == document["waterfall"][-1]["need_bytes"]
    assert [c["value"] for c in document["explained"]["choices"]] == ["none", "full"]


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_lines_keep_to_the_page(columns):
    for words in (SMALL, ["llama-3.1-8b", "--gpu", "rtx-3090", "--task", "serve", "--concurrency", "4"]):
        for line in ok("plan", *words, COLUMNS=columns).splitlines():
            assert len(line) <= int(columns) or line.startswith(("next: ", "written: "))


def test_an_impossible_request_ends_in_one():
    words = ["llama-3.2-3b", "--gpu", "rtx-3060-12gb", "--seq", "2k", "--global-batch", "4", "--offload", "none"]
    words += ["-f", "trl", "--loss", "fused", "--no-compile", "--attention", "flash"]
    result = run("plan", *words)
    assert result.exit_code == 1
    assert result.stdout.startswith("impossible: ")
    assert "--method qlora" in result.stdout
    document = json.loads(run("plan", *words, "--json").stdout)
    assert faults(document, schema("plan")) == []
    assert document["plans"] == []


def test_fewest_changes_from_today(tmp_path):
    path = tmp_path / "today.toml"
    path.write_text(TODAY, encoding="utf-8")
    document = json.loads(ok("plan", "--from", str(path), "--no-trace", "--json"))
    assert faults(document, schema("plan")) == []
    assert document["objective"] == "changes"
    best = document["plans"][0]["job"]
    assert len(document["waterfall"]) == 3  # today's job, and two changes; no single one is enough
    assert best["task"]["global_batch"] == 8
    kept = json.loads(ok("plan", "--from", str(path), "--micro-batch", "4", "--no-trace", "--json"))
    assert kept["plans"][0]["job"]["strategy"]["micro_batch"] == 4


AXOLOTL = """base_model: NousResearch/Llama-3.2-1B
adapter: qlora
load_in_4bit: true
sequence_len: 2048
micro_batch_size: 2
gradient_accumulation_steps: 4
optimizer: adamw_bnb_8bit
bf16: true
gradient_checkpointing: true
"""


def test_today_s_job_may_be_another_tool_s_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(AXOLOTL, encoding="utf-8")
    document = json.loads(ok("plan", "--from", "run.yaml", "--gpu", "rtx-4090", "--no-trace", "--json"))
    best = document["plans"][0]["job"]
    assert best["strategy"]["framework"] == "axolotl"
    assert best["strategy"]["optimizer"] == "adamw-8bit"
    # What the file leaves open is as the flags say: four cards have four times the batch of one.
    assert best["task"]["global_batch"] == 8
    several = json.loads(ok("plan", "--from", "run.yaml", "--gpu", "4xrtx-4090", "--no-trace", "--json"))
    assert several["plans"][0]["job"]["task"]["global_batch"] == 32
    (tmp_path / "titan.toml").write_text("[model]\nname = 'x'\n[training]\n[parallelism]\n", encoding="utf-8")
    assert "of torchtitan, not a job" in refused("estimate", "titan.toml")
    for command in ("plan", "estimate", "job", "trace"):
        assert "is a configuration of axolotl, not a job" in refused(command, "run.yaml")


def test_consumer_cards():
    words = ["llama-3.1-70b", "--gpu", "2xrtx-4090", "--method", "qlora", "--no-trace", "--json"]
    document = json.loads(ok("plan", *words))
    strategy = document["plans"][0]["job"]["strategy"]
    assert (strategy["zero"], strategy["checkpointing"]) == (3, "full")
    assert "parameters" in strategy["offload"]
    served = json.loads(ok("plan", "llama-3.1-8b", "--gpu", "1xrtx-3090", "--task", "serve", "--json"))
    assert faults(served, schema("plan")) == []
    assert served["most_sequences"] >= 1
    assert served["plans"][0]["tpot_s"] > 0


def test_serving_that_cannot_be_names_ways():
    result = run("plan", "llama-3.1-70b", "--gpu", "h100", "--task", "serve")
    assert result.exit_code == 1
    assert "--allow fp8" in result.stdout
    assert "2xh100" in result.stdout
    assert ok("plan", "llama-3.1-70b", "--gpu", "h100", "--task", "serve", "--allow", "fp8", "-q").startswith("fastest")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "no model is given"),
        (["llama-3.2-1b"], "none is named"),
        (["lama-3.2-1b", "--gpu", "h100"], "llama-3.2-1b"),
        (["llama-3.2-1b", "--gpu", "h1000"], "h100"),
        (["llama-3.2-1b", "--gpu", "h100", "--risk", "half"], "not a probability"),
        (["llama-3.2-1b", "--gpu", "h100", "--risk", "60%"], "probability"),
        (["llama-3.2-1b", "--gpu", "any"], "--budget"),
        (["llama-3.2-1b", "--gpu", "any", "--budget", "much"], "number of dollars"),
        (["llama-3.2-1b", "--gpu", "h100", "--allow", "magic"], "unknown change to allow"),
        (["llama-3.2-1b", "--gpu", "h100", "--within", "mars"], "unknown provider"),
        (["llama-3.2-1b", "--gpu", "h100", "--out", "plan.docx"], "no known ending"),
        (["llama-3.2-1b", "--gpu", "h100", "--out", "nowhere/plan.toml"], "no such folder"),
        (["llama-3.2-1b", "--gpu", "h100", "--explain", "colour"], "is no lever"),
        (["llama-3.2-1b", "--gpu", "h100", "--tokens", "many"], "number of tokens"),
        (["llama-3.2-1b", "--gpu", "h100", "--host-memory", "big"], "not a size"),
        (["llama-3.2-1b", "--gpu", "h100", "--host-memory", "128"], "less than 1 GiB"),
        (["llama-3.2-1b", "--gpu", "h100", "--top", "21"], "from 1 to 20"),
        (["llama-3.2-1b", "--gpu", "h100", "--risk", "20%"], "above 0"),
        (["llama-3.2-1b", "--gpu", "h100", "--objective", "changes"], "today's job"),
        (["llama-3.2-1b", "--gpu", "h100", "--from", "none.toml"], "are given"),
        (["--from", "none.toml"], "no such file"),
        (["--from", "llama-3.2-1b"], "not a job file"),
        (["llama-3.2-1b", "--gpu", "8xh100", "--tp", "3", "--dp", "2"], "8 GPUs"),
        (["llama-3.2-1b", "--gpu", "h100", "-f", "vllm", "--kind", "train"], "serves and does not train"),
    ],
)
def test_what_is_refused(words, text):
    assert text in refused("plan", *words)


# ---- prices ----------------------------------------------------------------------------------------------------------

PRICES = "provider,gpu,usd_per_hour,date\nAcme,rtx-4090,0.4,2026-11\nBygone,rtx-4090,0.1,2022-03\n"
ONE_H100 = ["llama-3.2-1b", "--gpu", "h100", "--seq", "2k", "--global-batch", "8", "-f", "trl", "--no-trace"]


def test_a_price_list_is_used(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(PRICES, encoding="utf-8")
    assert "$0.40 an hour (Acme, 2026-11)" in ok("plan", *SMALL, "--prices", str(path))
    text = " ".join(ok("plan", *SMALL, "--prices", str(path), "--within", "bygone").split())
    assert "$0.10 an hour (Bygone, 2022-03, older than 18 months)" in text
    document = json.loads(ok("plan", *SMALL, "--prices", str(path), "--within", "bygone", "--json"))
    assert faults(document, schema("plan")) == []
    option = document["plans"][0]["gpus"]
    assert (option["price_old"], option["machine"], option["paid_gpus"]) == (True, None, 1)
    assert "acme, aws" in refused("plan", *SMALL, "--prices", str(path), "--within", "verda")


def test_a_bad_price_list_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prices.csv").write_text("provider,gpu,usd_per_hour\nAcme,rtx-4090,cheap\n", encoding="utf-8")
    text = " ".join(refused("plan", *SMALL, "--prices", "prices.csv").split())
    assert text == "error: 'prices.csv', price 1: `usd_per_hour` must be dollars per GPU-hour, got 'cheap'"
    assert "no such file" in refused("plan", *SMALL, "--prices", "none.csv")


def test_a_whole_machine_is_named():
    text = " ".join(ok("plan", *ONE_H100, "--objective", "cost", "--within", "aws").split())
    assert "$55.04 an hour (AWS p5.48xlarge, 2026-05, 1 of 8 GPUs used)" in text
    option = json.loads(ok("plan", *ONE_H100, "--objective", "cost", "--within", "aws", "--json"))["plans"][0]["gpus"]
    assert (option["price_old"], option["machine"], option["paid_gpus"]) == (False, "p5.48xlarge", 8)
    text = " ".join(refused("plan", *ONE_H100, "--objective", "cost", "--within", "gcp").split())
    assert "--price h100-sxm-80gb=2.5" in text


def test_a_difference_in_cost_says_whose_prices_it_rests_on(tmp_path):
    job = TODAY.replace("checkpointing = ", "zero = 0\ncheckpointing = ")
    paths = []
    for name in ("h100", "t4"):
        path = tmp_path / f"{name}.toml"
        path.write_text(job.replace("rtx-4090", name), encoding="utf-8")
        paths.append(str(path))
    text = " ".join(ok("diff", *paths).split())
    assert "prices: A $2.29 an hour (Verda, 2026-08); B $0.53 an hour (A" in text
    assert "prices: $2.00 an hour (given) for both" in " ".join(ok("diff", *paths, "--price", "2").split())
    document = json.loads(ok("diff", *paths, "--json"))
    assert faults(document, schema("diff")) == []
    assert document["time"]["left"]["price_source"].startswith("Verda: ")
    assert document["time"]["right"]["price_date"] >= "2026-05"
