"""memfit's prediction of a job, made from the source tree beside this folder.

``memfit.formula.estimate`` reads a job whose configuration is inline with the standard library alone, so nothing has
to be installed on the machine that measures.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2] / "src"
GIB = 1 << 30


class MissingModuleError(Exception):
    """memfit cannot be imported from the source tree; the message says what is missing."""


def load() -> None:
    """Make ``memfit`` importable from the source tree.

    Raises:
        MissingModuleError: it cannot be imported.
    """
    if str(SOURCE) not in sys.path:
        sys.path.insert(0, str(SOURCE))
    try:
        import memfit.formula.estimate
        import memfit.hardware  # noqa: F401
    except ImportError as error:
        missing = error.name or str(error)
        raise MissingModuleError(f"memfit cannot be imported from {SOURCE}: {missing} is missing") from error


def predict(job: Mapping[str, Any]) -> dict[str, Any] | None:
    """GiB by kind (``allocated``, ``reserved``, ``device``, ``need``), ``p_oom``, phase and memfit's version.

    For serving also ``weights`` and ``kv``. None when memfit refuses the job.
    """
    from memfit._version import __version__
    from memfit.errors import MemfitError
    from memfit.formula.estimate import estimate

    try:
        found = estimate(dict(job))
    except MemfitError:
        return None
    out: dict[str, Any] = {
        "allocated": found.allocated_bytes / GIB,
        "reserved": found.reserved_bytes / GIB,
        "device": found.device_bytes / GIB,
        "need": found.bands["need"].mid / GIB,
        "p_oom": found.p_oom,
        "phase": found.peak_phase,
        "memfit": __version__,
    }
    if found.serving is not None:
        out |= {"weights": found.serving.weights / GIB, "kv": found.serving.kv / GIB}
    return out


def known_card(title: str) -> tuple[str | None, dict[str, int]]:
    """(name in memfit's catalog, peak operations per second by dtype) of a card as CUDA calls it."""
    from memfit.errors import MemfitError
    from memfit.hardware import lookup_gpu

    try:
        found = lookup_gpu(title)
    except MemfitError:
        return None, {}
    card = found[0] if isinstance(found, tuple) else found
    return card.name, {**card.flops, "memory_bytes_per_s": card.memory_bytes_per_s}


def default_card(title: str) -> int:
    """Usable bytes of a card of the catalog.

    Raises:
        MemfitError: no such card.
    """
    from memfit.hardware import lookup_gpu

    found = lookup_gpu(title)
    card = found[0] if isinstance(found, tuple) else found
    return int(card.total_bytes)
