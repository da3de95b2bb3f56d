"""The seconds of one training step: micro-batches through the pipeline, reductions, the optimizer, stragglers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memfit.errors import MemfitError
from memfit.formula.dims import Dims
from memfit.formula.resolve import Resolved
from memfit.formula.setup import Setup, Tower
from memfit.formula.stage import Stage, StageModel
from memfit.speed.block import (
    BACKWARD_HOST,
    CHECKPOINT_LAUNCHES,
    LOW_PRECISION,
    BlockSeconds,
    Machine,
    Seconds,
    Shapes,
    seconds_of,
    style_of,
)
from memfit.speed.block import PARTS as PASS_PARTS
from memfit.speed.calibration import Calibration, default
from memfit.speed.framework import Framework, framework
from memfit.speed.network import fabric
from memfit.speed.numbers import Real, choose, either, most, real
from memfit.speed.rates import rates
from memfit.speed.work import Work, work

PARTS: dict[str, str] = {
    "matmul": "matrix products",
    "attention": "attention",
    "memory": "memory-bound kernels",
    "recompute": "recomputation of checkpointed layers",
    "host": "the device waits for the host",
    "tp": "tensor-parallel collectives",
    "cp": "context-parallel exchange that computation does not hide",
    "ep": "expert-parallel exchange",
    "pp": "transfers between pipeline stages",
    "bubble": "pipeline bubble and unequal stages",
    "dp": "gradient and weight collectives that computation does not hide",
    "optimizer": "optimizer step",
    "offload": "transfers to the host and work on it",
    "stragglers": "waiting for the slowest node",
}
"""Part of a step -> what it is, in the order they are shown."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """The work of every kind of block, made once for a setup and a framework's rows."""

    decoder: tuple[Work, ...]
    towers: tuple[tuple[Work, ...], ...]
    tail: Work
    entry: Work


_WORK: dict[Any, tuple[Any, Compiled]] = {}
_MOST_WORK = 1024


def compiled(s: Setup, f: Framework) -> Compiled:
    """The work of a setup's programs; setups that share them share it."""
    programs = (s.decoder.kinds, *(t.kinds for t in s.towers), s.tail, s.entry)
    key = (*map(id, programs), s.style, s.choices.precision in LOW_PRECISION, f)
    known = _WORK.get(key)
    if known is None:
        if len(_WORK) >= _MOST_WORK:
            _WORK.clear()
        # the programs are kept with their work, so that no others can have their identity
        known = _WORK[key] = (programs, _compiled(s, f))
    return known[1]


def _compiled(s: Setup, f: Framework) -> Compiled:
    low = s.choices.precision in LOW_PRECISION

    def of(tower: Tower) -> tuple[Work, ...]:
        return tuple(
            work(
                kind.program,
                s.style,
                fused_softmax=f.fused_softmax,
                early_stop=f.early_stop,
                policy=s.style.checkpoint,
                casts=low,
            )
            for kind in tower.kinds
        )

    def plain(program: Any) -> Work:
        return work(program, s.style, fused_softmax=False, early_stop=False, policy="full")

    return Compiled(of(s.decoder), tuple(of(t) for t in s.towers), plain(s.tail), plain(s.entry))


def machine_of(resolved: Resolved, s: Setup, calibration: Calibration | None = None) -> Machine:
    """What the seconds of a job depend on beside its shapes.

    Raises:
        MemfitError: the job names no card.
    """
    if resolved.gpu is None:
        raise MemfitError("the time of a step needs a GPU", hint="give hardware.gpu, e.g. `--gpu 8xh100`")
    c = calibration or default()
    f = framework(s.choices.framework, resolved.values["framework_version"])
    kernel = f.attention if s.style.attention == "flash" else "efficient"
    return Machine(
        rates=rates(resolved.gpu, s.choices.precision, kernel, c),
        fabric=fabric(resolved.gpu, resolved.stated.hardware.gpus_per_node, c),
        framework=f,
        calibration=c,
    )


