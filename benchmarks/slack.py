"""How much the caching allocator holds beyond what is allocated: the fit behind memfit.formula.slack.

Plays training steps of random jobs (catalog models, frameworks without and with sharding), replays them through the
simulated allocator with default and with expandable segments, and fits reserved minus allocated by least squares over
the entries of the peak and the causes of ``memfit.formula.segments``. Under expert parallelism the rows of experts
differ by ``SPREAD`` from layer to layer and from micro-batch to micro-batch. Usage:
``python benchmarks/slack.py [JOBS] [SEED]``; prints the coefficients and residuals.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np

from memfit.allocator import ALLOC, FREE, replay
from memfit.errors import MemfitError
from memfit.formula.resolve import resolve
from memfit.formula.segments import ROUTED, first_pass, idle
from memfit.formula.stage import StageModel
from memfit.formula.step import AT_LOGITS
from memfit.formula.timeline import Player
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
EXPERTS = ["olmoe-1b-7b", "qwen1.5-moe-a2.7b", "deepseek-v2-lite", "granite-3.1-3b-a800m", "qwen3-30b-a3b"]
SPREAD = 0.1
FEATURES = {
    "flat": ("logits", "kept", "block", "unfilled", "uneven", "first_pass"),
    "late": ("logits", "kept", "block", "states"),
    "sharded": ("logits", "kept", "block", "states"),
}


class Uneven(Player):
    """A player whose experts get other numbers of rows in each layer and micro-batch."""

    def __init__(self, *job: Any) -> None:
        super().__init__(*job)
        self.rng = random.Random(3)
        self.shares: dict[int, dict[int, float]] = {}

    def forward(self) -> Any:
        """A forward pass with shares of its own."""
        spread = SPREAD if self.d.ep > 1 else 0.0
        self.share = {layer: max(0.4, self.rng.gauss(1, spread)) for layer in self.m.indices}
        run = super().forward()
        self.shares[id(run)] = self.share
        return run

    def backward(self, run: Any) -> None:
        """The backward pass of the same rows."""
        self.share = self.shares.pop(id(run))
        super().backward(run)

    def play(self, lines: Any, atoms: dict[str, int], live: Any, layer: int) -> None:
        """A script with the layer's share."""
        if layer >= 0:
            share = self.share[layer]
            atoms = {name: int(size * share) if name in ROUTED else size for name, size in atoms.items()}
        super().play(lines, atoms, live, layer)


def flat(rng: random.Random) -> dict[str, Any]:
    """A random job of a framework with gradient buffers."""
    experts = rng.random() < 0.5
    tp, pp = rng.choice([1, 1, 2, 4]), rng.choice([1, 1, 2, 4])
    strategy: dict[str, Any] = {
        "framework": "megatron" if experts else rng.choice(["megatron", "nanotron"]),
        "micro_batch": rng.choice([1, 2, 4]),
        "checkpointing": rng.choice(["none", "full", "full"]),
        "loss": rng.choice(["eager", "fused", "compiled", "compiled"]),
        "zero": 0 if experts else rng.choice([0, 1]),
        "dp": rng.choice([1, 4, 8]),
        "tp": tp,
        "sequence_parallel": tp > 1,
        "pp": pp,
        "grad_accum": 2 * pp,
    }
    if experts:
        strategy["ep"] = rng.choice([1, strategy["dp"]])
    task = {"kind": "train", "method": rng.choice(["full", "full", "lora"]), "seq_len": rng.choice([2048, 4096, 8192])}
    return {"model": {"name": rng.choice(EXPERTS if experts else MODELS)}, "task": task, "strategy": strategy}


def draw(rng: random.Random) -> dict[str, Any]:
    """A random training job."""
    if rng.random() < 0.5:
        return flat(rng)
    framework = rng.choice(["torch", "transformers", "torchtitan", "litgpt", "torchtune"])
    strategy: dict[str, Any] = {
        "framework": framework,
        "micro_batch": rng.choice([1, 2, 4]),
        "checkpointing": rng.choice(["none", "full", "full"]),
        "loss": rng.choice(["eager", "eager", "fused", "compiled"]),
        "precision": rng.choice(["bf16", "bf16-mixed"]),
        "zero": 0,
        "dp": 1,
    }
    if framework == "torchtitan" or (framework == "torch" and rng.random() < 0.5):
        strategy |= {"zero": 3, "dp": rng.choice([4, 8, 32])}
    method = rng.choice(["full", "full", "lora"]) if framework != "torchtitan" else "full"
    task = {"kind": "train", "method": method, "seq_len": rng.choice([1024, 2048, 4096])}
    return {"model": {"name": rng.choice(MODELS)}, "task": task, "strategy": strategy}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Allocated, reserved and expandable peaks of one job by playing and replaying it, with the entries of its peak."""
    resolved = resolve(parse(job))
    setup, dims = setup_of(resolved), dims_of(resolved)
    stage = stages_of(setup, dims)[-1]
    peak = stage_peak(setup, dims, stage)
    model = StageModel(setup, dims, stage)
    causes = {**idle(model), "first_pass": first_pass(model) if peak.peak.what in AT_LOGITS else 0}
    timeline = Uneven(setup, dims, stage).step(steps=3)
    events = [(ALLOC, e.id, e.bytes, e.stream) if e.bytes > 0 else (FREE, e.id) for e in timeline]
    late = not setup.scheme.always
    default = replay(events).reserved_peak
    expandable = replay(events, "expandable_segments:True").reserved_peak
    return {
        "kind": "sharded" if job["strategy"]["zero"] >= 3 else "late" if late else "flat",
        "allocated": timeline.peak[1] / GIB,
        "reserved": default / GIB,
        "expandable": expandable / GIB,
        "predicted": peak.reserved / GIB,
        "replayed": (expandable if setup.profile.expandable else default) / GIB,
        **{name: peak.peak.parts[name] / GIB for name in ("logits", "kept", "block", "states")},
        **{name: size / GIB for name, size in causes.items()},
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
        features = np.array([[r[name] for name in FEATURES[kind]] for r in mine])
        fit, *_ = np.linalg.lstsq(features / base[:, None], (reserved - base) / base, rcond=None)
        error = np.abs(np.array([r["predicted"] / r["replayed"] for r in mine]) - 1)
        shares = ", ".join(f"{name} {100 * value:.0f} %" for name, value in zip(FEATURES[kind], fit, strict=True))
        print(f"{kind:8s} {len(mine):4d} jobs  reserved/allocated {np.median(reserved / base):.3f}", end="  ")
        print(f"expandable/allocated {np.median(expandable / base):.3f}")
        print(f"         least squares: {shares}")
        print(f"         memfit's reserved against the replay: median {100 * np.median(error):.1f} %, ", end="")
        print(f"p90 {100 * np.quantile(error, 0.9):.1f} %")


if __name__ == "__main__":
    main()
