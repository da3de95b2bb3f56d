"""Hypothesis strategies that several test folders share: jobs, ledgers, timelines, bands."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from memfit.formula import profile as profiles
from memfit.job.fields import BY_NAME
from memfit.ledger import COMPONENTS, PROVENANCES, Band, Entry, Event, Timeline

DENSE, MOE, MLA, HYBRID = "llama-3.2-1b", "olmoe-1b-7b", "deepseek-v2-lite", "qwen3-next-80b-a3b"
ENCODER, BOTH, VISION = "bert-base-uncased", "t5-base", "qwen2.5-vl-3b"
MODELS = (
    DENSE, MOE, MLA, HYBRID, ENCODER, BOTH, VISION,
    "gpt2", "gemma-3-1b", "mamba2-130m", "jamba-v0.1", "gpt-oss-20b", "falcon-7b", "phi-2", "lfm2-350m",
)  # fmt: skip
"""One model of each structure the memory model tells apart, by catalog name."""

_SOME_LINEAR = {ENCODER: ("query", "value"), BOTH: ("q", "v"), "mamba2-130m": ("in_proj", "out_proj")}
"""Some linear layers of models that have no ``q_proj``."""

FRAMEWORKS = profiles.names()
COUNTS = (1, 2, 3, 4, 8)


def words(name: str) -> st.SearchStrategy[Any]:
    """The allowed words of a job field."""
    return st.sampled_from(BY_NAME[name].choices)


@st.composite
def jobs(draw: st.DrawFn, **fixed: Any) -> dict[str, Any]:
    """Keyword arguments of a training job that is valid; ``fixed`` replaces fields by a strategy or a value."""
    fields: dict[str, Any] = {
        "model": st.sampled_from(MODELS),
        "framework": st.sampled_from(FRAMEWORKS),
        "precision": words("precision"),
        "optimizer": words("optimizer"),
        "method": st.sampled_from(("full", "lora", "qlora", "dora", "freeze", "dpo")),
        "micro_batch": st.sampled_from(COUNTS),
        "grad_accum": st.sampled_from((1, 2, 8)),
        "seq_len": st.sampled_from((128, 1024, 2048, 8192)),
        "dp": st.sampled_from((1, 2, 8)),
        "zero": st.integers(0, 3),
        "reshard": st.booleans(),
        "tp": st.sampled_from((1, 2, 4)),
        "sequence_parallel": st.booleans(),
        "cp": st.sampled_from((1, 2, 4)),
        "pp": st.sampled_from((1, 1, 1, 2, 4)),
        "checkpointing": st.sampled_from(("none", "selective", "attention", "full", 2)),
        "compile": st.booleans(),
        "attention": words("attention"),
        "loss": words("loss"),
        "set_to_none": st.booleans(),
        **fixed,
    }
    job = {name: draw(value) if isinstance(value, st.SearchStrategy) else value for name, value in fields.items()}
    if job["pp"] > 1 and "pp_schedule" not in job:
        job["pp_schedule"] = draw(words("pp_schedule"))
    if job["method"] in ("lora", "qlora", "dora") and "lora" not in job:
        some = _SOME_LINEAR.get(job["model"], ("q_proj", "v_proj"))
        targets = draw(st.sampled_from(("all-linear", some)))
        job["lora"] = {"rank": draw(st.sampled_from((1, 8, 64))), "targets": targets}
    return job


sizes = st.integers(0, 1 << 45)
"""Byte counts up to 32 TiB."""

entries = st.builds(
    Entry,
    component=st.sampled_from(tuple(COMPONENTS)),
    name=st.sampled_from(("weights", "gradients", "logits")),
    bytes=sizes,
    provenance=st.sampled_from(tuple(PROVENANCES)),
)


@st.composite
def bands(draw: st.DrawFn) -> Band:
    """A band with positive width on both sides."""
    mid = draw(st.integers(1 << 20, 1 << 40))
    below, above = draw(st.floats(0.01, 0.5)), draw(st.floats(0.01, 0.5))
    return Band.around(mid, below, above)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """A balanced timeline: blocks are freed at most once, after they were allocated."""
    live: list[Event] = []
    events: list[Event] = []
    for block in range(draw(st.integers(0, 30))):
        component = draw(st.sampled_from(tuple(COMPONENTS)))
        event = Event(block, draw(st.integers(1, 1 << 30)), component, draw(st.sampled_from(("forward", "backward"))))
        events.append(event)
        live.append(event)
        while live and draw(st.booleans()):
            gone = live.pop(draw(st.integers(0, len(live) - 1)))
            events.append(gone._replace(bytes=-gone.bytes, phase=event.phase))
    return Timeline(tuple(events))
