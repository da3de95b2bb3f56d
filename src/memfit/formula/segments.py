"""What default settings of the caching allocator keep beside what is allocated, where there is a cause to count.

- A tensor of 1 to 10 MiB stands in a segment of 20 MiB, a larger one in steps of 2 MiB: what does not fit a further
  tensor stays empty.
- Rows that expert parallelism hands out differ in number from layer to layer and from step to step. A block that was
  made for fewer rows cannot serve more: their memory exists a second time. A few per cent of difference do it.
- What layers work with in the first forward pass stands in segments of its own, too small for logits.
"""

from __future__ import annotations

from memfit.formula.dims import Group, Int, cdiv, evaluate, highest, maximum, where
from memfit.formula.stage import Part, StageModel
from memfit.units import MIB

SMALL, LARGE, SEGMENT, STEP = MIB, 10 * MIB, 20 * MIB, 2 * MIB
"""PyTorch's CUDACachingAllocator: kSmallSize, kMinLargeAlloc, kLargeBuffer, kRoundLarge."""

JOINED = (
    ("w.attention.q", "w.attention.k", "w.attention.v"),
    ("w.mlp.gate", "w.mlp.up"),
    ("w.expert.gate", "w.expert.up"),
)
"""Weights that are one tensor where a framework joins them."""

ROUTED = ("p", "r", "rr", "px", "pg", "ps")
"""Atoms whose sizes follow the router."""


def empty(size: Int) -> Int:
    """Bytes that stay empty beside a tensor of ``size`` bytes among many alike."""
    middle = cdiv(SEGMENT, maximum(SEGMENT // maximum(size, 1), 1)) - size
    return where(size <= SMALL, 0, where(size < LARGE, middle, cdiv(size, STEP) * STEP - size))


def idle(m: StageModel) -> dict[str, Int]:
    """What is there at every moment, by cause."""
    return {"unfilled": unfilled(m), "uneven": uneven(m)}


def unfilled(m: StageModel) -> Int:
    """Bytes that stay empty beside what is made tensor by tensor: optimizer states, masters, weights below adapters."""
    opt, scheme = m.s.optimizer, m.s.scheme
    full = m.c.training.full
    if full and ("optimizer" in m.c.offload or opt.bits or opt.rank):
        return 0
    state = scheme.state or m.s.width
    total: Int = 0
    for part in m.parts():
        for elements, number, expert in _tensors(m, part, part.held.trained if full else part.held.frozen):
            if not full:
                lost = empty(elements * m.s.width)
            else:
                own = elements
                if m.c.zero >= 1:
                    own = cdiv(elements, m.d.expert_copies if expert else m.ways)
                lost = opt.slots * empty(own * state) + (empty(own * scheme.master) if scheme.master else 0)
            total = total + lost * number * part.number
    return total


def _tensors(m: StageModel, part: Part, held: tuple[Group, ...]) -> list[tuple[Int, Int, bool]]:
    """(elements, tensors, of experts) of the matrices of one part of a stage."""
    groups = {g.key: g for g in held if g.linear}
    sizes = {key: g.tensors(m.d, part.num_kv) for key, g in groups.items()}
    for first, *others in JOINED if m.s.profile.joined else ():
        more = [sizes.pop(key) for key in others if key in sizes and first in sizes]
        for rows in more:
            sizes[first] = [(a + b, n) for (a, n), (b, _) in zip(sizes[first], rows, strict=True)]
    return [(elements, number, groups[key].expert) for key, rows in sizes.items() for elements, number in rows]


def uneven(m: StageModel) -> Int:
    """Bytes of routed rows in the forward pass of a layer, where their number varies."""
    best: Int = 0
    for index in set(m.layout):
        kind = m.s.decoder.kinds[index]
        atoms = m.decoder_atoms(kind)
        if "p" in atoms:
            rows = dict.fromkeys(atoms, 0) | {name: atoms[name] for name in ROUTED}
            best = maximum(best, highest(kind.program.forward, rows))
    return where(m.d.ep > 1, best, 0)


def first_pass(m: StageModel) -> Int:
    """Bytes that a layer works with in the first forward pass, beside what it keeps."""
    best: Int = 0
    for position, index in enumerate(m.layout):
        if index in m.layout[:position]:
            continue
        kind = m.s.decoder.kinds[index]
        atoms = m.decoder_atoms(kind)
        if m.is_checkpointed(m.indices[position]):
            works = highest(kind.program.inference, atoms) - atoms["x"] * m.s.style.residual
        else:
            works = highest(kind.program.forward, atoms) - evaluate(kind.program.kept, atoms)
        best = maximum(best, works)
    return best
