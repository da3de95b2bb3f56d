"""The optimizer step, and what offloading moves and computes on the host."""

from __future__ import annotations

from memfit.formula.dims import Dims
from memfit.formula.host import offloaded_activations
from memfit.formula.setup import Setup
from memfit.formula.stage import StageModel
from memfit.formula.states import optimizer_bytes
from memfit.speed.block import Machine
from memfit.speed.data import read
from memfit.speed.exchange import num_tensors
from memfit.speed.kernels import stream
from memfit.speed.numbers import Real, least, most, real
from memfit.speed.step import Pipeline


def optimizer(m: Machine, s: Setup, d: Dims, model: StageModel) -> Real:
    """Seconds of gradient clipping and the optimizer's kernels on the device."""
    _, dense, expert = model.weights_bytes()
    c = s.choices
    n = real(model.shard(dense, expert, c.zero >= 1))
    width = float(model.grad_width)
    master, states = optimizer_bytes(model)
    weight = float(s.scheme.weight or s.width)
    traffic = real(states) * 2.0 + real(master) * 2.0 + n * (width + (weight if s.scheme.master else 2.0 * weight))
    row = read("host")["optimizer"][c.optimizer_impl or s.profile.optimizer_impl]
    tensors = num_tensors(s, model)
    clip = n * width * 3.0
    if s.scheme.always:
        clip = clip + real(dense + expert) * width  # gradient buffers are set to zero
    device = stream(m.rates, traffic * row["passes"] + clip, tensors * row["kernels"])
    host = tensors * row["operations"] * m.calibration.host_s * m.framework.host
    world = m.fabric.group(d.dp * d.tp * d.cp * c.pp, 1)
    norm = m.fabric.all_reduce(world, 8.0) * 2.0
    if "optimizer" in c.offload:
        return stream(m.rates, n * width, tensors) + norm
    return most(device, host) + norm


def offload(m: Machine, s: Setup, d: Dims, model: StageModel, p: Pipeline) -> Real:
    """Seconds of copies over the host interface that nothing hides, and of the optimizer on the host."""
    c = s.choices
    paged = s.optimizer.paged
    if not c.offload and not paged:
        return 0.0
    table = read("host")
    gpu = m.fabric.cluster.gpu
    lane = gpu.host_bytes_per_s * table["copy"]["share"]
    _, dense, expert = model.weights_bytes()
    n = real(model.shard(dense, expert, c.zero >= 1))
    total: Real = 0.0
    beside = p.backward_s
    if "optimizer" in c.offload:
        width = float(model.grad_width)
        down = n * width / lane
        up = n * float(s.scheme.weight or s.width) / lane
        memory = table["memory"].get(gpu.kind, table["memory"]["other"]) / _ranks_per_node(m, d, c.pp)
        work = n * table["optimizer_bytes"]["value"] / memory
        total = total + most(down - beside, 0.0) + least(down, beside) * m.calibration.interference + work + up
    elif "gradients" in c.offload:
        total = total + n * float(model.grad_width) / lane * 2.0
    if "parameters" in c.offload and c.zero >= 3:
        weights, _, _ = model.weights_bytes()
        once = real(weights) / lane
        hidden = p.forward_s + p.backward_s
        total = (
            total
            + (most(once * 2.0 - hidden, 0.0) + least(once * 2.0, hidden) * m.calibration.interference) * d.grad_accum
        )
    if "activations" in c.offload:
        kept = real(offloaded_activations(model)) / lane
        shown = most(kept - p.forward_s, 0.0) + most(kept - p.backward_s, 0.0)
        total = total + (shown + kept * m.calibration.interference) * d.grad_accum
    return total


def _ranks_per_node(m: Machine, d: Dims, pp: int) -> Real:
    return least(real(d.dp * d.tp * d.cp * pp), float(m.fabric.cluster.gpus_per_node))
