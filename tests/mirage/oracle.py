"""Random programs through the real allocator binary and through the simulation; every line must be equal."""

from __future__ import annotations

import os
import random
import re
import subprocess
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from oracle_build import build, numbers

from memfit.allocator.blocks import Block
from memfit.allocator.config import AllocatorConfig
from memfit.allocator.device import Device
from memfit.allocator.oom import SimulatedOutOfMemoryError
from memfit.allocator.simulator import CachingAllocator
from memfit.allocator.snapshot import segments
from memfit.allocator.stats import NAMES, MemoryStats

MIB = 1 << 20
GIB = 1 << 30
Command = tuple[Any, ...]
FIRST_RELEASE = {
    "max_non_split_rounding_mb": (2, 6),
    "large_segment_size_mb": (2, 11),
    "per_process_memory_fraction": (2, 11),
    "expandable_segments_reserve": (2, 15),
    "throw_on_cudamalloc_oom": (2, 13),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to run a program."""

    name: str
    settings: str = ""
    fraction: float | None = None
    total: int = 64 * GIB
    others: int = 0
    order: str | int = "ascending"
    lag: int | None = 0
    uses: bool = False
    pools: str = ""
    sizes: str = field(default="mixed")

    def supported(self, version: str) -> bool:
        """Whether the release knows the settings."""
        return all(name not in self.settings or numbers(version) >= first for name, first in FIRST_RELEASE.items())


CASES = (
    Case(name="default"),
    Case(name="default, 3 GiB", total=3 * GIB),
    Case(name="default, descending addresses", total=3 * GIB, order="descending"),
    Case(name="default, scattered addresses", total=3 * GIB, order=7),
    Case(name="default, others on the card", total=4 * GIB, others=777 * MIB + 12345),
    Case(name="record_stream, lag 0", uses=True, total=3 * GIB),
    Case(name="record_stream, lag 5", uses=True, lag=5, total=3 * GIB),
    Case(name="record_stream, lag inf", uses=True, lag=None, total=3 * GIB),
    Case(name="expandable", settings="expandable_segments:True"),
    Case(name="expandable, 3 GiB", settings="expandable_segments:True", total=3 * GIB, order="descending"),
    Case(name="expandable, record_stream", settings="expandable_segments:True", uses=True, lag=3, total=3 * GIB),
    Case(name="expandable reserve", settings="expandable_segments:True,expandable_segments_reserve:0.3", total=4 * GIB),
    Case(
        name="expandable reserve, descending",
        settings="expandable_segments:True,expandable_segments_reserve:0.2",
        total=4 * GIB,
        order="descending",
    ),
    Case(name="expandable reserve, too small", settings="expandable_segments:True,expandable_segments_reserve:0.3G"),
    Case(name="max_split", settings="max_split_size_mb:100", total=3 * GIB),
    Case(name="max_split + rounding", settings="max_split_size_mb:64,max_non_split_rounding_mb:40", total=3 * GIB),
    Case(name="max_split 21", settings="max_split_size_mb:21", total=2 * GIB, uses=True, lag=2),
    Case(name="power2", settings="roundup_power2_divisions:4", total=3 * GIB),
    Case(name="power2 table", settings="roundup_power2_divisions:[4:8,32:2,128:4,>:16]", total=3 * GIB),
    Case(name="power2 table, expandable", settings="roundup_power2_divisions:[2:4,64:8],expandable_segments:True"),
    Case(name="gc", settings="garbage_collection_threshold:0.6", fraction=0.9, total=3 * GIB),
    Case(name="gc, 8 GiB", settings="garbage_collection_threshold:0.2", fraction=0.9, total=8 * GIB, uses=True, lag=4),
    Case(name="fraction", fraction=0.37, total=7 * GIB),
    Case(name="fraction by setting", settings="per_process_memory_fraction:0.41", total=7 * GIB),
    Case(name="fraction, expandable", settings="expandable_segments:True", fraction=0.37, total=7 * GIB),
    Case(name="early refusal", settings="throw_on_cudamalloc_oom:True", total=3 * GIB, others=300 * MIB),
    Case(
        name="early refusal, expandable",
        settings="throw_on_cudamalloc_oom:True,expandable_segments:True",
        total=3 * GIB,
    ),
    Case(name="large segment 64", settings="large_segment_size_mb:64", total=3 * GIB),
    Case(name="large segment 64, expandable", settings="large_segment_size_mb:64,expandable_segments:True"),
    Case(name="private pools", pools="b", total=4 * GIB),
    Case(name="private pools, uses", pools="b", uses=True, lag=2, total=4 * GIB),
    Case(name="private pools, expandable", pools="b", settings="expandable_segments:True", total=4 * GIB),
    Case(name="captures", pools="c", total=4 * GIB),
    Case(name="captures, uses", pools="c", uses=True, lag=3, total=4 * GIB),
    Case(name="captures, expandable", pools="c", settings="expandable_segments:True", total=4 * GIB, uses=True),
    Case(name="small tensors", sizes="small", total=256 * MIB),
    Case(name="edge sizes", sizes="edges", total=2 * GIB),
)


def program(seed: int, case: Case, length: int = 1500) -> list[Command]:
    """A random program that keeps the device about nine tenths full at most times."""
    rng = random.Random(seed)
    kinds = {
        "mixed": [(1, 4000), (4000, 2 * MIB), (MIB, 24 * MIB), (10 * MIB, 400 * MIB)],
        "small": [(1, 600), (1, 20000), (1000, MIB), (MIB, 3 * MIB)],
        "edges": [(n - 600, n + 600) for n in (700, MIB, 2 * MIB, 10 * MIB, 20 * MIB, 64 * MIB)],
    }[case.sizes]
    favourites = [rng.randint(*rng.choice(kinds)) for _ in range(30)]
    limit = min(case.total, 5 * GIB) * 0.95
    live: list[int] = []
    size_of: dict[int, int] = {}
    pool_of: dict[int, int] = {}
    held = 0
    commands: list[Command] = []
    pool: int | None = None
    released: list[int] = []
    for number in range(length):
        if live and (rng.random() < 0.47 or held > limit):
            name = live.pop(rng.randrange(len(live)) if rng.random() < 0.5 else -1)
            if case.uses and rng.random() < 0.3:
                commands += [("u", name, 0x1000 * rng.randint(0, 3)) for _ in range(rng.randint(1, 2))]
            held -= size_of[name]
            pool_of.pop(name, None)
            commands.append(("f", name))
        else:
            size = rng.choice(favourites) if rng.random() < 0.6 else rng.randint(*rng.choice(kinds))
            stream = 0 if rng.random() < 0.85 else 0x1000 * rng.randint(1, 2)
            commands.append(("a", number, size, stream))
            live.append(number)
            if pool is not None:
                pool_of[number] = pool
            size_of[number] = size
            held += size
        if case.uses and rng.random() < 0.01:
            commands.append(("y",))
        if case.pools and rng.random() < 0.02:
            if pool is None:
                pool = rng.randint(1, 1 << 20)
                commands.append((case.pools, pool, rng.choice([0, 0x1000])))
            else:
                commands.append(("d", pool))
                released.append(pool)
                pool = None
        if released and rng.random() < 0.01:
            gone = rng.choice(released)
            # with expandable segments the real allocator reads freed memory when a released pool has live tensors
            if "expandable" not in case.settings or gone not in pool_of.values():
                released.remove(gone)
                commands.append(("r", gone))
        if pool is None and rng.random() < 0.003:
            commands.append(("e",))
        if rng.random() < 0.02:
            commands.append(("s",))
        if rng.random() < 0.01:
            commands.append(("m",))
    if pool is not None:
        commands.append(("d", pool))
    return [*commands, ("s",), ("m",), ("e",), ("s",), ("m",)]


def real(version: str, case: Case, commands: list[Command]) -> list[str]:
    """What the allocator of one torch release does."""
    driver, libraries = build(version)
    env = {
        "PATH": os.environ.get("PATH", ""),
        "LD_LIBRARY_PATH": libraries,
        "STUB_TOTAL": str(case.total),
        "STUB_OTHERS": str(case.others),
        "STUB_ORDER": str(case.order),
        "STUB_LAG": "inf" if case.lag is None else str(case.lag),
    }
    if case.settings:
        env["PYTORCH_CUDA_ALLOC_CONF"] = case.settings
    if case.fraction is not None:
        env["FRACTION"] = repr(case.fraction)
    text = "\n".join(" ".join(map(str, command)) for command in commands)
    done = subprocess.run([str(driver)], input=text, capture_output=True, text=True, env=env, timeout=120, check=False)
    lines = done.stdout.splitlines()
    return [*lines, f"exit {done.returncode}: {done.stderr[:800]}"] if done.returncode else lines


def simulated(version: str, case: Case, commands: list[Command]) -> list[str]:
    """What the simulation does, in the words of the driver program."""
    major, minor = numbers(version)[:2]
    config = AllocatorConfig.parse(case.settings, (major, minor))
    if case.fraction is not None:
        config = replace(config, memory_fraction=case.fraction)
    stats = MemoryStats()
    device = Device(case.total, case.others, case.order)
    allocator = CachingAllocator(config, device, release=(major, minor), lag=case.lag, stats=stats)
    live: dict[int, Block] = {}
    lines = []
    for command, *rest in commands:
        if command == "a":
            name, size, stream = rest
            try:
                live[name] = block = allocator.malloc(size, stream)
                lines.append(f"a {name} {device.address(block.address):x}")
            except SimulatedOutOfMemoryError as error:
                lines.append(f"o {name} {error}".replace("\0", "?"))
        elif command == "f":
            if rest[0] in live:
                allocator.free(live.pop(rest[0]))
        elif command == "u":
            if rest[0] in live:
                allocator.record_stream(live[rest[0]], rest[1])
        elif command == "s":
            lines.append(statistics(allocator, stats))
        elif command == "m":
            lines.append(memory_map(allocator, list(live.values())))
        else:
            {
                "e": allocator.empty_cache,
                "y": allocator.synchronize,
                "b": allocator.begin_pool,
                "c": partial(allocator.begin_pool, capture=True),
                "d": allocator.end_pool,
                "r": allocator.release_pool,
            }[command](*rest)
    return lines


def statistics(allocator: CachingAllocator, stats: MemoryStats) -> str:
    """The statistics line; the quick counters of the allocator must agree with the full ones."""
    table = {name: stats.table[name][0] for name in NAMES}
    for quick, name in (
        ("allocated", "allocated_bytes"),
        ("active", "active_bytes"),
        ("requested", "requested_bytes"),
        ("reserved", "reserved_bytes"),
    ):
        figures = getattr(allocator, quick), getattr(allocator, f"{quick}_peak")
        assert figures == (table[name].current, table[name].peak), (quick, figures)
    assert allocator.inactive_split == table["inactive_split_bytes"].current
    parts = ["s"]
    for name in NAMES:
        for kind, stat in enumerate(stats.table[name]):
            parts.append(f"{name}.{kind} {stat.current} {stat.peak} {stat.allocated} {stat.freed}")
    return " ".join([*parts, f"num_alloc_retries {allocator.num_alloc_retries} num_ooms {allocator.num_ooms}"])


def memory_map(allocator: CachingAllocator, live: list[Block]) -> str:
    """The memory-map line."""
    parts = ["m"]
    for segment in segments(allocator, live):
        blocks = "".join(
            f" {b['size']}:{b['requested_size']}:"
            f"{ {'active_allocated': 'a', 'active_pending_free': 'p', 'inactive': 'f'}[b['state']] }".replace(": ", ":")
            for b in segment["blocks"]
        )
        head = f"{segment['address']:x} {segment['total_size']} {segment['stream']:x}"
        kind = f"{int(segment['segment_type'] == 'large')} {int(segment['is_expandable'])}"
        sums = f"{segment['allocated_size']} {segment['active_size']} {segment['requested_size']}"
        parts.append(f"[{head} {kind} {sums} {segment['segment_pool_id'][1]}{blocks.rstrip()}]")
    return " ".join(parts)


def difference(expected: list[str], got: list[str]) -> str | None:
    """The first line that differs, or None."""
    for number, (left, right) in enumerate(zip(expected, got, strict=False)):
        if left != right:
            words = zip(left.split(), right.split(), strict=False)
            at = next((i for i, (a, b) in enumerate(words) if a != b), 0)
            cut = slice(max(0, at - 3), at + 6)
            return f"line {number}: real {left.split()[cut]} simulated {right.split()[cut]} ({left[:60]})"
    if len(expected) != len(got):
        return f"real {len(expected)} lines, simulated {len(got)}; real ends {expected[-1:]}"
    return None


def without_order(lines: list[str]) -> list[str]:
    """The lines without what depends on the order in which PyTorch walks its hash table of streams with events.

    That order decides which of two neighbours is merged into the other, so the way (not the value) of
    ``inactive_split`` and the stale ``requested_size`` of a free block.
    """
    kept = []
    for line in lines:
        if line.startswith("s "):
            line = re.sub(r"(inactive_split\S*) (\d+) \d+ \d+ \d+", r"\1 \2", line)
        elif line.startswith("m "):
            line = re.sub(r":\d+:f", ":f", line)
        kept.append(line)
    return kept


def check(version: str, case: Case, seed: int, length: int = 1500) -> tuple[str | None, int, int]:
    """(first difference or None, lines compared, out-of-memory errors among them) of one random program."""
    commands = program(seed, case, length)
    expected, got = real(version, case, commands), simulated(version, case, commands)
    if case.uses:
        expected, got = without_order(expected), without_order(got)
    return difference(expected, got), len(expected), sum(line[0] == "o" for line in expected)
