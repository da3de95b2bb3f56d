"""Measure a matrix of real runs on this machine's card, memfit's prediction beside each.

    python benchmarks/gpu/record.py [--only PATTERN] [--budget-s 520] [--out FOLDER] [--again]
    python benchmarks/gpu/record.py --list [--gpu h200] [--memory-gib 139.8]
    python benchmarks/gpu/record.py --smoke

Every case runs in a process of its own with a time limit; what it gives is written at once, so the command can be
stopped and started again and goes on where it was. See README.md beside this file.

Exit codes: 0 done; 2 a wrong option; 3 no card, no PyTorch or no transformers; 1 (with --smoke) a case failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import _predict
from _matrix import GIB, KERNELS, Card, Case, matrix
from _meter import SMOKE, num_cards
from _results import KINDS, done, put, read_lines, where, with_share
from _smoke import smoke_cases
from _worker import scrub

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
START_S = 90
"""A process that has not imported torch and transformers after so many seconds will not."""
GRACE_S = 15
"""A case that the budget cuts may take so much longer."""
SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "CUDA_LAUNCH_BLOCKING")
"""Variables that change memory or time: cases state their own, none is inherited."""
COLUMNS = f"{'case':<62} {'':>8} {'allocated':>22} {'reserved':>22} {'device':>22} {'step':>9} {'tokens/s':>9}"


class Worker:
    """A process that imports torch, waits for one case, runs it and ends."""

    def __init__(self, allocator: str = "", *, smoke: bool = False) -> None:
        self.allocator = allocator
        environment = {k: v for k, v in os.environ.items() if k not in SETTINGS}
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        # one card: with several, transformers' Trainer would spread the batch over them
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
        if allocator:
            environment["PYTORCH_CUDA_ALLOC_CONF"] = allocator
        self.folder = tempfile.TemporaryDirectory()
        self.out = Path(self.folder.name) / "out.jsonl"
        self.errors, self.ready = (Path(self.folder.name) / name for name in ("errors.txt", "ready"))
        command = [sys.executable, str(HERE / "_worker.py"), str(self.ready), *(["--smoke"] if smoke else [])]
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, env=environment
            )

    def run(self, case: Case, timeout_s: float, snapshot: Path | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """(rows of a table, result) of a case; a crash or a stop is a result with outcome ``failed``."""
        request = {**dataclasses.asdict(case), "out": str(self.out), "snapshot_file": str(snapshot or "")}
        stopped = ""
        end = time.monotonic() + START_S
        while not self.ready.exists() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        try:
            self.process.communicate((json.dumps(request) + "\n").encode(), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            stopped = f"stopped after {timeout_s:.0f} s"
        except BrokenPipeError:  # it ended before it read the case: its last words say why
            pass
        self._end()
        entries = read_lines(self.out)
        tail = self.errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        self.folder.cleanup()
        found = [entry["row"] for entry in entries if "row" in entry]
        results = [entry["result"] for entry in entries if "result" in entry]
        if results:
            return found, results[-1]
        why = stopped or f"ended with {self.process.returncode}: {scrub(' '.join(tail))[:500]}"
        return found, {"outcome": "failed", "error": why}

    def close(self) -> None:
        """End a process that got no case."""
        self._end()
        self.folder.cleanup()

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdin and not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()


def say(text: str) -> None:
    """One line of progress, at once."""
    print(text, flush=True)


def beside(kind: str, result: dict[str, Any], predicted: dict[str, Any] | None) -> str:
    """Measured/predicted GiB and how far the prediction is from the measurement."""
    got = (result.get("peak_bytes") or {}).get(kind)
    want = (predicted or {}).get(kind)
    measured = f"{got / GIB:.2f}" if got else "-"
    if want is None:
        return measured
    error = f" {want * GIB / got - 1:+.1%}" if got else ""
    return f"{measured} / {want:.2f}{error}"


def line(case: Case, result: dict[str, Any], predicted: dict[str, Any] | None) -> str:
    """One line of the printed table."""
    cells = [f"{beside(kind, result, predicted):>22}" for kind in KINDS]
    step = result.get("step_s") or result.get("token_s")
    cells.append(f"{step * 1e3:.1f} ms".rjust(9) if step else " " * 9)
    rate = result.get("tokens_per_s")
    cells.append(f"{rate:9.0f}" if rate else " " * 9)
    text = f"{case.name:<62} {result['outcome']:>8} " + " ".join(cells)
    if result.get("error") and result["outcome"] == "failed":
        text += f"\n    {str(result['error']).splitlines()[0][:200]}"
    return text.rstrip()


def show_list(card: Card, cases: Sequence[Case]) -> None:
    """The matrix with memfit's predictions."""
    say(f"{len(cases)} cases for {card.name or 'a card'} with {card.total_bytes / GIB:.1f} GiB; GiB as memfit predicts")
    say(f"{'case':<62} {'allocated':>9} {'reserved':>9} {'device':>9}")
    for case in cases:
        predicted = _predict.predict(case.job) if case.job else None
        figures = [f"{predicted[kind]:9.2f}" if predicted else f"{'-':>9}" for kind in KINDS]
        marks = [f"needs {', '.join(case.needs)}"] if case.needs else []
        marks += [f"left out: {case.skip}"] if case.skip else []
        marks += [f"not scored: {case.apart}"] if case.apart else []
        say(f"{case.name:<62} {' '.join(figures)}  {'; '.join(marks)}".rstrip())


