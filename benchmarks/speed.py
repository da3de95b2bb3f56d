"""How fast is memfit? ``python benchmarks/speed.py [--quick] [--json]``

Four questions: how long one estimate takes, how long an array of a million training jobs, how many jobs a second a
batch file, and how much a command line costs beyond starting Python. Times are CPU times of one core, the best of
several runs; what starts a process is also given as a ratio to ``python -c pass`` in the same run and as the number of
modules it loads, which do not depend on the machine. ``--quick`` takes a tenth of the jobs and fewer runs. With
``--json`` the result is a list of {``what``, ``value``, ``unit``, ``per``}; a part that is missing has ``value`` null
and says so in ``per``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _shared import machine, text_table

SOURCE = Path(__file__).resolve().parents[1] / "src"
TRAIN = {"model": "llama-3.1-8b", "gpu": "8xh100-sxm-80gb", "framework": "torchtitan", "zero": 3, "seq_len": 8192}
LORA = {"model": "qwen2.5-7b", "gpu": "rtx-4090", "method": "qlora", "framework": "trl", "seq_len": 2048}
PIPELINE = {
    "model": "llama-3.1-70b",
    "gpu": "64xh100-sxm-80gb",
    "framework": "megatron",
    "tp": 8,
    "pp": 4,
    "seq_len": 8192,
}
SERVE = {"model": "qwen3-30b-a3b", "gpu": "h100-sxm-80gb", "kind": "serve", "framework": "vllm", "context": 32768}
JOBS = {"full, ZeRO-3": TRAIN, "QLoRA": LORA, "tp 8 x pp 4": PIPELINE, "serve": SERVE}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One measured figure; ``per`` says what it is relative to or why it is missing."""

    what: str
    value: float | None
    unit: str = ""
    per: str = ""


def best_cpu(call: Callable[[], Any], runs: int) -> float:
    """CPU seconds of the fastest of several calls."""
    best = float("inf")
    for _ in range(runs):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def single(quick: bool) -> list[Line]:
    """Milliseconds of one estimate, everything imported and the model known."""
    from memfit.formula.estimate import estimate

    repeats = 20 if quick else 200
    lines = []
    for name, fields in JOBS.items():
        estimate(**fields)

        def many(fields: dict[str, Any] = fields) -> None:
            for _ in range(repeats):
                estimate(**fields)

        lines.append(Line(what=f"one estimate: {name}", value=best_cpu(many, 3) / repeats * 1000, unit="ms"))
    return lines


def arrays(quick: bool) -> list[Line]:
    """Seconds for an array of jobs that differ in batch, length, degrees and strategy."""
    count = 100_000 if quick else 1_000_000
    what = f"array of {count:,} training jobs"
    try:
        import memfit.formula.arrays as module
    except ImportError:
        return [Line(what=what, value=None, per="memfit.formula.arrays is missing")]
    if not hasattr(module, "evaluate"):
        return [Line(what=what, value=None, per="memfit.formula.arrays.evaluate is missing")]
    import numpy as np

    from memfit.job import from_kwargs

    rng = np.random.default_rng(0)
    plain = {
        "micro_batch": rng.integers(1, 65, count),
        "seq_len": 256 * rng.integers(1, 129, count),
        "dp": 2 ** rng.integers(0, 8, count),
        "tp": 2 ** rng.integers(0, 4, count),
    }
    grouped = {
        **plain,
        "zero": rng.integers(0, 4, count),
        "checkpointing": rng.choice(np.array(["none", "selective", "full"]), count),
    }
    job = from_kwargs(model="llama-3.1-8b", gpu="h100-sxm-80gb", kind="train", framework="torchtitan")
    lines = []
    for name, fields in (("numbers vary", plain), ("and ZeRO stage, checkpointing", grouped)):
        small = {k: v[:1000] for k, v in fields.items()}
        module.evaluate(job, **small)
        seconds = best_cpu(lambda fields=fields: module.evaluate(job, **fields), 2 if quick else 3)
        lines.append(Line(what=f"{what}, {name}", value=seconds, unit="s", per=f"{seconds / count * 1e9:.0f} ns a job"))
    return lines


def batch(quick: bool) -> list[Line]:
    """Lines a second of a batch of JSON jobs."""
    count = 2_000 if quick else 20_000
    what = f"batch of {count:,} JSON lines"
    try:
        from memfit.formula import batch as module
    except ImportError:
        return [Line(what=what, value=None, per="memfit.formula.batch is missing")]
    if not hasattr(module, "run"):
        return [Line(what=what, value=None, per="memfit.formula.batch.run is missing")]
    jobs = []
    for i in range(count):
        job = {
            "model": {"name": ("llama-3.1-8b", "qwen2.5-7b", "mistral-7b")[i % 3]},
            "task": {"kind": "train", "seq_len": 1024 + i},
            "strategy": {"framework": "torchtitan", "micro_batch": 1 + i % 8, "zero": i % 4, "dp": 8},
            "hardware": {"gpu": "h100-sxm-80gb", "gpus": 8},
        }
        jobs.append(json.dumps(job).encode() + b"\n")
    answers = list(module.run(iter(jobs[:100]), full=False))
    faults = sum(b'"error"' in a for a in answers)
    seconds = best_cpu(lambda: [None for _ in module.run(iter(jobs), full=False)], 2)
    per = f"{faults} of the first 100 were refused" if faults else "all different"
    return [Line(what=what, value=count / seconds, unit="lines/s", per=per)]


def child_cpu(arguments: Sequence[str], runs: int) -> tuple[float, int]:
    """CPU seconds of the fastest run of a Python process, and its exit code."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    best, code = float("inf"), 0
    for _ in range(runs):
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        best = min(best, usage.ru_utime + usage.ru_stime)
    return best, code


def modules(program: str) -> int:
    """Modules that a program has loaded at its end."""
    # Printed at exit, whatever the program itself prints and exits with: only the last word is read.
    code = f"import sys, atexit\natexit.register(lambda: print(len(sys.modules), file=sys.__stdout__))\n{program}\n"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    return int(done.stdout.split()[-1])


def start(quick: bool) -> list[Line]:
    """What starting costs: CPU milliseconds, times ``python -c pass``, modules loaded."""
    runs = 3 if quick else 10
    command = ["estimate", "llama-3.1-8b", "--gpu", "8xh100", "--zero", "3"]
    programs = {
        "python -c pass": "pass",
        "import memfit": "import memfit",
        "memfit --help": "import sys; sys.argv = ['memfit', '--help']; from memfit.cli import main; main()",
        "memfit estimate": f"import sys; sys.argv = {['memfit', *command]!r}; from memfit.cli import main; main()",
    }
    base = None
    lines = []
    for name, program in programs.items():
        seconds, code = child_cpu(["-c", program], runs)
        if code not in (0, 1):  # 1: the job does not fit
            lines.append(Line(what=f"start: {name}", value=None, per=f"exit code {code}"))
            continue
        base = base or seconds
        per = f"{seconds / base:.1f} x python -c pass, {modules(program)} modules"
        lines.append(Line(what=f"start: {name}", value=seconds * 1000, unit="ms", per=per))
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="How fast memfit is.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs, fewer runs")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    options = parser.parse_args(arguments)
    lines = [line for part in (single, arrays, batch, start) for line in part(options.quick)]
    if options.json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
        return 0
    rows = [[x.what, "–" if x.value is None else f"{x.value:,.4g}", x.unit, x.per] for x in lines]
    print(f"{machine()}; CPU time of one core\n")
    print(text_table(["what", "value", "unit", "remark"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
