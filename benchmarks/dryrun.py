"""The examples of ``examples/dryrun`` on an imaginary GPU, beside ``memfit trace`` and the formula; and do they flip?

    python benchmarks/dryrun.py PYTHON [--flips] [NAME ...] > docs/dryrun-table.md

PYTHON is an interpreter whose torch is a CUDA build and that has the packages of the examples. Each example is run as
its own documentation says. With --flips each is run twice more: on a card with 16 MiB more than the smallest capacity
that was predicted, where it must finish, and on one with 16 MiB less, where it must run out of memory. Tracing needs
torch and transformers in memfit's own environment; without them its column stays empty.
"""

from __future__ import annotations

import ast
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from _shared import machine, markdown_table
from memfit.errors import MemfitError
from memfit.formula.estimate import Estimate, estimate
from memfit.hardware import lookup_gpu
from memfit.job import from_kwargs
from memfit.mirage import prepare
from memfit.mirage.run import DryRun, RunOptions, dryrun
from memfit.readers import read_tree
from memfit.trace import Trace

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "dryrun"
MIB, GIB = 1 << 20, 1 << 30
STEP = 16 * MIB
_TINY = {"config": "model", "seq_len": 2048, "micro_batch": 4, "framework": "torch", "optimizer": "adamw"}


class Example(NamedTuple):
    """A job that states what the script does, and why the three may differ."""

    job: dict[str, Any] | None
    why: str


EXAMPLES: dict[str, Example] = {
    "plain": Example({**_TINY, "precision": "bf16"}, ""),
    "hf_trainer": Example(
        {**_TINY, "precision": "bf16-mixed", "checkpointing": "full", "framework": "transformers", "grad_accum": 2}, ""
    ),
    "sft_lora": Example(
        {"model": "qwen3-0.6b", "seq_len": 2048, "micro_batch": 4, "framework": "trl", "method": "lora",
         "lora": {"rank": 16, "targets": "all-linear"}, "checkpointing": "full", "precision": "bf16"}, ""),
    "qlora": Example(
        {"model": "llama-3.1-8b", "seq_len": 2048, "micro_batch": 2, "framework": "transformers", "method": "qlora",
         "lora": {"rank": 16, "targets": "all-linear"}, "checkpointing": "full", "weights": "nf4-dq",
         "optimizer": "paged-adamw-8bit"}, ""),
    "float8": Example({**_TINY, "precision": "fp8"}, ""),
    "int8": Example(None, "inference: no training job states it"),
    "compiled": Example({**_TINY, "config": "model:4", "precision": "bf16", "compile": True}, ""),
    "ddp": Example({**_TINY, "precision": "bf16", "gpus": 16, "dp": 16}, ""),
    "accelerate_fsdp": Example({**_TINY, "precision": "bf16-mixed", "gpus": 8, "zero": 3}, ""),
    "fsdp2": Example(
        {"model": "llama-3.1-405b", "seq_len": 4096, "micro_batch": 1, "framework": "torch", "precision": "bf16-mixed",
         "gpus": 512, "zero": 3, "checkpointing": "full"}, ""),
    "deepspeed_zero": Example({**_TINY, "precision": "bf16", "gpus": 8, "zero": 3, "framework": "deepspeed"}, ""),
}  # fmt: skip


class RanOutError(Exception):
    """The card was too small; nobody wants to see the run without a limit."""


class Row(NamedTuple):
    """What one example gave; bytes, None where there is no answer."""

    name: str
    run: DryRun
    predicted: Estimate | None
    traced: Trace | None
    above: bool | None
    below: bool | None


def documented(name: str) -> list[str]:
    """The words of the command in an example's own documentation, after ``memfit dryrun``."""
    text = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
    command = text[text.index("memfit dryrun") :].replace("\\\n", " ")
    return shlex.split(command)[2:]