def chosen(cases: Iterable[Case], pattern: str | None) -> list[Case]:
    """Cases by patterns, which commas separate: a whole name, a part of one, or one with ``*`` and ``?``."""
    cases = list(cases)
    if not pattern:
        return cases
    names = {case.name for case in cases}
    wild = [p if p in names or any(c in p for c in "*?[") else f"*{p}*" for p in pattern.split(",")]
    return [case for case in cases if any(fnmatch.fnmatchcase(case.name, p) for p in wild)]


class Recorder:
    """Runs cases one after the other and writes what they give into a folder."""

    def __init__(self, folder: Path, environment: dict[str, Any], deadline: float, *, prepare: bool) -> None:
        self.folder, self.environment, self.deadline = folder, environment, deadline
        self.prepare, self.smoke = prepare, bool(environment.get("smoke"))
        if self.smoke and RESULTS in (folder.resolve(), *folder.resolve().parents):
            raise ValueError("a smoke run is never written into the results")
        folder.mkdir(parents=True, exist_ok=True)
        self.group = f"gpu {environment.get('gpu')}"
        self.counts = {"ok": 0, "oom": 0, "failed": 0, "skipped": 0}

    def run(self, cases: Sequence[Case]) -> None:
        """Run the cases in their order until the time is used up."""
        waiting: Worker | None = None
        todo = [case for case in cases if not self._skipped(case)]
        left = list(todo)
        try:
            while left and time.monotonic() < self.deadline:
                case = left.pop(0)
                allocator = str(case.settings.get("allocator", ""))
                if waiting is None or waiting.allocator != allocator:
                    if waiting is not None:
                        waiting.close()
                    waiting = Worker(allocator, smoke=self.smoke)
                worker, waiting = waiting, None
                if self.prepare and left:  # the next process imports while this one measures
                    waiting = Worker(str(left[0].settings.get("allocator", "")), smoke=self.smoke)
                self._one(case, worker)
        finally:
            if waiting is not None:
                waiting.close()
        if left:
            say(f"{len(left)} cases left for another run of the command, first {left[0].name}")

    def _skipped(self, case: Case) -> bool:
        missing = [m for m in case.needs if not self.environment.get("modules", {}).get(m)]
        why = case.skip or (f"{', '.join(missing)} not installed" if missing else "")
        if why:
            self.counts["skipped"] += 1
            say(f"{case.name:<62}  skipped: {why}")
        return bool(why)

    def _one(self, case: Case, worker: Worker) -> None:
        predicted = _predict.predict(case.job) if case.job else None  # before the measurement
        snapshot = None
        if case.settings.get("snapshot"):
            snapshot = self.folder / (re.sub(r"[^\w.-]+", "_", case.name.removeprefix("train/")) + ".pickle.gz")
        began = time.monotonic()
        table, result = worker.run(case, min(case.timeout_s, self.deadline - began + GRACE_S), snapshot)
        self.counts[result["outcome"]] += 1
        entry = {
            "case": case.name, "kind": case.kind, "group": self.group, "job": case.job, "settings": case.settings,
            "apart": case.apart, "predicted": predicted, "result": result, "environment": self.environment,
            "wall_s": round(time.monotonic() - began, 1),
        }  # fmt: skip
        put(self.folder, entry, [with_share(row, self.environment.get("peaks") or {}) for row in table])
        say(line(case, result, predicted) + (f"  {len(table)} rows" if case.kind in (*KERNELS, "context") else ""))


def missing() -> str:
    """What this machine lacks to measure; empty when it lacks nothing."""
    if not num_cards():
        return "no NVIDIA GPU that CUDA can use is on this machine: nothing can be measured (--list and --smoke work)"
    gone = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(gone)} not installed for {Path(sys.executable).name}" if gone else ""


