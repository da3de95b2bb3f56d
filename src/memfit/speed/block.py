"""Seconds of one block, forward and backward, on one rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from memfit.formula.dims import Dims, block_atoms, evaluate
from memfit.formula.setup import Kind, Setup
from memfit.formula.weights import local, num_kv
from memfit.models.architecture import Attention, Block, Moe, Stack
from memfit.speed.calibration import Calibration
from memfit.speed.framework import Framework
from memfit.speed.kernels import attention, product, stream
from memfit.speed.network import Fabric
from memfit.speed.numbers import Real, choose, least, most, real
from memfit.speed.rates import Rates
from memfit.speed.work import Pass, Product, Side, Work

PARTS = ("matmul", "attention", "memory", "tp", "cp", "ep")
"""What the seconds of one pass are made of."""

LAUNCHES_OF_COLLECTIVE = 2
"""Host time of one collective in operations: events, stream switches, the communicator's bookkeeping."""

BACKWARD_HOST = 0.5
"""Host time of a backward operation over that of a forward one: autograd's engine runs C++ nodes, no modules."""

CHECKPOINT_LAUNCHES = 6
"""Host time of one checkpointed layer in operations: generator states saved and restored, a nested backward pass."""

QUERY_ROWS = 128
"""Query rows of one piece of fused attention (FlashAttention's block)."""