def options(words: list[str], python: Path) -> tuple[RunOptions, Any]:
    """The run that the words of a command line ask for, and its card."""
    at = words.index("--")
    flags, command = words[:at], words[at + 1 :]
    card, given = "", {"steps": 3}  # type: ignore[var-annotated]
    while flags:
        flag = flags.pop(0)
        if flag == "--gpu":
            card = flags.pop(0)
        elif flag in ("--ranks", "--steps"):
            given[flag[2:]] = int(flags.pop(0))
        elif flag == "--fake-data":
            given["fake_data"] = flags.pop(0)
        else:
            given["fake_weights"] = flag == "--fake-weights"
    gpu, count = lookup_gpu(card)
    return RunOptions(command=tuple(command), python=python, gpus_per_node=count, **given), gpu


def run(name: str, python: Path, *, total_bytes: int | None = None, once: bool = False) -> DryRun:
    """One dry run of an example.

    Raises:
        RanOutError: ``once`` is set and the card is too small.
    """
    made, gpu = options(documented(name), python)

    def environment(total: int | None) -> Mapping[str, str]:
        if once and total != total_bytes:
            raise RanOutError
        return prepare(python, gpu, count=made.num_devices, total_bytes=total)

    return dryrun(made, gpu, environment, base=dict(os.environ), total_bytes=total_bytes)


def fits(name: str, python: Path, total_bytes: int) -> bool:
    """Whether an example finishes on a card of so many bytes."""
    try:
        return run(name, python, total_bytes=total_bytes, once=True).fits
    except RanOutError:
        return False


def predicted(name: str) -> Estimate | None:
    """The formula's answer for the job that an example does."""
    fields = EXAMPLES[name].job
    if fields is None:
        return None
    fields = dict(fields)
    folder, _, layers = str(fields.pop("config", "")).partition(":")
    if folder:
        config = dict(read_tree(str(FOLDER / folder / "config.json")))
        if layers:
            config["num_hidden_layers"] = int(layers)
        fields["config"] = config
    made, gpu = options(documented(name), Path(sys.executable))
    del made
    return estimate(from_kwargs(gpu=gpu.name, **fields))


def traced(found: Estimate | None) -> Trace | None:
    """The same job traced; None where it is not, or torch is missing."""
    if found is None:
        return None
    try:
        from memfit.trace.extrapolate import trace_job_deep

        return trace_job_deep(found, rank=0, stage=found.fullest)
    except Exception as error:
        print(f"not traced: {str(error)[:160]}", file=sys.stderr)
        return None


def row(name: str, python: Path, *, flips: bool) -> Row:
    """Everything about one example."""
    done = run(name, python)
    above = below = None
    if flips:
        needed = done.answer.needed[1]
        above, below = fits(name, python, needed + STEP), fits(name, python, needed - STEP)
    found = predicted(name)
    return Row(name, done, found, traced(found), above, below)


def cells(row: Row) -> list[str]:
    """The row of the table."""
    facts, answer = row.run.facts, row.run.answer
    formula = row.predicted.readings[row.predicted.fullest] if row.predicted is not None else None
    trace = "" if row.traced is None else gib(row.traced.peak_allocated)
    simulated = "" if row.traced is None else gib(row.traced.simulate().reserved_peak)
    flip = "" if row.above is None else "yes" if row.above and not row.below else "no"
    return [
        f"`{row.name}`", gib(facts.allocated_peak), trace, gib(formula.allocated) if formula else "",
        gib(facts.reserved_peak), simulated, gib(formula.reserved) if formula else "",
        gib(answer.needed[1]), flip,
    ]  # fmt: skip


def gib(num_bytes: float) -> str:
    """Two decimals."""
    return f"{num_bytes / GIB:.2f}"


def main(words: list[str]) -> int:
    """The table, as Markdown."""
    flips = "--flips" in words
    python, *names = (w for w in words if w != "--flips")
    rows = []
    for name in names or EXAMPLES:
        print(name, file=sys.stderr)
        try:
            rows.append(cells(row(name, Path(python), flips=flips)))
            print(rows[-1], file=sys.stderr, flush=True)
        except MemfitError as error:
            print(f"{name}: {error}", file=sys.stderr)
    header = ["example", "allocated: dry run", "trace", "formula", "reserved: dry run", "trace", "formula", "needs"]
    print(markdown_table([*header, "flips"], rows))
    print(f"\nGiB; {machine()}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
