"""Element counts: the atoms of the layer programs, for one job or for arrays of jobs.

Dimension legend: B micro-batch, S sequence, T tokens on the rank (B*S/cp), D hidden, H heads, K kv heads, N head dim,
F feed-forward width, V vocabulary, E experts, k experts per token; tp, cp, ep, dp the degrees of the mesh axes.
All values are ``int`` or int64 arrays; only ``+ - * //`` and the helpers here are used, so that arrays equal scalars.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memfit.formula.roles import tensor_atom
from memfit.models.architecture import Attention, Block, Moe, Stack, Tensor

Int = Any
"""An ``int`` or an int64 array of jobs."""


def maximum(first: Int, *others: Int) -> Int:
    """Element-wise maximum."""
    for other in others:
        if type(first) is int and type(other) is int:
            if other > first:
                first = other
        else:
            import numpy as np

            first = np.maximum(first, other)
    return first


def minimum(first: Int, *others: Int) -> Int:
    """Element-wise minimum."""
    for other in others:
        if type(first) is int and type(other) is int:
            if other < first:
                first = other
        else:
            import numpy as np

            first = np.minimum(first, other)
    return first


def where(condition: Int, yes: Int, no: Int) -> Int:
    """Element-wise choice."""
    if type(condition) is bool or type(condition) is int:
        return yes if condition else no
    import numpy as np

    return np.where(condition, yes, no)


def cdiv(value: Int, by: Int) -> Int:
    """Division rounded up."""
    return -(-value // by)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dims:
    """The numeric axes of a job: ints, or arrays of equal length.

    Attributes:
        micro_batch, seq_len, grad_accum: B, S, micro-batches per optimizer step.
        dp, dp_shard, tp, cp, ep: degrees; ``dp_shard`` is how many data-parallel ranks share one sharded copy.
        sequence_parallel: the residual stream is split over tp.
        imbalance_pct: tokens that the fullest expert-parallel rank receives, in percent of the mean.
        images: images per sequence.
        split_experts: the framework splits experts over tp where the ranks allow it.
    """

    micro_batch: Int
    seq_len: Int
    grad_accum: Int = 1
    dp: Int = 1
    dp_shard: Int = 1
    tp: Int = 1
    cp: Int = 1
    ep: Int = 1
    sequence_parallel: bool = False
    imbalance_pct: int = 100
    images: Int = 0
    split_experts: bool = True

    @property
    def tokens(self) -> Int:
        """T: tokens of one micro-batch on the rank."""
        return cdiv(self.micro_batch * self.seq_len, self.cp)

    @property
    def stream_tokens(self) -> Int:
        """Tokens of the residual stream on the rank."""
        return cdiv(self.tokens, self.tp) if self.sequence_parallel else self.tokens

    @property
    def expert_tp(self) -> Int:
        """How many ranks split one expert: tp, or 1 where expert parallelism takes the ranks of tp, too."""
        if not self.split_experts:
            return 1
        return where((self.dp * self.cp) % self.ep == 0, self.tp, 1)

    @property
    def expert_copies(self) -> Int:
        """Ranks that hold the same experts (expert data parallelism), of those that share a sharded copy."""
        return maximum(self.dp_shard * self.cp * self.tp // (self.ep * self.expert_tp), 1)


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that are split alike: ``numel`` elements, split over tp (``split``: "tp", "kv" or "") and over ep.

    ``pieces``: elements of each tensor, and how many of them there are.
    """

    key: str
    numel: int
    split: str
    expert: bool
    linear: bool
    largest: int
    pieces: tuple[tuple[int, int], ...] = ()

    def local(self, d: Dims, num_kv: int) -> Int:
        """Elements on one tensor- and expert-parallel rank."""
        ways = self.ways(d, num_kv)
        if self.expert:
            ways = ways * d.ep
        return cdiv(self.numel, ways)

    def ways(self, d: Dims, num_kv: int) -> Int:
        """Ranks of tensor parallelism that each tensor is split over."""
        return minimum(d.tp, num_kv) if self.split == "kv" else self.tp(d)

    def tensors(self, d: Dims, num_kv: int) -> list[tuple[Int, Int]]:
        """(elements of one tensor, tensors) on one rank, for each size."""
        ways, ranks = self.ways(d, num_kv), d.ep if self.expert else 1
        return [(cdiv(numel, ways), cdiv(count, ranks)) for numel, count in self.pieces]

    def tp(self, d: Dims) -> Int:
        """Ranks that split each tensor, where it is split."""
        if not self.split:
            return 1
        return d.expert_tp if self.expert else d.tp


