"""The memory of a real module, allocation by allocation, without a GPU.

``trace(step, model, optimizer)`` runs your own step on copies without data; ``trace_job(job)`` builds the model of a
job and runs it as the job states; ``run`` is what both stand on. Two engines: ``meta`` works with any torch wheel,
``fake-cuda`` also knows autocast, streams, FSDP2 and tensor parallelism. Nothing here imports torch before a
function is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.trace.hidden import Gpu, HiddenRules
from memfit.trace.job import trace_job
from memfit.trace.result import Block, Group, RawEvent, Trace, group, rounded

if TYPE_CHECKING:
    from memfit.trace.api import trace
    from memfit.trace.engine import available, run, run_fake, run_meta

__all__ = [
    "Block",
    "Gpu",
    "Group",
    "HiddenRules",
    "RawEvent",
    "Trace",
    "available",
    "group",
    "rounded",
    "run",
    "run_fake",
    "run_meta",
    "trace",
    "trace_job",
]

_LAZY = {
    "trace": "memfit.trace.api",
    **dict.fromkeys(("available", "run", "run_fake", "run_meta"), "memfit.trace.engine"),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(name)
