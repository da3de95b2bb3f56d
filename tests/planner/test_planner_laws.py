"""Laws of plans: they fit, keep what was stated, get no worse when more is allowed, and are what they say they are."""

from __future__ import annotations

import pytest
from planner_cases import SMALL

from memfit import estimate, speed
from memfit.errors import JobError, JobErrors, MemfitError, UnknownNameError
from memfit.export import export
from memfit.export.torchtitan_reading import FLAVORS
from memfit.formula.resolve import resolve
from memfit.formula.training import rank_layers
from memfit.hardware import Price
from memfit.job import dumps, from_kwargs, load
from memfit.planner import Request, plan
from memfit.planner.capabilities import capability, excluded, names, qualities
from memfit.planner.difference import diff
from memfit.planner.planning import find
from memfit.planner.request import _steps
from memfit.report.page import Page
from memfit.report.plan import plan_text

ONE = {"model": "llama-3.2-1b", "gpu": "rtx-4090", "seq_len": 2048, "global_batch": 8, "framework": "trl"}
TWO = {**ONE, "gpu": "2xrtx-4090", "attention": "flash"}


def ask(fields=TWO, **options):
    more = {k: options.pop(k) for k in tuple(options) if k not in Request.__dataclass_fields__}
    lever = more.pop("lever", "")
    return plan(Request(job=from_kwargs(**{**fields, **more}), **options), lever=lever)


@pytest.fixture(scope="module")
def answer():
    return ask()


def test_every_plan_fits_with_the_margin_asked_for(answer):
    for risk in (0.01, 0.0001):
        for one in ask(risk=risk).plans:
            assert one.p_oom <= risk
            assert one.estimate.verdict == "fits"
            assert one.estimate.p_retry <= risk
            assert one.estimate.device_bytes < 0.97 * one.estimate.capacity_bytes


def test_what_only_runs_with_the_allocator_at_work_is_said_to():
    tight = ask(
        model="llama-3.2-3b",
        gpu="a100-sxm-40gb",
        framework="deepspeed",
        seq_len=15360,
        global_batch=1,
        checkpointing="full",
        loss="eager",
        offload=("optimizer",),
        attention="flash",
    )
    best = tight.plans[0].estimate
    assert best.p_retry > 0.01
    assert any("expandable_segments" in text for text in best.warnings)


def test_what_was_stated_is_kept():
    stated = {
        "checkpointing": "full",
        "micro_batch": 2,
        "zero": 2,
        "loss": "eager",
        "optimizer": "lion",
        "precision": "bf16",
    }
    for one in ask(**stated).plans:
        for name, value in stated.items():
            assert getattr(one.job.strategy, name) == value
        assert one.job.task.seq_len == 2048
        assert one.job.task.global_batch == 8


def test_a_written_plan_gives_the_same_figures(answer, tmp_path):
    best = answer.plans[0]
    path = tmp_path / "plan.toml"
    path.write_text(dumps(best.job), encoding="utf-8")
    again = estimate(str(path))
    assert again.device_bytes == best.estimate.device_bytes
    assert again.bands["need"] == best.need
    assert speed.step_time(load(path)).step_s == pytest.approx(best.step_s, rel=1e-12)
    assert not again.warnings


def test_parts_sum_to_the_step(answer):
    for one in answer.plans:
        assert sum(one.parts.values()) == pytest.approx(one.step_s, rel=1e-9)
        tokens = one.job.task.seq_len * one.job.task.global_batch
        assert one.tokens_per_s_per_gpu == pytest.approx(tokens / one.step_s / one.option.gpus, rel=1e-9)


def test_relaxing_never_makes_it_worse(answer):
    best = answer.plans[0].step_s
    assert ask(risk=0.1).plans[0].step_s <= best
    assert ask(memory_gib=40).plans[0].step_s <= best
    assert ask(allow=frozenset({"adamw-8bit"})).plans[0].step_s <= best
    for fixed in ({"checkpointing": "full"}, {"zero": 1}, {"micro_batch": 1}, {"loss": "eager"}, {"compile": False}):
        assert ask(**fixed).plans[0].step_s >= best


def test_plans_are_ranked_and_apart(answer):
    times = [p.step_s for p in answer.plans]
    assert times == sorted(times)
    assert len({p.candidate.apart for p in answer.plans}) == len(answer.plans)


def test_the_same_question_has_the_same_answer(answer):
    assert [p.job for p in ask().plans] == [p.job for p in answer.plans]
    assert ask().front == answer.front


