"""Fuzz the allocator simulation against the real binaries: ``python -m tests.mirage [SEEDS] [RELEASE ...]``."""

# ruff: noqa: T201 - a command that prints
from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from oracle import CASES, check
from oracle_wheels import RELEASES, OracleUnavailableError


def main(arguments: list[str]) -> int:
    """Run every case on every release; print one line per release, each difference, and a summary."""
    seeds = int(arguments[0]) if arguments else 2
    runs = differences = lines = 0
    for version in arguments[1:] or RELEASES:
        start, done, wrong, ooms = time.perf_counter(), 0, 0, 0
        for case in CASES:
            if not case.supported(version):
                continue
            for seed in range(seeds):
                try:
                    problem, compared, oom = check(version, case, seed)
                except OracleUnavailableError as error:
                    print(f"skipped: {error}")
                    return 3
                done, lines, ooms = done + 1, lines + compared, ooms + oom
                if problem:
                    wrong += 1
                    print(f"{version} {case.name} seed {seed}: {problem}", flush=True)
        runs, differences = runs + done, differences + wrong
        seconds = time.perf_counter() - start
        print(f"torch {version}: {done} runs, {wrong} with differences, {ooms} OOM, {seconds:.0f} s", flush=True)
    print(f"{runs} runs, {lines} lines (addresses, statistics, memory maps, OOM texts), {differences} differences")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
