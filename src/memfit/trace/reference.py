"""The trace held against the CUDA build of torch itself: ``python -m memfit.trace.reference [--long]``.

Each row of ``data/references.json`` is traced again and printed beside what torch's real allocator gave.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from memfit.trace.result import Trace
from memfit.trace.training import Training
from memfit.units import GIB

_DATA = Path(__file__).parent / "data" / "references.json"
RELEASE = (2, 13)
"""The torch release that the figures come from."""


def references() -> dict[str, Any]:
    """The data file: ``rows`` (name, training, figures), ``model`` and where all of it comes from."""
    data: dict[str, Any] = json.loads(_DATA.read_text("utf-8"))
    return data


def retrace(row: dict[str, Any]) -> Trace:
    """Trace one row of the table."""
    from memfit.trace.program import run_training

    config = {**references()["model"], **row.get("config", {})}
    return run_training(Training(config=config, batch=1, seq=4096, keep_outputs=True, **row["training"]))


def compare(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float, float, float, float, float]]:
    """(name, allocated here, allocated there, reserved here, reserved there, seconds), in GiB."""
    for row in rows:
        trace = retrace(row)
        result = trace.simulate(release=RELEASE)
        allocated = row.get("allocated_gib") or row["allocated"] / GIB
        reserved = row.get("reserved_gib") or row["reserved"] / GIB
        yield row["name"], result.allocated_peak / GIB, allocated, result.reserved_peak / GIB, reserved, trace.seconds


def memory_tracker(row: dict[str, Any]) -> tuple[float, float]:
    """(peak in GiB, seconds) of the same two steps by PyTorch's own MemTracker, on the same fake tensors.

    It counts requested bytes by storage: no rounding, no streams, nothing inside kernels, no reserved memory.
    """
    import time
    from contextlib import ExitStack

    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    from memfit.trace.facade import cuda_facade
    from memfit.trace.hidden import Gpu
    from memfit.trace.program import program
    from memfit.trace.sdpa import cuda_attention
    from memfit.trace.unlock import unlocked

    config = {**references()["model"], **row.get("config", {})}
    made = program(Training(config=config, batch=1, seq=4096, keep_outputs=True, **row["training"]), "cuda")
    with ExitStack() as stack:
        stack.enter_context(unlocked())
        stack.enter_context(cuda_facade(Gpu(), lambda: 0, lambda _tensor, _stream: None))
        stack.enter_context(cuda_attention(Gpu(), "cuda", "auto", {}))
        stack.enter_context(FakeTensorMode())
        began = time.perf_counter()
        state = made.build()
        tracker = MemTracker()
        tracker.track_external(state[0], state[1])
        with tracker:
            for _ in range(2):
                made.step(state)
                tracker.reset_mod_stats()
        found = tracker.get_tracker_snapshot("peak")
        peak = max(sizes["Total"] for device, sizes in found.items() if device.type == "cuda")
        return peak / GIB, time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(prog="python -m memfit.trace.reference", description=__doc__)
    parser.add_argument("--long", action="store_true", help="also the rows that take a minute")
    parser.add_argument("--memtracker", metavar="NAME", help="also run PyTorch's MemTracker on this row")
    args = parser.parse_args(argv)
    data = references()
    print_line = sys.stdout.write
    print_line(f"{data['source']}\n\n{'GiB':44s} {'allocated':>21s} {'reserved':>21s}\n")
    print_line(f"{'':44s} {'trace':>10s} {'torch':>10s} {'trace':>10s} {'torch':>10s} {'s':>6s}\n")
    rows = [row for row in data["rows"] if args.long or not row.get("long")]
    for name, *figures, seconds in compare(rows):
        print_line(f"{name:44s} " + " ".join(f"{x:10.4f}" for x in figures) + f" {seconds:6.1f}\n")
        sys.stdout.flush()
        if name == args.memtracker:
            peak, taken = memory_tracker(next(row for row in rows if row["name"] == name))
            print_line(f"{'  the same by MemTracker (requested bytes)':44s} {peak:10.4f} {'':32s} {taken:6.1f}\n")
    if sys.platform == "linux":
        import resource

        print_line(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20):.2f} GiB\n")


if __name__ == "__main__":
    main()