def test_nothing_that_changes_results_is_chosen_silently():
    tight = {"model": "llama-3.2-3b", "gpu": "rtx-3090", "seq_len": 1024, "global_batch": 4, "framework": "trl"}
    plain = ask(tight)
    for one in plain.plans:
        assert (one.job.strategy.optimizer, one.job.strategy.precision, one.job.task.method) == (
            "adamw",
            "bf16-mixed",
            "full",
        )
        assert one.qualities == ()
    able = ask(tight, allow=frozenset({"optimizer", "precision"}))
    best = able.plans[0]
    assert (best.job.strategy.optimizer, best.job.strategy.precision) != ("adamw", "bf16-mixed")
    assert best.qualities
    assert all(q.source and q.costs for q in best.qualities)


def test_the_waterfall_ends_at_the_plan(answer):
    first, *steps = answer.waterfall
    assert first.lever == "start"
    best = answer.plans[0]
    assert steps[-1].need_bytes == best.candidate.need_bytes
    assert steps[-1].step_s == pytest.approx(best.candidate.seconds)
    assert first.need_bytes + sum(s.delta_bytes for s in steps) == best.candidate.need_bytes
    assert first.step_s + sum(s.delta_s for s in steps) == pytest.approx(best.candidate.seconds)


def test_the_front_is_one(answer):
    for a in answer.front:
        assert not any(b.step_s < a.step_s and b.need_bytes < a.need_bytes for b in answer.front)
    assert answer.front[0].step_s == answer.plans[0].candidate.seconds


def test_memory_binds_until_there_is_enough(answer):
    found = ask(memory_gib=2000, micro_batch=None)
    assert found.binding.kind == "time"
    assert found.plans[0].candidate.seconds == pytest.approx(
        find(Request(job=from_kwargs(**TWO))).outcome.unlimited.seconds
    )


def test_explained_values_contain_the_plan():
    found = plan(Request(job=from_kwargs(**ONE)), lever="checkpointing")
    best = found.plans[0]
    kept = [c.plan for c in found.choices if c.plan is not None]
    assert min(p.step_s for p in kept) == best.step_s
    assert {c.value for c in found.choices} == {"none", "full"}
    with pytest.raises(MemfitError, match="no lever"):
        plan(Request(job=from_kwargs(**ONE)), lever="colour")


# ---- objectives ------------------------------------------------------------------------------------------------------


def test_fewest_changes_are_fewest():
    today = {"model": "qwen3-0.6b", "gpu": "rtx-4090", "framework": "trl", "seq_len": 4096, "micro_batch": 4,
             "grad_accum": 2, "loss": "eager", "checkpointing": "none"}  # fmt: skip
    now = from_kwargs(**today)
    assert estimate(now).fits is False
    found = plan(Request(job=now, today=now, objective="changes"))
    best = found.plans[0]
    assert best.candidate.penalty == 2
    assert len(found.waterfall) == 3
    assert best.job.strategy.micro_batch * best.job.strategy.grad_accum == 8
    for alone in ({"micro_batch": 1, "grad_accum": 8}, {"loss": "fused"}, {"checkpointing": "full"}, {"compile": True}):
        assert estimate(from_kwargs(**{**today, **alone})).verdict != "fits"
    same = best.job
    kept = plan(Request(job=same, today=same, objective="changes")).plans[0]
    assert kept.candidate.penalty == 0


@pytest.mark.parametrize(
    "today",
    [
        {**ONE, "optimizer": "adamw-8bit", "checkpointing": "full"},
        {**TWO, "framework": "torchtitan", "model": "llama-3.2-1b", "precision": "bf16", "zero": 3},
    ],
)
def test_a_job_that_fits_needs_no_change_and_keeps_what_changes_results(today):
    now = from_kwargs(**today)
    assert estimate(now).fits
    best = plan(Request(job=now, today=now, objective="changes")).plans[0]
    assert best.candidate.penalty == 0
    longer = from_kwargs(**{**today, "seq_len": 8192})
    for one in plan(Request(job=longer, today=longer, objective="changes")).plans:
        kept = estimate(now).resolved.values
        assert one.job.strategy.optimizer == kept["optimizer"]
        assert one.job.strategy.precision == kept["precision"]


