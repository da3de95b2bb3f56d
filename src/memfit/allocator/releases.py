"""Where torch releases differ in what their allocators do; found by running their binaries (``tests/mirage``).

Their error texts differ more often, see `memfit.allocator.oom`.
"""

from __future__ import annotations

import re

from memfit.errors import MemfitError

Release = tuple[int, int]
"""(major, minor) of torch."""

LATEST: Release = (2, 15)
EXPANDABLE_PRIVATE: Release = (2, 5)
"""From here on private pools, too, use expandable segments when these are on."""
USES_END_WITH_CAPTURE: Release = (2, 4)
"""From here on a use recorded inside a capture is over when the capture has ended."""
OLDEST_FIRST: Release = (2, 12)
"""From here on age decides among free blocks of one size: in 2.12 the block that was created first wins, later the one
in the oldest segment; before, the lower address.
"""
CAPTURE_ONLY: Release = (2, 13)
"""From here on only a graph capture holds back events and cache releases; before, every use of a private pool."""


def parse_release(text: str) -> Release:
    """Read "2.13", "2.13.0" or "2.13.0+cu130" as (2, 13).

    Raises:
        MemfitError: not a version of torch 2.
    """
    match = re.match(r"(2)\.([0-9]{1,3})(\.|\+|$)", text.strip())
    if match is None:
        raise MemfitError(f"not a version of torch 2: {text[:40]!r}", hint="write for example 2.13")
    return int(match[1]), int(match[2])
