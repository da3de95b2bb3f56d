"""Tiny cases for trying the pipeline on a machine without a card."""

from __future__ import annotations

from typing import Any

from _matrix import GIB, KERNELS, Card, Case, serving_job, training_job

SMOKE_CARD = Card(name=None, total_bytes=16 * GIB)
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 128,
}
"""A model of no use: two layers, 64 wide."""
ROWS: dict[str, dict[str, Any]] = {
    "train/plain": {"kind": "train"},
    "train/checkpointed autocast": {"kind": "train", "precision": "bf16-mixed", "checkpointing": "full"},
    "train/logits not held": {"kind": "train", "framework": "transformers", "accum": 2},
    "train/math kernel": {"kind": "train", "backend": "math", "optimizer": "momentum"},
    "train/eager": {"kind": "train", "attention": "eager", "optimizer": "sgd"},
    "train/adapters": {"kind": "train", "lora": 4, "framework": "transformers", "needs": ["peft"]},
    "trainer/plain": {"kind": "trainer", "framework": "transformers", "precision": "bf16", "needs": ["accelerate"]},
}


def smoke_cases() -> list[Case]:
    """One case of each kind, and one of each setting that changes the loop."""
    cases = []
    for name, row in ROWS.items():
        job = training_job({"model": "llama-3.2-1b", "seq": 16, "batch": 2, **row}, SMOKE_CARD)
        settings = {key: row[key] for key in ("backend",) if key in row}
        cases.append(
            Case(name=name, kind=row["kind"], job=_tiny(job), settings=settings, needs=tuple(row.get("needs", ())))
        )
    snapshot = training_job({"kind": "train", "model": "llama-3.2-1b", "seq": 8}, SMOKE_CARD)
    cases.append(Case(name="train/snapshot", kind="train", job=_tiny(snapshot), settings={"snapshot": True}))
    served = serving_job({"model": "llama-3.2-1b", "prompt": 8, "output": 4}, SMOKE_CARD)
    cases.append(Case(name="generate/plain", kind="generate", job=_tiny(served)))
    return [*cases, *(Case(name=kind, kind=kind) for kind in ("context", *KERNELS))]


def _tiny(job: dict[str, Any]) -> dict[str, Any]:
    return {**job, "model": {"name": "tiny", "config": TINY}}
