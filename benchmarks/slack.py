"""How much the caching allocator holds beyond what is allocated: the fit behind memfit.formula.slack.

Plays training steps of random jobs (catalog models, frameworks without and with sharding), replays them through the
simulated allocator with default and with expandable segments, and fits reserved minus allocated by least squares over
the entries of the peak. Usage: ``python benchmarks/slack.py [JOBS] [SEED]``; prints the coefficients and residuals.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np

from memfit.allocator import ALLOC, FREE, replay
from memfit.errors import MemfitError
from memfit.formula.resolve import resolve
from memfit.formula.timeline import play
from memfit.formula.training import dims_of, setup_of, stage_peak, stages_of
from memfit.job import parse

GIB = 1 << 30
MODELS = [
    "llama-3.1-8b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "qwen2.5-7b",
    "qwen2.5-0.5b",
    "mistral-7b",
    "gemma-2b",
    "gpt2-xl",
    "qwen3-4b",
    "llama-2-13b",
    "phi-2",
]
ENTRIES = ("logits", "kept", "block", "states")


def draw(rng: random.Random) -> dict[str, Any]:
    """A random training job."""
    framework = rng.choice(["torch", "transformers", "torchtitan", "nanotron", "megatron", "litgpt", "torchtune"])
    strategy: dict[str, Any] = {
        "framework": framework,
        "micro_batch": rng.choice([1, 2, 4]),
        "checkpointing": rng.choice(["none", "full", "full"]),
        "loss": rng.choice(["eager", "eager", "fused", "compiled"]),
        "precision": "bf16-mixed" if framework in ("nanotron", "megatron") else rng.choice(["bf16", "bf16-mixed"]),
        "zero": 0,
        "dp": 1,
    }
    if framework == "torchtitan" or (framework == "torch" and rng.random() < 0.5):
        strategy |= {"zero": 3, "dp": rng.choice([4, 8, 32])}
    method = rng.choice(["full", "full", "lora"]) if framework not in ("nanotron", "megatron", "torchtitan") else "full"
    task = {"kind": "train", "method": method, "seq_len": rng.choice([1024, 2048, 4096])}
    return {"model": {"name": rng.choice(MODELS)}, "task": task, "strategy": strategy}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Allocated, reserved and expandable peaks of one job by playing and replaying it, with the entries of its peak."""
    resolved = resolve(parse(job))
    setup, dims = setup_of(resolved), dims_of(resolved)
    stage = stages_of(setup, dims)[0]
    peak = stage_peak(setup, dims, stage)
    timeline = play(setup, dims, stage, steps=3)
    events = [(ALLOC, e.id, e.bytes, e.stream) if e.bytes > 0 else (FREE, e.id) for e in timeline]
    late = not setup.scheme.always
    default = replay(events).reserved_peak
    expandable = replay(events, "expandable_segments:True").reserved_peak
    return {
        "kind": "sharded" if job["strategy"]["zero"] else "late" if late else "flat",
        "allocated": timeline.peak[1] / GIB,
        "reserved": default / GIB,
        "expandable": expandable / GIB,
        "predicted": peak.reserved / GIB,
        "replayed": (expandable if setup.profile.expandable else default) / GIB,
        **{name: peak.peak.parts[name] / GIB for name in ENTRIES},
    }


def main() -> None:
    """Draw, measure, fit, print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 150
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    rows = []
    while len(rows) < count:
        try:
            rows.append(measure(draw(rng)))
        except MemfitError as error:
            print(f"skipped: {error}", file=sys.stderr)
    for kind in ("flat", "late", "sharded"):
        mine = [r for r in rows if r["kind"] == kind]
        if not mine:
            continue
        base = np.array([r["allocated"] for r in mine])
        reserved = np.array([r["reserved"] for r in mine])
        expandable = np.array([r["expandable"] for r in mine])
        features = np.array([[r[name] for name in ENTRIES] for r in mine])
        fit, *_ = np.linalg.lstsq(features / base[:, None], (reserved - base) / base, rcond=None)
        error = np.abs(np.array([r["predicted"] / r["replayed"] for r in mine]) - 1)
        shares = ", ".join(f"{name} {100 * value:.0f} %" for name, value in zip(ENTRIES, fit, strict=True))
        print(f"{kind:8s} {len(mine):4d} jobs  reserved/allocated {np.median(reserved / base):.3f}", end="  ")
        print(f"expandable/allocated {np.median(expandable / base):.3f}")
        print(f"         least squares: {shares}")
        print(f"         memfit's reserved against the replay: median {100 * np.median(error):.1f} %, ", end="")
        print(f"p90 {100 * np.quantile(error, 0.9):.1f} %")


if __name__ == "__main__":
    main()
