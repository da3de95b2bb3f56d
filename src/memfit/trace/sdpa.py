"""Scaled dot-product attention as the target GPU would run it.

On ``meta`` tensors, and on a CPU-only wheel, PyTorch always takes the math path with its S x S matrices. Here the
backend is chosen by the rules of PyTorch's CUDA code (sdp_utils.cpp, sdp_utils_cpp.h) and its own operation is called,
which has shapes and a backward for tensors without data. Imported only once torch is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as functional

from memfit.trace.hidden import Gpu

Backend = Literal["flash", "efficient", "cudnn", "math"]
ORDER: tuple[Backend, ...] = ("flash", "efficient", "math", "cudnn")
"""Default priority of the CUDA backends (aten Context.h since PyTorch 2.6: cuDNN comes last)."""

_aten = torch.ops.aten


def choose(
    query: Any, key: Any, value: Any, mask: Any, *, causal: bool, gqa: bool, gpu: Gpu, allowed: tuple[Backend, ...]
) -> Backend:
    """The first backend in order that takes these inputs.

    Args:
        query, key, value: (B, H, S, N), (B, K, T, N), (B, K, T, N).
        mask: attention mask or None.
        causal: the causal flag of the call.
        gqa: key and value may have fewer heads.
        gpu: the target.
        allowed: the backends that are switched on.
    """
    for backend in ORDER:
        if backend in allowed and _CAN[backend](query, key, value, mask, causal, gqa, gpu):
            return backend
    return "math"


def _common(query: Any, key: Any, value: Any) -> bool:
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        return False
    if not query.dtype == key.dtype == value.dtype or query.size(0) != key.size(0):
        return False
    if any(t.numel() == 0 for t in (query, key, value)):
        return False
    return bool(query.stride(-1) == key.stride(-1) == value.stride(-1) == 1)


def _heads(query: Any, key: Any, value: Any, gqa: bool) -> bool:
    h, k, v = query.size(1), key.size(1), value.size(1)
    return h == k == v or (gqa and k == v and h % k == 0)


def _flash(query: Any, key: Any, value: Any, mask: Any, causal: bool, gqa: bool, gpu: Gpu) -> bool:
    if gpu.capability < (8, 0) or not _common(query, key, value) or mask is not None:
        return False
    if query.dtype not in (torch.float16, torch.bfloat16) or not _heads(query, key, value, gqa):
        return False
    if not query.size(-1) == key.size(-1) == value.size(-1) <= 256:
        return False
    if causal and query.size(2) != key.size(2):
        return False
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    # head dims above 192 do not fit the shared memory of the consumer chips in the backward
    return not (grad and query.size(-1) > 192 and gpu.capability in ((8, 6), (8, 9), (12, 0), (12, 1)))


def _efficient(query: Any, key: Any, value: Any, _mask: Any, _causal: bool, _gqa: bool, gpu: Gpu) -> bool:
    if not _common(query, key, value) or not _heads(query, key, value, False):
        return False
    if query.size(-1) != key.size(-1) or key.size(2) != value.size(2):
        return False
    if query.dtype is torch.bfloat16 and gpu.capability < (8, 0):
        return False
    return query.dtype in (torch.float16, torch.bfloat16, torch.float32) and gpu.capability >= (5, 0)


def _cudnn(query: Any, key: Any, value: Any, _mask: Any, _causal: bool, gqa: bool, gpu: Gpu) -> bool:
    if gpu.capability < (8, 0) or not _common(query, key, value) or not _heads(query, key, value, gqa):
        return False
    return query.dtype in (torch.float16, torch.bfloat16) and query.size(-1) <= 128 and query.size(-1) % 8 == 0


_CAN: dict[str, Any] = {"flash": _flash, "efficient": _efficient, "cudnn": _cudnn, "math": lambda *_: True}


@contextmanager
def cuda_attention(gpu: Gpu, device: str, backend: str = "auto", used: dict[str, int] | None = None) -> Iterator[None]:
    """While open, ``scaled_dot_product_attention`` on ``device`` tensors runs the operation CUDA would choose.

    Args:
        gpu: the target.
        device: device type that stands for it.
        backend: ``auto`` for PyTorch's order, or the one backend that is allowed beside math.
        used: counts calls by backend.
    """
    original = functional.scaled_dot_product_attention
    allowed: tuple[Backend, ...] = ORDER if backend == "auto" else (backend, "math")  # type: ignore[assignment]

    def attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if query.device.type != device:
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if _autocast(device):
            low = torch.get_autocast_dtype("cuda")
            query, key, value = (t.to(low) if t.is_floating_point() else t for t in (query, key, value))
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.to(low)
        choice = choose(query, key, value, attn_mask, causal=is_causal, gqa=enable_gqa, gpu=gpu, allowed=allowed)
        if used is not None:
            used[choice] = used.get(choice, 0) + 1
        if choice == "flash":
            return _call_flash(query, key, value, dropout_p, is_causal, scale)
        if choice == "efficient":
            return _call_efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)
        if choice == "cudnn":
            log_sum = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
            return _aten._scaled_dot_product_cudnn_attention(
                query, key, value, attn_mask, log_sum, dropout_p, is_causal, False, scale=scale
            )[0]
        return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def register_flash() -> str:
    """Make the memory of the flash-attention package known to transformers as an attention; returns its name.

    It differs from SDPA with the flash backend where a mask would be: sliding windows and soft caps run inside the
    kernel, so no mask is made and no fallback taken.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = "memfit_fused_attention"  # a name with "flash" in it would make transformers load a kernel
    ALL_ATTENTION_FUNCTIONS.register(name, _flash_package)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, flash_attention_mask)
    return name


def _flash_package(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Any, None]:
    width, value_width = query.size(-1), value.size(-1)
    if query.dtype is torch.float32:  # the kernel takes half precision only; transformers casts
        low = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else torch.bfloat16
        query, key, value = (t.to(low) for t in (query, key, value))
    if value_width != width:  # latent attention: values are padded to the width of the queries
        value = functional.pad(value, (0, width - value_width))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    out = _call_flash(query, key, value, dropout, causal and query.size(2) == key.size(2), scaling)
    out = out.transpose(1, 2)
    return (out[..., :value_width] if value_width != width else out), None


def _autocast(device: str) -> bool:
    return device == "cuda" and bool(torch.is_autocast_enabled("cuda"))


def _call_flash(query: Any, key: Any, value: Any, dropout: float, causal: bool, scale: float | None) -> Any:
    width = query.size(-1)
    if scale is None:
        scale = float(width) ** -0.5
    if width % 8:  # the kernel wants multiples of 8: inputs are padded, the output cut
        pad = 8 - width % 8
        query, key, value = (functional.pad(t, (0, pad)) for t in (query, key, value))
    out = _aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, False, scale=scale)[0]
    return out[..., :width] if width % 8 else out


def _call_efficient(
    query: Any, key: Any, value: Any, mask: Any, dropout: float, causal: bool, scale: float | None
) -> Any:
    log_sum = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if mask is not None:
        if mask.dtype is torch.bool:  # becomes an additive mask of the query's dtype
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
        if mask.size(-1) % 16:  # rows of the mask must be aligned: a padded copy, then a view
            size = mask.size(-1)
            mask = functional.pad(mask, (0, 16 - size % 16))[..., :size]
        mask = mask.expand(query.size(0), query.size(1), query.size(2), key.size(2))
    return _aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, log_sum, dropout, causal, scale=scale
    )[0]
