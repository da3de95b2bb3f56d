"""Everything that may be searched for one model on one set of GPUs: values of each lever, and layouts as columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import gcd, prod
from typing import TYPE_CHECKING, Any

from memfit.errors import JobErrors
from memfit.formula.arrays import LARGEST
from memfit.formula.profile import profile
from memfit.formula.resolve import Resolved, check_split, resolve
from memfit.formula.schedule import split_layers, stages
from memfit.formula.stage import Stage
from memfit.formula.training import dims_of, setup_of
from memfit.hardware import Cluster, Gpu, make_cluster
from memfit.job import Job, Strategy
from memfit.job.checks import faults
from memfit.models.architecture import Architecture, Mlp, Moe
from memfit.planner import levers
from memfit.planner.capabilities import Capability, check_framework, default_framework, excluded, variant
from memfit.speed.step import Units, machine_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

_SIZES = ("micro_batch", "grad_accum", "dp", "dp_shard", "tp", "cp", "ep", *levers.STRUCTURAL)
_MOST_VIRTUAL = 8
_FEWER = 2
"""Layers that the first and the last pipeline rank may have fewer than the rest."""
_SLOWER, _LEANER = 1.1, 0.95
"""A split that keeps less than so much of what the fastest keeps is tried where its longest rank is not much longer."""
_MANY = 1 << 20
_LEAST_TOKENS = 256
"""Context parallelism leaves each rank at least so many tokens."""
_MOST_MICRO = 512
_TUNING_SEQUENCES = 64
_TUNING_GPUS = 16
_PRETRAINING_TOKENS = 1 << 22
"""Llama 2 trained with 4M tokens a step, GPT-3 with 3.2M, Llama 3 with 4M to 16M (their reports)."""
_SOME_SIZES = sorted({n for k in range(10) for n in (2**k, 3 * 2**k, 5 * 2**k, 7 * 2**k) if n <= _MOST_MICRO})


Split = tuple[int, ...] | None
"""Layers of each pipeline rank; None is the framework's own split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Layouts that share their pipeline: ``static`` fields, and columns of the numbers."""

    static: Mapping[str, Any]
    columns: Mapping[str, Ints]

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.columns["tp"])


