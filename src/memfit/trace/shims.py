"""Small adaptations of torch and transformers that make a run on tensors without data take the GPU's path.

Each shim is undone when the trace ends and names itself in the notes of the result.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of a module or class, replaced while open."""
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


def optimizers(stack: ExitStack, device: str) -> str | None:
    """PyTorch picks foreach and fused optimizers by device type: let ``meta`` count as a GPU."""
    if device == "cuda":
        return None
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    for owner in (optimizer, _foreach_utils):
        for name in ("_get_foreach_kernels_supported_devices", "_get_fused_kernels_supported_devices"):
            old = getattr(owner, name)
            stack.enter_context(replaced(owner, name, lambda old=old: [*old(), device]))
    return "meta counts as a GPU for foreach and fused optimizers"


def transformers_values(stack: ExitStack, _device: str) -> str | None:
    """transformers skips its looks at mask values when it meets fake tensors; on a GPU it looks."""
    utils = sys.modules.get("transformers.utils.import_utils")
    if utils is None or not hasattr(utils, "is_fake_tensor"):
        return None
    stack.enter_context(replaced(utils, "is_fake_tensor", lambda _tensor: False))
    return "transformers: masks are full and rows hold one sequence each (no padding, no packing)"


def dropout(stack: ExitStack, device: str) -> str | None:
    """On a GPU dropout is one kernel that keeps a mask of bytes; elsewhere it falls apart and keeps a wide one."""
    if device == "cuda":
        return None
    import torch
    from torch.nn import functional

    original = functional.dropout

    def fused(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:  # noqa: A002
        if input.device.type == device and training and 0 < p < 1 and not inplace:
            return torch.native_dropout(input, p, True)[0]
        return original(input, p, training, inplace)

    stack.enter_context(replaced(functional, "dropout", fused))
    return "dropout keeps a mask of bytes, as the CUDA kernel does"


def grouped_products(stack: ExitStack, _device: str) -> str | None:
    """The shape function of the grouped product takes bf16 alone; the CUDA operator also loops over other types."""
    import torch
    from torch import _meta_registrations as meta

    common = getattr(meta, "_meta_grouped_mm_common", None)
    if common is None:
        return None
    wide = (torch.float32, torch.float16)

    def products(mat_a: Any, mat_b: Any, *args: Any, **kwargs: Any) -> Any:
        if mat_a.dtype not in wide or mat_b.dtype is not mat_a.dtype:
            return common(mat_a, mat_b, *args, **kwargs)
        low = common(mat_a.to(torch.bfloat16), mat_b.to(torch.bfloat16), *args, **kwargs)
        return low.to(mat_a.dtype)

    stack.enter_context(replaced(meta, "_meta_grouped_mm_common", products))
    return None


def disabled_autocast(stack: ExitStack, device: str) -> str | None:
    """Libraries switch autocast off around single operations; it does not know ``meta``, where it is never on."""
    if device == "cuda":
        return None
    import torch

    original = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        if device_type == device and kwargs.get("enabled") is False:
            return nullcontext()
        return original(device_type, *args, **kwargs)

    stack.enter_context(replaced(torch, "autocast", autocast))
    return None


SHIMS = (optimizers, dropout, grouped_products, disabled_autocast, transformers_values)


@contextmanager
def shimmed(device: str) -> Iterator[list[str]]:
    """All shims that apply, while open; yields their notes."""
    notes: list[str] = []
    with ExitStack() as stack:
        for shim in SHIMS:
            note = shim(stack, device)
            if note:
                notes.append(note)
        yield notes
