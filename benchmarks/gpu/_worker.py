"""One case in a process of its own.

    python _worker.py READY [--smoke]

Imports torch, makes the file READY, then reads one JSON line with the case from standard input (so that the next case
can be prepared while one runs) and appends JSON lines to the file that it names: ``{"row": ...}`` of a table as each
is measured, and ``{"result": ...}`` at the end. Nothing here touches the card before that line has come.
"""

from __future__ import annotations

import gc
import gzip
import json
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SNAPSHOT_EVENTS = 60_000
_PATHS = re.compile(r"(?:/[\w.+@-]+)+/(?=(?:site|dist)-packages/|benchmarks/|src/|lib/python)")
_ANY_PATH = re.compile(r"(?<![\w./:])/(?:[\w.+@-]+/)+")


@lru_cache(maxsize=4096)
def scrub(text: str) -> str:
    """A text without the folders of this machine."""
    return _ANY_PATH.sub("", _PATHS.sub("", text))


def environment(meter: Any) -> dict[str, Any]:
    """The card and the versions of everything that decides memory and time."""
    import importlib.util
    import platform

    import torch
    import transformers

    modules = {m: importlib.util.find_spec(m) is not None for m in ("peft", "bitsandbytes", "accelerate", "flash_attn")}
    out: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "modules": modules,
        "cuda_available": torch.cuda.is_available(),
        "smoke": meter.smoke,
    }
    if meter.device != "cuda" or not out["cuda_available"]:
        return {**out, **meter.start(), "gpu": meter.smoke or None} if meter.smoke else out
    start = meter.start()
    card = torch.cuda.get_device_properties(0)
    nvml = meter._nvml
    return {
        **out,
        **start,
        "gpu": card.name,
        "capability": [card.major, card.minor],
        "multiprocessors": card.multi_processor_count,
        "driver": nvml.driver() if nvml else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device_source": meter.source,
        "module_loading": os.environ.get("CUDA_MODULE_LOADING", "default"),
    }


def run(case: Mapping[str, Any], meter: Any, write: Callable[[dict[str, Any]], None]) -> None:
    """Runs one case and writes what it gives."""
    import torch
    from _kernels import TABLES
    from _steps import RUNS

    torch.manual_seed(0)
    kind = case["kind"]
    if kind == "environment":
        write({"result": {"outcome": "ok", **environment(meter)}})
        return
    if kind in TABLES:
        gc.freeze()  # each capture of a CUDA graph may collect garbage: keep that short
        if kind != "context":
            meter.start()
        for row in TABLES[kind](meter):
            write({"row": row})
        write({"result": {"outcome": "ok"}})
        return
    start = meter.start()
    snapshot = case["settings"].get("snapshot") and case.get("snapshot_file")
    if snapshot and meter.device == "cuda":
        torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_EVENTS, stacks="python")
    try:
        measured = RUNS[kind](case, meter)
    except torch.OutOfMemoryError as error:
        p = meter.peaks()
        write(
            {
                "result": {
                    "outcome": "oom",
                    "error": scrub(str(error)),
                    "start": start,
                    "reached_bytes": {"allocated": p.allocated, "reserved": p.reserved},
                    "allocator": meter.statistics(),
                }
            }
        )
        return
    if snapshot:
        history = torch.cuda.memory._snapshot() if meter.device == "cuda" else {"segments": [], "device_traces": [[]]}
        save_snapshot(history, Path(snapshot))
        measured["snapshot"] = Path(snapshot).name
    write({"result": {"outcome": "ok", "start": start, "source": meter.source, **measured}})


def save_snapshot(history: dict[str, Any], path: Path) -> None:
    """A snapshot of PyTorch's allocator, as it pickles it, compressed, without the folders of this machine."""

    def clean(frames: Any) -> None:
        for frame in frames or ():
            frame["filename"] = scrub(frame.get("filename", ""))

    for trace in history.get("device_traces", ()):
        for event in trace:
            clean(event.get("frames"))
    for segment in history.get("segments", ()):
        clean(segment.get("frames"))
        for block in segment.get("blocks", ()):
            clean(block.get("frames"))
    with gzip.open(path, "wb", compresslevel=6) as file:
        pickle.dump(history, file, protocol=4)


def main() -> int:
    """Prepare, wait for the case, run it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]
    warnings.simplefilter("ignore")
    smoke = "--smoke" in sys.argv
    import torch

    if smoke:
        torch.set_num_threads(1)
    import _kernels  # noqa: F401
    import _steps  # noqa: F401
    import transformers
    from _meter import CudaMeter, StubMeter

    transformers.logging.set_verbosity_error()
    Path(sys.argv[1]).touch()
    line = sys.stdin.readline()
    if not line.strip():
        return 0
    case = json.loads(line)
    with Path(case["out"]).open("a", encoding="utf-8") as file:

        def write(entry: dict[str, Any]) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()

        try:
            run(case, StubMeter() if smoke else CudaMeter(), write)
        except Exception as error:
            text = scrub(f"{type(error).__name__}: {error}")
            write({"result": {"outcome": "failed", "error": text[:2000]}})
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
