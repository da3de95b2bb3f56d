"""Watches a script from inside, without touching it: this package is all that a dry run adds to the user's process.

It stands alone (no memfit, any Python from 3.9 on) and does nothing until the script imports a library it knows: each
file of ``_ON_IMPORT`` then adapts that library. What the script allocated is written by ``ending`` into the folder
``MEMFIT_DRYRUN_FOLDER``; the other ``MEMFIT_DRYRUN_*`` variables are read by ``settings``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

from . import when
from .settings import SETTINGS


def activate() -> None:
    """Get ready for the libraries that the script may import; called once per process, before the script starts."""
    _end_with_parent()
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


def _end_with_parent() -> None:
    """The kernel ends the script's process when memfit has ended (PR_SET_PDEATHSIG of prctl(2)); not its children."""
    if os.environ.get("MEMFIT_DRYRUN_PARENT") != str(os.getppid()):
        return
    with contextlib.suppress(OSError, AttributeError):  # another libc: memfit ends the process group all the same
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
