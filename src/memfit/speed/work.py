"""What one pass through a layer program asks of the device: products, attention, bytes, kernels.

Compiled once for each kind of block from the operations on its tape; sizes stay named, as in the memory model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from memfit.formula.style import Style
from memfit.formula.tape import Form, Op, Program, Value, add
from memfit.speed.data import read

ROUTED = frozenset({"p", "r", "rr"})
"""Atoms whose rows are routed tokens."""

MOVES = frozenset({"all-gather", "all-to-all", "reduce-scatter"})
"""Operations that are collectives, not kernels."""

SCORES = frozenset({"scores", "context"})
"""The two products of attention that is written out."""

HEADS = {"sliced_loss": 2, "chunked_loss": 1, "fused_loss": 1}
"""Operations that hold the output head and the loss -> how often they make the logits. The logits never exist whole:
slices run again for the backward pass; fused kernels make the gradients with the logits (Liger)."""


CAST_BYTES = 4
"""Bytes per element to make an 8-bit operand: read 2, write 1, and 1 for the transposed copy (Transformer Engine)."""


FURTHER_KERNEL = 0.2
"""Host time of each further kernel of a written-out operation over that of the operation: no module around it."""


class Side(NamedTuple):
    """The features of one operand: those of an atom, or ``rank`` where the tensor is an adapter's."""

    atom: str
    rank: int = 0


class Product(NamedTuple):
    """A matrix product with a weight; ``trained``: the weight gets a gradient, ``passes``: its input gets one."""

    source: Side
    out: Side
    trained: bool
    passes: bool
    routed: bool


@dataclass(slots=True)
class Pass:
    """One pass: forward, backward, or what checkpointing runs again.

    Attributes:
        products: products of the forward pass (the backward makes two of each).
        scores: written-out products of scores shape, (bytes per element of the result).
        cores: fused attention kernels.
        traffic: bytes of memory-bound kernels.
        kernels: their number; ``operations`` how many operations of the program they belong to.
    """

    products: list[Product] = field(default_factory=list)
    scores: list[int] = field(default_factory=list)
    cores: int = 0
    traffic: Form = field(default_factory=dict)
    kernels: int = 0
    operations: int = 0

    @property
    def small(self) -> float:
        """Memory-bound kernels in operations of host time."""
        return self.operations + FURTHER_KERNEL * (self.kernels - self.operations)

    @property
    def launches(self) -> float:
        """Host time of a forward pass, in operations."""
        return self.small + len(self.products) + len(self.scores) + self.cores


@dataclass(frozen=True, slots=True)
class Work:
    """The three passes of one kind of block, and what a backward pass adds to its kernels."""

    forward: Pass
    backward: Pass
    again: Pass

    @property
    def backward_launches(self) -> float:
        """Host time of a backward pass, in operations of a backward pass."""
        b = self.backward
        products = sum(p.trained + p.passes for p in b.products)
        return b.small + products + 2 * len(b.scores) + 2 * b.cores


