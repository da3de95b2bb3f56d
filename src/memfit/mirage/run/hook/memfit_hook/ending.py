"""How a script ends, and the files that it leaves: ``PID.run.json``, ``PID.trace.json.gz``, ``PID.snapshot.pickle``.

``run.json`` is written last, so whoever finds it finds the others complete.
"""

from __future__ import annotations

import atexit
import contextlib
import gzip
import json
import os
import pickle
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from . import convert
from .settings import NOTES, SETTINGS, WARNINGS

SCHEMA = 1
_BEGAN = time.time()
_ERROR: list[BaseException] = []
_DONE: list[str] = []
MAX_FRAMES = 60


def watch() -> None:
    """Write the results when the process ends, whichever way Python sees."""
    atexit.register(_at_exit)
    before = sys.excepthook

    def excepthook(kind: Any, error: BaseException, trace: Any) -> None:
        _ERROR.append(error)
        before(kind, error, trace)

    sys.excepthook = excepthook


def _at_exit() -> None:
    write("error" if _ERROR else "exit")


def stop(why: str) -> None:
    """End the script here: write the results and leave without running anything else of it."""
    write(why)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the script may have closed or replaced it
            stream.flush()
    os._exit(0)


def refuse(text: str) -> None:
    """The environment cannot be used: tell the parent, let the script go on."""
    _save("run.json", {"schema": SCHEMA, "pid": os.getpid(), "refused": text})


def write(ending: str) -> None:
    """Write the results once; a process that never used the GPU leaves none."""
    from .recording import ACTIVE

    if not ACTIVE or _DONE:
        return
    _DONE.append(ending)
    recording = ACTIVE[0]
    if not recording.started:
        return
    recording.place.mark("load", "", "")
    torch = recording.torch
    snapshot = torch.cuda.memory._snapshot()
    histories = [convert.History(entries, recording.place.table) for entries in snapshot["device_traces"]]
    if not any(history.events for history in histories):
        return
    for index, history in enumerate(histories):
        history.label(label for label in recording.labels.found if label.device == index)
        history.use(use for use in recording.uses if use.device == index)
    peaks = [history.peak() for history in histories]
    device = peaks.index(max(peaks))
    entries = len(snapshot["device_traces"][device])
    steps = recording.steps + bool(recording.place.stepped)
    document = convert.document(
        histories[device], recording.labels.vocabulary, seconds=time.time() - _BEGAN, settings=_settings(torch)
    )
    _save("trace.json.gz", document)
    with (SETTINGS.folder / f"{os.getpid()}.snapshot.pickle").open("wb") as file:
        pickle.dump(snapshot, file, protocol=4)
    stats = torch.cuda.memory_stats(device)
    allocated, reserved = recording.keep_peaks(device)
    free, total = torch.cuda.mem_get_info(device)
    _save("run.json", {
        "schema": SCHEMA,
        "pid": os.getpid(),
        "ending": ending,
        "steps": steps,
        "error": _error(torch),
        "num_oom": histories[device].num_oom,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "argv": [str(word)[:500] for word in sys.argv[:50]],
        "device": device,
        "device_name": torch.cuda.get_device_name(device),
        "total_bytes": total,
        "free_bytes": free,
        "allocated_peak": allocated,
        "reserved_peak": reserved,
        "num_alloc_retries": stats.get("num_alloc_retries", 0),
        "others": [{"device": i, "requested_peak": p} for i, p in enumerate(peaks) if p and i != device],
        "complete": entries < SETTINGS.max_entries,
        "private_bytes": histories[device].private_bytes,
        "seconds": time.time() - _BEGAN,
        "notes": list(NOTES),
        "warnings": list(WARNINGS),
    })  # fmt: skip


def _settings(torch: Any) -> dict[str, Any]:
    """What the trace rests on."""
    settings = {"torch": str(torch.__version__), "script": os.path.basename(sys.argv[0] or "-")}  # noqa: PTH119
    if text := os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF"):
        settings["allocator"] = text[:500]
    dist = getattr(torch, "distributed", None)
    found: dict[str, Any] = dict(settings)
    if dist is not None and dist.is_available() and dist.is_initialized():
        found["rank"], found["ranks"] = dist.get_rank(), dist.get_world_size()
    return found


def _error(torch: Any) -> dict[str, Any] | None:
    """The exception that ended the script."""
    if not _ERROR:
        return None
    error = _ERROR[-1]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/memfit_hook/" not in f.filename][-MAX_FRAMES:]
    return {
        "type": type(error).__name__,
        "text": str(error)[:4000],
        "out_of_memory": isinstance(error, torch.OutOfMemoryError) or "CUDA out of memory" in str(error),
        "frames": [{"file": f.filename, "line": f.lineno or 0, "name": f.name, "code": f.line or ""} for f in frames],
    }


def _save(name: str, document: Any) -> None:
    folder = SETTINGS.folder
    final = folder / f"{os.getpid()}.{name}"
    draft = Path(f"{final}.draft")
    if name.endswith(".gz"):
        with gzip.open(draft, "wt", encoding="utf-8", compresslevel=3) as file:
            json.dump(document, file, separators=(",", ":"))
    else:
        draft.write_text(json.dumps(document), encoding="utf-8")
    draft.rename(final)
