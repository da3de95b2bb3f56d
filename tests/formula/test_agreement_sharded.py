"""The formula against traces of one rank of many: FSDP2, accumulation, pipelines, tensor parallelism, ZeRO-1."""

from __future__ import annotations

from typing import Any

import pytest

from memfit import estimate
from memfit.job import from_kwargs

pytestmark = pytest.mark.slow
pytest.importorskip("torch")
pytest.importorskip("transformers")

CONFIG = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8,
    "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
LOOP: dict[str, Any] = {"framework": "torch"}
TRAINER: dict[str, Any] = {"framework": "transformers", "framework_version": "5.24 fsdp"}
CASES: dict[str, dict[str, Any]] = {
    "fsdp": {**LOOP, "zero": 3, "precision": "bf16"},
    "fsdp-full": {**LOOP, "zero": 3, "precision": "bf16-mixed", "checkpointing": "full", "micro_batch": 2},
    "fsdp-kept": {**LOOP, "zero": 3, "precision": "bf16-mixed", "reshard": False},
    "fsdp-accum": {**LOOP, "zero": 3, "precision": "bf16-mixed", "grad_accum": 4},
    "trainer-accum": {**TRAINER, "zero": 3, "precision": "bf16-mixed", "grad_accum": 4},
    "trainer-lora": {**TRAINER, "zero": 3, "precision": "bf16-mixed", "grad_accum": 4, "method": "lora"},
    "hsdp": {**LOOP, "zero": 3, "precision": "bf16-mixed", "dp_shard": 4},
    "tp": {**LOOP, "tp": 8, "precision": "bf16"},
    "fsdp-tp": {**LOOP, "zero": 3, "tp": 2, "precision": "bf16-mixed"},
    "ddp-accum": {**LOOP, "zero": 0, "precision": "bf16-mixed", "grad_accum": 4},
    "zero1": {**LOOP, "zero": 1, "precision": "bf16"},
    "pp": {**LOOP, "zero": 0, "precision": "bf16", "pp": 2, "grad_accum": 8},
    "pp-fsdp": {**LOOP, "zero": 3, "precision": "bf16-mixed", "pp": 2, "grad_accum": 8},
    "pp-fsdp-kept": {**LOOP, "zero": 3, "precision": "bf16-mixed", "pp": 2, "grad_accum": 8, "reshard": False},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_peaks_of_every_stage_agree(name: str) -> None:
    from memfit.trace import trace_job

    fields: dict[str, Any] = {"gpu": "8xh100", "seq_len": 1024, "attention": "sdpa", "loss": "eager", **CASES[name]}
    job = from_kwargs(config=CONFIG, **fields)
    predicted = estimate(job)
    for stage in range(fields.get("pp", 1)):
        traced = trace_job(job, stage=stage).peak_allocated
        assert predicted.stages[stage].allocated_bytes == pytest.approx(traced, rel=0.01)
