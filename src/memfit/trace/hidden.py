"""Temporaries inside CUDA kernels, from a table (``data/hidden.toml``) of rules with their provenance.

Dimension legend: B batch, H query heads, K key/value heads, S query tokens, T key tokens, N head dim, D width.
The formulas restate, in our words, what PyTorch's public kernels allocate; each rule names its file.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).parent / "data" / "hidden.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """The properties of the target GPU that decide what kernels allocate.

    Attributes:
        capability: compute capability, e.g. (9, 0).
        multiprocessors: number of streaming multiprocessors.
        threads_per_multiprocessor: resident threads one of them holds.
        total_bytes: device memory.
        name: as CUDA reports it.
    """

    capability: tuple[int, int] = (9, 0)
    multiprocessors: int = 132
    threads_per_multiprocessor: int = 2048
    total_bytes: int = 85_520_809_984
    name: str = "NVIDIA H100 80GB HBM3"


@dataclass(kw_only=True, slots=True)
class HiddenRules:
    """The rules that hold for one GPU and one torch release.

    Attributes:
        gpu: the target.
        torch_version: release whose kernels are meant, "2.13".
        rules: by operation name.
        used: names of the rules that fired, with how often.
    """

    gpu: Gpu
    torch_version: str
    rules: dict[str, list[dict[str, Any]]]
    used: dict[str, int] = field(default_factory=dict)
    handles: set[tuple[int, bool]] = field(default_factory=set)

    @classmethod
    def for_gpu(cls, gpu: Gpu, torch_version: str) -> HiddenRules:
        """Select the rules of the table that apply."""
        found: dict[str, list[dict[str, Any]]] = {}
        for rule in table():
            if applies(rule, gpu, torch_version):
                for op in rule["ops"]:
                    found.setdefault(op, []).append(rule)
        return cls(gpu=gpu, torch_version=torch_version, rules=found)

    def persistent(self, op: str, args: Any, stream: int, backward: bool, device: str) -> Sequence[int]:
        """Bytes taken now and never returned: the workspace of a cuBLAS handle, one per thread and stream."""
        for rule in self.rules.get(op, ()):
            if rule["formula"] == "per_handle" and _on_device(args, device):
                key = (stream, backward)  # the autograd engine's thread has a handle of its own
                if key not in self.handles:
                    self.handles.add(key)
                    self.used[rule["name"]] = self.used.get(rule["name"], 0) + 1
                    return (rule["bytes"],)
        return ()

    def temporaries(self, op: str, args: Any, kwargs: Any, out: Any, device: str) -> Sequence[int]:
        """Bytes taken and returned inside the operation, in the order they are taken."""
        rules = self.rules.get(op)
        if not rules or not _on_device(args, device):
            return ()
        sizes: list[int] = []
        for rule in rules:
            if rule["formula"] != "per_handle":
                more = [s for s in _FORMULAS[rule["formula"]](rule, self.gpu, args, kwargs, out) if s > 0]
                if more:
                    self.used[rule["name"]] = self.used.get(rule["name"], 0) + 1
                    sizes += more
        return sizes


@functools.cache
def table() -> tuple[dict[str, Any], ...]:
    """All rules of the data file."""
    return tuple(tomllib.loads(_TABLE.read_text("utf-8"))["rule"])


def applies(rule: dict[str, Any], gpu: Gpu, torch_version: str) -> bool:
    """Whether a rule holds for this GPU and torch release; ``torch = [first, first without]``."""
    if gpu.capability < tuple(rule.get("min_capability", (0, 0))):
        return False
    if gpu.capability > tuple(rule.get("max_capability", (99, 9))):
        return False
    first, end = rule.get("torch", ("", ""))
    now = _release(torch_version)
    return not (first and now < _release(first)) and not (end and now >= _release(end))


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def _on_device(args: Any, device: str) -> bool:
    for arg in args:
        if isinstance(arg, (list, tuple)):
            arg = arg[0] if arg else None
        if hasattr(arg, "untyped_storage"):
            return bool(arg.device.type == device)
    return False


def _up(value: int, to: int) -> int:
    return -(-value // to) * to


# -- formulas: (rule, gpu, args, kwargs, out) -> sizes ---------------------------------------------------------


def _per_call(rule: Any, _gpu: Gpu, _args: Any, _kwargs: Any, _out: Any) -> list[int]:
    return [rule["bytes"]]


def _like_first_input(_rule: Any, _gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> list[int]:
    return [args[0].numel() * args[0].element_size()]


def _per_element(rule: Any, _gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> list[int]:
    count = args[0].numel()
    return [int(rule["bytes_per_element"] * count)] if count >= rule.get("min_elements", 1) else []


def _per_output_element(rule: Any, _gpu: Gpu, _args: Any, _kwargs: Any, out: Any) -> list[int]:
    return [int(rule["bytes_per_element"] * out.numel())]


def _flash_backward(_rule: Any, _gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> list[int]:
    q, k = args[1], args[2]
    if q.dim() != 4:
        return []
    b, h, s, n = q.shape
    heads_kv, t = k.shape[1], k.shape[2]
    wide = _up(n, 32) if n <= 192 else 256
    sizes = [4 * b * h * _up(s, 128), 4 * b * h * _up(s, 128) * wide]
    if heads_kv != h:
        sizes += [b * t * h * wide * q.element_size()] * 2
    return sizes


def _flash_split_kv(_rule: Any, gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> list[int]:
    q, k = args[0], args[1]
    if q.dim() != 4 or (len(args) > 3 and args[3]):  # no splitting under dropout
        return []
    b, h, s, n = q.shape
    heads_kv, t = k.shape[1], k.shape[2]
    if s == 1 and h != heads_kv:  # one query token: the heads of a group become query rows
        s, h = h // heads_kv, heads_kv
    block = 256 if n <= 64 else 128 if n <= 128 else 64
    splits = num_splits(b * h * -(-s // 64), gpu.multiprocessors * 2, -(-t // block), 128)
    if splits <= 1:
        return []
    wide = _up(n, 32) if n <= 192 else 256
    return [4 * splits * b * h * s, 4 * splits * b * h * s * wide]


def num_splits(work: int, processors: int, blocks: int, limit: int) -> int:
    """How many ways flash attention splits the keys so that all multiprocessors have work (flash_api.cpp)."""
    if work >= 0.8 * processors:
        return 1
    limit = min(limit, processors, blocks)
    fill: dict[int, float] = {}
    for n in range(1, limit + 1):
        if n == 1 or -(-blocks // n) != -(-blocks // (n - 1)):
            waves = work * n / processors
            fill[n] = waves / math.ceil(waves)
    best = max(fill.values())
    return next(n for n, value in fill.items() if value >= 0.85 * best)


def _efficient_backward(rule: Any, _gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> list[int]:
    q = args[1]
    b, h, s, n = q.shape
    return [4 * b * h * s, 4 * b * h * s * n, rule["extra"]]


def _embedding_backward(_rule: Any, _gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> list[int]:
    grad, indices, rows = args[0], args[1], args[2]
    count, width, size = indices.numel(), grad.shape[-1], indices.element_size()
    by_frequency = bool(args[4]) if len(args) > 4 else False
    if count <= 3072 and not by_frequency:  # the small kernel needs nothing
        return []
    segments = min(count, rows)
    partial = count // 10 + segments
    sums = 4 * partial * _up(width, 32)
    return [count * size] * 2 + [segments * size, 8] + [segments * size] * 2 + [partial * size, 8, sums]


def _foreach_norm(rule: Any, _gpu: Gpu, args: Any, _kwargs: Any, _out: Any) -> list[int]:
    chunks = max(-(-t.numel() // rule["chunk"]) for t in args[0])
    return [4 * chunks * len(args[0])]


def _reduction(_rule: Any, gpu: Gpu, args: Any, kwargs: Any, out: Any) -> list[int]:
    x = args[0]
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    if isinstance(out, (tuple, list)):
        out = out[0]
    if not isinstance(dims, (list, tuple, int)) or isinstance(dims, bool):
        dims = None
    return reduction_buffers(tuple(x.shape), tuple(x.stride()), dims, x.element_size(), gpu)


def reduction_buffers(
    shape: Sequence[int], strides: Sequence[int], dims: Sequence[int] | int | None, element: int, gpu: Gpu
) -> list[int]:
    """Staging buffer and semaphores of a reduction that several thread blocks share (PyTorch's Reduce.cuh).

    Args:
        shape, strides: of the input, in elements.
        dims: reduced dims; None or empty for all.
        element: bytes of one input element (4-byte accumulation is assumed).
        gpu: the target.

    Returns:
        Two sizes, or none when every output is made by one thread block.
    """
    if isinstance(dims, int):
        dims = [dims]
    reduced = {d % len(shape) for d in dims} if dims else set(range(len(shape)))
    kept = [(strides[d], n) for d, n in enumerate(shape) if d not in reduced and n > 1]
    summed = [(strides[d], n) for d, n in enumerate(shape) if d in reduced and n > 1]
    num_outputs, per_output = math.prod(n for _, n in kept), math.prod(n for _, n in summed)
    if per_output <= 1 or num_outputs == 0:
        return []
    summed, kept = _coalesced(summed), _coalesced(kept)
    along_fast = not kept or summed[0][0] < kept[0][0]
    fast, slow = (per_output, num_outputs) if along_fast else (num_outputs, per_output)
    out_vec = 1
    if along_fast:
        if summed[0][0] == 1 and fast > 128 and not kept and len(summed) == 1:
            fast //= 4
    elif kept[0][0] == 1:
        # as wide as the innermost kept dim and the other strides allow
        out_vec = next(
            v for v in (4, 2, 1) if kept[0][1] % v == 0 and all(s % v == 0 for s, _ in (*kept[1:], *summed) if s)
        )
        fast //= out_vec
    width, height = _block(fast, slow, 512 // out_vec)
    values, mult = per_output, 1
    if along_fast:
        values = -(-values // width)
    across_warps = values >= min(height * 16, 256)
    if across_warps:
        values = -(-values // height)
    step_out = (1 if along_fast else width) * (1 if across_warps else height) * mult
    grid = -(-(num_outputs // out_vec) // step_out)
    target = gpu.multiprocessors * (gpu.threads_per_multiprocessor // (width * height))
    if not (across_warps and values >= 256 and grid <= target):
        return []
    blocks = max(min(-(-target // grid), -(-values // 16)), -(-values // 256))
    if blocks <= 1:
        return []
    size = 4 * num_outputs * blocks
    if not along_fast:  # one thread keeps several outputs: a whole row of the block writes
        size *= width * out_vec
    return [size, 4 * grid]


def _coalesced(dims: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbouring dims that lie in one run of memory joined, innermost first."""
    joined: list[tuple[int, int]] = []
    for stride, size in sorted(dims):
        if joined and joined[-1][0] * joined[-1][1] == stride:
            joined[-1] = (joined[-1][0], joined[-1][1] * size)
        else:
            joined.append((stride, size))
    return joined


def _block(fast: int, slow: int, limit: int) -> tuple[int, int]:
    """Threads of a block along the fast and the slow direction."""
    a, b = (min(1 << (max(n, 1).bit_length() - 1), limit) for n in (fast, slow))
    width = min(a, 32)
    height = min(b, limit // width)
    return min(a, limit // height), height


_FORMULAS: dict[str, Callable[..., list[int]]] = {
    "constant": _per_call,
    "per_call": _per_call,
    "like_first_input": _like_first_input,
    "per_element": _per_element,
    "per_output_element": _per_output_element,
    "flash_backward": _flash_backward,
    "flash_split_kv": _flash_split_kv,
    "efficient_backward": _efficient_backward,
    "embedding_backward": _embedding_backward,
    "foreach_norm": _foreach_norm,
    "reduction": _reduction,
}