def groups(tensors: tuple[Tensor, ...], keep: Callable[[Tensor], bool] = lambda _: True) -> tuple[Group, ...]:
    """Tensors summed by what decides how they are split."""
    sums: dict[tuple[str, str, bool, bool], list[int]] = {}
    pieces: dict[tuple[str, str, bool, bool], dict[int, int]] = {}
    for t in tensors:
        if t.buffer or not keep(t):
            continue
        split = "" if t.tp_dim is None else ("kv" if t.role in ("k_proj", "v_proj") else "tp")
        key = (tensor_atom(t), split, t.expert, t.linear)
        entry = sums.setdefault(key, [0, 0])
        each = math.prod(t.shape)
        entry[0] += t.numel
        entry[1] = max(entry[1], each)
        mine = pieces.setdefault(key, {})
        mine[each] = mine.get(each, 0) + t.count
    return tuple(
        Group(k, n, split, expert, linear, big, tuple(pieces[k, split, expert, linear].items()))
        for (k, split, expert, linear), (n, big) in sums.items()
    )


def attention_atoms(att: Attention, d: Dims, tokens: Int, length: Int) -> dict[str, Int]:
    """Atoms of an attention sub-layer over ``tokens`` tokens, ``length`` of which see each other."""
    heads = cdiv(att.num_heads, d.tp)
    kv = maximum(cdiv(att.num_kv_heads, d.tp), 1)
    q = tokens * heads * att.head_dim
    o = tokens * heads * att.v_head_dim
    square = length * length
    # SDPA drops the mask of a window that is longer than the sequence (masking_utils: kv_length < local_attention_size)
    masked = 0 if att.window is None else length >= att.window
    k, v = tokens * kv * att.head_dim, tokens * kv * att.v_head_dim
    windowed = {
        "M": where(masked, square, 0),
        "kr": where(masked, q, k),
        "vr": where(masked, o, v),
        "qs": where(masked, 0, q),
        "om": where(masked, 0, o),
        "sm": where(masked, 0, tokens * heads * length),
    }
    out = windowed | {
        "q": q,
        "k": k,
        "v": v,
        "o": o,
        "h": tokens * heads,
        "s": tokens * heads * length,
        # a lone key/value head is expanded, not copied, unless a batched product lays it out for several sequences
        "q1": where(d.micro_batch > 1, q, 0),
        "o1": where(d.micro_batch > 1, o, 0),
        "P": square * heads,
        "SS": square,
    }
    out["qkv"] = out["q"] + out["k"] + out["v"]
    if att.kind == "mla":
        latent = att.kv_lora_rank + att.qk_rope_head_dim
        out["m1"] = tokens * att.q_lora_rank
        out["m2"] = tokens * latent
        out["m3"] = tokens * att.kv_lora_rank
        out["m4"] = tokens * heads * (att.qk_nope_head_dim + att.v_head_dim)
    return out


def routed_atoms(ffn: Moe, d: Dims, tokens: Int, stream: Int, hidden: int) -> dict[str, Int]:
    """Atoms of routed tokens, of which the fullest rank of expert parallelism gets more than the mean.

    p, r, rr are rows that experts work on. Where rows travel to their experts: pl leave the rank's own part of the
    sequence, px arrive, pg are gathered from the ranks that split the experts, ps are scattered back to them, py come
    home; each is 0 where nothing travels. es and ts are e and tk of the rank's own part of the sequence.
    """

    def uneven(rows: Int) -> Int:
        return where(d.ep > 1, cdiv(rows * d.imbalance_pct, 100), rows)

    own = stream * ffn.top_k
    arriving = uneven(own)
    whole = d.expert_tp == d.tp
    routed = where(whole, uneven(tokens * ffn.top_k), arriving)
    travels = where(d.ep > 1, 1, 0)
    gathered = where(d.expert_tp > 1, 1, 0) if d.sequence_parallel else 0
    return {
        "e": tokens * ffn.num_experts,
        "tk": tokens * ffn.top_k,
        "es": stream * ffn.num_experts,
        "ts": own,
        "p": routed * hidden,
        "r": routed * cdiv(ffn.intermediate, d.expert_tp),
        "rr": 2 * routed * cdiv(ffn.intermediate, d.expert_tp),
        "pl": own * hidden,
        "px": arriving * hidden * travels,
        "pg": routed * hidden * gathered,
        "ps": arriving * hidden * gathered,
        "py": own * hidden * travels,
        "pk": own * hidden * (1 - travels),
    }