LOW_PRECISION = frozenset({"fp8", "mxfp8", "nvfp4"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a block's seconds depend on beside its shapes."""

    rates: Rates
    fabric: Fabric
    framework: Framework
    calibration: Calibration


@dataclass(slots=True)
class Seconds:
    """Seconds of one pass by part, and the kernels that the host starts for it."""

    parts: dict[str, Real] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    launches: Real = 0.0

    def put(self, part: str, seconds: Real) -> None:
        """Add seconds to a part."""
        self.parts[part] = self.parts[part] + seconds

    def plus(self, other: Seconds, times: int) -> None:
        """Add another pass ``times`` times."""
        for name, value in other.parts.items():
            self.parts[name] = self.parts[name] + value * times
        self.launches = self.launches + other.launches * times

    @property
    def device(self) -> Real:
        """All of it."""
        total: Real = 0.0
        for value in self.parts.values():
            total = total + value
        return total


@dataclass(frozen=True, slots=True)
class BlockSeconds:
    """The three passes of one kind of block."""

    forward: Seconds
    backward: Seconds
    again: Seconds


def seconds_of(
    m: Machine, s: Setup, kind: Kind, w: Work, stack: Stack, d: Dims, tokens: Any, stream_tokens: Any
) -> BlockSeconds:
    """The seconds of one kind of block for ``tokens`` tokens of one micro-batch on the rank; ``w`` is its work."""
    block = kind.block
    atoms = block_atoms(block, stack, d, tokens, stream_tokens)
    atoms["enc"] = atoms["x"]
    shapes = Shapes(m.rates, style_of(s), atoms, d, tokens, stack.hidden_size, block)
    forward, backward, again = Seconds(), Seconds(), Seconds()
    shapes.run(w.forward, forward, low=True)
    shapes.run(w.again, again, low=True)
    shapes.run_backward(w.backward, backward, low=True)
    forward.launches = forward.launches + w.forward.launches
    again.launches = again.launches + w.again.launches
    backward.launches = backward.launches + w.backward_launches
    _weights(m, s, kind, d, forward, backward, again)
    _tensor_parallel(m, s, block, d, atoms, forward, backward, again)
    if isinstance(block.ffn, Moe):
        _experts(m, s, d, atoms, stack.hidden_size, forward, backward, again)
    if block.attention is not None:
        _context(m, s, block.attention, d, atoms, forward, backward, again)
    return BlockSeconds(forward, backward, again)


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """What a pass over operands of given shapes depends on beside them.

    Attributes:
        width: bytes of an activation.
        low: linear layers of the blocks run in 8 or 4 bit.
        gradient_bytes: bytes that a weight gradient's product writes per element.
        weight_bytes: stored bytes of a weight as a product reads it; None: as its operands.
        touched: share of the experts that any token of the batch goes to.
    """

    width: int = 2
    low: bool = False
    gradient_bytes: float = 2.0
    weight_bytes: float | None = None
    touched: Real = 1.0


def style_of(s: Setup) -> Style:
    """The style of a training setup."""
    return Style(
        width=s.style.width,
        low=s.choices.precision in LOW_PRECISION,
        gradient_bytes=8.0 if s.scheme.fused_accumulation else float(s.style.weight_grads or 2),
    )


class Shapes:
    """Sizes of one block's operands for given dims, and the seconds of a pass over them."""

    def __init__(
        self, r: Rates, st: Style, atoms: dict[str, Any], d: Dims, tokens: Any, hidden: int, block: Block | None
    ) -> None:
        self.r, self.st, self.d, self.atoms, self.hidden, self.block = r, st, d, atoms, hidden, block
        self.tokens = real(tokens)
        self.moe = block.ffn if block is not None and isinstance(block.ffn, Moe) else None

    def _features(self, side: Side, rows: Real) -> Real:
        if side.rank:
            return float(side.rank)
        if side.atom in ("x", "X", "p", "enc"):
            return float(self.hidden)
        return real(self.atoms[side.atom]) / rows

    def shape(self, p: Product) -> tuple[Real, Real, Real, Real]:
        """(rows, features out, features in, batch) of a product."""
        rows, batch = self.tokens, 1.0
        if p.routed and self.moe is not None:
            rows = real(self.atoms["p"]) / self.hidden
            batch = most(real(self.moe.num_experts) / self.d.ep * self.st.touched, 1.0)
        out, inner = self._features(p.out, rows), self._features(p.source, rows)
        return rows / batch, out, inner, batch

    def run(self, w: Pass, into: Seconds, *, low: bool) -> None:
        """A forward pass, or a part of one."""
        r, st = self.r, self.st
        for p in w.products:
            rows, out, inner, batch = self.shape(p)
            seconds = product(r, rows, out, inner, batch=batch, low=low and st.low, weight=st.weight_bytes)
            into.put("matmul", seconds)
        for width in w.scores:
            into.put("attention", self._written_out(width))
        if w.cores:
            into.put("attention", self._fused() * w.cores)
        into.put("memory", stream(r, real(evaluate(w.traffic, self.atoms)), w.kernels))

    def run_backward(self, w: Pass, into: Seconds, *, low: bool) -> None:
        """A backward pass: two products for each of the forward's, where both operands want a gradient."""
        r, st = self.r, self.st
        low = low and st.low
        for p in w.products:
            rows, out, inner, batch = self.shape(p)
            if p.passes:
                into.put("matmul", product(r, rows, inner, out, batch=batch, low=low, gradient=True))
            if p.trained:
                width = st.gradient_bytes
                into.put("matmul", product(r, out, inner, rows, batch=batch, low=low, out=width, gradient=True))
        for width in w.scores:
            into.put("attention", self._written_out(width) * 2.0)
        if w.cores:
            into.put("attention", self._fused(backward=True) * w.cores)
        into.put("memory", stream(r, real(evaluate(w.traffic, self.atoms)), w.kernels))

    def _mixer(self) -> Attention:
        assert self.block is not None
        found = self.block.attention or self.block.cross
        assert found is not None
        return found

    def _fused(self, *, backward: bool = False) -> Real:
        """Fused attention: under context parallelism a kernel for each part of the keys, then their sum."""
        r, steps = self.r, real(self.d.cp)
        scores, dims, tiles = self._scores()
        seconds = attention(r, scores / steps, dims, tiles, backward=backward) * steps
        parts = real(self.atoms["q"]) + (real(self.atoms["k"]) + real(self.atoms["v"]) if backward else 0.0)
        return seconds + choose(steps > 1.0, stream(r, parts * RING_BYTES, RING_KERNELS) * steps, 0.0)

    def _scores(self) -> tuple[Real, float, Real]:
        """(score elements that fused attention computes, head dims, pieces of work)."""
        att = self._mixer()
        length = real(self.d.seq_len)
        reach = length
        if att.causal and not att.cross:
            reach = (length + QUERY_ROWS) * 0.5
        if att.window:
            inside = least(float(att.window), length)
            reach = least(reach, inside - inside * inside / length * 0.5 + QUERY_ROWS * 0.5)
        heads = real(self.atoms["h"])
        return heads * reach, float(att.head_dim + att.v_head_dim), most(heads / QUERY_ROWS, 1.0)

    def _written_out(self, width: int) -> Real:
        """One of the two products of written-out attention: a batch of (length x head dim x length)."""
        att = self._mixer()
        elements = real(self.atoms["s"])
        flops = elements * (2.0 * att.head_dim)
        traffic = elements * float(width) + 2.0 * real(self.atoms["q"]) * self.st.width
        r = self.r
        return most(flops / (r.matmul * BATCHED), traffic / r.stream) + r.kernel_s


RING_BYTES = 10.0
"""Bytes per element and step of adding a ring step's 16-bit result to an fp32 sum: 2 read, 4 read, 4 written."""

RING_KERNELS = 3.0
"""Kernels beside attention in a ring step: the sums of exponentials, the rescaled sum, the copy of the keys' half."""

BATCHED = 0.6
"""Rate of the small-headed batched products of written-out attention over that of large ones: the head dim is the inner
or an outer dimension, too short to hide a tile's start."""


def _weights(m: Machine, s: Setup, kind: Kind, d: Dims, forward: Seconds, backward: Seconds, again: Seconds) -> None:
    """Passes over the block's weights: casts, dequantisation, accumulation of gradients."""
    kv = num_kv(kind.block)
    c, sch, r = s.choices, s.scheme, m.rates
    if kind.held.quantised:
        packed = real(local(kind.held.quantised, d, kv))
        seconds = packed * (s.frozen.num / s.frozen.den / 8.0 + s.width) / r.stream
        for target in (forward, backward, again):
            target.put("memory", seconds)
    trained = real(local(kind.held.trained, d, kv))
    tensors = float(sum(not t.buffer for t in kind.block.tensors))
    if s.style.autocast and c.training.full:
        for target in (forward, again):
            target.put("memory", stream(r, trained * 6.0, tensors))
            target.launches = target.launches + tensors
        backward.put("memory", stream(r, trained * 6.0, tensors))
        backward.launches = backward.launches + tensors
    if sch.fused_accumulation or not c.training.full:
        return
    if sch.always or (c.accumulates and c.zero < 2):
        width = (sch.fresh or s.width) + 2 * (sch.grad or s.width)
        backward.put("memory", stream(r, trained * float(width), tensors))
        backward.launches = backward.launches + tensors


def sublayers(block: Block) -> int:
    """Sub-layers that end in a row-parallel product."""
    mixers = int(block.attention is not None or block.recurrent is not None) + int(block.cross is not None)
    ffn = int(block.ffn is not None)
    return 1 if block.parallel and mixers == 1 and ffn else mixers + ffn


def _tensor_parallel(
    m: Machine,
    s: Setup,
    block: Block,
    d: Dims,
    atoms: dict[str, Any],
    forward: Seconds,
    backward: Seconds,
    again: Seconds,
) -> None:
    if not s.choices.tensor_parallel:
        return
    group = m.fabric.group(d.tp, 1)
    whole = real(atoms["X"]) * s.width
    count = sublayers(block)
    wait = float(LAUNCHES_OF_COLLECTIVE)
    policy = s.style.checkpoint
    hidden = 1.0 - m.calibration.interference
    ahead, back = (1.0 - share * hidden for share in (m.framework.tp_forward, m.framework.tp_backward))
    if s.style.sequence_parallel:
        one, each = m.fabric.gather(group, whole), 2 * count
        if not s.profile.gather_inputs:
            # the input of a weight gradient is gathered again beside the other product
            backward.put("tp", one * (count * m.calibration.interference))
    else:
        one, each = m.fabric.all_reduce(group, whole), count
    forward.put("tp", one * (each * ahead))
    backward.put("tp", one * (each * back))
    forward.launches = forward.launches + wait * each
    backward.launches = backward.launches + wait * each
    if policy != "attention":
        again.put("tp", one * (each * ahead))
        again.launches = again.launches + wait * each


def _experts(
    m: Machine,
    s: Setup,
    d: Dims,
    atoms: dict[str, Any],
    hidden: int,
    forward: Seconds,
    backward: Seconds,
    again: Seconds,
) -> None:
    group = m.fabric.group(d.ep, d.tp * d.cp)
    seconds = m.fabric.all_to_all(group, real(atoms["p"]) * s.width) * 2.0
    forward.put("ep", seconds)
    backward.put("ep", seconds)
    if s.style.checkpoint == "full":
        again.put("ep", seconds)


def _context(
    m: Machine,
    s: Setup,
    att: Attention,
    d: Dims,
    atoms: dict[str, Any],
    forward: Seconds,
    backward: Seconds,
    again: Seconds,
) -> None:
    """Keys and values pass around a ring while attention computes."""
    group = m.fabric.group(d.cp, d.tp)
    kv = (real(atoms["k"]) + real(atoms["v"])) * s.width
    ring = m.fabric.gather(group, kv * d.cp)
    share = m.calibration.interference
    for target, times in ((forward, 1.0), (backward, 2.0), (again, 1.0)):
        hidden = least(ring * times, target.parts["attention"])
        exposed = ring * times - hidden + hidden * share
        if target is not again or s.style.checkpoint != "selective":
            target.put("cp", choose(d.cp > 1, exposed, 0.0))
