"""Compiled packages of an environment that call CUDA themselves, beside those that memfit always knows."""

from __future__ import annotations

from pathlib import Path

from memfit.mirage.torchbuild import inspect_python

PATTERNS = ("flash_attn_2_cuda*.so", "flash_attn_3/_C*.so", "flash_attn_3_cuda*.so")
"""Shared libraries of the flash-attn wheels, below ``site-packages``."""


def extensions(python: Path) -> tuple[Path, ...]:
    """The shared libraries whose CUDA functions the null libraries must answer, too.

    Raises:
        MissingError: ``python`` has no CUDA build of torch.
    """
    packages = inspect_python(python).folder.parent
    return tuple(sorted(path for pattern in PATTERNS for path in packages.glob(pattern)))