def _side(value: Value, width: int) -> Side:
    if value.atom in ("T", "t") and value.width > width:
        return Side("T", value.width // width)
    return Side(value.atom)


def _kernels(op: Op) -> tuple[int, int]:
    tables = read("kernels")
    row = tables["composite"].get(op.name) if op.forward_temp else None
    forward, backward = row or tables["kernels"].get(op.name, (1, 1))
    return forward, backward


def _plus(form: Form, value: Value, times: int = 1) -> None:
    add(form, value.atom, value.width * times)


def _bias(op: Op) -> bool:
    return any(atom.startswith("R.") for atom in op.backward_temp)


def _forward_traffic(op: Op, into: Pass, *, fused: bool, low: int) -> None:
    """Bytes of one memory-bound operation; ``fused``: softmax in one kernel of ``low`` bytes."""
    if fused and op.core:
        _fused_core(op, into, 2 * low)
        return
    for root in {id(v.root): v for v in op.inputs}.values():
        _plus(into.traffic, root)
    _plus(into.traffic, op.output)
    for atom, width in op.forward_temp.items():
        if "." not in atom:
            add(into.traffic, atom, 2 * width)
    into.kernels += _kernels(op)[0]
    into.operations += 1


def _fused_core(op: Op, into: Pass, softmax: int) -> None:
    """Scale, mask and softmax as one kernel, dropout with its mask as another; the rest of the tape is inside them."""
    if op.name == "softmax":
        add(into.traffic, op.output.atom, softmax)
    elif op.name == "attention.dropout":
        add(into.traffic, op.output.atom, 2 * op.output.width + 1)
    else:
        return
    into.kernels += 1
    into.operations += 1


def _backward_traffic(op: Op, into: Pass, *, fused: bool, low: int) -> None:
    if fused and op.core:
        _fused_core(op, into, 3 * low)
        return
    if op.alias_grad or not op.output.grad:
        return
    _plus(into.traffic, op.output)
    for saved in op.saved:
        _plus(into.traffic, saved)
    for value in op.inputs:
        if value.grad:
            _plus(into.traffic, value)
    for atom, width in op.backward_temp.items():
        if "." not in atom:
            add(into.traffic, atom, 2 * width)
    into.kernels += _kernels(op)[1]
    into.operations += 1


def _sums(ops: Iterable[Op], into: Pass) -> None:
    """A value that several operations read gets a gradient from each; they are added."""
    readers: dict[int, tuple[Value, int]] = {}
    for op in ops:
        for value in op.inputs:
            if value.grad and not (op.alias_grad and op.name != "residual"):
                _, count = readers.get(id(value), (value, 0))
                readers[id(value)] = (value, count + 1)
    for value, count in readers.values():
        if count > 1:
            _plus(into.traffic, value, 3 * (count - 1))
            into.kernels += count - 1
            into.operations += count - 1


def _compiled(ops: list[Op], output: Value, forward: Pass, backward: Pass) -> None:
    """A compiler joins neighbouring cheap operations: only what crosses their border is read and written."""
    reads: dict[int, list[Op]] = {}
    for op in ops:
        for value in op.inputs:
            reads.setdefault(id(value), []).append(op)
    kept = {id(v) for op in ops if not op.cheap for v in op.saved} | {id(output)}
    border: dict[int, Value] = {}
    for op in ops:
        if not op.cheap or op.name in MOVES:
            continue
        for value in op.inputs:
            if value.producer is None or not value.producer.cheap:
                border[id(value)] = value
        out = op.output
        if id(out) in kept or any(not reader.cheap for reader in reads.get(id(out), ())):
            border[id(out)] = out
            for target in (forward, backward):
                target.kernels += 1
                target.operations += 1
    for value in border.values():
        _plus(forward.traffic, value)
        if value.grad:
            _plus(backward.traffic, value, 2)


def _head(op: Op, forward: Pass, backward: Pass) -> None:
    """The head's products and the passes over the logits of an operation that makes them a part at a time."""
    source, times = op.inputs[0], HEADS[op.name]
    trained = "w.head" in op.weight_grad or any(kept.atom == "w.head" for kept in op.saved)
    item = Product(Side(source.atom), Side("V"), trained, source.grad, routed=False)
    forward.products += [item] * times
    backward.products.append(item)
    width = op.inputs[0].width
    forwards = sum(op.forward_temp.get(atom, 0) for atom in ("V", "Vs")) or width
    backwards = sum(op.backward_temp.get(atom, 0) for atom in ("V", "Vs")) or width
    add(forward.traffic, "V", 2 * forwards * times)
    add(backward.traffic, "V", 2 * backwards)
    for target in (forward, backward):
        target.kernels += 1
        target.operations += 1


def work(
    program: Program, style: Style, *, fused_softmax: bool, early_stop: bool, policy: str, casts: bool = False
) -> Work:
    """The passes of a layer program.

    Args:
        program: its operations are read.
        style: the style it was recorded in.
        fused_softmax: written-out attention runs scale, mask and softmax in one kernel.
        early_stop: what follows the last tensor that the backward needs is not run again.
        policy: what checkpointing keeps, as in ``Style.checkpoint``.
        casts: products run in 8 or 4 bit: each operand is read, scaled, and written in both layouts.
    """
    ops = list(program.ops)
    forward, backward, again = Pass(), Pass(), Pass()
    last = max((i for i, op in enumerate(ops) if op.saved), default=-1)
    matmuls = 0
    for index, op in enumerate(ops):
        matmuls += op.matmul
        if policy == "attention":
            repeated = op.core
        elif policy == "selective":
            kept = (op.core and op.name == "attention") or (op.matmul and matmuls % 2 == 1)
            repeated = not kept
        else:
            repeated = True
        if early_stop and index > last:
            repeated = False
        targets = [forward, again] if repeated else [forward]
        if op.name in MOVES:
            continue
        if op.matmul:
            source = op.inputs[0]
            item = Product(
                _side(source, style.width if not op.name.startswith("lora") else style.lora_width),
                _side(op.output, style.width if not op.name.startswith("lora") else style.lora_width),
                bool(op.saved or op.weight_grad),
                source.grad,
                source.atom in ROUTED,
            )
            for target in targets:
                target.products.append(item)
                if casts:
                    add(target.traffic, source.atom, CAST_BYTES)
                    target.kernels += 1
            backward.products.append(item)
            if casts:
                add(backward.traffic, op.output.atom, CAST_BYTES)
                backward.kernels += 1
            if _bias(op):
                _plus(backward.traffic, op.output)
                backward.kernels += 1
        elif op.name in HEADS:
            _head(op, forward, backward)
        elif op.name in SCORES:
            for target in targets:
                target.scores.append(op.output.width)
            backward.scores.append(op.output.width)
        elif op.name == "attention":
            for target in targets:
                target.cores += 1
            backward.cores += 1
        elif op.output.storage is None and not style.compiled:
            for target in targets:
                _forward_traffic(op, target, fused=fused_softmax, low=style.width)
            _backward_traffic(op, backward, fused=fused_softmax, low=style.width)
        elif style.compiled and not op.cheap:
            for target in targets:
                _forward_traffic(op, target, fused=True, low=style.width)
            _backward_traffic(op, backward, fused=True, low=style.width)
    if style.compiled and ops:
        _compiled(ops, ops[-1].output, forward, backward)
        if policy == "full":
            again.traffic = dict(forward.traffic)
            again.kernels, again.operations = forward.kernels, forward.operations
    else:
        _sums(ops, backward)
    if style.dequantize:
        weights = sum(not p.trained for p in forward.products)
        forward.kernels += weights
        again.kernels += sum(not p.trained for p in again.products)
        backward.kernels += weights
    return Work(forward, backward, again)
