"""Every framework, precision, optimizer and method answers for every structure of model."""

from __future__ import annotations

from itertools import cycle, islice, product

import pytest

from memfit import estimate
from memfit.errors import UnknownNameError
from memfit.formula import profile as profiles
from memfit.job.fields import BY_NAME, WEIGHTS
from strategies import BOTH, DENSE, ENCODER, FRAMEWORKS, HYBRID, MLA, MODELS, MOE, VISION

PRECISIONS = BY_NAME["precision"].choices
OPTIMIZERS = BY_NAME["optimizer"].choices
METHODS = BY_NAME["method"].choices
STRUCTURES = (DENSE, MOE, MLA, HYBRID, ENCODER, BOTH, VISION)


def check(found):
    for reading in found.readings:
        assert reading.parts["weights"] > 0
        assert all(value >= 0 for value in reading.parts.values())
        assert reading.reserved >= reading.allocated > 0
    assert found.device_bytes >= found.reserved_bytes


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("model", STRUCTURES)
def test_every_framework_answers_for_every_structure(framework, model):
    # four rows of the wheel, from another place for each model: all frameworks meet every word of every field
    start = STRUCTURES.index(model) * 4
    wheel = zip(*map(cycle, (PRECISIONS, OPTIMIZERS, METHODS, range(4), (1, 2, 4), ("full", "none", 2))), strict=False)
    for precision, optimizer, method, zero, tp, checkpointing in islice(wheel, start, start + 4):
        check(
            estimate(
                model=model,
                framework=framework,
                precision=precision,
                optimizer=optimizer,
                method=method,
                zero=zero,
                dp=4,
                tp=tp,
                checkpointing=checkpointing,
                seq_len=512,
            )
        )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_every_precision_and_method_answers(precision, method):
    for framework in FRAMEWORKS:
        check(estimate(model="gpt2", framework=framework, precision=precision, method=method, zero=3, dp=2))


@pytest.mark.parametrize("model", MODELS)
def test_experts_context_and_pipeline_degrees_answer(model):
    for attention, ep in product(("flash", "sdpa", "eager"), (1, 4)):
        job = {"framework": "megatron", "dp": 2, "tp": 2, "cp": 2, "pp": 3, "ep": ep, "grad_accum": 6}
        check(estimate(model=model, attention=attention, sequence_parallel=True, seq_len=1024, **job))


@pytest.mark.parametrize("weights", [*WEIGHTS, {"bpw": 3.3}])
def test_every_storage_dtype_serves_and_is_as_wide_as_it_says(weights):
    found = estimate(model="llama-3.1-8b", kind="serve", context=1024, weights=weights).serving.weights
    dtype = profiles.dtype(weights)
    linear, outer = 6_979_321_856, 8_030_261_248 - 6_979_321_856
    wide = dtype.num / dtype.den / 8
    assert linear * wide * 0.999 <= found <= (linear * wide + outer * max(2, wide)) * 1.001


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_every_row_names_its_source_and_what_it_refers_to(name):
    row = profiles.profile(name)
    assert row.source
    for scheme in {**row.schemes, **row.sharded}.values():
        assert profiles.scheme(scheme).source
    for loss in (*row.loss.values(), *row.loss_tp.values(), *row.loss_adapters.values(), *row.loss_compiled.values()):
        assert profiles.loss(loss).source
    assert set(row.loss) == set(BY_NAME["loss"].choices)
    assert set(row.schemes) <= set(PRECISIONS)
    own = [k for k in row.defaults if not k.startswith("lora.")]
    assert {k.replace("lora.", "lora_") for k in row.defaults if k not in own} <= set(BY_NAME)
    assert {k.partition(".")[0] for k in own} <= set(BY_NAME)
    assert {k.partition(".")[2] for k in own} <= {"", "alone", "lora", "qlora", "dora", "freeze", "reference"}
    assert profiles.sharding(row.sharding).source
    assert profiles.sharding(row.sharding_adapters or row.sharding).source


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_a_row(name):
    row = profiles.optimizer(name)
    assert row.source
    assert row.slots >= 0


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(UnknownNameError, match="megatron"):
        profiles.profile("megatrom")
    with pytest.raises(UnknownNameError, match="nf4"):
        profiles.dtype("nf5")
