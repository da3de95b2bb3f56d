"""What data parallelism adds to a stage: gathered copies of weights, buffers of reductions, streams of their own."""

from __future__ import annotations

from memfit.formula.dims import Int, maximum, minimum, where
from memfit.formula.setup import Kind
from memfit.formula.stage import StageModel
from memfit.formula.weights import local

# -- gathered weights -------------------------------------------------------------------------------------------------


def gathered_width(m: StageModel, kind: Kind) -> tuple[int, int]:
    """(numerator, denominator) of bytes per gathered element; frozen quantised weights gather as stored."""
    if kind.held.quantised:
        return m.s.frozen.num, 8 * m.s.frozen.den
    return _outer_width(m), 1


def _outer_width(m: StageModel) -> int:
    """Bytes per gathered element outside the blocks."""
    return m.s.scheme.gathered or m.s.width


def _unit_of_head(m: StageModel) -> Int:
    """Elements that are gathered together with the head: all outer weights where they are one (root) unit."""
    return m.outer_weights() if m.s.sharding.root else m.head_weights()


def stays_gathered(m: StageModel) -> bool:
    """A stage of a pipeline keeps what it has gathered until the last micro-batch."""
    return m.sharded and m.s.profile.pp_no_sync and m.c.pp > 1


def gathered(m: StageModel, *, backward: bool) -> Int:
    """Bytes of gathered copies under ZeRO-3 while a block runs."""
    if not m.sharded:
        return 0
    sh = m.s.sharding
    num, den = gathered_width(m, m.s.decoder.kinds[0])
    if sh.max_live:
        live = minimum(m.whole(), sh.max_live) * num // den
    else:
        units = sh.live_units + (sh.copy_in if not backward else 0)
        live = m.largest_block() * units * num // den
        outer = _unit_of_head(m) if sh.root or not backward else 0
        live = live + outer * _outer_width(m)
        if not m.c.reshard:
            live = maximum(live, m.whole() * num // den)
    return where(m.ways > 1, live, 0)


def gathered_at_loss(m: StageModel) -> Int:
    """Bytes of gathered copies while the loss runs: the blocks are freed, the unit of the head is not."""
    if not m.sharded or m.s.sharding.max_live or not m.c.reshard:
        return gathered(m, backward=False)
    return where(m.ways > 1, _unit_of_head(m) * _outer_width(m), 0)


def prefetched(m: StageModel) -> Int:
    """Bytes of the last block's copy: the backward pass asks for it as it starts, before the logits' gradient."""
    sh = m.s.sharding
    if not m.sharded or sh.max_live or not sh.live_units or not m.c.reshard or not m.layout:
        return 0
    num, den = gathered_width(m, m.s.decoder.kinds[0])
    return where(m.ways > 1, m.block_weights(m.s.decoder.kinds[m.layout[-1]]) * num // den, 0)


def gathered_from(m: StageModel) -> list[Int]:
    """Bytes of the copies that have been gathered, and stay, once the backward pass has come to each block."""
    if not stays_gathered(m):
        return [0] * len(m.layout)
    num, den = gathered_width(m, m.s.decoder.kinds[0])
    each = {k: m.block_weights(m.s.decoder.kinds[k]) for k in set(m.layout)}
    total = _unit_of_head(m) * _outer_width(m)
    out: list[Int] = []
    for kind in reversed(m.layout):
        total = total + each[kind] * num // den
        out.append(where(m.ways > 1, total, 0))
    return out[::-1]


# -- gradients before and in their reduction --------------------------------------------------------------------------


def whole_grads(m: StageModel) -> bool:
    """Gradients of a sharded run accumulate whole: nothing is reduced between micro-batches."""
    return m.sharded and ((m.s.profile.no_sync and m.c.accumulates) or stays_gathered(m))


def whole_head_grads(m: StageModel) -> Int:
    """Bytes of the head's gradient where it waits, whole, for the embedding's: they are one unit."""
    s = m.s
    if not m.sharded or not s.sharding.root or not m.stage.last:
        return 0
    n = local((*s.head.trained, *(s.embedding.trained if s.arch.tied else ())), m.d)
    return where(m.ways > 1, n * (s.scheme.fresh or s.width), 0)


def buckets(m: StageModel, block: Int) -> Int:
    """Bytes of gradient buckets and reduction inputs while a block of ``block`` trained elements runs backward."""
    sh = m.s.sharding
    out: Int = 0
    if m.sharded and sh.reduce_units:
        width = m.s.scheme.reduce or m.s.width
        out = where(m.ways > 1, block * width * sh.reduce_units, 0)
    if m.c.zero in (1, 2) and sh.bucket_elements:
        out = out + where(m.d.dp > 1, minimum(m.trained, sh.bucket_elements) * 2, 0)
    return out


def replicas_bucket(m: StageModel) -> Int:
    """Bytes of the gradient buckets that replicated data parallelism keeps during the whole step."""
    sch = m.s.scheme
    if not m.s.profile.bucket or m.c.zero >= 2:
        return 0
    width = sch.fresh if sch.always else (sch.grad or m.s.width)
    return where(m.d.dp > 1, m.trained * width, 0)


# -- streams ----------------------------------------------------------------------------------------------------------


def stream_pools(m: StageModel) -> Int | None:
    """Peaks of the gather and reduce streams under FSDP, None where one stream serves all.

    All-gather outputs live on the gather stream, reduced gradient shards on the reduce stream. FSDP2 makes the
    inputs of reductions on the compute stream (_fsdp_collectives), DeepSpeed and FSDP1 on the reduce stream.
    """
    sh = m.s.sharding
    if not m.sharded or not sh.reduce_units:
        return None
    outer = m.outer_weights() if sh.root else maximum(m.head_weights(), m.embedding_weights())
    block = m.largest_block()
    unit = maximum(block, outer)
    # an all-gather's buffer is given back when the next one has been waited for: two exist at once
    gather = (unit + block) * _outer_width(m) if sh.copy_in else 0
    _, dense, expert = m.weights_bytes()
    shards = m.shard(dense, expert, True) * m.grad_width
    if "gradients" in m.c.offload or "optimizer" in m.c.offload:
        shards = 0
    flat = unit * (m.s.scheme.reduce or m.s.width) if sh.flat_on_reduce and m.c.training.full else 0
    return where(m.ways > 1, gather + shards + flat, 0)


def embedding_hole(m: StageModel) -> Int:
    """Bytes that a first stage without logits adds for the reduction input of its embedding.

    FSDP2 makes the input in one piece on the compute stream, when what layers kept has left holes as large as one of
    their tensors. Where logits were, there is room for it.
    """
    sh = m.s.sharding
    if not m.sharded or not sh.reduce_units or sh.flat_on_reduce or m.stage.last or not m.stage.first:
        return 0
    width = m.s.scheme.reduce or m.s.width
    return where(m.ways > 1, local(m.s.embedding.trained, m.d) * width, 0)