def test_fewest_gpus_cannot_be_fewer():
    fields = {"model": "llama-3.1-8b", "gpu": "a100", "seq_len": 4096, "global_batch": 16, "framework": "deepspeed",
              "loss": "fused", "offload": (), "compile": True, "attention": "flash"}  # fmt: skip
    best = ask(fields, objective="gpus").plans[0]
    assert best.option.gpus > 1
    fewer = _steps(64)[_steps(64).index(best.option.gpus) - 1]
    assert ask({**fields, "gpu": f"{fewer}xa100"}).impossible is not None


def test_the_longest_sequence_fits_and_a_longer_one_does_not():
    fields = {k: v for k, v in ONE.items() if k != "seq_len"}
    found = ask(fields, objective="seq")
    assert found.plans[0].job.task.seq_len == found.seq_len
    assert ask(fields, seq_len=found.seq_len * 3 // 2).impossible is not None


def test_the_most_sequences_at_once():
    fields = {k: v for k, v in ONE.items() if k != "global_batch"}
    best = ask(fields, objective="batch").plans[0]
    more = best.job.strategy.micro_batch * 2
    assert ask({**fields, "micro_batch": more, "grad_accum": 1}).impossible is not None


def test_cost_is_price_times_time():
    fields = {**ONE, "gpu": "rtx-4090"}
    best = ask(fields, objective="cost", prices={"": 0.5}, tokens=10**9).plans[0]
    hours = 10**9 / best.tokens_per_s / 3600
    assert best.usd_of(10**9) == pytest.approx(hours * 0.5)
    assert best.hours_of(10**9) == pytest.approx(hours)


def test_a_budget_is_kept_and_the_cheapest_is_cheapest():
    fields = {"model": "llama-3.2-1b", "gpu": "any", "gpus": 1, "seq_len": 2048, "global_batch": 8, "framework": "trl"}
    found = ask(fields, objective="cost", within=("lambda",))
    assert {p.option.gpu.name for p in found.plans} <= {"rtx-a6000", "v100-sxm-16gb"}
    with pytest.raises(MemfitError, match="costs as little as"):
        ask(fields, budget=0.01)
    with pytest.raises(MemfitError, match="no price is known for rtx-3090"):
        ask({**fields, "gpu": "rtx-3090"}, budget=5.0)


def test_a_machine_is_paid_for_whole():
    fields = {"model": "llama-3.2-1b", "gpu": "h100", "seq_len": 2048, "global_batch": 8, "framework": "trl"}
    one = ask(fields, objective="cost", within=("aws",)).plans[0]
    assert (one.option.gpus, one.option.paid_gpus) == (1, 8)
    flat = ask(fields, objective="cost", prices={"": one.option.price.usd_per_hour}).plans[0]
    assert one.usd_per_mtoken == pytest.approx(8 * flat.usd_per_mtoken)
    with pytest.raises(MemfitError, match=r"1 x h100-sxm-80gb costs 55\.04 \(AWS p5\.48xlarge, rented as 8\)"):
        ask(fields, budget=20.0, within=("aws",))


def test_what_to_do_without_a_price():
    fields = {"model": "llama-3.2-1b", "gpu": "any", "gpus": 1, "seq_len": 2048, "global_batch": 8, "framework": "trl"}
    with pytest.raises(MemfitError, match="no price is known for any of these cards at gcp") as caught:
        ask(fields, objective="cost", within=("gcp",))
    assert "--price h100=2.5" in caught.value.hint
    assert "--prices FILE" in caught.value.hint
    assert "aws, azure, crusoe, lambda, verda" in caught.value.hint
    with pytest.raises(MemfitError, match=r"4 x t4 is older than 18 months \(AWS, 2025-03\)") as caught:
        ask({**fields, "gpu": "4xt4", "gpus": 4}, objective="cost")
    assert "--within aws" in caught.value.hint
    found = ask(fields, objective="cost", within=("verda", "gcp"))
    assert any("no price of gcp is known" in note for note in found.notes)
    assert not any("no price of" in note for note in ask(fields, objective="cost", within=("verda",)).notes)


def test_a_price_list_stands_in_place_of_the_snapshot():
    fields = {"model": "llama-3.2-1b", "gpu": "any", "gpus": 1, "seq_len": 2048, "global_batch": 8, "framework": "trl"}
    mine = Price(gpu="rtx-3090", provider="Acme", usd_per_hour=0.2, spot_usd_per_hour=None, source="mine", date="")
    found = ask(fields, objective="cost", price_list=(mine,))
    assert {p.option.price for p in found.plans} == {mine}
    assert ask(fields, objective="cost", price_list=(mine,), within=("acme",)).plans
    with pytest.raises(UnknownNameError, match="verda"):
        ask(fields, objective="cost", price_list=(mine,), within=("verda",))
    paid = ask({**fields, "gpu": "rtx-3090"}, objective="cost", price_list=(mine,), prices={"rtx-3090": 0.5}).plans[0]
    assert paid.option.price.provider == "given"


# ---- what cannot be --------------------------------------------------------------------------------------------------


def test_an_impossible_request_names_ways_that_work():
    fields = {"model": "llama-3.2-3b", "gpu": "rtx-3060-12gb", "seq_len": 2048, "global_batch": 4, "framework": "trl",
              "offload": ()}  # fmt: skip
    found = ask(fields)
    assert found.plans == ()
    ways = {w.flags or w.what: w for w in found.impossible.ways}
    assert "--method qlora" in ways
    assert ways["--method qlora"].costs
    assert ask({**fields, "method": "qlora"}).plans
    card = next(w.flags for w in found.impossible.ways if w.flags.startswith("--gpu 1x"))
    assert ask({**fields, "gpu": card.removeprefix("--gpu ")}).plans


def test_a_host_that_is_too_small_is_named_with_one_that_is_not():
    fields = {"model": "llama-3.1-8b", "gpu": "rtx-3090", "seq_len": 2048, "global_batch": 8}
    found = ask(fields, host_bytes=64 << 30)
    assert "host memory" in found.impossible.reason
    way = next(w for w in found.impossible.ways if w.flags.startswith("--host-memory"))
    enough = int(way.flags.removeprefix("--host-memory ").removesuffix("GiB"))
    assert ask(fields, host_bytes=enough << 30).plans


def test_nothing_is_offloaded_where_card_and_host_share_their_memory():
    for gpu, zero in (("m3-max-128gb", {0}), ("dgx-spark", {0, 1, 2, 3})):
        fields = {"model": "llama-3.2-1b", "gpu": gpu, "seq_len": 2048, "global_batch": 8}
        plans = ask(fields).plans
        assert plans
        assert all(not one.job.strategy.offload for one in plans)
        assert {one.job.strategy.zero for one in plans} <= zero
        too_large = ask({**fields, "model": "llama-3.1-8b"}).impossible
        assert any(w.flags.startswith("--gpu 2x") for w in too_large.ways) is (gpu == "dgx-spark")
    assert "nothing can be offloaded" in too_large.reason


def test_a_margin_that_is_too_wide_is_the_reason():
    fields = {"model": "llama-3.1-8b", "gpu": "rtx-3090", "kind": "serve", "context": 8192, "concurrency": 6}
    found = ask(fields, risk=0.0001).impossible
    assert found.need_bytes < found.capacity_bytes
    assert "P(OOM)" in found.reason


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"risk": 0.5}, JobError, "probability"),
        ({"risk": 0.0}, JobError, "probability"),
        ({"top": 0}, JobError, "number of plans"),
        ({"budget": -1.0}, JobError, "dollars"),
        ({"allow": frozenset({"adamw-9bit"})}, UnknownNameError, "adamw-8bit"),
        ({"within": ("nowhere",)}, UnknownNameError, "provider"),
        ({"objective": "changes"}, MemfitError, "today's job"),
        ({"prices": {"h1000": 1.0}}, UnknownNameError, "h1000"),
    ],
)
def test_requests_that_make_no_sense(options, kind, text):
    with pytest.raises(kind, match=text):
        ask(**options)