def block_atoms(block: Block, stack: Stack, d: Dims, tokens: Int, stream: Int) -> dict[str, Int]:
    """All atoms of one block on one rank."""
    hidden = stack.hidden_size
    out: dict[str, Int] = {"x": stream * hidden, "X": tokens * hidden, "t": stream, "T": tokens, "h": tokens}
    att = block.attention or block.cross
    if att:
        out |= attention_atoms(att, d, tokens, stack.tokens or d.seq_len)
    ffn = block.ffn
    if isinstance(ffn, Moe):
        out |= routed_atoms(ffn, d, tokens, stream, hidden)
        experts, width = cdiv(ffn.num_experts, d.ep), cdiv(ffn.intermediate, d.expert_tp)
        held = experts * hidden * width
        out["Wi"], out["Wo"] = held * (2 if ffn.gated else 1), held
        out["Ei"], out["Eo"] = experts * (hidden + width * (2 if ffn.gated else 1)), experts * (hidden + width)
        out["g"] = tokens * cdiv(ffn.shared_intermediate, d.tp)
        out["f"] = tokens * cdiv(ffn.dense.intermediate, d.tp) if ffn.dense else 0
    elif ffn:
        out["f"] = tokens * cdiv(ffn.intermediate, d.tp)
    if "f" in out:
        out["ff"] = 2 * out["f"]
    rec = block.recurrent
    if rec:
        inner = cdiv(rec.inner, d.tp)
        conv = cdiv(rec.conv_dim or rec.inner, d.tp)
        out["i"] = tokens * inner
        out["c"] = tokens * conv
        out["b"] = tokens * maximum(cdiv(rec.num_heads, d.tp), 1)
        out["z"] = tokens * (inner + conv) + out["b"] * (1 if rec.kind.startswith("mamba") else 2)
        out["d"] = tokens * (rec.dt_rank + 4 * rec.key_dim)
        out["qr"] = out["b"] * rec.key_dim
        if rec.kind == "conv":
            out["z"] = 3 * out["i"]
        out["y"] = cdiv(tokens, rec.chunk) * cdiv(rec.state_elements, d.tp)
    return out


PROCESSORS = 132
"""Multiprocessors of the GPU that reductions are sized for (H100, H200)."""


def reduction(rows: Int, columns: Int) -> Int:
    """Bytes that CUDA stages for the sum of a (rows, columns) tensor over its rows, as for a bias gradient.

    PyTorch's Reduce.cuh: blocks of 32 x 4 threads, four columns a thread; several blocks share a column when each
    thread has at least 256 rows, as many as fill the GPU.
    """
    width = minimum(maximum(columns // 4, 1), 32)
    height = 128 // width
    each = cdiv(rows, height)
    grid = cdiv(columns, 4 * width)
    target = PROCESSORS * 16
    blocks = maximum(minimum(cdiv(target, grid), cdiv(each, 16)), cdiv(each, 256))
    return where((each >= 256) & (grid <= target), 16 * columns * blocks * width, 0)


def derived(atom: str, atoms: dict[str, Int]) -> Int | None:
    """Atoms that follow from others: ``R.a`` stages the sum of ``a`` over tokens, ``RH.a`` over tokens and heads."""
    kind, _, base = atom.partition(".")
    size = atoms.get(base)
    if kind not in ("R", "RH") or size is None:
        return None
    rows = maximum(atoms["t"] if base == "x" else atoms["T"], 1)
    columns = maximum(size // rows, 1)
    if kind == "RH":
        columns = atoms["q"] // atoms["h"]
        rows = size // columns
    return reduction(rows, columns)


def evaluate(form: Mapping[str, int], atoms: dict[str, Int]) -> Int:
    """The bytes of a linear form."""
    total: Int = 0
    for atom, width in form.items():
        value = atoms.get(atom)
        if value is None:
            value = derived(atom, atoms)
            if value is None:
                continue
            atoms[atom] = value
        total = total + value * width
    return total


def highest(forms: tuple[Mapping[str, int], ...], atoms: dict[str, Int]) -> Int:
    """The largest of several linear forms."""
    return maximum(*(evaluate(form, atoms) for form in forms))
