"""What hooks leave behind, made by hand."""

import gzip
import json

from memfit.mirage.run.hook.memfit_hook import convert

MIB = 1 << 20
LOAD = ("load", -1, False, "", "")
FORWARD = ("forward", 0, False, "layers.0", "Linear")
BACKWARD = ("backward", 0, False, "layers.0", "MmBackward0")
TABLE = [LOAD, FORWARD, BACKWARD]
FRAMES = [
    {"filename": "/env/site-packages/torch/nn/modules/linear.py", "line": 134, "name": "forward"},
    {"filename": "/home/x/train.py", "line": 12, "name": "main"},
]


def entry(action, address, size, *, at=0, place=0, stream=0, frames=(), **more):
    where = {"device_free": address} if action == "oom" else {"addr": address}
    return {"action": action, **where, "size": size, "stream": stream, "time_us": at, "pool_id": (0, 0),
            "user_metadata": str(place), "frames": list(frames), **more}  # fmt: skip


def history():
    """One parameter that stays, one activation that lives over the backward."""
    return [
        entry("segment_alloc", 4096, 20 * MIB, at=1),
        entry("alloc", 4096, 4 * MIB, at=1),
        entry("alloc", 4096 + 4 * MIB, 3 * MIB, at=2, place=1, frames=FRAMES),
        entry("free_requested", 4096 + 4 * MIB, 3 * MIB, at=9, place=2),
        entry("free_completed", 4096 + 4 * MIB, 3 * MIB, at=9, place=2),
    ]


def facts(**more):
    return {
        "schema": 1, "pid": 7, "ending": "steps", "steps": 3, "error": None, "num_oom": 0, "torch": "2.13.0+cu130",
        "python": "3.11.7", "argv": ["train.py"], "device": 0, "device_name": "GPU", "total_bytes": 80 << 30,
        "free_bytes": 1, "allocated_peak": 7 * MIB, "reserved_peak": 20 * MIB, "num_alloc_retries": 0, "others": [],
        "complete": True, "private_bytes": 0, "seconds": 1.0, "notes": ["a note"], "warnings": [], **more,
    }  # fmt: skip


def error(kind="OutOfMemoryError", text="CUDA out of memory. Tried to allocate 2.00 GiB.", oom=True):
    frames = [{"file": "/home/x/train.py", "line": 3, "name": "<module>", "code": "loss.backward()"}]
    return {"type": kind, "text": text, "out_of_memory": oom, "frames": frames}


def leave(folder, pid=7, entries=None, **more):
    """The files of one process."""
    made = convert.document(convert.History(entries or history(), TABLE), (), seconds=1.0,
                            settings={"torch": "2.13.0+cu130", "script": "train.py"})  # fmt: skip
    with gzip.open(folder / f"{pid}.trace.json.gz", "wt") as file:
        json.dump(made, file)
    (folder / f"{pid}.snapshot.pickle").write_bytes(b"snapshot")
    (folder / f"{pid}.run.json").write_text(json.dumps(facts(pid=pid, **more)))


SCRIPT = """
import json, os, pathlib, sys
sys.path.insert(0, {tests!r})
import dryrun_cases as cases
folder = pathlib.Path(os.environ["MEMFIT_DRYRUN_FOLDER"])
{body}
"""
