"""The settings of PyTorch's caching allocator: what ``PYTORCH_ALLOC_CONF`` may say and what it means in bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from memfit.allocator.releases import LATEST, Release
from memfit.errors import MemfitError, UnknownNameError
from memfit.units import GIB, MIB

MIN_BLOCK = 512
SMALL_LIMIT = MIB
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
MIN_OWN_SEGMENT = 10 * MIB
SEGMENT_ROUNDING = 2 * MIB

ROUNDING_INTERVALS = 16
"""Entries of the rounding table: sizes of [1, 2) MiB and below, [2, 4) MiB, ... up to 32 GiB and above."""

MAX_TEXT = 4096
NO_EFFECT = frozenset({
    "release_lock_on_cudamalloc", "release_lock_on_hipmalloc", "pinned_use_cuda_host_register",
    "pinned_use_hip_host_register", "pinned_num_register_threads", "pinned_use_background_threads",
    "pinned_reserve_segment_size_mb", "pinned_free_catch_all", "pinned_max_round_threshold_mb",
    "pinned_max_cached_size_mb", "expandable_segments_handle_type", "graph_capture_record_stream_reuse",
    "expandable_segments_reserve_by_class",
})  # fmt: skip
"""Settings that PyTorch knows and that this simulation does not need: host memory, locks, sharing between processes,
what a running graph capture may reuse, and address ranges of stream classes that only a program can name."""


@dataclass(frozen=True, kw_only=True)
class AllocatorConfig:
    """Settings of the caching allocator; the defaults are PyTorch's.

    Attributes:
        expandable_segments: one growing segment per stream and pool instead of many fixed ones.
        max_split_size: blocks of at least this many bytes are never split; None is no limit.
        max_non_split_rounding: how many bytes larger than asked an unsplittable block may be (torch >= 2.5).
        roundup_power2_divisions: 16 entries, one per power of two from 1 MiB on: into how many steps sizes between two
            powers of two are rounded; 0 or 1 rounds to 512 B only.
        garbage_collection_threshold: share of the allowed memory above which old cached blocks are given back;
            0 is never. Needs ``memory_fraction``.
        large_segment_size: bytes of a segment that serves requests between 1 and 10 MiB (torch >= 2.11).
        memory_fraction: share of the device that this process may reserve; None is no limit.
        expandable_reserve_fraction: address range of an expandable segment as a share of the device (torch >= 2.15).
        expandable_reserve_bytes: the same in bytes; at most one of the two is set.
        throw_on_cudamalloc_oom: refuse a request that would reserve more than the device has, before the cache is given
            back (torch >= 2.13).
        no_effect: names of given settings that do not change the simulation.
    """

    expandable_segments: bool = False
    max_split_size: int | None = None
    max_non_split_rounding: int = 20 * MIB
    roundup_power2_divisions: tuple[int, ...] = (0,) * ROUNDING_INTERVALS
    garbage_collection_threshold: float = 0.0
    large_segment_size: int = LARGE_SEGMENT
    memory_fraction: float | None = None
    expandable_reserve_fraction: float | None = None
    expandable_reserve_bytes: int | None = None
    throw_on_cudamalloc_oom: bool = False
    no_effect: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str, release: Release = LATEST) -> AllocatorConfig:
        """Read the text of ``PYTORCH_ALLOC_CONF``, e.g. ``expandable_segments:True,max_split_size_mb:128``.

        Args:
            text: name:value pairs, separated by commas; tables as ``roundup_power2_divisions:[256:1,512:2,>:8]``.
            release: (major, minor) of torch: up to 2.9 the entry ``>`` of a table replaces the last entry before it,
                from 2.10 on it begins behind it.

        Raises:
            UnknownNameError: a setting that PyTorch does not know; the message names the nearest.
            MemfitError: a value that PyTorch would refuse.
        """
        if len(text) > MAX_TEXT:
            raise MemfitError(f"allocator settings of {len(text)} characters", hint=f"at most {MAX_TEXT} are read")
        config = AllocatorConfig()
        for name, value in _pairs(text):
            if name in NO_EFFECT:
                config = replace(config, no_effect=(*config.no_effect, name))
            elif name == "roundup_power2_divisions":
                config = _divisions(config, name, value, keep_last=release >= (2, 10))
            elif name in _READERS:
                config = _READERS[name](config, name, value)
            else:
                raise UnknownNameError("allocator setting", name, [*_READERS, "roundup_power2_divisions", *NO_EFFECT])
        return config

    def to_text(self) -> str:
        """The settings as PyTorch reads them; empty when all are PyTorch's defaults."""
        default = AllocatorConfig()
        parts = []
        if self.expandable_segments:
            parts.append("expandable_segments:True")
        if self.max_split_size is not None:
            parts.append(f"max_split_size_mb:{self.max_split_size // MIB}")
        if self.max_non_split_rounding != default.max_non_split_rounding:
            parts.append(f"max_non_split_rounding_mb:{self.max_non_split_rounding // MIB}")
        if len(set(self.roundup_power2_divisions)) > 1:
            table = ",".join(f"{1 << i}:{d}" for i, d in enumerate(self.roundup_power2_divisions))
            parts.append(f"roundup_power2_divisions:[{table}]")
        elif self.roundup_power2_divisions[0]:
            parts.append(f"roundup_power2_divisions:{self.roundup_power2_divisions[0]}")
        if self.garbage_collection_threshold:
            parts.append(f"garbage_collection_threshold:{self.garbage_collection_threshold:g}")
        if self.large_segment_size != default.large_segment_size:
            parts.append(f"large_segment_size_mb:{self.large_segment_size // MIB}")
        if self.memory_fraction is not None:
            parts.append(f"per_process_memory_fraction:{self.memory_fraction:g}")
        if self.expandable_reserve_fraction is not None:
            parts.append(f"expandable_segments_reserve:{self.expandable_reserve_fraction:g}")
        elif self.expandable_reserve_bytes is not None:
            parts.append(f"expandable_segments_reserve:{self.expandable_reserve_bytes / GIB:g}G")
        if self.throw_on_cudamalloc_oom:
            parts.append("throw_on_cudamalloc_oom:True")
        return ",".join(parts)

    def warnings(self) -> tuple[str, ...]:
        """What in these settings has no effect or is known to go wrong, one sentence each."""
        found = [f"`{name}` does not change the simulated device memory" for name in self.no_effect]
        if self.garbage_collection_threshold and self.memory_fraction is None:
            found.append("`garbage_collection_threshold` works only together with a memory fraction")
        if self.expandable_segments and self.max_split_size is not None:
            found.append(
                "`max_split_size_mb` with `expandable_segments` can turn an out-of-memory retry into an assertion"
            )
        return tuple(found)


