"""``memfit trace``: files of events without torch, jobs with it."""

import gzip
import json
import pickle
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from memfit.cli.app import app
from memfit.job import from_kwargs
from memfit.ledger import COMPONENTS
from memfit.trace import Block, RawEvent, Trace
from memfit.trace.answer import described
from memfit.trace.files import load, save

MIB = 1 << 20
CONFIG = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


def hand_made(scale=1):
    """Two steps: parameters stay, activations come and go, the optimizer's states come in the first step."""
    events, blocks = [], {}

    def alloc(size, component, phase, step, **more):
        uid = len(blocks)
        events.append(RawEvent(uid, size * scale, 0, phase, step))
        blocks[uid] = Block(
            id=uid, bytes=size * scale, op="aten::mm", module=f"model.layers.{uid}.mlp", phase=phase, step=step,
            shape=(size, 7), dtype="bfloat16", component=component, **more,
        )  # fmt: skip
        return uid

    def free(uid, phase, step):
        events.append(RawEvent(uid, -blocks[uid].bytes, 0, phase, step))

    for _ in range(3):
        alloc(8 * MIB, "parameters", "load", -1, source="/home/x/site-packages/lib/model.py:12")
    for step in range(2):
        kept = [alloc(5 * MIB, "activations", "forward", step, source="<script & co>.py:3") for _ in range(6)]
        for uid in reversed(kept):
            free(uid, "backward", step)
        if step == 0:
            alloc(16 * MIB, "optimizer", "optimizer", step)
    notes = ("made by hand",)
    settings = {"torch": "2.13.0"}
    return Trace(events=tuple(events), blocks=blocks, engine="meta", steps=2, notes=notes, settings=settings)


def saved(path, trace=None, job=True, **fields):
    trace = trace or hand_made()
    if job:
        stated = {"config": CONFIG, "gpu": "rtx-4090", "seq_len": 128, "precision": "bf16", **fields}
        trace = described(trace, from_kwargs(**stated), rank=0, stage=0)
    save(trace, path)
    return str(path)


def run(*words):
    env = {"COLUMNS": "80", "NO_COLOR": None, "FORCE_COLOR": None, "TERM": "xterm", "MEMFIT_DEBUG": None}
    return CliRunner().invoke(app, ["trace", *words], env=env)


def ok(*words, code=0):
    result = run(*words)
    assert (result.exit_code, result.stderr) == (code, ""), result.output
    return result.stdout


def refused(*words, code=2):
    result = run(*words)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_the_order_of_the_answer(tmp_path):
    text = ok(saved(tmp_path / "a.memfit"))
    parts = [
        "fits: needs ", "NVIDIA GeForce RTX 4090", "parameters): full training", "events of",
        "capacity", "peak: ", "the smallest card", "phase ", "formula", "PYTORCH_ALLOC_CONF", "at the peak ", "note: ",
    ]  # fmt: skip
    assert all(part in text for part in parts)
    assert text.startswith(parts[0])
    assert text.index("phase ") < text.index("formula") < text.index("PYTORCH_ALLOC_CONF") < text.index("note: ")
    assert max(map(len, text.splitlines())) <= 80
    assert ok(saved(tmp_path / "b.memfit"), "--quiet") == text.splitlines()[0] + "\n"


def test_the_document_adds_up(tmp_path):
    trace = hand_made()
    document = json.loads(ok(saved(tmp_path / "a.memfit", trace), "--json"))
    peak = document["peak_bytes"]
    assert peak["allocated"] == trace.peak_allocated == (3 * 8 + 16 + 6 * 5) * MIB
    assert peak["device"] == peak["reserved"] + document["outside_bytes"]
    assert sum(c["bytes"] for c in document["components"]) == peak["device"]
    assert {c["name"] for c in document["components"]} <= COMPONENTS.keys()
    assert document["verdict"] == "fits"
    assert document["needed_bytes"][0] <= document["needed_bytes"][1] <= document["capacity_bytes"]
    assert document["steps"] == [trace.first_peak, trace.steady_peak]
    assert [p["phase"] for p in document["phases"]] == ["load", "forward", "backward"]
    assert sum(t["bytes"] for t in document["tensors"]) == peak["allocated"]
    tensor = next(t for t in document["tensors"] if t["component"] == "parameters")
    assert (tensor["num_blocks"], tensor["module"], tensor["source"]) == (3, "model.layers.*.mlp", "lib/model.py:12")
    deltas = sum(d["delta_bytes"] for d in document["formula"]["differences"])
    assert deltas == document["formula"]["peak_bytes"]["device"] - peak["device"]
    assert document["settings"]["job"]["model"]["config"] == CONFIG