@dataclass(frozen=True, slots=True)
class Micro:
    """One micro-batch on one pipeline stage: seconds of the device and of the host, by pass."""

    forward: Seconds
    backward: Seconds
    again: Seconds
    forward_s: Real
    backward_s: Real
    host: Real

    @property
    def total(self) -> Real:
        """Seconds of forward and backward."""
        return self.forward_s + self.backward_s


class Units:
    """Seconds that depend on batch, length and model-parallel degrees alone: of blocks, ends and stages."""

    def __init__(self, m: Machine, s: Setup, d: Dims, blocks: list[BlockSeconds] | None = None) -> None:
        self.m, self.s, self.d = m, s, d
        self.w = compiled(s, m.framework)
        self.blocks = self._of_blocks() if blocks is None else blocks

    def _of_blocks(self) -> list[BlockSeconds]:
        tower, d = self.s.decoder, self.d
        return [
            seconds_of(self.m, self.s, kind, w, tower.stack, d, d.tokens, d.stream_tokens)
            for kind, w in zip(tower.kinds, self.w.decoder, strict=True)
        ]

    def stage(self, stage: Stage) -> Micro:
        """One micro-batch on a stage."""
        s, m = self.s, self.m
        model = StageModel(s, self.d, stage)
        forward, backward, again = Seconds(), Seconds(), Seconds()
        counts: dict[tuple[int, bool, bool], int] = {}
        for layer in model.indices:
            trains = layer >= s.decoder.first_trained and s.decoder.kinds[s.decoder.stack.layout[layer]].trains
            key = (s.decoder.stack.layout[layer], trains, trains and model.is_checkpointed(layer))
            counts[key] = counts.get(key, 0) + 1
        for (index, trains, checkpointed), number in counts.items():
            _add(forward, backward, again, self.blocks[index], number, trains, checkpointed)
        if stage.first:
            self._towers(model, forward, backward, again)
            self._entry(model, forward, backward)
        if stage.last:
            self._tail(model, forward, backward)
        if s.reference or s.choices.method == "dpo":
            reference = Seconds()
            reference.plus(forward, 1)
            forward.plus(reference, 1)
        host = m.calibration.host_s * (m.framework.compiled_host if s.choices.compile else m.framework.host)
        compute = forward.device, backward.device + again.device
        waits = forward.launches * host, (backward.launches * BACKWARD_HOST + again.launches) * host
        ahead, back = either(compute[0], waits[0]), either(compute[1], waits[1])
        return Micro(
            forward,
            backward,
            again,
            ahead,
            back,
            most(ahead - compute[0], 0.0) + most(back - compute[1], 0.0),
        )

    def _towers(self, model: StageModel, forward: Seconds, backward: Seconds, again: Seconds) -> None:
        for tower, works in zip(self.s.towers, self.w.towers, strict=True):
            per = self.d.images * tower.stack.tokens if tower.stack.tokens else self.d.seq_len
            if tower.stack.tokens and not self.d.images:
                continue
            tokens = self.d.micro_batch * per
            for index, number in enumerate(tower.stack.counts()):
                if number:
                    kind = tower.kinds[index]
                    one = seconds_of(self.m, self.s, kind, works[index], tower.stack, self.d, tokens, tokens)
                    trains = kind.trains and not tower.first_trained
                    _add(forward, backward, again, one, number, trains, trains and model.is_checkpointed(0))

    def _entry(self, model: StageModel, forward: Seconds, backward: Seconds) -> None:
        self._end(model, self.w.entry, forward, backward, self.s.embedding.trained)
        if self.s.choices.tensor_parallel:
            group = self.m.fabric.group(self.d.tp, 1)
            forward.put(
                "tp", self.m.fabric.all_reduce(group, real(self.d.tokens) * self.s.arch.hidden_size * self.s.width)
            )

    def _tail(self, model: StageModel, forward: Seconds, backward: Seconds) -> None:
        self._end(model, self.w.tail, forward, backward, self.s.head.trained)
        if self.s.choices.tensor_parallel:
            fab = self.m.fabric
            group = fab.group(self.d.tp, 1)
            whole = real(self.d.tokens) * self.s.arch.hidden_size * self.s.width
            if self.s.profile.vocab_parallel:
                # maximum, sum of exponentials, target logit
                forward.put("tp", fab.all_reduce(group, real(self.d.tokens) * 4.0) * 3.0)
            else:
                forward.put("tp", fab.gather(group, real(model.tail_atoms()["V"]) * self.s.width))
            if self.s.style.sequence_parallel:
                forward.put("tp", fab.gather(group, whole))
                backward.put("tp", fab.gather(group, whole))
            else:
                backward.put("tp", fab.all_reduce(group, whole))

    def _end(self, model: StageModel, w: Work, forward: Seconds, backward: Seconds, trained: Any) -> None:
        atoms = model.tail_atoms()
        st = style_of(self.s)
        shapes = Shapes(self.m.rates, st, atoms, self.d, self.d.tokens, self.s.arch.hidden_size, None)
        shapes.run(w.forward, forward, low=False)
        forward.launches = forward.launches + w.forward.launches
        if trained or self.s.choices.training.full or self.s.choices.training.rank:
            shapes.run_backward(w.backward, backward, low=False)
            backward.launches = backward.launches + w.backward_launches