def make_rounding(config: AllocatorConfig) -> Callable[[int], int]:
    """The function from requested bytes to bytes of the block, both before any unsplit remainder."""
    table = config.roundup_power2_divisions

    def round_size(size: int) -> int:
        if size < MIN_BLOCK:
            return MIN_BLOCK
        power = size.bit_length() - 1
        divisions = table[min(max(power - 20, 0), ROUNDING_INTERVALS - 1)]
        if divisions > 1 and size > MIN_BLOCK * divisions:
            step = (1 << power) >> (divisions.bit_length() - 1)
            return -(-size // step) * step
        return (size + MIN_BLOCK - 1) & -MIN_BLOCK

    return round_size


def segment_size(size: int, large_segment: int = LARGE_SEGMENT) -> int:
    """Bytes of the segment that a miss of ``size`` rounded bytes asks of the driver."""
    if size <= SMALL_LIMIT:
        return SMALL_SEGMENT
    if size < MIN_OWN_SEGMENT:
        return large_segment
    return (size + SEGMENT_ROUNDING - 1) & -SEGMENT_ROUNDING


# ---- reading ----


def _pairs(text: str) -> list[tuple[str, str]]:
    """The settings as (name, value) with blanks removed; a value may be one bracketed list."""
    compact = re.sub(r"\s+", "", text)
    pairs = []
    position = 0
    while position < len(compact):
        match = re.compile(r"([^,:\[\]]+):(\[[^\[\]]*\]|[^,:\[\]]+)(,|$)").match(compact, position)
        if match is None:
            rest = compact[position : position + 40]
            raise MemfitError(f"allocator settings cannot be read at `{rest}`", hint="write name:value,name:value")
        pairs.append((match[1], match[2]))
        position = match.end()
    return pairs


def _fault(name: str, value: str, bound: str) -> MemfitError:
    return MemfitError(f"`{name}`: {value!r} is not {bound}")


def _whole(name: str, value: str, low: int, high: int = 1 << 24) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", value) or not low <= int(value) <= high:
        raise _fault(name, value, f"a whole number from {low} on")
    return int(value)


def _real(name: str, value: str, bound: str, accept: Callable[[float], bool]) -> float:
    try:
        number = float(value)
    except ValueError:
        raise _fault(name, value, bound) from None
    if not math.isfinite(number) or not accept(number):
        raise _fault(name, value, bound)
    return number


def _switch(field: str) -> Callable[[AllocatorConfig, str, str], AllocatorConfig]:
    def read(config: AllocatorConfig, name: str, value: str) -> AllocatorConfig:
        if value not in ("True", "False"):
            raise _fault(name, value, "True or False")
        return replace(config, **{field: value == "True"})  # type: ignore[arg-type]

    return read


def _max_split(config: AllocatorConfig, name: str, value: str) -> AllocatorConfig:
    return replace(config, max_split_size=_whole(name, value, 20) * MIB)


def _non_split(config: AllocatorConfig, name: str, value: str) -> AllocatorConfig:
    return replace(config, max_non_split_rounding=_whole(name, value, 20) * MIB)


def _large_segment(config: AllocatorConfig, name: str, value: str) -> AllocatorConfig:
    return replace(config, large_segment_size=_whole(name, value, 20) * MIB)


def _collection(config: AllocatorConfig, name: str, value: str) -> AllocatorConfig:
    number = _real(name, value, "between 0 and 1, both excluded", lambda x: 0 < x < 1)
    return replace(config, garbage_collection_threshold=number)


def _fraction(config: AllocatorConfig, name: str, value: str) -> AllocatorConfig:
    number = _real(name, value, "above 0 and at most 1", lambda x: 0 < x <= 1)
    return replace(config, memory_fraction=number)


def _reserve(config: AllocatorConfig, name: str, value: str) -> AllocatorConfig:
    bound = "a positive share like 0.5 or a size like 40G"
    number = _real(name, value.removesuffix("G"), bound, lambda x: 0 < x < 1 << 20)
    if value.endswith("G"):
        return replace(config, expandable_reserve_bytes=int(number * GIB), expandable_reserve_fraction=None)
    return replace(config, expandable_reserve_fraction=number, expandable_reserve_bytes=None)


def _backend(config: AllocatorConfig, name: str, value: str) -> AllocatorConfig:
    if value != "native":
        raise MemfitError(
            f"`{name}`: {value!r} is not simulated", hint="only PyTorch's own caching allocator (native) is"
        )
    return config


def _divisions(config: AllocatorConfig, name: str, value: str, *, keep_last: bool) -> AllocatorConfig:
    if not value.startswith("["):
        count = _power_of_two(name, value)
        return replace(config, roundup_power2_divisions=(count,) * ROUNDING_INTERVALS)
    table = list(config.roundup_power2_divisions)
    last, first = -1 if keep_last else 0, True
    for item in value[1:-1].split(","):
        interval, colon, text = item.partition(":")
        if not colon:
            raise _fault(name, item, "an entry MiB:DIVISIONS, e.g. 256:4")
        count = 0 if text == "0" else _power_of_two(name, text)
        if interval == ">":
            begin = last + keep_last
            table[begin:] = [count] * (ROUNDING_INTERVALS - begin)
            continue
        index = min(_power_of_two(name, interval).bit_length() - 1, ROUNDING_INTERVALS - 1)
        if first:  # what lies below the first entry is rounded like it; gaps between entries are left alone
            table[:index] = [count] * index
            first = False
        table[index] = count
        last = index
    return replace(config, roundup_power2_divisions=tuple(table))


def _power_of_two(name: str, text: str) -> int:
    count = _whole(name, text, 1)
    if count & (count - 1):
        raise _fault(name, text, "a power of two")
    return count


_READERS: dict[str, Callable[[AllocatorConfig, str, str], AllocatorConfig]] = {
    "expandable_segments": _switch("expandable_segments"),
    "max_split_size_mb": _max_split,
    "max_non_split_rounding_mb": _non_split,
    "garbage_collection_threshold": _collection,
    "large_segment_size_mb": _large_segment,
    "per_process_memory_fraction": _fraction,
    "expandable_segments_reserve": _reserve,
    "throw_on_cudamalloc_oom": _switch("throw_on_cudamalloc_oom"),
    "backend": _backend,
}
