"""The answer as users see it: verdict, bands, assumptions, changes, document."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from formula_jobs import config_of
from hypothesis import given, settings
from hypothesis import strategies as st

import memfit
from memfit import MemfitError, estimate
from memfit.formula import profile as profiles
from memfit.formula.able import names, variant
from memfit.formula.estimate import TIGHT, verdict_of
from memfit.formula.resolve import resolve
from memfit.formula.slack import bands, fragments
from memfit.formula.stage import StageModel
from memfit.formula.training import dims_of, peaks, setup_of
from memfit.job import from_kwargs, to_dict
from memfit.models import catalog
from strategies import jobs

BASE = {"model": "llama-3.2-1b", "framework": "torch", "gpu": "h100"}


@pytest.mark.parametrize(
    ("p_oom", "verdict"),
    [
        (None, "unknown"),
        (0.0, "fits"),
        (TIGHT, "fits"),
        (0.011, "tight"),
        (0.5, "tight"),
        (0.51, "does not fit"),
        (1.0, "does not fit"),
    ],
)
def test_verdict_thresholds(p_oom, verdict):
    assert verdict_of(p_oom) == verdict


@settings(max_examples=20)
@given(jobs(), st.floats(0.5, 200))
def test_more_memory_is_never_less_likely_to_fit(job, memory):
    less, more = (estimate(**job, memory_gib=m) for m in (memory, memory * 1.1))
    assert less.reserved_bytes == more.reserved_bytes
    assert 0 <= more.p_oom <= less.p_oom <= 1
    assert (less.fits, more.fits) != (True, False)
    assert less.verdict == verdict_of(less.p_oom)


def test_without_a_card_there_is_no_verdict():
    found = estimate(model="gpt2", framework="torch")
    assert (found.verdict, found.fits, found.p_oom, found.capacity_bytes) == ("unknown", None, None, None)
    assert found.ledger.free_bytes is None


@settings(max_examples=20)
@given(st.integers(1 << 20, 1 << 45), st.integers(0, 1 << 40), st.integers(0, 1 << 33), st.booleans())
def test_bands_enclose_their_figure(allocated, slack, outside, sharded):
    peak = {"allocated": allocated, "reserved": allocated + slack, "device": allocated + slack + outside}
    found = bands(peak, outside, sharded=sharded)
    for kind, value in peak.items():
        assert found[kind].mid == value
        assert found[kind].low < value < found[kind].high
    assert allocated + outside <= found["need"].mid <= peak["device"]


@given(
    st.fixed_dictionaries(dict.fromkeys(("logits", "kept", "block", "states"), st.integers(0, 1 << 45))), st.booleans()
)
def test_splitting_loses_part_of_what_is_split(parts, late):
    assert 0 <= fragments(parts, states_late=late) <= sum(parts.values())


@settings(max_examples=12)
@given(jobs(framework=st.sampled_from(("torch", "transformers", "torchtitan", "megatron"))))
def test_assumptions_and_changes_are_worth_what_a_new_estimate_says(job):
    found = estimate(**job)
    for change in found.changes:
        task = {k: v for k, v in change.fields.items() if k in ("method", "seq_len", "global_batch")}
        strategy = {k: v for k, v in change.fields.items() if k not in task}
        stated = from_kwargs(**job)
        again = estimate(
            replace(stated, task=replace(stated.task, **task), strategy=replace(stated.strategy, **strategy))
        )
        assert again.reserved_bytes - found.reserved_bytes == change.delta_bytes < 0
    assert [c.delta_bytes for c in found.changes] == sorted(c.delta_bytes for c in found.changes)
    for assumption in found.assumptions:
        name = assumption.field.removeprefix("strategy.")
        assert name not in job
        again = estimate(**job, **{name: assumption.alternative})
        assert again.reserved_bytes - found.reserved_bytes == assumption.delta_bytes
    effects = [abs(a.delta_bytes) for a in found.assumptions]
    assert effects == sorted(effects, reverse=True)


def test_what_was_stated_is_no_assumption():
    fields = {a.field for a in estimate(**BASE).assumptions}
    assert {"strategy.checkpointing", "strategy.optimizer"} <= fields
    stated = {a.field for a in estimate(**BASE, checkpointing="none", optimizer="adamw").assumptions}
    assert fields - stated == {"strategy.checkpointing", "strategy.optimizer"}


def test_the_document_is_plain_data_that_adds_up():
    found = estimate(**BASE, pp=2, grad_accum=4)
    document = json.loads(json.dumps(found.to_dict("x")))
    assert document["id"] == "x"
    assert document["schema_version"] == 1
    assert sum(c["bytes"] for c in document["components"]) == document["peak_bytes"]["device"]
    assert document["components"] == document["stages"][document["fullest_stage"]]["components"]
    for stage in document["stages"]:
        assert sum(c["bytes"] for c in stage["components"]) == stage["peak_bytes"]["device"]
        assert stage["peak_bytes"]["reserved"] <= document["peak_bytes"]["reserved"]
    assert document["model"]["params"] == 1_235_814_400
    assert document["versions"]["memfit"] == memfit.__version__
    assert document["assumptions"]
    bare = found.to_dict("x", full=False)
    assert bare == {**document, "assumptions": [], "changes": []}


def test_a_job_is_taken_in_every_form(tmp_path):
    job = from_kwargs(**BASE)
    expected = estimate(job).to_dict()
    path = tmp_path / "job.json"
    path.write_text(json.dumps(to_dict(job)))
    assert estimate(to_dict(job)).to_dict() == estimate(path).to_dict() == estimate(str(path)).to_dict() == expected
    assert estimate(**BASE).to_dict() == expected
    assert estimate(path, seq_len=8192).reserved_bytes == estimate(**BASE, seq_len=8192).reserved_bytes


def test_a_job_object_takes_no_fields():
    with pytest.raises(MemfitError, match="cannot be combined"):
        estimate(from_kwargs(**BASE), zero=3)


@pytest.mark.parametrize(
    "extra",
    [
        {"images": "x"},
        {"images": -1},
        {"images": True},
        {"moe_imbalance": float("nan")},
        {"moe_imbalance": 0.5},
        {"as": 3},
        {"image": 1},
    ],
)
def test_facts_of_the_wrong_kind_are_errors(extra):
    with pytest.raises(MemfitError, match=r"model\.extra"):
        estimate(model="qwen2.5-vl-3b", framework="torch", extra=extra)


@pytest.mark.parametrize("text", ["8x 4 h100", "a100-80gbx8"])
def test_no_number_of_cards_is_lost(text):
    with pytest.raises(MemfitError, match=r"hardware\.gpu"):
        estimate(model="llama-3.2-1b", gpu=text)


def test_a_configuration_is_the_model_that_it_describes():
    named, given_ = (estimate(model=m, framework="torch") for m in ("llama-3.2-1b", config_of("llama-3.2-1b")))
    assert named.reading.parts == given_.reading.parts


def test_other_processes_take_their_share():
    alone, shared = estimate(**BASE), estimate(**BASE, others_gib=10)
    assert shared.device_bytes - alone.device_bytes == 10 << 30
    assert shared.reserved_bytes == alone.reserved_bytes
    assert shared.p_oom >= alone.p_oom


def test_an_estimate_shows_itself_in_a_notebook():
    page = estimate(**BASE)._repr_html_()
    assert "<script" not in page
    assert "GiB" in page


def test_every_framework_that_trains_has_a_row_of_what_it_can_do():
    assert set(profiles.names()) == set(names())


@pytest.mark.parametrize("framework", profiles.names())
def test_what_is_suggested_exists_in_the_framework(framework):
    can = variant(framework, None)
    job = {"model": "llama-3.1-8b", "gpu": "8xh100", "framework": framework, "seq_len": 8192, "micro_batch": 2}
    seen = set()
    for more in ({}, {"tp": 2, "loss": "eager"}, {"method": "lora"}, {"attention": "eager", "zero": 0}):
        found = estimate(**job, **more)
        for fields in [c.fields for c in found.changes]:
            seen |= set(fields)
            assert fields.get("loss", can.loss[0]) in can.loss
            assert fields.get("zero", can.zero[0]) in can.zero
            assert fields.get("checkpointing", "full") in can.checkpointing
            assert fields.get("optimizer") in (None, *can.optimizers)
            assert fields.get("method") in (None, *can.adapters)
            assert tuple(fields.get("offload", ())) in can.offload
            assert fields.get("attention", "flash") in can.attention
            assert fields.get("sequence_parallel", True) in (True, *can.sequence_parallel)
        for assumed in found.assumptions:
            assert assumed.field != "strategy.loss" or assumed.alternative in can.loss
            assert assumed.field != "strategy.zero" or assumed.alternative in can.zero
    assert {"micro_batch", "seq_len"} <= seen


@pytest.mark.parametrize(
    ("version", "loss", "others"),
    [
        (None, "chunked", False), ("1.16.0", "chunked", False), ("1.15", "chunked", False), ("main", "chunked", False),
        ("transformers 4.38", "chunked", False), ("fsdp", "chunked", False), ("1.7", "chunked", True),
        ("trl 1.10", "chunked", True), ("1.14.2", "chunked", True), ("1.6.0", "eager", True), ("0.29.1", "eager", True),
        ("trl 1.4", "eager", True), ("trl==1.5.1", "eager", True), ("transformers 5.2, trl 1.6", "eager", True),
        ("0.25.1", "eager", True),
    ],
)  # fmt: skip
def test_the_loss_of_trl_is_that_of_its_version(version, loss, others):
    job = {"model": "llama-3.1-8b", "framework": "trl", "method": "qlora", "framework_version": version}
    found = estimate(**job)
    assert found.job.strategy.loss == loss
    assert found.resolved.completed.origins["strategy.loss"] == "profile"
    suggested = {c.fields["loss"] for c in found.changes if "loss" in c.fields}
    assert suggested == ({"fused"} if others else set())
    assert bool([a for a in found.assumptions if a.field == "strategy.loss"]) == others


def model_of(**fields):
    resolved = resolve(from_kwargs(**fields))
    made, d = setup_of(resolved), dims_of(resolved)
    return StageModel(made, d, peaks(made, d, every=True)[0].stage)


@pytest.mark.parametrize(
    ("version", "tokens", "columns"), [(None, 4096, 32768), ("1.15", 4096, 32768), ("1.14", 256, 128256)]
)
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_trl_makes_a_bounded_part_of_the_logits(version, tokens, columns, micro_batch):
    job = {"framework": "trl", "framework_version": version, "micro_batch": micro_batch, "seq_len": 2048}
    part = model_of(**job, model="llama-3.1-8b").tail_atoms()["Vs"]
    assert part == min(tokens, 2048 * micro_batch) * columns
    small = model_of(**job, config=catalog.lookup("llama-3.1-8b").config | {"vocab_size": 1000}).tail_atoms()["Vs"]
    assert small == min(tokens, 2048 * micro_batch) * 1000


@pytest.mark.parametrize(
    ("version", "precision", "head"),
    [
        (None, "bf16-mixed", 0),  # the gradient of an fp32 head is summed in itself
        (None, "bf16", 4),  # that of a 16-bit head in fp32, then cast
        ("1.14", "bf16-mixed", 8),  # the old sum and a part's gradient, beside the new sum
        ("1.14", "bf16", 8),  # the sum, the raised weight and its gradient
    ],
)
def test_trl_sums_the_gradient_of_the_head_as_its_version_does(version, precision, head):
    job = {"framework": "trl", "framework_version": version, "precision": precision, "loss": "chunked"}
    op = next(o for o in model_of(**job, model="llama-3.1-8b").s.tail.ops if o.name == "sliced_loss")
    assert op.backward_temp.get("w.head.max", 0) == head
    assert op.weight_grad == {"w.head": 2 if precision == "bf16" else 4}
    frozen = model_of(**job, model="llama-3.1-8b", method="lora").s.tail
    assert not next(o for o in frozen.ops if o.name == "sliced_loss").weight_grad


@pytest.mark.parametrize(
    ("gpu", "context", "collectives", "tool"),
    [
        ("2xh100", "CUDA context", "NCCL", "nvidia-smi"),
        ("2xmi300x", "ROCm (HIP) context", "RCCL", "rocm-smi"),
        ("m3-max-128gb", "Metal context", None, "the system"),
        (None, "CUDA context", None, "nvidia-smi"),
    ],
)
def test_the_runtime_is_called_as_its_vendor_calls_it(gpu, context, collectives, tool):
    from memfit.report.estimate import peak
    from memfit.report.page import Page

    found = estimate(model="llama-3.2-1b", gpu=gpu)
    named = [e.name for e in found.ledger.entries if e.component == "runtime"]
    assert named == [context, *([collectives] if collectives else [])]
    assert tool in " ".join(peak(Page(width=200), found))
