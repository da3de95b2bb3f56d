"""What the programs share: settings, the job that states the same, small pieces of a step."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from memfit.models import catalog

LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One job of a framework: a catalog model with fewer layers, and how it is trained.

    Attributes:
        model: name in the catalog.
        layers: layers kept; the slope per layer does not depend on it.
        seq, batch: tokens of a sequence, sequences of a micro-batch.
        method: ``full``, ``lora`` or ``qlora``.
        lora: the job's table of adapters.
        strategy: fields of the job's strategy; what is not stated is the framework's default.
        vocab: replaces the vocabulary size, so that blocks decide the peak; None keeps it.
        gpus: data-parallel ranks.
    """

    model: str = "llama-3.1-8b"
    layers: int = 3
    seq: int = 2048
    batch: int = 1
    method: str = "full"
    lora: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    vocab: int | None = None
    gpus: int = 1

    def config(self) -> dict[str, Any]:
        """The shortened configuration."""
        entry = catalog.lookup(self.model)
        assert entry is not None, self.model
        raw: dict[str, Any] = json.loads(json.dumps(entry.config))
        for key in LAYER_KEYS:
            if key in raw:
                raw[key] = self.layers
        if self.vocab:
            raw["vocab_size"] = self.vocab
        return raw

    def job(self, framework: str) -> dict[str, Any]:
        """The job as plain data; the attention kernel is PyTorch's choice, as in the trace."""
        task: dict[str, Any] = {"kind": "train", "method": self.method, "seq_len": self.seq}
        if self.lora:
            task["lora"] = self.lora
        strategy = {"framework": framework, "micro_batch": self.batch, "dp": self.gpus, **self.strategy}
        return {"model": {"config": self.config()}, "task": task, "strategy": strategy}

    def says(self, name: str, default: Any) -> Any:
        """A field of the strategy, or what the framework does without it."""
        return self.strategy.get(name, default)


class Traced(NamedTuple):
    """What the tracer runs; ``layers`` is the path of the blocks in the framework's model."""

    build: Callable[..., Any]
    step: Callable[[Any], None]
    layers: str
    before: Callable[[], Any] | None = None


class Missing(Exception):  # noqa: N818 - an answer, not an error
    """The framework cannot be imported here; the message says what is missing."""


def stand_in(module: str, *names: str, unless: str = "") -> None:
    """An empty module where an older library looks for one that cannot be had here.

    Args:
        module: what is looked for.
        names: what is imported from it.
        unless: nothing is done when this module exists; without it, when ``module`` does.
    """
    if importlib.util.find_spec(unless or module) is None:
        made = types.ModuleType(module)
        for name in names:
            setattr(made, name, None)
        sys.modules[module] = made