@dataclass(frozen=True, kw_only=True)
class Space:
    """What may be chosen for one job on one set of GPUs.

    Attributes:
        base: the job resolved without its sizes; ``values`` hold what is not searched.
        fixed: field name -> value that the user stated.
        cap: what the framework can do.
        cluster: the GPUs.
        global_batch: sequences per step; None when micro-batch and accumulation are stated instead, or ``open_batch``.
        open_batch: the batch is what is looked for: any micro-batch, accumulated as stated or not at all.
        values: lever -> values, fast ones first.
        notes: what was assumed to make the question complete.
        today: the split of today's job, which stays a choice; empty without such a job.
    """

    base: Resolved
    fixed: Mapping[str, Any]
    cap: Capability
    cluster: Cluster
    global_batch: int | None
    values: Mapping[str, tuple[Any, ...]]
    open_batch: bool = False
    notes: tuple[str, ...] = ()
    today: tuple[Split, ...] = ()

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.cluster.num_gpus

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """All layouts that divide, by pipeline and by whether dp_shard is free (``static["spread"]``).

        ``static["losses"]`` are the losses beside which the split of the layers is worth a look.
        """
        return tuple(_layouts(self))

    @cached_property
    def end_layers(self) -> Mapping[str, tuple[tuple[float, float], ...]]:
        """Loss -> layers as which embedding and head count by the time model, with each tensor-parallel degree."""
        ways = (self.fixed["tp"],) if "tp" in self.fixed else _tensor_ways(self)
        fast = {name: levers.fastest(name, self.values[name]) for name in ("checkpointing", "compile")}
        return {
            loss: tuple(_end_layers(self, {**fast, "loss": loss, "tp": tp}) for tp in ways)
            for loss in self.values["loss"]
        }

    @property
    def rows(self) -> int:
        """Rows of all layouts."""
        return sum(layout.count for layout in self.layouts)

    def roots(self) -> Iterator[tuple[dict[str, Any], Layout]]:
        """(values of the branched levers, layouts) of each branch of the search, contradictions left out."""
        names = levers.BRANCHED
        for layout in self.layouts:
            for combination in product(*(self.values[n] for n in names)):
                chosen = dict(zip(names, combination, strict=True))
                spread = chosen["zero"] in self.cap.hsdp
                if spread != layout.static["spread"] or (chosen["zero"] == 0 and spread):
                    continue
                if chosen["loss"] not in layout.static["losses"]:
                    continue
                if self.forbidden({**_pipeline(layout.static), **chosen}):
                    continue
                yield chosen, layout

    def forbidden(self, chosen: Mapping[str, Any]) -> bool:
        """Whether the values chosen so far break an exclusion of the framework."""
        named = {("in_backward" if k == "optimizer_in_backward" else k): v for k, v in chosen.items()}
        return excluded(self.cap.name, self.base.values["method"], {**named, "gpus": self.gpus}) is not None

    @cached_property
    def size(self) -> int:
        """Candidates in all: every combination of values and layouts that is not excluded."""
        total = 0
        for chosen, layout in self.roots():
            total += layout.count * self.combinations({**_pipeline(layout.static), **chosen})
        return total

    def combinations(self, chosen: Mapping[str, Any]) -> int:
        """Combinations of the bounded levers that go with the values chosen."""
        return sum(1 for _ in self.leaves(chosen))

    def leaves(self, chosen: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Those combinations."""
        names = levers.BOUNDED
        for combination in product(*(self.options(n, chosen) for n in names)):
            more = dict(zip(names, combination, strict=True))
            if not self.forbidden({**chosen, **more}):
                yield more

    def options(self, lever: str, chosen: Mapping[str, Any]) -> tuple[Any, ...]:
        """Values of a lever beside those chosen; one without an effect there has a single value."""
        if lever == "reshard" and chosen["zero"] < 3 and "reshard" not in self.fixed:
            return (True,)
        values = self.values[lever]
        if lever == "checkpointing" and chosen["pp"] > 1 and len(values) > 1:
            # every n-th layer of each chunk of the model: other steps would burden the stages unequally
            whole = self.base.arch.num_layers + sum(profile(self.cap.name).pipeline_ends)
            longest = max(chosen["pp_layers"] or (-(-whole // chosen["pp"]),))
            chunk = -(-longest // chosen["virtual_pp"])
            return tuple(v for v in values if isinstance(v, str) or chunk % v == 0)
        return values


def _pipeline(static: Mapping[str, Any]) -> dict[str, Any]:
    return {name: static[name] for name in levers.STRUCTURAL}


def make_space(
    job: Job,
    gpu: Gpu,
    gpus: int,
    *,
    allow: frozenset[str],
    free: frozenset[str] = frozenset(),
    seq_len: int | None = None,
    open_batch: bool = False,
) -> Space:
    """The space of a job.

    Args:
        job: what the user stated.
        gpu: the card.
        gpus: number of GPUs.
        allow: changes of results that the user permits.
        free: fields of the job that are not fixed although they are stated.
        seq_len: replaces the stated length.
        open_batch: the batch is looked for, unless it is stated.

    Raises:
        JobErrors: the stated fields contradict each other.
        MemfitError: the framework cannot be planned for.
    """
    stated = {
        name: value
        for part in (job.task, job.strategy)
        for name in part.__dataclass_fields__
        if (value := getattr(part, name)) is not None and name not in free
    }
    if seq_len is not None:
        stated["seq_len"] = seq_len
    if "pp_layers" in stated:
        stated.setdefault("pp", len(stated["pp_layers"]))
    errors = faults({**stated, "gpus": gpus, "kind": "train"})
    if errors:
        raise JobErrors(errors)
    notes = []
    framework = stated.get("framework")
    if framework is None:
        method = stated.get("method") or ("lora" if "lora" in stated else "full")
        framework, why = default_framework(method, gpus)
        notes.append(f"framework {framework}: none was stated; {why}")
    check_framework(framework)
    bare: dict[str, Any] = {n: None for n in job.strategy.__dataclass_fields__ if n in _SIZES or n in free}
    strategy = replace(job.strategy, **{**bare, "framework": framework})
    task = replace(job.task, kind="train", seq_len=stated.get("seq_len"), global_batch=None)
    hardware = replace(job.hardware, gpu=gpu.name, gpus=gpus, gpus_per_node=None)
    resolved = resolve(replace(job, task=task, strategy=strategy, hardware=hardware))
    check_split({**resolved.values, "pp_layers": job.strategy.pp_layers}, resolved.arch.num_layers)
    cluster = make_cluster(gpu, gpus, gpus_per_node=job.hardware.gpus_per_node)
    cap = variant(framework, resolved.values["framework_version"])
    values: dict[str, Any] = {**resolved.values, "gpus_per_node": cluster.gpus_per_node, "gpus": gpus}
    if "precision" not in stated and "bf16" not in gpu.flops and values["precision"].startswith("bf16"):
        values["precision"] = values["precision"].replace("bf16", "fp16")
        notes.append(f"precision {values['precision']}: the card does not multiply in bf16")
    micro, accum = stated.get("micro_batch"), stated.get("grad_accum")
    batch = stated.get("global_batch")
    open_batch = open_batch and batch is None and not micro
    if batch is None and not (micro and accum) and not open_batch:
        batch, why = _default_batch(values, gpus, micro or 1)
        notes.append(f"global batch {batch} sequences: none was stated (--global-batch); {why}")
    base = replace(resolved, values=values)
    known = {**values, "num_layers": resolved.arch.num_layers}
    flops = gpu.flops
    has = {
        "has_bf16": "bf16" in flops,
        "has_fp8": "fp8" in flops,
        "has_fp4": bool({"nvfp4", "mxfp4", "fp4"} & set(flops)),
    }
    searched: dict[str, tuple[Any, ...]] = {}
    for lever in (*levers.BRANCHED, *levers.BOUNDED):
        own = levers.values_of(lever, cap, known, allow, **has)
        if lever in free and known[lever] not in own:
            own = (*own, known[lever])
        if lever in stated:
            if stated[lever] not in own and lever not in ("precision", "optimizer"):
                notes.append(f"{lever} {stated[lever]} was stated, though {framework} is not known to offer it")
            own = (stated[lever],)
        searched[lever] = own
    odd = [axis for axis in ("tp", "pp", "cp", "ep") if stated.get(axis, 1) > 1 and not getattr(cap, axis)]
    notes += [f"{axis} {stated[axis]} was stated, though {framework} is not known to offer it" for axis in odd]
    return Space(
        base=base,
        fixed=stated,
        cap=cap,
        cluster=cluster,
        global_batch=batch,
        values=searched,
        open_batch=open_batch,
        notes=tuple(notes),
        today=(job.strategy.pp_layers,) if "pp_layers" in free else (),
    )


def _default_batch(values: Mapping[str, Any], gpus: int, micro: int) -> tuple[int, str]:
    """(sequences of a step when nobody says, why): a power of two, at least one sequence for each GPU."""
    seq = values["seq_len"]
    batch, why = _TUNING_SEQUENCES, f"{_TUNING_SEQUENCES} are usual for fine-tuning"
    if values["method"] == "full" and gpus > _TUNING_GPUS:
        batch, why = max(_PRETRAINING_TOKENS // seq, 1), "about 4M tokens are usual for pre-training"
    batch = 1 << (batch.bit_length() - 1)
    while batch < gpus * micro:
        batch *= 2
    return batch, why


def divisors(number: int) -> list[int]:
    """All divisors in rising order."""
    return [n for n in range(1, number + 1) if number % n == 0] if number < 4096 else _big_divisors(number)


def _big_divisors(number: int) -> list[int]:
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _widths(arch: Architecture) -> list[int]:
    """Numbers that tensor parallelism must divide: heads, and the widths of the feed-forward layers."""
    found = []
    for block in arch.decoder.blocks:
        if block.attention:
            found.append(block.attention.num_heads)
        if block.recurrent and block.recurrent.num_heads:
            found.append(block.recurrent.num_heads)
        if isinstance(block.ffn, Mlp | Moe):
            found.append(block.ffn.intermediate)
    return found


def _tensor_ways(space: Space) -> list[int]:
    arch, cluster = space.base.arch, space.cluster
    if not space.cap.tp:
        return [1]
    room = gcd(cluster.num_gpus, cluster.gpus_per_node)
    widths = _widths(arch)
    keys = [b.attention.num_kv_heads for b in arch.decoder.blocks if b.attention and b.attention.kind != "mla"]
    return [
        t for t in divisors(room) if all(w % t == 0 for w in widths) and all(k % t == 0 or t % k == 0 for k in keys)
    ]


def _context_ways(space: Space) -> list[int]:
    seq = space.base.values["seq_len"]
    if not space.cap.cp:
        return [1]
    heads = [b.attention.num_heads for b in space.base.arch.decoder.blocks if b.attention]
    if not heads:
        return [1]
    ways = [c for c in divisors(space.gpus) if c == 1 or (seq % (2 * c) == 0 and seq // c >= _LEAST_TOKENS)]
    return [c for c in ways if not space.cap.cp_heads or all(h % c == 0 for h in heads)]


def _expert_ways(space: Space) -> list[int]:
    experts = [b.ffn.num_experts for b in space.base.arch.decoder.blocks if isinstance(b.ffn, Moe)]
    if not experts or not space.cap.ep:
        return [1]
    return [e for e in divisors(experts[0]) if e <= space.gpus and all(n % e == 0 for n in experts)]


def _pipelines(space: Space) -> Iterator[tuple[int, str, int]]:
    """(pp, schedule, virtual_pp)."""
    layers, fixed, cap = space.base.arch.num_layers, space.fixed, space.cap
    spare = range(2 * _FEWER + 1) if cap.splits else (0, 2) if cap.uneven else (0,)
    ways = [p for p in divisors(space.gpus) if p <= layers] if cap.pp else [1]
    if "pp" in fixed:
        ways = [fixed["pp"]]
    for pp in ways:
        if pp == 1:
            yield 1, "1f1b", 1
            continue
        if len(spare) == 1 and layers % pp and "pp" not in fixed:
            continue
        schedules = (fixed["pp_schedule"],) if "pp_schedule" in fixed else cap.schedules
        for schedule in schedules:
            if schedule != "interleaved":
                if fixed.get("virtual_pp", 1) == 1:
                    yield pp, schedule, 1
                continue
            most = min((layers + spare[-1]) // pp, _MOST_VIRTUAL)
            chunks = [fixed["virtual_pp"]] if "virtual_pp" in fixed else range(2, most + 1)
            for v in chunks:
                whole = any((layers + fewer) % (pp * v) == 0 for fewer in spare)
                if "virtual_pp" in fixed or whole:
                    yield pp, schedule, v


def _splits(
    space: Space, pipelines: Iterable[tuple[int, str, int]]
) -> Iterator[tuple[tuple[int, str, int], Split, frozenset[str]]]:
    """(pipeline, split, losses beside which it is worth a look)."""
    every = frozenset(space.values["loss"])
    fixed = space.fixed.get("pp_layers")
    for pipeline in pipelines:
        if pipeline[0] == 1:
            yield pipeline, None, every
        elif fixed is not None:
            pp, _, virtual = pipeline
            if len(fixed) == pp and (max(fixed) % virtual == 0 or "virtual_pp" in space.fixed):
                yield pipeline, fixed, every
        elif "pp_layers" in space.fixed or not space.cap.splits:
            yield pipeline, None, every
        else:
            yield from ((pipeline, split, losses) for split, losses in _worth(space, *pipeline).items())


def _worth(space: Space, pp: int, schedule: str, virtual: int) -> dict[Split, frozenset[str]]:
    """The splits with the shortest longest rank, and those that keep least where that is clearly less.

    All ranks have equal chunks (the time model knows no others), but for up to ``_FEWER`` layers on the first and the
    last, or are what the framework makes of them. Time is counted in layers (``Space.end_layers``), what is kept in
    layers times micro-batches in flight.
    """
    layers = space.base.arch.num_layers
    ends = profile(space.cap.name).pipeline_ends
    made: dict[tuple[int, ...], tuple[float, Split]] = {}
    for split in _candidates(
        layers, pp, virtual, own=(space.cap.uneven and pp * virtual <= layers) or layers % (pp * virtual) == 0
    ):
        ranks = stages(
            layers, pp=pp, schedule=schedule, virtual=virtual, micro_batches=_MANY, layers=split or (), ends=ends
        )
        sizes = tuple(len(stage.indices()) for stage in ranks)
        kept = max(size * stage.in_flight / stage.per for size, stage in zip(sizes, ranks, strict=True))
        made.setdefault(sizes, (kept, split))
    found: dict[Split, frozenset[str]] = {}
    for loss, counts in space.end_layers.items():
        for first, last in counts:
            times = {sizes: max(sizes[0] + first, *sizes, sizes[-1] + last) for sizes in made}
            fast = min(made, key=lambda sizes: (times[sizes], made[sizes][0]))
            near = [sizes for sizes in made if times[sizes] < times[fast] * _SLOWER]
            lean = min(near, key=lambda sizes: (made[sizes][0], times[sizes]))
            for sizes in (fast, lean) if made[lean][0] < made[fast][0] * _LEANER else (fast,):
                split = made[sizes][1]
                found[split] = found.get(split, frozenset()) | {loss}
    if space.today and (space.today[0] is None or len(space.today[0]) == pp):
        found[space.today[0]] = frozenset(space.values["loss"])
    return found


def _end_layers(space: Space, values: Mapping[str, Any]) -> tuple[float, float]:
    base = replace(space.base, values={**space.base.values, **values})
    s, layers = setup_of(base), space.base.arch.num_layers
    units = Units(machine_of(base, s), s, dims_of(base))

    def seconds(count: int, *, first: bool = False, last: bool = False) -> float:
        return float(units.stage(Stage(0, ((0, count),), first, last, 1)).total)

    one = seconds(layers) / layers
    return seconds(0, first=True) / one, seconds(0, last=True) / one


def _candidates(layers: int, pp: int, virtual: int, *, own: bool) -> Iterator[Split]:
    """Splits to choose from; None, the framework's own, where it is one of them or there is no other."""
    found = []
    for first, last in product(range(_FEWER + 1), repeat=2):
        most, left = divmod(layers + first + last, pp)
        # a chunk of the first or the last rank may be the embedding or the head alone
        if not left and most % virtual == 0 and most // virtual >= max(first, last):
            found.append((most - first, *[most] * (pp - 2), most - last))
    if own:
        yield None
    yield from dict.fromkeys(found)
    if not own and not found:
        yield tuple(stop - start for start, stop in split_layers(layers, pp))


def _layouts(space: Space) -> Iterator[Layout]:
    tps, cps, eps = _tensor_ways(space), _context_ways(space), _expert_ways(space)
    fixed = space.fixed
    tps, cps, eps = ([fixed[n]] if n in fixed else ways for n, ways in (("tp", tps), ("cp", cps), ("ep", eps)))
    spreads = sorted({z in space.cap.hsdp for z in space.values["zero"]})
    known: dict[Any, list[tuple[int, int, int]]] = {}
    for (pp, schedule, virtual), split, losses in _splits(space, _pipelines(space)):
        meshes = []
        for tp, cp in product(tps, cps):
            ways = tp * cp * pp
            if space.gpus % ways == 0 and fixed.get("dp", space.gpus // ways) == space.gpus // ways:
                dp = space.gpus // ways
                meshes += [(tp, cp, ep, dp) for ep in eps if (dp * cp * tp) % ep == 0]
        for spread in spreads:
            rows = [(mesh, inner) for mesh in meshes if (inner := _inner(space, mesh[-1], pp, schedule, spread, known))]
            if rows:
                static = {"pp": pp, "pp_schedule": schedule, "virtual_pp": virtual, "pp_layers": split}
                yield _layout({**static, "losses": losses, "spread": spread}, rows)


def _inner(
    space: Space, dp: int, pp: int, schedule: str, spread: bool, known: dict[Any, list[tuple[int, int, int]]]
) -> list[tuple[int, int, int]]:
    """(dp_shard, micro-batch, accumulation) that go with a number of data-parallel ranks; ``known`` keeps them."""
    key = (dp, pp, schedule, spread)
    if key not in known:
        shards = _shards(space, dp, spread=spread)
        known[key] = [(shard, *batch) for batch in _batches(space, dp, pp, schedule) for shard in shards]
    return known[key]


def _layout(static: Mapping[str, Any], rows: Sequence[tuple[tuple[int, ...], Sequence[tuple[int, ...]]]]) -> Layout:
    import numpy as np

    sizes = [len(inner) for _, inner in rows]
    outer = np.repeat(np.array([mesh for mesh, _ in rows], dtype=np.int64), sizes, axis=0)
    table = np.hstack([outer, np.concatenate([np.array(inner, dtype=np.int64) for _, inner in rows])])
    names = ("tp", "cp", "ep", "dp", "dp_shard", "micro_batch", "grad_accum")
    return Layout(static=static, columns={name: table[:, i].copy() for i, name in enumerate(names)})


def _batches(space: Space, dp: int, pp: int, schedule: str) -> Iterator[tuple[int, int]]:
    """(micro-batch, accumulation) that make the global batch."""
    fixed = space.fixed
    micro, accum = fixed.get("micro_batch"), fixed.get("grad_accum")
    most = min(_MOST_MICRO, max(1, LARGEST // space.base.values["seq_len"] ** 2))
    if space.open_batch:
        steps = int(accum or (pp if schedule == "interleaved" else 1))
        yield from ((size, steps) for size in _SOME_SIZES if size <= most)
        return
    if space.global_batch is None:
        yield int(micro or 1), int(accum or 1)
        return
    if space.global_batch % dp:
        return
    each = space.global_batch // dp
    for size in divisors(each):
        if size > most and micro is None:
            break
        steps = each // size
        if (micro and size != micro) or (accum and steps != accum):
            continue
        if schedule == "interleaved" and space.cap.pp_accum and steps % pp:
            continue
        if schedule == "dualpipe" and steps < 2 * pp:
            continue
        yield size, steps


def _shards(space: Space, dp: int, *, spread: bool) -> list[int]:
    """Data-parallel ranks that one sharded copy may span."""
    if "dp_shard" in space.fixed:
        return [int(space.fixed["dp_shard"])] if dp % space.fixed["dp_shard"] == 0 else []
    if not spread or dp == 1:
        return [dp]
    return divisors(dp)[1:]


def strategy_of(values: Mapping[str, Any]) -> Strategy:
    """The strategy of a plan: what has an effect, written out."""
    names = [n for n in Strategy.__dataclass_fields__ if values.get(n) is not None]
    return Strategy(**{n: values[n] for n in names})


def count_gpus(values: Mapping[str, Any]) -> int:
    """GPUs of the degrees."""
    return prod(int(values[n]) for n in ("dp", "tp", "pp", "cp"))
