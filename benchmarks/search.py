"""How fast is the planner? ``python benchmarks/search.py [--quick] [--json]``

For full training on 1, 8, 64, 512 and 16,384 GPUs: candidates considered (in the space) and evaluated (their time or
memory computed), seconds of the search, candidates considered per second, peak memory of the process. "First plan" is a
whole new process: starting Python, reading the data files, searching and explaining. Times are wall times; CPU seconds
stand beside them, since other work on the machine stretches only the former. Each question has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _shared import machine, text_table

SOURCE = Path(__file__).resolve().parents[1] / "src"
QUESTIONS: dict[str, dict[str, Any]] = {
    "llama-3.2-1b, 1 x rtx-4090": {"model": "llama-3.2-1b", "gpu": "rtx-4090", "seq_len": 4096},
    "llama-3.1-8b, 8 x h100": {"model": "llama-3.1-8b", "gpu": "8xh100", "seq_len": 8192},
    "llama-3.1-70b, 64 x h100": {"model": "llama-3.1-70b", "gpu": "64xh100", "seq_len": 8192},
    "llama-3.1-70b, 512 x h100": {"model": "llama-3.1-70b", "gpu": "512xh100", "seq_len": 8192, "global_batch": 1024},
    "llama-3.1-405b, 16,384 x h100": {
        "model": "llama-3.1-405b", "gpu": "16384xh100", "seq_len": 8192, "global_batch": 2048,
    },
}  # fmt: skip


def one(name: str) -> dict[str, Any]:
    """One question, asked in this process."""
    start = time.perf_counter()
    from memfit.job import from_kwargs
    from memfit.planner import Request, plan

    request = Request(job=from_kwargs(**QUESTIONS[name]))
    loaded, cpu = time.perf_counter(), time.process_time()
    answer = plan(request)
    searched, spent = time.perf_counter() - loaded, time.process_time() - cpu
    best = answer.plans[0] if answer.plans else None
    return {
        "question": name,
        "considered": answer.considered,
        "evaluated": answer.evaluated,
        "wall_s": searched,
        "cpu_s": spent,
        "per_s": answer.considered / searched,
        "first_plan_s": time.perf_counter() - start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "step_s": None if best is None else best.step_s,
    }


PHASES = {"8,192 tokens": (8192, 2048, 1), "131,072 tokens": (131072, 128, 16)}
"""Phase of Llama 3's pre-training -> (tokens of a sequence, sequences of a batch of 16M tokens, cp)."""


def published(framework: str, seq_len: int, batch: int, cp: int, memory_gib: float | None) -> list[Any]:
    """Seconds of the best plan, of the best with the published layout, and what both are."""
    from memfit.job import from_kwargs
    from memfit.planner import Request, plan

    asked: dict[str, Any] = {
        "model": "llama-3.1-405b", "gpu": "16384xh100", "framework": framework, "seq_len": seq_len,
        "global_batch": batch,
        "memory_gib": memory_gib,
    }  # fmt: skip
    found = []
    for fixed in ({}, {"tp": 8, "pp": 16, "cp": cp}):
        answer = plan(Request(job=from_kwargs(**asked, **fixed)))
        best = min(answer.plans, key=lambda p: p.step_s or float("inf"))
        s = best.job.strategy
        what = f"tp {s.tp} cp {s.cp} pp {s.pp} x{s.virtual_pp or 1} {s.checkpointing}"
        found.append((best.step_s, what + " offload" * bool(s.offload)))
    (optimum, one), (theirs, other) = found
    return [f"{optimum:.2f}", one, f"{theirs:.2f}", other, f"{theirs / optimum - 1:+.1%}"]


def compare_published() -> None:
    """Print how far the published layouts lie from the optimum."""
    rows = []
    for framework in ("torchtitan", "megatron"):
        for phase, (seq_len, batch, cp) in PHASES.items():
            for memory, told in ((None, "80 GB"), (4096.0, "no limit")):
                rows.append([framework, phase, told, *published(framework, seq_len, batch, cp, memory)])
    head = ["framework", "phase", "memory", "optimum s", "with", "published s", "with", "apart"]
    print(text_table(head, rows))


def main() -> int:
    """Ask every question in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="leave out the largest questions")
    parser.add_argument("--published", action="store_true", help="Llama 3's layout against the optimum")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.published:
        compare_published()
        return 0
    if options.one:
        print(json.dumps(one(options.one)))
        return 0
    rows = []
    for name in list(QUESTIONS)[: 2 if options.quick else None]:
        start = time.perf_counter()
        told = subprocess.run(
            [sys.executable, __file__, "--one", name], capture_output=True, text=True, check=True, cwd=SOURCE
        )
        rows.append({**json.loads(told.stdout), "first_plan_s": time.perf_counter() - start})
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(machine())
    head = ["question", "considered", "evaluated", "wall s", "CPU s", "considered/s", "first plan s", "MiB"]
    body = [
        [
            r["question"], f"{r['considered']:,}", f"{r['evaluated']:,}", f"{r['wall_s']:.1f}", f"{r['cpu_s']:.1f}",
            f"{r['per_s']:,.0f}", f"{r['first_plan_s']:.1f}", f"{r['peak_mib']:.0f}",
        ]
        for r in rows
    ]  # fmt: skip
    print(text_table(head, body))
    return 0


if __name__ == "__main__":
    sys.exit(main())