def test_a_job_that_does_not_fit_says_where_it_runs_out(tmp_path):
    path = saved(tmp_path / "a.memfit", hand_made(scale=600))
    text = ok(path, code=1)
    assert text.startswith("does not fit: needs ")
    assert "runs out" in text
    assert "CUDA out of memory" in text
    document = json.loads(ok(path, "--json", code=1))
    assert document["out_of_memory"]["requested_bytes"] > 0
    assert document["needed_bytes"][0] > document["capacity_bytes"]


def test_a_file_that_names_no_job_has_no_card_and_no_formula(tmp_path):
    text = ok(saved(tmp_path / "a.memfit", job=False))
    assert text.startswith("unknown: needs 0.08 GiB")
    assert "formula" not in text
    document = json.loads(ok(str(tmp_path / "a.memfit"), "--json"))
    assert (document["capacity_bytes"], document["formula"], document["smallest_card"]) == (None, None, None)


def test_allocator_settings_are_compared(tmp_path):
    path = saved(tmp_path / "a.memfit")
    rows = json.loads(ok(path, "--json"))["allocator"]
    assert [row["settings"] for row in rows] == ["", "expandable_segments:True"]
    rows = json.loads(ok(path, "--json", "--what-if", "max_split_size_mb:64", "--what-if", "all"))["allocator"]
    assert [row["settings"] for row in rows][:3] == ["", "max_split_size_mb:64", "expandable_segments:True"]
    assert len(rows) == len({row["settings"] for row in rows})
    assert "error: " in refused(path, "--what-if", "no_such_setting:x")


def test_files_are_written_and_not_overwritten(tmp_path):
    path, svg, snapshot = saved(tmp_path / "a.memfit"), tmp_path / "a.svg", tmp_path / "a.pickle"
    words = [path, "--svg", str(svg), "--snapshot", str(snapshot)]
    ok(*words)
    assert svg.read_text("utf-8").startswith("<svg ")
    state = pickle.loads(snapshot.read_bytes())
    actions = state["device_traces"][0]
    named = [a for a in actions if a["action"] == "alloc" and a["frames"]]
    assert named[0]["frames"][0] == {
        "filename": "lib/model.py", "line": 12, "name": "aten::mm",
    }  # fmt: skip
    assert named[0]["frames"][1]["filename"] == "model.layers.0.mlp"
    before = svg.read_bytes()
    assert "exists" in refused(*words)
    assert svg.read_bytes() == before
    ok(*words, "--force")
    assert "one name" in refused(path, "--svg", str(tmp_path / "x"), "--snapshot", str(tmp_path / "x"))
    assert "no such folder" in refused(path, "--svg", str(tmp_path / "none" / "x.svg"))


@pytest.mark.parametrize("words", [["--seq", "3"], ["--steps", "2"], ["--rank", "0"], ["--events", "new.memfit"]])
def test_a_file_takes_no_flags_of_a_job_or_a_run(tmp_path, words):
    assert "read as it is" in refused(saved(tmp_path / "a.memfit"), *words)


def test_a_hostile_file_is_one_clear_error(tmp_path):
    for name, change in {
        "stage": {"stage": 99}, "stage text": {"stage": "x"}, "job": {"job": {"model": {"name": "no such model"}}},
        "torch": {"torch": "none"}, "junk": {"job": {"task": 3}},
    }.items():  # fmt: skip
        trace = described(hand_made(), from_kwargs(config=CONFIG, gpu="rtx-4090"), rank=0, stage=0)
        trace.settings.update(change)
        path = tmp_path / f"{name}.memfit"
        save(trace, path)
        assert refused(str(path)).startswith("error: "), name
        assert "a bug" not in refused(str(path)), name
    other = tmp_path / "other.memfit"
    other.write_bytes(b"\x1f\x8bnothing")
    assert "cannot read the trace" in refused(str(other))
    missing = refused(str(tmp_path / "missing.memfit"))
    assert "cannot read the trace" in missing
    assert "Errno" not in missing


