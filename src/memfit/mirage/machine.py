"""What the imaginary GPU asks of the machine: Linux, no real driver in the way, a cache folder to build in."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from memfit.errors import MissingError

REAL_DRIVER = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-uvm", "/dev/dxg")
ARCHITECTURES = ("x86_64", "aarch64")


def default_cache() -> Path:
    """``$MEMFIT_CACHE``, or ``memfit`` in the user's cache folder (``$XDG_CACHE_HOME``, ``~/.cache``)."""
    given = os.environ.get("MEMFIT_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memfit"


def check_machine(*, ignore_gpu: bool = False) -> None:
    """Refuse a machine on which the imaginary GPU cannot or should not be used.

    Args:
        ignore_gpu: go on beside a real NVIDIA driver. It is not touched: the null libraries take the place of the
            driver's own in the child process.

    Raises:
        MissingError: not Linux, an unknown processor, or a real driver is present.
    """
    if sys.platform != "linux":
        msg = f"the imaginary GPU needs Linux, this is {platform.system() or sys.platform}"
        raise MissingError(msg, hint="run memfit in a Linux container (docs/dryrun.md has a Dockerfile)")
    if platform.machine() not in ARCHITECTURES:
        msg = f"the imaginary GPU needs a processor that PyTorch's CUDA wheels exist for, this is {platform.machine()}"
        raise MissingError(msg, hint=f"one of {', '.join(ARCHITECTURES)}")
    found = [path for path in REAL_DRIVER if Path(path).exists()]
    if found and not ignore_gpu:
        msg = f"this machine has a real GPU driver ({found[0]})"
        raise MissingError(
            msg, hint="measure on the GPU itself, or pass --ignore-gpu to use an imaginary one beside it"
        )
