"""What the optimizer keeps on a rank, and what its step takes for a moment."""

from __future__ import annotations

from memfit.formula.dims import Int, cdiv, maximum, minimum
from memfit.formula.profile import Optimizer
from memfit.formula.stage import StageModel


def optimizer_bytes(m: StageModel) -> tuple[Int, Int]:
    """(master weights, states) in bytes on the rank, wherever they are kept."""
    s, n = m.s, _owned(m)
    fp32_adapters = m.c.training.rank > 0 and s.profile.adapter_fp32
    state = 4 if fp32_adapters else (s.scheme.state or s.width)
    master = 0 if fp32_adapters and m.c.zero < 1 else n * s.scheme.master
    inside, whole = s.matrix
    opt = s.optimizer
    if not opt.matrix_only or not m.c.training.full:
        return master, _slots(opt, n, state)
    matrices = _portion(n, inside, whole)
    of_matrices = _portion(n, s.projected, whole) * state if s.projected else _slots(opt, matrices, state)
    return master, of_matrices + _slots(s.rest, n - matrices, state)


def step_temporaries(m: StageModel) -> Int:
    """Bytes that live only inside the optimizer step."""
    n = _owned(m)
    opt, sch = m.s.optimizer, m.s.scheme
    state = sch.state or m.s.width
    temp: Int = 0
    impl = m.c.optimizer_impl or m.s.profile.optimizer_impl
    if impl == "foreach" and opt.slots == 2 and not opt.bits:
        temp = n * state
    if opt.largest_temp or impl == "loop":
        temp = temp + m.largest_trained() * 4 * max(opt.largest_temp, 1)
    if sch.step_grad:
        sub_group = m.s.sharding.sub_group
        temp = temp + (minimum(n, sub_group) if sub_group and m.sharded else n) * sch.step_grad
    return temp


def _owned(m: StageModel) -> Int:
    """Elements whose optimizer states the fullest rank keeps."""
    _, dense, expert = m.weights_bytes()
    n = m.shard(dense, expert, m.c.zero >= 1)
    if m.c.zero == 1 and m.s.profile.whole_tensors:
        n = maximum(n, m.largest_trained())
    return n


def _portion(elements: Int, part: int, whole: int) -> Int:
    """``elements * part / whole``; the share is taken in 2**-20 so that arrays of 64-bit numbers hold the product."""
    return elements * ((part << 20) // whole) // (1 << 20)


def _slots(opt: Optimizer, elements: Int, state: int) -> Int:
    """Bytes of an optimizer's state slots for ``elements`` trained elements."""
    if opt.bits:
        per = cdiv(elements * opt.bits, 8) + (cdiv(elements, opt.block) * 4 if opt.block else 0)
        return per * opt.slots
    return elements * state * opt.slots