def test_a_block_larger_than_any_gpu_is_damage(tmp_path):
    path = tmp_path / "a.memfit"
    saved(path)
    document = json.loads(gzip.decompress(path.read_bytes()))
    document["events"]["bytes"][0] = 10**40
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    assert "a block of" in refused(str(path))


JUNK = [None, "x", -1, 10**12, 10**40, [], {}, [[]], float("nan"), True]


@given(data=st.data())
def test_no_damaged_file_is_taken_for_a_bug(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "a.memfit"
    saved(path)
    document = json.loads(gzip.decompress(path.read_bytes()))
    node, key = document, data.draw(st.sampled_from(sorted(document)))
    while isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 4)):
        node = node[key]
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
    node[key] = data.draw(st.sampled_from(JUNK))
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    result = run(str(path), *data.draw(st.sampled_from([[], ["--json"], ["--svg", str(folder / "a.svg")]])))
    assert result.exit_code in (0, 1, 2), (key, node[key], result.output)


def test_without_torch_the_hint_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [n for n in sys.modules if n.startswith("memfit.trace.program")]:
        monkeypatch.delitem(sys.modules, name)
    for word in ("memfit.trace.program", "memfit.trace.unlock", "memfit.trace.engine"):
        monkeypatch.delitem(sys.modules, word, raising=False)
    text = refused("qwen3-0.6b", "--gpu", "rtx-4090", "--precision", "bf16", code=3)
    assert "tracing needs torch" in text
    assert "pip install memfit[torch]" in text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "no model is given"),
        (["llama-3.1-8b", "--gpu", "h100", "--stage", "4"], "no pipeline stage 4"),
        (["llama-3.1-8b", "--gpu", "8xh100", "--rank", "8"], "no rank 8"),
        (["llama-3.1-8b", "--gpu", "h100", "--layers", "99"], "32 layers, not 99"),
        (["llama-3.1-8b", "--gpu", "h100", "--layers", "0"], "0 is not in the range"),
        (["llama-3.1-8b", "--kind", "serve", "--gpu", "h100"], "serving is not traced"),
        (["llama-3.1-8b", "--gpu", "8xh100", "--zero", "3", "--engine", "meta"], "needs the engine fake-cuda"),
        (["llama-3.1-8b", "--gpu", "h100", "--engine", "best"], "'best' is not one of"),
    ],
)
def test_what_cannot_be_traced_is_said_before_torch_is_needed(words, text):
    assert text in refused(*words)


@pytest.mark.slow
def test_a_job_is_traced_written_and_read_again(tmp_path):
    pytest.importorskip("transformers")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    file = tmp_path / "run.memfit"
    words = [str(config), "--gpu", "rtx-4090", "--seq", "128", "--precision", "bf16", "-f", "torch"]
    first = json.loads(ok(*words, "--events", str(file), "--json"))
    again = json.loads(ok(str(file), "--json"))
    assert again == first
    assert again["settings"]["job"]["model"] == {"config": CONFIG}
    assert again["peak_bytes"]["allocated"] == load(file).peak_allocated
    assert str(tmp_path) not in json.dumps(again)
    cut = json.loads(ok(*words, "--layers", "2", "--json"))
    assert cut["peak_bytes"]["allocated"] < again["peak_bytes"]["allocated"]
    assert cut["formula"]["peak_bytes"]["allocated"] < again["formula"]["peak_bytes"]["allocated"]


@pytest.mark.slow
def test_a_model_that_cannot_run_is_the_models_fault(tmp_path):
    pytest.importorskip("transformers")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**CONFIG, "num_attention_heads": 4, "hidden_act": "no such function"}))
    text = refused(str(config), "--gpu", "rtx-4090", "--seq", "128", "--precision", "bf16", "-f", "torch")
    assert "a bug" not in text
    assert Path(config).name in text or "no such function" in text


@pytest.mark.slow
def test_other_cards_than_nvidias_are_warned_about(tmp_path):
    pytest.importorskip("transformers")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    words = [str(config), "--seq", "128", "--precision", "bf16", "-f", "torch", "--json"]
    assert any("NVIDIA H100" in text for text in json.loads(ok(*words, "--gpu", "mi300x"))["warnings"])
    assert not any("NVIDIA H100" in text for text in json.loads(ok(*words, "--gpu", "a100-80gb"))["warnings"])
