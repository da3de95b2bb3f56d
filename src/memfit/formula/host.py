"""What offloading keeps in pinned host memory."""

from __future__ import annotations

from memfit.formula.dims import Int, evaluate
from memfit.formula.stage import StageModel
from memfit.formula.states import optimizer_bytes


def host_bytes(m: StageModel) -> Int:
    """Pinned host memory that offloading takes on this rank."""
    offload, paged = m.c.offload, m.s.optimizer.paged
    if not offload and not paged:
        return 0
    weights, dense, expert = m.weights_bytes()
    total: Int = 0
    if paged and "optimizer" not in offload:
        total = total + optimizer_bytes(m)[1]
    if "optimizer" in offload:
        master, states = optimizer_bytes(m)
        total = total + master + states + m.shard(dense, expert, m.c.zero >= 1) * 4
    if "gradients" in offload:
        total = total + m.shard(dense, expert, m.c.zero >= 2) * (m.s.scheme.grad or m.s.width)
    if "parameters" in offload and m.sharded:
        total = total + weights
    if "activations" in offload:
        total = total + offloaded_activations(m)
    return total


def offloaded_activations(m: StageModel) -> Int:
    """Bytes that one micro-batch sends to the host when activations are offloaded."""
    total: Int = 0
    for layer, index in zip(m.indices, m.layout, strict=True):
        kind = m.s.decoder.kinds[index]
        form = kind.program.checkpoint if m.is_checkpointed(layer) else kind.program.kept
        total = total + evaluate(form, m.decoder_atoms(kind))
    return total