def _add(
    forward: Seconds,
    backward: Seconds,
    again: Seconds,
    one: BlockSeconds,
    number: int,
    trains: bool,
    checkpointed: bool,
) -> None:
    forward.plus(one.forward, number)
    if trains:
        backward.plus(one.backward, number)
    if checkpointed:
        again.plus(one.again, number)
        again.launches = again.launches + CHECKPOINT_LAUNCHES * number


@dataclass(frozen=True, slots=True)
class StageUnit:
    """Stages that do the same work, and one micro-batch on them."""

    stage: Stage
    number: int
    micro: Micro


def stage_units(units: Units, stages: list[Stage]) -> list[StageUnit]:
    """Stages by what they run."""
    layout = units.s.decoder.stack.layout
    found: dict[object, list[Stage]] = {}
    for stage in stages:
        key = (tuple(sorted(layout[i] for i in stage.indices())), stage.first, stage.last)
        if isinstance(units.s.choices.checkpointing, int) or units.s.decoder.first_trained:
            key = (*key, stage.index)  # type: ignore[assignment]
        found.setdefault(key, []).append(stage)
    return [StageUnit(same[0], len(same), units.stage(same[0])) for same in found.values()]


def micro_parts(micro: Micro) -> dict[str, Real]:
    """A micro-batch's seconds by part of the step."""
    out = {name: micro.forward.parts[name] + micro.backward.parts[name] for name in PASS_PARTS}
    out["recompute"] = micro.again.device
    out["host"] = micro.host
    return out


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A micro-batch through all stages: parts of the slowest stage, seconds of the slowest, sum over all stages."""

    parts: Mapping[str, Real]
    slowest: Real
    total: Real
    backward_s: Real
    forward_s: Real


def pipeline(found: list[StageUnit]) -> Pipeline:
    """The slowest stage and the sum."""
    top = found[0].micro.total
    parts = micro_parts(found[0].micro)
    backward_s, forward_s = found[0].micro.backward_s, found[0].micro.forward_s
    total = top * found[0].number
    for unit in found[1:]:
        seconds = unit.micro.total
        total = total + seconds * unit.number
        slower = seconds > top
        for name, value in micro_parts(unit.micro).items():
            parts[name] = choose(slower, value, parts[name])
        backward_s = choose(slower, unit.micro.backward_s, backward_s)
        forward_s = choose(slower, unit.micro.forward_s, forward_s)
        top = most(top, seconds)
    return Pipeline(parts, top, total, backward_s, forward_s)