def test_contradictions_are_named():
    with pytest.raises(JobErrors, match="does not make 2 GPUs"):
        ask(tp=2, dp=2)
    with pytest.raises(UnknownNameError, match="rtx-4090"):
        ask(gpu="rtx-4091")
    with pytest.raises(MemfitError, match="none is named"):
        plan(Request(job=from_kwargs(model="llama-3.2-1b")))
    with pytest.raises(MemfitError, match="has no best one"):
        ask({"model": "llama-3.2-1b", "gpu": "any"})


# ---- data ------------------------------------------------------------------------------------------------------------


def test_every_framework_has_a_row_with_a_source():
    from memfit.job.fields import TRAIN_FRAMEWORKS

    assert set(names()) == {"transformers", *TRAIN_FRAMEWORKS}
    for name in names():
        row = capability(name)
        assert len(row.source) > 20
        assert set(row.checkpointing) <= {"none", "selective", "attention", "full"}
        assert set(row.hsdp) <= set(row.zero)


@pytest.mark.parametrize(
    ("model", "gpu", "framework"),
    [
        ("llama-3.1-8b", "8xh100", "torchtitan"),
        ("qwen2.5-vl-7b", "8xh100", "trl"),
        ("bert-base-uncased", "rtx-4090", "transformers"),
        ("t5-base", "8xh100", "transformers"),
        ("mistral-7b", "128xh100", "megatron"),
        ("llama-3.2-1b", "rtx-4090", "trl"),
    ],
)
def test_the_framework_that_nobody_stated_can_train_the_model(model, gpu, framework):
    found = ask({"model": model, "gpu": gpu, "seq_len": 512})
    assert found.best.job.strategy.framework == framework
    target = {"megatron": "megatron-bridge"}.get(framework, framework)
    assert all(export(one.job, target).files for one in found.plans)


