"""memfit makes large models fit: where GPU memory goes and how long a step takes, before anything runs, without a GPU.

``estimate(job)`` answers for one job; importing this package loads neither torch nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit._version import __version__
from memfit.errors import MemfitError

if TYPE_CHECKING:
    from memfit.speed.estimate import Estimate, estimate

__all__ = ["Estimate", "MemfitError", "__version__", "estimate"]


def __getattr__(name: str) -> Any:
    if name in ("Estimate", "estimate"):
        from memfit.speed import estimate as module

        return getattr(module, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
