"""Linear layers whose frozen weight is stored in 4 bits, with bitsandbytes' memory and none of its kernels.

Per weight of n elements: n/2 bytes of codes, one byte per block of 64 (the maxima, quantised again), one fp32 per 256
blocks, two code books and an offset (double quantisation). Forward and backward each unpack the whole weight into the
computing type and drop it again. Source: bitsandbytes 0.50 functional.quantize_4bit with compress_statistics, and
autograd MatMul4Bit, which keeps only the packed weight for the backward.
Imported only once torch is wanted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class _Matmul4Bit(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, layer: Any) -> Any:
        ctx.layer, ctx.dtype = layer, x.dtype
        return functional.linear(x, layer.unpacked(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return torch.matmul(grad, ctx.layer.unpacked(ctx.dtype)) if ctx.needs_input_grad[0] else None, None


class Linear4Bit(nn.Linear):  # type: ignore[misc]
    """A frozen linear layer in NF4 with double quantisation.

    Args:
        like: the layer whose sizes and bias are taken.
    """

    def __init__(self, like: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = like.in_features, like.out_features
        device, n = like.weight.device, like.weight.numel()
        blocks = -(-n // 64)
        self.weight = nn.Parameter(torch.empty((n + 1) // 2, 1, dtype=torch.uint8, device=device), requires_grad=False)
        self.bias = like.bias
        for name, size, dtype in (
            ("absmax", blocks, torch.uint8),
            ("nested_absmax", -(-blocks // 256), torch.float32),
            ("code", 16, torch.float32),
            ("nested_code", 256, torch.float32),
            ("offset", 1, torch.float32),
        ):
            self.register_buffer(name, torch.empty(size, dtype=dtype, device=device))

    def unpacked(self, dtype: Any) -> Any:
        """The weight in the computing type: the maxima in fp32 first, then a full copy, both dropped by the caller."""
        maxima = torch.empty(self.absmax.numel(), dtype=torch.float32, device=self.weight.device)
        full = torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.weight.device)
        del maxima
        return full

    def forward(self, x: Any) -> Any:
        """(..., in) -> (..., out)."""
        return _Matmul4Bit.apply(x, self)


def quantise(model: Any) -> None:
    """Replace every linear layer but the output head."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                child.weight.requires_grad_(False)
                setattr(parent, name, Linear4Bit(child))
