"""Answers where a script asks for values that a GPU without memory does not have.

Everything read back from the imaginary GPU is zero. Here is what zero would get wrong in PyTorch itself.
"""

from __future__ import annotations

from typing import Any

from .settings import note


def install(torch: Any) -> None:
    """A single number on the GPU is finite."""
    original = torch.isfinite

    def isfinite(tensor: Any) -> Any:
        found = original(tensor)
        if getattr(tensor, "is_cuda", False) and not found.dim() and not torch.compiler.is_compiling():
            note("`torch.isfinite` of a single number on the GPU is true")
            return torch.ones((), dtype=torch.bool)  # on the host, which mixes with any device
        return found

    torch.isfinite = isfinite
