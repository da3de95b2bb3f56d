"""The settings of a dry run, from the environment that ``memfit dryrun`` gives to the script."""

from __future__ import annotations

import os
from pathlib import Path


class Settings:
    """What ``MEMFIT_DRYRUN_*`` variables say.

    Attributes:
        folder: where results go.
        steps: optimizer steps after which the script is ended; 0 lets it run to its own end.
        ranks, rank: the stated world; 0 ranks take it from the launcher or the environment.
        gpus_per_node: GPUs that this process sees.
        fake_weights, fake_data: see the files of these names.
        moe_imbalance: tokens of the fullest expert over the mean.
        max_entries: most events that the allocator's history keeps.
    """

    def __init__(self) -> None:
        read = os.environ.get
        self.folder = Path(read("MEMFIT_DRYRUN_FOLDER", "."))
        self.steps = int(read("MEMFIT_DRYRUN_STEPS", "0"))
        self.ranks = int(read("MEMFIT_DRYRUN_RANKS", "0"))
        self.rank = int(read("MEMFIT_DRYRUN_RANK", "0"))
        self.gpus_per_node = int(read("MEMFIT_DRYRUN_GPUS_PER_NODE", "1"))
        self.fake_weights = read("MEMFIT_DRYRUN_FAKE_WEIGHTS") == "1"
        self.fake_data = read("MEMFIT_DRYRUN_FAKE_DATA", "")
        self.moe_imbalance = float(read("MEMFIT_DRYRUN_MOE_IMBALANCE", "1"))
        self.max_entries = int(read("MEMFIT_DRYRUN_MAX_ENTRIES", "5000000"))


SETTINGS = Settings()

NOTES: dict[str, None] = {}
"""What was adapted, in words, in order; told in the report."""
WARNINGS: dict[str, None] = {}
"""What makes the result less than faithful."""


def note(text: str) -> None:
    """Say once what was adapted."""
    NOTES.setdefault(text)


def warn(text: str) -> None:
    """Say once what is not faithful."""
    WARNINGS.setdefault(text)
