"""Which weights a rank holds, which of them train, and what adapters add; elements, not bytes."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from memfit.formula.dims import Dims, Group, Int, groups
from memfit.formula.roles import role_of
from memfit.models.architecture import Architecture, Block, Tensor

LINEAR_ALL = "all-linear"


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What trains: the static part of a training method.

    Attributes:
        full: every weight.
        rank: adapter rank, 0 without adapters.
        targets: adapted roles; ``("all-linear",)`` for every linear layer of the blocks.
        also: patterns of modules that train in full beside the adapters, or the trained patterns of method ``freeze``.
        last_layers: method ``freeze`` with a number: only the last n layers train; 0 otherwise.
        dora: magnitude vectors beside the adapters.
    """

    full: bool = True
    rank: int = 0
    targets: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    last_layers: int = 0
    dora: bool = False

    def trains(self, tensor: Tensor) -> bool:
        """Whether the tensor itself (not an adapter of it) gets a gradient."""
        if self.full:
            return True
        return bool(self.also) and any(_matches(tensor, pattern) for pattern in self.also)

    def adapts(self, role: str, tensor: Tensor) -> bool:
        """Whether the projection gets an adapter."""
        if not self.rank or not tensor.linear:
            return False
        if self.targets == (LINEAR_ALL,):
            inside = tensor.part in ("attention", "mlp", "expert", "mixer", "other")
            return inside or tensor.role == "shared_expert_gate"
        return any(same_role(role, target) for target in self.targets)


DOWN = frozenset({"down_proj", "w2", "output_linear"})
"""Projections of an expert back to the residual stream."""

FOLDED = frozenset({"gate_proj", "up_proj", "down_proj"})
"""Names that PEFT turns into parameters of experts where it folds: dense layers of these names get no adapter."""