def environment_of(*, smoke: bool) -> dict[str, Any]:
    """The card and the versions, read by a process of its own.

    Raises:
        RuntimeError: it did not answer.
    """
    _, found = Worker(smoke=smoke).run(Case(name="environment", kind="environment"), START_S + 30, None)
    if found["outcome"] != "ok":
        raise RuntimeError(found.get("error", "no answer"))
    from memfit._version import __version__

    return {**found, "memfit": __version__}


def measure(arguments: argparse.Namespace, began: float) -> int:
    """Measure what the time allows."""
    why = missing()
    if why:
        print(why, file=sys.stderr)
        return 3
    try:
        environment = environment_of(smoke=False)
    except RuntimeError as error:
        print(f"PyTorch and transformers do not start: {error}", file=sys.stderr)
        return 3
    if not environment.get("gpu"):
        print(f"torch {environment['torch']} sees no GPU: a CUDA build of PyTorch is needed", file=sys.stderr)
        return 3
    name, peaks = _predict.known_card(environment["gpu"])
    environment["peaks"] = peaks
    card = Card(name=name, total_bytes=environment["total"])
    release = environment["torch"].partition("+")[0]
    slug = re.sub(r"[^\w.-]+", "-", f"{name or environment['gpu'].lower()}-torch-{release}")
    folder = (arguments.out or RESULTS) / slug
    say(where(environment))
    context = environment["context"] / GIB
    say(f"context {context:.3f} GiB ({environment['device_source']}); results go to {folder.name}/")
    say("communicators (NCCL) are not measured: every case uses one GPU")
    cases = chosen(matrix(card, _predict.predict), arguments.only)
    if not arguments.again:
        over = done(read_lines(folder / "runs.jsonl"))
        cases = [case for case in cases if case.name not in over]
    say("GiB: measured / predicted before, and the error of the prediction\n" + COLUMNS)
    prepare = (os.cpu_count() or 1) >= 4
    recorder = Recorder(folder, environment, began + arguments.budget_s, prepare=prepare)
    recorder.run(cases)
    say(", ".join(f"{n} {word}" for word, n in recorder.counts.items()) + f" in {time.monotonic() - began:.0f} s")
    return 0


def smoke(only: str | None) -> int:
    """The whole pipeline on the processor with tiny models; no number of it means anything, none is kept."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        print("--smoke needs torch and transformers", file=sys.stderr)
        return 3
    environment = environment_of(smoke=True)
    say(where(environment))
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), environment, time.monotonic() + 600, prepare=False)
        recorder.run(chosen(smoke_cases(), only))
        truth = read_lines(Path(folder) / "truth.jsonl")
        unmarked = [record["id"] for record in truth if record.get("reason") != SMOKE]
        say(f"{len(truth)} records, {len(read_lines(Path(folder) / 'kernels.jsonl'))} rows: thrown away")
    say(", ".join(f"{n} {word}" for word, n in recorder.counts.items()))
    return 1 if recorder.counts["failed"] or unmarked else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description="Measure real runs on a GPU beside memfit's predictions.")
    parser.add_argument(
        "--only", metavar="PATTERN", help="cases whose name contains or matches this, or one of several"
    )
    parser.add_argument("--budget-s", type=float, default=520, help="no case starts after so many seconds")
    parser.add_argument("--out", type=Path, help="folder for results instead of benchmarks/gpu/results")
    parser.add_argument("--again", action="store_true", help="run cases again that are in the results")
    parser.add_argument("--list", action="store_true", help="print the matrix with predictions and end")
    parser.add_argument("--gpu", default="h200", help="with --list: a card of memfit's catalog")
    parser.add_argument("--memory-gib", type=float, help="with --list: what CUDA reports as the card's memory")
    parser.add_argument("--smoke", action="store_true", help="try the pipeline on the processor; measures nothing")
    arguments = parser.parse_args(argv)
    try:
        _predict.load()
    except _predict.MissingModuleError as error:
        print(error, file=sys.stderr)
        return 3
    if arguments.list:
        from memfit.errors import MemfitError

        try:
            total = arguments.memory_gib * GIB if arguments.memory_gib else _predict.default_card(arguments.gpu)
        except MemfitError as error:
            print(error, file=sys.stderr)
            return 2
        card = Card(name=arguments.gpu, total_bytes=int(total))
        show_list(card, chosen(matrix(card, _predict.predict), arguments.only))
        return 0
    return smoke(arguments.only) if arguments.smoke else measure(arguments, began)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
