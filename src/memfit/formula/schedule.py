"""Pipeline stages: which layers each holds and how many micro-batches are in flight at its fullest moment."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import accumulate

from memfit.formula.dims import Int, cdiv, minimum
from memfit.formula.stage import Stage


def in_order(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Contiguous ranges of these lengths."""
    stops = list(accumulate(sizes))
    return [(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]


def split_layers(num_layers: int, parts: int, ends: tuple[int, int] = (0, 0)) -> list[tuple[int, int]]:
    """Contiguous ranges of layers, as even as possible, the longer ones first.

    Args:
        num_layers: how many there are.
        parts: how many ranges are wanted.
        ends: layers that the embedding and the head count as: the first and the last range have so many fewer. Where
            a range would be too short for them, they count for nothing.
    """
    base, extra = divmod(num_layers + sum(ends), parts)
    if parts == 1 or base < max(ends):
        base, extra, ends = *divmod(num_layers, parts), (0, 0)
    sizes = [base + (part < extra) for part in range(parts)]
    sizes[0] -= ends[0]
    sizes[-1] -= ends[1]
    return in_order(sizes)


def split_ranks(layers: Sequence[int], chunks: int) -> list[tuple[int, int]]:
    """Contiguous ranges of all model chunks of a pipeline (chunk c of rank r is number r + ranks * c).

    Args:
        layers: of each rank, which its chunks share as evenly as possible, the longer ones first; on the first rank
            the shorter ones, since its first chunk has the embedding.
        chunks: of each rank.
    """
    shares = [[stop - start for start, stop in split_layers(n, chunks)] for n in layers]
    if len(layers) > 1:
        shares[0].reverse()
    return in_order([share[chunk] for chunk in range(chunks) for share in shares])


def split_by_cost(costs: Sequence[int], head_cost: int, parts: int) -> list[tuple[int, int]]:
    """Contiguous ranges that each reach an equal share of the compute cost, the head counted with the last.

    nanotron assigns blocks in order and moves to the next rank once the share is reached.
    """
    share = (sum(costs) + head_cost) / parts
    out: list[tuple[int, int]] = []
    start, spent = 0, 0.0
    for index, cost in enumerate(costs):
        spent += cost
        if spent >= share * (len(out) + 1) and len(out) < parts - 1:
            out.append((start, index + 1))
            start = index + 1
    out.append((start, len(costs)))
    while len(out) < parts:
        out.append((len(costs), len(costs)))
    return out


def in_flight(schedule: str, stage: int, pp: int, virtual: int, micro_batches: Int) -> tuple[Int, int]:
    """(micro-batches in flight, per) as a fraction of whole-stage activations.

    ``gpipe`` holds all; ``1f1b`` pp - stage (Narayanan 2021); ``interleaved`` the warm-up chunks of Megatron's schedule
    plus one; ``zero-bubble`` (ZB-H1) up to pp; ``dualpipe`` pp + 1 (DeepSeek-V3 report, table 2).
    """
    if pp == 1:
        return 1, 1
    if schedule == "gpipe":
        return micro_batches, 1
    if schedule == "interleaved" and virtual > 1:
        chunks = (pp - stage - 1) * 2 + (virtual - 1) * pp + 1
        return minimum(micro_batches * virtual, chunks), virtual
    if schedule == "zero-bubble":
        return minimum(micro_batches, pp), 1
    if schedule == "dualpipe":
        return minimum(micro_batches, pp + 1), 1
    return minimum(micro_batches, pp - stage), 1


def stages(
    num_layers: int,
    *,
    pp: int,
    schedule: str,
    virtual: int,
    micro_batches: Int,
    layers: Sequence[int] = (),
    ends: tuple[int, int] = (0, 0),
    costs: Sequence[int] = (),
    head_cost: int = 0,
) -> list[Stage]:
    """All stages of the pipeline.

    Args:
        num_layers: of the model.
        pp: pipeline ranks.
        schedule: order of micro-batches.
        virtual: model chunks of a rank, where the schedule interleaves them.
        micro_batches: of a step.
        layers: of each rank; when given, nothing else decides the split.
        ends: layers that the embedding and the head count as, see ``split_layers``.
        costs: compute cost of each layer; when given the split balances cost with ``head_cost`` in the last stage.
    """
    chunks = max(virtual, 1) if schedule == "interleaved" else 1
    parts = pp * chunks
    if layers and pp > 1:
        ranges = split_ranks(layers, chunks)
    elif costs and pp > 1:
        ranges = split_by_cost(costs, head_cost, parts)
    else:
        ranges = split_layers(num_layers, parts, ends)
    out = []
    for stage in range(pp):
        flights, per = in_flight(schedule, stage, pp, virtual, micro_batches)
        mine = [ranges[stage + pp * chunk] for chunk in range(chunks)]
        first, last = stage == 0, stage == pp - 1
        if schedule == "dualpipe" and pp > 1:
            mine.append(ranges[pp - 1 - stage])
            first = last = first or last
            flights = cdiv(flights, 2)  # of the layers of both copies
        out.append(Stage(stage, tuple(mine), first, last, flights, per))
    return out


def distinct(all_stages: list[Stage], layout: Sequence[Hashable]) -> list[Stage]:
    """Stages that can be the fullest: of equal ones only the first, which has the most in flight.

    Args:
        all_stages: in order.
        layout: for each layer what tells it from others.
    """
    seen: set[object] = set()
    out = []
    for stage in all_stages:
        key = (tuple(layout[i] for i in stage.indices()), stage.first, stage.last, stage.per)
        if key not in seen:
            seen.add(key)
            out.append(stage)
    return out