_SYNONYMS = {
    "wq": "q_proj",
    "wk": "k_proj",
    "wv": "v_proj",
    "wo": "o_proj",
    "output_proj": "o_proj",
    "w1": "gate_proj",
    "w3": "up_proj",
    "w2": "down_proj",
    "linear_proj": "o_proj",
    "linear_fc2": "down_proj",
    "proj": "o_proj",
}
_SAME = {
    "dense": ("o_proj", "dense"),
    "o_proj": ("o_proj", "dense", "out_proj", "c_proj", "attn_out"),
    "out_proj": ("o_proj", "out_proj"),
    "fc1": ("fc1", "up_proj", "c_fc", "dense_h_to_4h"),
    "fc2": ("fc2", "down_proj", "dense_4h_to_h"),
    "up_proj": ("up_proj", "fc1", "w3", "dense_h_to_4h"),
    "gate_proj": ("gate_proj", "w1"),
    "down_proj": ("down_proj", "fc2", "w2", "dense_4h_to_h"),
    "gate_up_proj": ("gate_proj", "up_proj", "gate_up_proj"),
    "query_key_value": ("q_proj", "k_proj", "v_proj", "query_key_value"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    "c_attn": ("q_proj", "k_proj", "v_proj", "c_attn"),
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_fc1": ("gate_proj", "up_proj"),
    "embed_tokens": ("embed_tokens", "wte", "word_embeddings", "embed_in"),
    "lm_head": ("lm_head", "embed_out", "output"),
}


def same_role(role: str, target: str) -> bool:
    """Whether a LoRA target names this projection's role, whatever the framework calls it.

    Of a target with the modules above it (``self_attn.q_proj``) the last name counts.
    """
    target = target.rpartition(".")[2]
    target = _SYNONYMS.get(target, target)
    return role == target or role in _SAME.get(target, ())


def _matches(tensor: Tensor, pattern: str) -> bool:
    if any(c in pattern for c in "*?["):
        return fnmatch.fnmatchcase(tensor.name, pattern)
    return same_role(tensor.role, pattern) or pattern in tensor.name.split(".")


def roles(tensor: Tensor) -> tuple[tuple[str, int], ...]:
    """The roles inside a projection with their output sizes."""
    return tensor.splits or ((tensor.role, tensor.shape[0]),)


def adapter_elements(tensors: Iterable[Tensor], how: Training, *, experts: str = "linear") -> int:
    """Elements of the adapters on ``tensors``: A is (rank, in), B is (out, rank); DoRA adds out.

    A fused projection that is targeted as a module has one adapter, as PEFT makes it; where the targets name the
    projections inside it, each has its own. Folded experts (see ``architecture.Code``) have one adapter of twice the
    rank for gate and up together, and their router has one; dense layers named like an expert's projection have none.
    """
    total = 0
    for t in tensors:
        whole = sum(out for _, out in t.splits) or t.shape[0]
        inputs = math.prod(t.shape) // whole
        if t.expert and experts != "linear":
            if experts == "folded" and any(how.adapts(role, t) for role, _ in roles(t)):
                fused = len(t.splits) > 1
                single = t.role in DOWN or fused
                total += how.rank * (1 + fused) * (inputs + (whole if single else 2 * whole)) * t.count
            continue
        if t.part == "mlp" and experts == "folded" and t.role in FOLDED:
            continue
        if t.part == "router" and t.role != "shared_expert_gate":
            if how.rank and experts == "folded" and t.linear and how.targets == (LINEAR_ALL,):
                total += how.rank * (inputs + whole)
            continue
        fused = how.targets == (LINEAR_ALL,) or t.role in how.targets
        for role, out in ((t.role, whole),) if fused else roles(t):
            if how.adapts(role, t):
                total += (how.rank * (inputs + out) + (out if how.dora else 0)) * t.count
    return total


@dataclass(frozen=True, slots=True)
class Held:
    """Elements of one block or of the outer tensors, split by what happens to them."""

    trained: tuple[Group, ...]
    frozen: tuple[Group, ...]
    quantised: tuple[Group, ...]
    adapters: tuple[Group, ...]

    @property
    def all(self) -> tuple[Group, ...]:
        """Everything but the adapters."""
        return (*self.trained, *self.frozen, *self.quantised)


def held(
    tensors: tuple[Tensor, ...],
    how: Training,
    *,
    quantise: Callable[[Tensor], bool],
    train: bool = True,
    experts: str = "linear",
    joined: bool = False,
) -> Held:
    """Sort tensors into trained, frozen as they are, and frozen in the storage dtype.

    ``experts``: how adapters reach them, see ``architecture.Code``; ``joined``: q, k and v are one projection with one
    adapter, gate and up, too.
    """
    trains = how.trains if train else (lambda _: False)
    sizes: dict[tuple[bool, bool], int] = {}
    for t in tensors:
        n = adapter_elements((t,), how, experts=experts) if train and not trains(t) else 0
        if n and joined and _beside_adapted(t, tensors, how):
            n -= how.rank * (math.prod(t.shape) // t.shape[0]) * t.count  # the first one's A serves all
        if n:
            key = (t.expert, t.tp_dim is not None)
            sizes[key] = sizes.get(key, 0) + n
    # one half of an adapter follows the split of its projection, the other half is replicated: counted whole
    adapters = tuple(Group("adapters", n, "", expert, False, n) for (expert, _), n in sizes.items())
    return Held(
        groups(tensors, trains),
        groups(tensors, lambda t: not trains(t) and not quantise(t)),
        groups(tensors, lambda t: not trains(t) and quantise(t)),
        adapters,
    )


_FIRST = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Projections that a fused one holds behind its first."""


def _beside_adapted(t: Tensor, tensors: tuple[Tensor, ...], how: Training) -> bool:
    """Whether a fused projection holds this one behind another that has an adapter."""
    first = _FIRST.get(role_of(t.role, t))
    return any(o.part == t.part and role_of(o.role, o) == first and how.adapts(o.role, o) for o in tensors)


UNBOUND = 1 << 30
"""Key/value heads of what has none: more than any degree of tensor parallelism."""


def local(parts: tuple[Group, ...], d: Dims, num_kv: int = UNBOUND, *, expert: bool | None = None) -> Int:
    """Elements of groups on one rank; ``expert`` picks only (non-)expert groups."""
    total: Int = 0
    for g in parts:
        if expert is None or g.expert == expert:
            total = total + g.local(d, num_kv)
    return total


def num_kv(block: Block) -> int:
    """Key/value heads, which bound how far their projections are split."""
    return block.attention.num_kv_heads if block.attention and block.attention.kind == "gqa" else UNBOUND


def matrix_share(arch: Architecture) -> tuple[int, int]:
    """(elements in hidden matrices, all elements): what matrix-only optimizers treat specially."""
    inside = 0
    total = 0
    for stack in (arch.decoder, *arch.towers):
        for block, number in zip(stack.blocks, stack.counts(), strict=True):
            inside += number * sum(t.numel for t in block.tensors if len(t.shape) == 2 and not t.buffer)
            total += number * block.num_params
    outer = sum(t.numel for t in arch.outer if not t.buffer) + sum(
        t.numel for s in (arch.decoder, *arch.towers) for t in s.extra if not t.buffer
    )
    return inside, total + outer


def projected_elements(arch: Architecture, rank: int) -> int:
    """State elements of a projected optimizer (GaLore): for an m x n matrix, m <= n, two moments of rank x n and an
    m x rank projector."""
    total = 0
    for stack in (arch.decoder, *arch.towers):
        for block, number in zip(stack.blocks, stack.counts(), strict=True):
            for t in block.tensors:
                if len(t.shape) == 2 and not t.buffer:
                    small, large = sorted(t.shape)
                    r = min(rank, small)
                    total += number * t.count * r * (2 * large + small)
    return total