def test_torchtitan_is_planned_for_the_models_that_it_has():
    assert set(capability("torchtitan").models) == set(FLAVORS)


def test_a_model_with_few_positions_is_planned_for_those():
    found = ask({"model": "bert-base-uncased", "gpu": "rtx-4090"})
    assert found.best.job.task.seq_len == 512
    assert any("no more positions" in note for note in found.notes)
    longer = ask({"model": "bert-base-uncased", "gpu": "rtx-4090", "seq_len": 1024})
    assert any("made for 512 positions" in note for note in longer.notes)


def test_kernels_that_the_card_lacks_are_not_planned():
    found = ask({"model": "llama-3.2-1b", "gpu": "t4", "method": "lora", "seq_len": 1024})
    assert {one.job.strategy.attention for one in found.plans} == {"sdpa"}
    older = ask({"model": "gpt2", "gpu": "gtx-1080-ti", "seq_len": 512})
    assert {(one.job.strategy.attention, one.job.strategy.compile) for one in older.plans} == {("sdpa", False)}


def test_the_way_to_a_plan_has_no_step_that_its_framework_lacks():
    found = ask({"model": "llama-3.1-8b", "gpu": "8xrtx-4090", "method": "lora", "global_batch": 64})
    assert "activations" in found.best.job.strategy.offload
    levers = [step.lever for step in found.waterfall]
    assert levers.index("checkpointing") < levers.index("offload")


@pytest.mark.parametrize(
    ("model", "gpu", "weights"),
    [("gpt-oss-120b", "h100", "mxfp4"), ("deepseek-v3", "8xh200", "fp8"), ("llama-3.2-1b", "v100", "fp16"),
     ("llama-3.2-1b", "a100", "bf16")],
)  # fmt: skip
def test_weights_are_served_as_the_checkpoint_and_the_card_have_them(model, gpu, weights):
    found = ask({"model": model, "gpu": gpu, "kind": "serve"})
    assert {one.job.strategy.weights for one in found.plans} == {weights}
    assert found.best.qualities == ()


def test_throughput_of_serving_fills_the_card():
    fields = {"model": "llama-3.1-8b", "gpu": "h100", "kind": "serve", "context": 4096}
    full = ask(fields, objective="throughput").best
    assert full.tokens_per_s_per_gpu > 5 * ask(fields).best.tokens_per_s_per_gpu
    assert ask(fields, objective="throughput", concurrency=2).best.job.task.concurrency == 2


def test_every_change_of_results_has_a_cost_and_a_source():
    assert all(len(q.costs) > 20 and q.source for q in qualities())
    assert len({(q.lever, q.value) for q in qualities()}) == len(qualities())


def test_exclusions():
    assert excluded("deepspeed", "full", {"pp": 2, "zero": 2, "offload": ()})
    assert not excluded("deepspeed", "full", {"pp": 2, "zero": 1, "offload": ()})
    assert excluded("trl", "full", {"zero": 2, "offload": ("optimizer", "parameters")})
    assert not excluded("torchtitan", "full", {"pp": 2, "zero": 3})


@pytest.mark.parametrize("name", sorted(SMALL))
def test_levers_of_a_difference_sum_to_it(name):
    left, right = (
        estimate(**SMALL[name]),
        estimate(**{**SMALL[name], "optimizer": "sgd", "checkpointing": "none", "seq_len": 8192}),
    )
    found = diff(left, right)
    assert sum(c.delta_bytes for c in found.changes) == right.device_bytes - left.device_bytes
    assert sum(c.delta_s for c in found.changes) == pytest.approx(found.b.seconds - found.a.seconds, abs=1e-9)


# ---- the split of layers over pipeline ranks -------------------------------------------------------------------------

