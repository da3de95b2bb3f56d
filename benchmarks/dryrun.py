"""The examples of ``examples/dryrun`` on an imaginary GPU, beside ``memfit trace`` and the formula; and do they flip?

    python benchmarks/dryrun.py PYTHON [--flips] [NAME ...]

writes ``docs/dryrun-records.json`` (what was measured, by example) and ``docs/dryrun-table.md``; without PYTHON the
table alone, from the records. PYTHON is an interpreter whose torch is a CUDA build and that has the packages of the
examples. Each example is run as its own documentation says. With --flips each is run twice more: on a card with 16 MiB
more than the smallest capacity that was predicted, where it must finish, and on one with 16 MiB less, where it must run
out of memory. Tracing needs torch and transformers in memfit's own environment; without them its column stays empty.
"""

from __future__ import annotations

import ast
import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from _shared import markdown_table
from memfit.errors import MemfitError
from memfit.formula.estimate import Estimate, estimate
from memfit.hardware import lookup_gpu
from memfit.job import from_kwargs
from memfit.ledger import compare
from memfit.mirage import prepare
from memfit.mirage.run import DryRun, RunOptions, dryrun
from memfit.readers import read_tree
from memfit.trace import Trace

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "dryrun"
DOCS = FOLDER.parents[1] / "docs"
RECORDS = DOCS / "dryrun-records.json"
MIB, GIB = 1 << 20, 1 << 30
STEP = 16 * MIB
_TINY = {"config": "model", "seq_len": 2048, "micro_batch": 4, "framework": "torch", "optimizer": "adamw"}


class Example(NamedTuple):
    """A job that states what the script does, and why the three may differ."""

    job: dict[str, Any] | None
    why: str


_HELD = "the traced step holds the model's output until it ends, the script drops it before the backward"

EXAMPLES: dict[str, Example] = {
    "plain": Example({**_TINY, "precision": "bf16"}, _HELD),
    "hf_trainer": Example(
        {**_TINY, "precision": "bf16-mixed", "checkpointing": "full", "framework": "transformers", "grad_accum": 2},
        "the Trainer's second micro-batch runs beside the gradients of the first",
    ),
    "sft_lora": Example(
        {"model": "qwen3-0.6b", "seq_len": 2048, "micro_batch": 4, "framework": "trl", "method": "lora",
         "lora": {"rank": 16, "targets": "all-linear"}, "checkpointing": "full", "precision": "bf16",
         "loss": "chunked"},
        "TRL 1.16 computes the loss in chunks unless told otherwise, so the job says `loss = \"chunked\"`; with logits "
        "at once it would be 15.6 GiB"),
    "qlora": Example(
        {"model": "llama-3.1-8b", "seq_len": 2048, "micro_batch": 2, "framework": "transformers", "method": "qlora",
         "lora": {"rank": 16, "targets": "all-linear"}, "checkpointing": "full", "weights": "nf4-dq",
         "optimizer": "paged-adamw-8bit"},
        ""),
    "float8": Example(
        {**_TINY, "precision": "fp8"},
        "the trace does not know float8; the job's fp8 means fp32 master weights, the script trains bf16 ones"),
    "int8": Example(None, "inference: no training job states it"),
    "compiled": Example({**_TINY, "config": "model:4", "precision": "bf16", "compile": True},
                        "Inductor fuses casts, softmax and loss, so fewer copies of the logits stand side by side"),
    "ddp": Example({**_TINY, "precision": "bf16", "gpus": 16, "dp": 16}, _HELD),
    "accelerate_fsdp": Example({**_TINY, "precision": "bf16-mixed", "gpus": 8, "zero": 3}, ""),
    "fsdp2": Example(
        {"model": "llama-3.1-405b", "seq_len": 4096, "micro_batch": 1, "framework": "torch", "precision": "bf16-mixed",
         "gpus": 512, "zero": 3, "checkpointing": "full"}, ""),
    "deepspeed_zero": Example(
        {**_TINY, "precision": "bf16", "gpus": 8, "zero": 3, "framework": "deepspeed"},
        "stage3_max_live_parameters (1e9) is more than this model has, so gathered weights stay"),
}  # fmt: skip


class RanOutError(Exception):
    """The card was too small; nobody wants to see the run without a limit."""


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


def record(name: str, python: Path, *, flips: bool) -> dict[str, Any]:
    """Everything about one example, JSON-ready; bytes, None where there is no answer."""
    done = run(name, python)
    facts, needed = done.facts, done.answer.needed[1]
    found = predicted(name)
    trace = traced(found)
    reading = None if found is None else found.readings[found.fullest]
    sides = () if found is None else compare(found.stages[found.fullest], done.answer.ledger)
    return {
        "gpu": done.gpu.name,
        "torch": facts.torch,
        "allocated": [facts.allocated_peak, trace and trace.peak_allocated, reading and int(reading.allocated)],
        "reserved": [facts.reserved_peak, trace and trace.simulate().reserved_peak, reading and int(reading.reserved)],
        "needed": needed,
        "flips": fits(name, python, needed + STEP) and not fits(name, python, needed - STEP) if flips else None,
        "components": {d.component: [d.right_bytes, d.left_bytes] for d in sides},
    }


def table(records: Mapping[str, dict[str, Any]]) -> str:
    """The records as Markdown, with what explains the differences."""
    rows, lines = [], []
    for name in (name for name in EXAMPLES if name in records):
        found = records[name]
        figures = [gib(size) for key in ("allocated", "reserved") for size in found[key]]
        flips = "" if found["flips"] is None else "yes" if found["flips"] else "no"
        rows.append([f"`{name}`", *figures, gib(found["needed"]), flips])
        off = sorted(found["components"].items(), key=lambda item: -abs(item[1][0] - item[1][1]))[:3]
        told = [f"{c.replace('_', ' ')} {gib(a)} against {gib(b)}" for c, (a, b) in off if abs(a - b) > GIB // 20]
        why = [EXAMPLES[name].why] if EXAMPLES[name].why else []
        if told:
            why.append("dry run against formula: " + ", ".join(told))
        if why:
            lines.append(f"- `{name}`: " + "; ".join(why) + ".")
    header = ["example", "allocated: dry run", "trace", "formula", "reserved: dry run", "trace", "formula", "needs"]
    text = markdown_table([*header, "flips within 32 MiB"], rows)
    return (
        f"{text}\n\nGiB, first three steps, without the CUDA context except in *needs*.\n\n" + "\n".join(lines) + "\n"
    )


def read_records() -> dict[str, dict[str, Any]]:
    """What has been measured, by example."""
    found: dict[str, dict[str, Any]] = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.is_file() else {}
    return found


def gib(num_bytes: float | None) -> str:
    """Two decimals; nothing for no answer."""
    return "" if num_bytes is None else f"{num_bytes / GIB:.2f}"


def main(words: list[str]) -> int:
    """Measure, then render."""
    flips = "--flips" in words
    python, *names = [w for w in words if w != "--flips"] or [""]
    for name in (names or EXAMPLES) if python else ():
        print(name, file=sys.stderr)
        try:
            made = record(name, Path(python), flips=flips)
        except MemfitError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        records = read_records()  # another process may have added to them
        old = records.get(name, {})
        if made["flips"] is None and old.get("needed") == made["needed"]:
            made["flips"] = old.get("flips")
        records[name] = made
        RECORDS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    (DOCS / "dryrun-table.md").write_text(table(read_records()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
