"""A tape of one block: what it allocates in forward and backward, as linear forms over named sizes.

Sizes are *atoms*, names of element counts (``x`` = tokens x hidden, see ``dims.py``); a linear form maps atoms to bytes
per element. Recording is static: it runs once per kind of block and style, and the result is evaluated for one job or
for arrays of a million with the same few multiplications.

The rules are autograd's: an operation keeps what its backward needs; a value lives until its last use or, if kept,
until the backward of the operation that keeps it; gradients live from their production to their consumption.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Form = dict[str, int]
"""Bytes as a linear form: atom -> bytes per element."""


def add(into: Form, atom: str, width: int) -> None:
    """Add ``width`` bytes per element of ``atom``."""
    value = into.get(atom, 0) + width
    if value:
        into[atom] = value
    else:
        into.pop(atom, None)


def plus(*forms: Mapping[str, int]) -> Form:
    """The sum of linear forms."""
    out: Form = {}
    for form in forms:
        for atom, width in form.items():
            add(out, atom, width)
    return out


def undominated(forms: Iterable[Form]) -> tuple[Form, ...]:
    """The forms that can be the largest for some sizes: those not below another one in every atom."""
    kept: list[Form] = []
    for form in forms:
        if any(all(other.get(a, 0) >= w for a, w in form.items()) for other in kept):
            continue
        kept = [k for k in kept if not all(form.get(a, 0) >= w for a, w in k.items())]
        kept.append(form)
    return tuple(kept)


@dataclass(slots=True, eq=False)
class Value:
    """A tensor on the tape: ``width`` bytes for each element of ``atom``; ``shared`` ones are kept by their owner."""

    atom: str
    width: int
    grad: bool
    producer: Op | None = None
    storage: Value | None = None
    shared: bool = False

    @property
    def root(self) -> Value:
        """The value that owns the memory."""
        value = self
        while value.storage is not None:
            value = value.storage
        return value


@dataclass(slots=True, eq=False)
class Op:
    """One operation: inputs, outputs, what its backward keeps, and its own temporaries.

    Attributes:
        core: part of core attention, for checkpointing policies.
        cheap: a compiler recomputes it in the backward instead of keeping its output (pointwise, norms, views).
        matmul: counts for per-operation checkpointing policies.
        alias_grad: the gradient of the output is the gradient of each input (residual add, view).
        forward_temp, backward_temp: bytes that live only inside the operation.
        after_temp: bytes of the sums that reduce broadcast gradients, behind the backward of the operation itself.
        weight_grad: gradient elements of parameters that its backward makes, by atom.
        packs: it keeps its weight for the backward; that is no memory, but a checkpoint answers for it too.
        holds: values that a variable of the module's code keeps alive until this operation of the forward is done.
        swap: what its backward kept turns into the gradient (in place, or chunk by chunk).
        pinned: values that an attribute of its autograd node names: alive as long as the graph, checkpointed or not.
    """

    name: str
    inputs: tuple[Value, ...]
    output: Value
    saved: tuple[Value, ...] = ()
    cheap: bool = False
    matmul: bool = False
    core: bool = False
    alias_grad: bool = False
    forward_temp: Form = field(default_factory=dict)
    backward_temp: Form = field(default_factory=dict)
    weight_grad: Form = field(default_factory=dict)
    after_temp: Form = field(default_factory=dict)
    packs: bool = False
    swap: bool = False
    pinned: tuple[Value, ...] = ()
    holds: list[Value] = field(default_factory=list)


class Step(NamedTuple):
    """One line of a script: bytes of ``key`` appear (``sign`` +1) or go (-1).

    Keys are unique within one run of the block; ``weight`` marks a weight gradient, which the step does not free.
    """

    sign: int
    key: int
    atom: str
    width: int
    weight: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """One block, compiled.

    Attributes:
        kept: bytes held from the forward to the backward of the block when nothing is recomputed.
        checkpoint: bytes held with the block's own checkpointing policy (the block input, policy-saved outputs).
        backward: candidate peaks of the backward pass without recomputation; ``w.*`` atoms are weight gradients.
        recompute: candidate peaks of recomputation and backward of a checkpointed block, its ``checkpoint`` included.
        adding, recompute_adding: the same where gradients are added to buffers as they appear; a ``w.*.one`` atom is
            the largest single one.
        forward: candidate peaks of the forward pass.
        inference: candidate peaks of a forward pass that keeps nothing.
        pinned: bytes that live as long as the graph, whatever is recomputed and after their backward.
        scripts: name of the pass -> its lines, for timelines: ``forward``, ``backward``; with a checkpoint
            ``first`` (the forward that keeps only the checkpoint), ``again`` (recomputation and backward).
        stream, output: keys of the block's input and output in the scripts.
        keeps_stream: without recomputation the block's input lives until its backward.
        ops: the operations in running order, for what else is to be known of them (their cost).
    """

    kept: Form
    checkpoint: Form
    forward: tuple[Form, ...]
    backward: tuple[Form, ...]
    recompute: tuple[Form, ...]
    adding: tuple[Form, ...]
    recompute_adding: tuple[Form, ...]
    inference: tuple[Form, ...]
    pinned: Form = field(hash=False, compare=False)
    scripts: Mapping[str, tuple[Step, ...]] = field(hash=False, compare=False)
    stream: int
    output: int
    keeps_stream: bool
    ops: tuple[Op, ...] = field(hash=False, compare=False, repr=False)


class Tape:
    """Records the operations of one block in running order."""

    def __init__(self, *, compiled: bool = False) -> None:
        self.ops: list[Op] = []
        self.compiled = compiled
        self.inputs: list[Value] = []

    def input(self, atom: str, width: int, *, grad: bool = True, shared: bool = False) -> Value:
        """A tensor that comes from outside the block; several blocks read a ``shared`` one."""
        value = Value(atom, width, grad, shared=shared)
        self.inputs.append(value)
        return value

    def op(
        self,
        name: str,
        inputs: Sequence[Value],
        atom: str,
        width: int,
        *,
        saved: Sequence[Value] = (),
        saves_output: bool = False,
        view: bool = False,
        grad: bool | None = None,
        extra_saved: Mapping[str, int] | None = None,
        cheap: bool = False,
        matmul: bool = False,
        core: bool = False,
        alias_grad: bool = False,
        forward_temp: Mapping[str, int] | None = None,
        backward_temp: Mapping[str, int] | None = None,
        weight_grad: Mapping[str, int] | None = None,
        after_temp: Mapping[str, int] | None = None,
        packs: bool = False,
        swap: bool = False,
        pinned: Sequence[Value] = (),
    ) -> Value:
        """Record an operation and give its output.

        Args:
            saved: inputs that the backward needs (ignored when nothing requires a gradient).
            saves_output: the backward needs the output.
            view: the output shares the first input's memory.
            grad: whether the output requires a gradient; default: any input does.
            extra_saved: further tensors made and kept by the operation (statistics, masks), atom -> bytes per element.
            swap: what is kept makes room for the gradient of the inputs.
            pinned: what an attribute of the autograd node keeps as long as the graph exists.
        """
        requires = any(v.grad for v in inputs) if grad is None else grad
        out = Value(atom, width, requires, storage=inputs[0] if view else None)
        kept: list[Value] = []
        if requires:
            kept.extend(saved)
            if saves_output:
                kept.append(out)
        op = Op(
            name,
            tuple(inputs),
            out,
            tuple(kept),
            cheap or view,
            matmul,
            core,
            alias_grad or view,
            dict(forward_temp or {}),
            dict(backward_temp or {}),
            dict(weight_grad or {}),
            dict(after_temp or {}),
            packs and requires,
            swap,
            tuple(pinned) if requires else (),
        )
        out.producer = op
        self.ops.append(op)
        for extra_atom, extra_width in (extra_saved or {}).items():
            if requires:
                side = Value(extra_atom, extra_width, False)
                side.producer = op
                op.saved = (*op.saved, side)
        return out

    def keep(self, atom: str, width: int) -> None:
        """The last operation keeps one more tensor for its backward."""
        side = Value(atom, width, False)
        side.producer = self.ops[-1]
        self.ops[-1].saved = (*self.ops[-1].saved, side)

    def hold(self, *values: Value) -> None:
        """Variables of the module's code name these values until now; a compiler has no such variables."""
        if not self.compiled:
            self.ops[-1].holds.extend(values)

    def _needed(self, value: Value, seen: set[int]) -> list[Value]:
        """What a compiler keeps so that the backward can have ``value``: cheap producers are run again."""
        if id(value) in seen:
            return []
        seen.add(id(value))
        producer = value.producer
        if producer is None or not producer.cheap or value is not producer.output:
            return [value]
        out = []
        for parent in producer.inputs:
            out.extend(self._needed(parent, seen))
        return out

    def saved_by(self) -> list[list[Value]]:
        """For each operation the storages its backward keeps alive (compiler's choice applied)."""
        lists = []
        for op in self.ops:
            roots: dict[int, Value] = {}
            for value in op.saved:
                # an operand of a backward product must exist in memory: Inductor's partitioner does not recompute it
                found = self._needed(value, set()) if self.compiled and not op.matmul else [value]
                for v in found:
                    roots[id(v.root)] = v.root
            lists.append(list(roots.values()))
        return lists

    def compile(self, output: Value, *, policy: str = "full") -> Program:
        """Liveness of forward and backward as linear forms.

        Args:
            output: the block's result, handed to the next block.
            policy: what checkpointing keeps besides the block's inputs: ``full`` nothing, ``selective`` the outputs of
                attention and of every second matrix product, ``attention`` all but what core attention keeps.
        """
        saved = self.saved_by()
        inputs = {id(v.root): v.root for v in self.inputs}
        everything = {id(v): v for values in saved for v in values}
        checkpoint = self._checkpointed(saved, policy, output)
        if policy != "attention":  # all else starts again from the block's input
            checkpoint |= {k: v for k, v in inputs.items() if v.grad}
        nothing: list[list[Value]] = [[] for _ in saved]
        forward = self._forward(saved, output, inputs)
        backward = self._backward(saved, output, {})
        first = self._forward(nothing, output, inputs, keep=checkpoint)
        again = self._forward(saved, output, checkpoint, recompute=True)
        backward_again = self._backward(saved, output, checkpoint, recomputed=True)
        adding = self._backward(saved, output, {}, adding=True)
        adding_again = self._backward(saved, output, checkpoint, recomputed=True, adding=True)
        incoming = self._before_recompute(saved, output)
        kept = _bytes_of(v for v in everything.values() if not v.shared)
        return Program(
            kept=_bytes_of(v for v in everything.values() if v is not output.root and not v.shared),
            checkpoint=_bytes_of(v for v in checkpoint.values() if v is not output.root and not v.shared),
            forward=_peaks(forward, _bytes_of(inputs.values())),
            backward=_peaks(backward, kept),
            recompute=undominated(
                [
                    *(plus(form, incoming) for form in _peaks(again, _bytes_of(checkpoint.values()))),
                    *_peaks(backward_again, _bytes_of({**everything, **checkpoint}.values())),
                ]
            ),
            adding=_peaks(adding, kept),
            recompute_adding=undominated(
                [
                    *(plus(form, incoming) for form in _peaks(again, _bytes_of(checkpoint.values()))),
                    *_peaks(adding_again, _bytes_of({**everything, **checkpoint}.values())),
                ]
            ),
            inference=_peaks(self._forward(nothing, output, inputs), _bytes_of(inputs.values())),
            pinned=_bytes_of({id(v.root): v.root for op in self.ops for v in op.pinned}.values()),
            scripts={
                "forward": tuple(forward),
                "backward": tuple(backward),
                "first": tuple(first),
                "again": (*again, *backward_again),
            },
            stream=id(self.inputs[0].root),
            output=id(output.root),
            keeps_stream=id(self.inputs[0].root) in everything,
            ops=tuple(self.ops),
        )

    def _checkpointed(self, saved: list[list[Value]], policy: str, output: Value) -> dict[int, Value]:
        keep: dict[int, Value] = {}
        if policy == "selective":
            matmuls = 0
            needed = {id(v) for values in saved for v in values}
            for op in self.ops:
                matmuls += op.matmul
                root = op.output.root
                wanted = (op.core and op.name == "attention") or (op.matmul and matmuls % 2 == 1)
                if wanted and (not self.compiled or id(root) in needed) and root is not output.root:
                    keep[id(root)] = root
                    keep |= {id(v): v for v in op.saved if v.producer is op and v is not op.output}
        elif policy == "attention":
            # what core attention makes for itself is made again; what it is given, and what others keep of it, stays
            keep = {
                id(v): v
                for op, values in zip(self.ops, saved, strict=True)
                for v in values
                if not (op.core and v.producer is not None and v.producer.core)
            }
        return keep

    def _forward(
        self,
        saved: list[list[Value]],
        output: Value,
        present: dict[int, Value],
        *,
        keep: Mapping[int, Value] | None = None,
        recompute: bool = False,
    ) -> list[Step]:
        """The forward pass when the storages in ``present`` exist from the start; ``keep`` survive it besides."""
        last: dict[int, int] = {}
        for index, op in enumerate(self.ops):
            for value in (*op.inputs, op.output, *op.holds):
                last[id(value.root)] = index
        held = {id(v) for values in saved for v in values} | set(present) | set(keep or {})
        if not recompute:
            held.add(id(output.root))
        booked: dict[int, Value] = {}
        lines: list[Step] = []
        for index, (op, values) in enumerate(zip(self.ops, saved, strict=True)):
            if recompute and index >= self._stop(saved):
                break
            made = [op.output.root] if op.output.root.producer is not None else []
            made += [v for v in (*values, *op.saved) if v.producer is op and id(v) in held]
            for value in made:
                if id(value) not in booked and id(value) not in present:
                    booked[id(value)] = value
                    lines.append(Step(1, id(value), value.atom, value.width))
            lines += _temporary(op.forward_temp, op)
            for root in {id(v.root): v.root for v in (*op.inputs, op.output, *op.holds)}.values():
                if last[id(root)] == index and id(root) in booked and id(root) not in held:
                    del booked[id(root)]
                    lines.append(Step(-1, id(root), root.atom, root.width))
        if recompute:
            lines += [Step(-1, key, v.atom, v.width) for key, v in booked.items() if key not in held]
        return lines

    def _stop(self, saved: list[list[Value]]) -> int:
        """How many operations a checkpoint runs again: it stops once it has all that the backward keeps.

        Inputs are kept before an operation runs, outputs after it (torch.utils.checkpoint, early stop).
        """
        last = self._last_kept(saved)
        return last + (last >= 0 and any(v.producer is self.ops[last] for v in saved[last]))

    def _last_kept(self, saved: list[list[Value]]) -> int:
        """The last operation that keeps anything for its backward, -1 without one."""
        return max((i for i, values in enumerate(saved) if values or self.ops[i].packs), default=-1)

    def _before_recompute(self, saved: list[list[Value]], output: Value) -> Form:
        """The gradients alive when the backward first asks for a kept tensor, which is when a block is run again."""
        start = self._last_kept(saved) + 1
        form: Form = {}
        for line in self._backward(saved[start:], output, {}, self.ops[start:]):
            add(form, line.atom, line.sign * line.width)
        return form

    def _backward(
        self,
        saved: list[list[Value]],
        output: Value,
        present: dict[int, Value],
        ops: list[Op] | None = None,
        *,
        recomputed: bool = False,
        adding: bool = False,
    ) -> list[Step]:
        """The backward pass; storages in ``present`` stay until its end.

        ``recomputed``: behind a checkpoint; ``adding``: weight gradients are added to buffers at once (atoms ``.one``).
        """
        uses: dict[int, int] = {}
        for values in saved:
            for value in values:
                uses[id(value)] = uses.get(id(value), 0) + 1
        gone: set[int] = set()
        owners: dict[int, int] = {}
        grad_of: dict[int, int] = {}
        weights: set[str] = set()
        lines: list[Step] = []

        def new_grad(value: Value) -> None:
            key = -1 - id(value)
            grad_of[id(value)] = key
            owners[key] = 1
            lines.append(Step(1, key, value.atom, value.width))

        def drop(value: Value) -> None:
            key = grad_of.pop(id(value), None)
            if key is None:
                return
            owners[key] -= 1
            if not owners[key]:
                lines.append(Step(-1, key, value.atom, value.width))

        def release(values: list[Value]) -> None:
            for value in values:
                uses[id(value)] -= 1
                if not uses[id(value)] and id(value) not in present:
                    gone.add(id(value))
                    lines.append(Step(-1, id(value), value.atom, value.width))

        new_grad(output)
        for op, values in zip(reversed(self.ops if ops is None else ops), reversed(saved), strict=True):
            if op.swap:
                release(values)
                values = []
            if not op.output.grad or id(op.output) not in grad_of:
                release(values)
                continue
            twice = []
            key = grad_of[id(op.output)]
            for value in op.inputs:
                if not value.grad:
                    continue
                if op.alias_grad and value.width == op.output.width and value.atom == op.output.atom:
                    if id(value) not in grad_of:
                        grad_of[id(value)] = key
                        owners[key] += 1
                    continue
                if id(value) in grad_of and op.output.storage is value:
                    continue  # parts of one storage: their gradients are joined once
                if id(value) in grad_of:
                    twice.append(value)  # a second gradient is made, then added to the first
                    lines.append(Step(1, -2 - id(value), value.atom, value.width))
                else:
                    new_grad(value)
            added: Form = {}
            for atom, width in op.weight_grad.items():
                if adding:
                    added[f"{atom}.one"] = width
                    continue
                if atom not in weights and width:
                    weights.add(atom)
                    lines.append(Step(1, hash(atom), atom, width, weight=True))
            lines += _temporary(op.backward_temp, op)
            # What a node kept goes behind the sums and its own gradient; what a checkpoint computed again for it is
            # its own and goes before. The next node adds what it was given twice.
            lines += (kept := _temporary(added, op))[: len(added)]
            if recomputed:
                release(values)
            lines += _temporary(op.after_temp, op)
            lines += kept[len(added) :]
            drop(op.output)
            if not recomputed:
                release(values)
            lines += [Step(-1, -2 - id(value), value.atom, value.width) for value in twice]
        lines += [Step(-1, id(v), v.atom, v.width) for v in present.values() if id(v) not in gone]
        # the gradient of the block's input is the next block's business
        return lines


def _temporary(form: Mapping[str, int], op: Op) -> list[Step]:
    keys = [(id(op) + 1 + i, atom, width) for i, (atom, width) in enumerate(form.items())]
    return [Step(1, *k) for k in keys] + [Step(-1, *k) for k in keys]


def _peaks(lines: Iterable[Step], start: Form) -> tuple[Form, ...]:
    """The running sums after each run of allocations, undominated ones only."""
    live = dict(start)
    found: list[Form] = [dict(live)]
    rising = False
    for line in lines:
        if line.sign < 0 and rising:
            found.append(dict(live))
        rising = line.sign > 0
        add(live, line.atom, line.sign * line.width)
    found.append(dict(live))
    return undominated(found)


def _bytes_of(values: Iterable[Value]) -> Form:
    form: Form = {}
    for value in values:
        add(form, value.atom, value.width)
    return form
