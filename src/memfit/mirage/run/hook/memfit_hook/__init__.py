"""Watches a script from inside, without touching it: this package is all that a dry run adds to the user's process.

It stands alone (no memfit, any Python from 3.9 on) and does nothing until the script imports a library it knows: each
file of ``_ON_IMPORT`` then adapts that library. What the script allocated is written by ``ending`` into the folder
``MEMFIT_DRYRUN_FOLDER``; the other ``MEMFIT_DRYRUN_*`` variables are read by ``settings``.
"""

from __future__ import annotations

import os

from . import when
from .settings import SETTINGS


def activate() -> None:
    """Get ready for the libraries that the script may import; called once per process, before the script starts."""
    from . import data, launchers, libraries, recording, values, weights, world

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=recording.forget)
    when.imported("torch", recording.install)
    when.imported("torch", values.install)
    when.imported("torch", world.install)
    when.imported("torch", launchers.install)
    when.imported("torch", weights.install)
    libraries.install()
    if SETTINGS.fake_weights:
        weights.install_checkpoints()
    if SETTINGS.fake_data:
        data.install()
    when.start()
