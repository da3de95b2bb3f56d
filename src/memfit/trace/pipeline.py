"""One stage of a pipeline: its layers, and as many micro-batches in flight as the schedule keeps.

Works on decoder models of transformers whose base model has ``embed_tokens``, ``layers`` and ``norm``. What arrives
from other stages (hidden states, their gradients) is a fresh tensor per micro-batch. Imported once torch is wanted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from memfit.errors import ConfigError


def cut(model: Any, stages: int, stage: int) -> None:
    """Take away what the stage does not hold: embedding, final norm, output head.

    Raises:
        ConfigError: the model is not built of ``embed_tokens``, ``layers`` and ``norm``.
    """
    base = model.base_model
    if not all(hasattr(base, name) for name in ("embed_tokens", "layers", "norm")):
        raise ConfigError(f"pipeline stages of {type(model).__name__} are not traced")
    if stage > 0:
        base.embed_tokens = None
    if stage < stages - 1:
        base.norm = torch.nn.Identity()
        model.lm_head = None

        def forward(input_ids: Any = None, inputs_embeds: Any = None, **_: Any) -> Any:
            return base(input_ids=input_ids, inputs_embeds=inputs_embeds)[0]

        # the stage is called as the module it is, so that what wraps its call (FSDP2's hooks, adapters) takes part
        model.forward = forward


def in_flight(schedule: str, stages: int, stage: int, micro_batches: int) -> int:
    """Micro-batches whose activations the stage holds at most."""
    return micro_batches if schedule == "gpipe" else min(micro_batches, stages - stage)


def schedule(forward: Callable[[], Any], backward: Callable[[Any], None], depth: int, micro_batches: int) -> None:
    """Run forwards until ``depth`` micro-batches are in flight, then one backward for each forward, then the rest."""
    waiting: deque[Any] = deque()
    for _ in range(micro_batches):
        waiting.append(forward())
        if len(waiting) >= depth:
            backward(waiting.popleft())
    while waiting:
        backward(waiting.popleft())


def passes(
    model: Any, *, stages: int, stage: int, batch: int, seq: int, dtype: Any, device: str, context: Callable[[], Any]
) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """(forward, backward) of one micro-batch on this stage.

    Args:
        model: as ``cut`` left it.
        stages, stage: how many there are, and which this is.
        batch, seq: sequences and tokens of a micro-batch.
        dtype: of the hidden states between stages.
        device: where tensors live.
        context: makes the autocast context.
    """
    text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    last = stage == stages - 1

    def hidden(*, grad: bool) -> Any:
        return torch.empty(batch, seq, text.hidden_size, dtype=dtype, device=device, requires_grad=grad)

    def tokens() -> Any:
        return torch.zeros(batch, seq, dtype=torch.long, device=device)

    def forward() -> Any:
        given = {"input_ids": tokens()} if stage == 0 else {"inputs_embeds": hidden(grad=True)}
        with context():
            if last:
                return given, model(**given, labels=tokens()).loss
            return given, model(**given)

    def backward(made: Any) -> None:
        _, out = made
        if last:
            out.backward()
        else:
            out.backward(torch.empty_like(out))

    return forward, backward