PIPELINE = {"model": "llama-3.1-8b", "gpu": "8xh100", "framework": "megatron", "seq_len": 4096, "global_batch": 64,
            "pp": 4, "pp_schedule": "1f1b", "tp": 1, "cp": 1}  # fmt: skip


def test_fewer_layers_beside_embedding_and_head_are_faster():
    """The head counts as more than two layers of this model: ranks of 7, 9, 9 and 7 keep pace, four of 8 do not."""
    best = ask(PIPELINE).plans[0]
    assert best.job.strategy.pp_layers == (7, 9, 9, 7)
    even = ask(PIPELINE, pp_layers=(8, 8, 8, 8)).plans[0]
    assert even.job.strategy.pp_layers == (8, 8, 8, 8)
    assert best.step_s < 0.97 * even.step_s
    assert ask({**PIPELINE, "pp_schedule": "interleaved", "virtual_pp": 2}).plans[0].step_s < even.step_s


def test_layers_that_are_stated_stay():
    for layers in ((5, 9, 9, 9), (16, 16)):
        fields = {**PIPELINE, "pp": None, "pp_schedule": None}
        for one in ask(fields, pp_layers=layers).plans:
            assert (one.job.strategy.pp, one.job.strategy.pp_layers) == (len(layers), layers)
    with pytest.raises(JobErrors, match="4 numbers for pp 2"):
        ask({**PIPELINE, "pp": 2}, pp_layers=(5, 9, 9, 9))
    with pytest.raises(JobError, match="31 layers together"):
        ask(PIPELINE, pp_layers=(4, 9, 9, 9))


@pytest.mark.parametrize("framework", ["megatron", "torchtitan"])
@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
def test_a_planned_split_can_be_exported(framework, schedule):
    zero = 1 if framework == "megatron" else 3
    fields = {**PIPELINE, "framework": framework, "pp_schedule": schedule, "zero": zero, "checkpointing": "full"}
    for one in ask(fields).plans:
        assert export(one.job, framework).files
        assert rank_layers(one.estimate.resolved) == (one.job.strategy.pp_layers or rank_layers(resolve(one.job)))


def test_a_plan_says_its_split_in_words():
    answer = ask({**PIPELINE, "model": "llama-3.1-405b", "gpu": "1024xh100", "pp": 16, "tp": 8, "seq_len": 8192})
    text = plan_text(Page(width=100), answer)
    assert answer.plans[0].job.strategy.pp_layers == (7, *[8] * 14, 7)
    assert "layers 7 | 8 x 14 | 7" in " ".join(text.split())
    own = ask({**PIPELINE, "model": "llama-3.1-405b", "gpu": "1024xh100", "pp": 16, "framework": "torchtitan", "tp": 8})
    assert own.plans[0].job.strategy.pp_layers is None
    assert "layers 7 | 8 x 14 | 7" in " ".join(plan_text(Page(width=100), own).split())


@pytest.mark.parametrize("layers", [None, (5, 10, 10, 7)])
def test_todays_split_is_no_change(layers):
    fields = {**PIPELINE, "framework": "torchtitan", "gpu": "4xh100", "micro_batch": 16, "zero": 0}
    today = from_kwargs(**fields, pp_layers=layers, checkpointing="none")
    answer = plan(Request(job=today, today=today, objective="changes"))
    assert "pipeline" not in {step.lever for step in answer.waterfall}
    assert answer.plans[0].job.strategy.pp_layers == layers


def test_splits_can_be_explained():
    answer = ask(PIPELINE, pp=None, pp_schedule=None, lever="pp_layers")
    found = {choice.value: choice.plan for choice in answer.choices}
    assert (7, 9, 9, 7) in found
    assert None in found
    for layers, one in found.items():
        assert one is None or one.job.strategy.pp_layers == layers
        assert one is None or one.step_s >= answer.plans[0].step_s * (1 - 1e-9)


def test_another_split_is_a_difference_of_its_own():
    left, right = (estimate(**PIPELINE, pp_layers=layers) for layers in (None, (7, 9, 9, 7)))
    (change,) = diff(left, right).changes
    assert change.fields == {"pp_layers": (None, (7, 9, 9, 7))}
    assert change.delta_s < 0
    other = estimate(**{**PIPELINE, "model": "llama-3.2-1b"}, pp_layers=(3, 5, 5, 3))
    found = diff(right, other)
    assert [c.lever for c in found.changes] == ["model", "layout"]
    assert sum(c.delta_bytes for c in found.changes) == other.device_bytes - right.device_bytes
