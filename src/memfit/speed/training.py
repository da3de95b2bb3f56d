"""One training step put together: parts that sum to its seconds, for one job or for arrays of jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memfit.formula.dims import Dims
from memfit.formula.setup import Setup
from memfit.formula.stage import StageModel
from memfit.speed.block import Machine
from memfit.speed.exchange import Exchange
from memfit.speed.numbers import Real, choose, doublings, most, real, root
from memfit.speed.step import PARTS, Pipeline, StageUnit
from memfit.speed.update import offload, optimizer

SYNC_LAUNCHES = 3
"""Operations that the host is behind after it has waited for the device: what it had queued ahead is gone."""

LN4 = 1.3862943611198906
"""The slowest of n nodes is sqrt(2 ln n) deviations late (expected maximum of n normal variables)."""


def step_parts(m: Machine, s: Setup, d: Dims, p: Pipeline, found: list[StageUnit]) -> dict[str, Real]:
    """Part of the step -> seconds; names as in ``step.PARTS``, all present, in their order.

    Args:
        m: the machine.
        s: the compiled job.
        d: all numeric axes.
        p: one micro-batch through the pipeline, for the same jobs.
        found: the distinct stages.
    """
    micro = real(d.grad_accum)
    parts: dict[str, Real] = {name: value * micro for name, value in p.parts.items()}
    parts["pp"] = _transfers(m, s, d) * micro
    parts["bubble"] = _bubble(s, p)
    if s.choices.pp > 1:
        parts["bubble"] = parts["bubble"] + _transfers(m, s, d) * float(s.choices.pp - 1)
    models = [StageModel(s, d, unit.stage) for unit in found]
    parts["dp"] = _largest(models, lambda model: Exchange(m, s, d, model).seconds(p))
    parts["optimizer"] = _largest(models, lambda model: optimizer(m, s, d, model))
    parts["offload"] = _largest(models, lambda model: offload(m, s, d, model, p))
    total: Real = 0.0
    for value in parts.values():
        total = total + value
    parts["stragglers"] = total * stragglers(m, d.dp * d.tp * d.cp * s.choices.pp)
    return {name: parts[name] for name in PARTS}


def stragglers(m: Machine, world: Real) -> Real:
    """Share of a step on ``world`` GPUs that all wait for the slowest node."""
    nodes = -(-world // m.fabric.cluster.gpus_per_node)
    return m.calibration.jitter * root(doublings(nodes) * LN4)


def _largest(models: list[StageModel], of: Callable[[StageModel], Any]) -> Real:
    top: Real = of(models[0])
    for model in models[1:]:
        top = most(top, of(model))
    return top


def _bubble(s: Setup, p: Pipeline) -> Real:
    """Seconds in which the slowest stage has nothing to do while the pipeline fills and empties.

    1F1B and GPipe: one micro-batch through all other stages; interleaved: divided by the virtual stages (Narayanan
    2021); ZB-H1: the weight gradients, half of the backward pass, fill it (Qi 2023, table 2); DualPipe: half as deep,
    of (forward + half a backward) (DeepSeek-V3 report, table 2).
    """
    c = s.choices
    if c.pp == 1:
        return 0.0
    fill = p.total - p.slowest
    whole = p.forward_s + p.backward_s
    if c.schedule == "interleaved":
        return fill / max(c.virtual_pp, 1)
    if c.schedule == "zero-bubble":
        return fill * p.forward_s / whole
    if c.schedule == "dualpipe":
        return fill * 0.5 * (p.forward_s + p.backward_s * 0.5) / whole
    return fill


def _transfers(m: Machine, s: Setup, d: Dims) -> Real:
    """Seconds that one micro-batch's transfers to and from a stage add."""
    c, f = s.choices, m.framework
    if c.pp == 1:
        return 0.0
    stride = d.dp * d.tp * d.cp
    size = real(d.stream_tokens) * (s.arch.hidden_size * s.width)
    if f.p2p_scatter and c.tensor_parallel and not s.style.sequence_parallel:
        gathered = choose(d.tp > 1, m.fabric.gather(m.fabric.group(d.tp, 1), size), 0.0)
        one = m.fabric.send(stride, size / d.tp) + gathered
    else:
        one = m.fabric.send(stride, size)
    if f.p2p_messages > 1:
        one = one + m.fabric.send(stride, 0.0) * float(f.p2p_messages - 1)
    if f.p2p_sync:
        one = one + SYNC_LAUNCHES * m.calibration.host_s * f.host
    chunks = max(c.virtual_pp, 1) if c.schedule == "interleaved" else 1
    both = one * (2.0 * chunks)
    hidden = f.p2p_overlap or c.schedule in ("zero-bubble", "dualpipe") or chunks > 1
    return both * m.calibration.interference if hidden else both
