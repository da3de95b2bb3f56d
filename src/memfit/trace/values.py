"""Answers for operations that need data: a trace has shapes only, so every answer is a stated assumption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from memfit.trace.where import Where

_ATEN = torch.ops.aten

KNOWN: dict[str, bool] = {
    # attention_mask.all(), (packed_sequence_mask[:, -1] == 0).all(): full masks, one sequence per row
    "transformers/masking_utils.py": True,
    # torch_compilable_check: as many image tokens as image features
    "transformers/utils/import_utils.py": True,
}
"""Truth values by the file that asks, for libraries whose question is known."""


class Values:
    """What to answer when the program looks at a tensor's values.

    Scalars (``.item()``, ``if tensor:``) are 0 or False unless the line that asks has an answer in ``answers``; masks
    select ``1/num_experts`` of their elements inside a layer of a routed model (every expert gets the same number of
    tokens) and all of them elsewhere (the largest result there can be). The grouped kernels that transformers uses by
    default need no values: their shapes hold for any routing.

    Args:
        answers: scalar answers by the end of the ``file:line`` that asks, e.g. ``{"modeling.py:120": 1}``.
        num_experts: experts a router spreads tokens over.
        host: scalars of tensors on the CPU are answered, too, where they are not known (whole scripts).
    """

    def __init__(self, answers: dict[str, Any] | None = None, *, num_experts: int = 1, host: bool = False) -> None:
        self.host = host
        self.answers = answers or {}
        self.num_experts = num_experts
        self.in_layer = False
        self.asked: dict[str, int] = {}

    def needed(self, func: Any, args: Any, device: str) -> bool:
        """Whether this operation looks at values of a tensor without data."""
        return func in _RULES and isinstance(args[0], torch.Tensor) and args[0].device.type == device

    def answer(self, func: Any, args: Any, kwargs: Any, where: Where) -> Any:
        """The assumed result; each place that asked is counted."""
        source = where.source()
        self.in_layer = any(part.isdigit() for part in where.path.split("."))
        if not (source.rpartition(":")[0].endswith(tuple(KNOWN)) and args[0].dtype is torch.bool):
            key = f"{func._schema.name} at {source or 'unknown place'}"
            self.asked[key] = self.asked.get(key, 0) + 1
        return _RULES[func](self, source, *args, **kwargs)

    def warnings(self) -> list[str]:
        """One line per place that asked for a value."""
        return [f"value assumed {n} times: {key}" for key, n in self.asked.items()]

    def _scalar(self, source: str, tensor: Any) -> Any:
        for end, value in self.answers.items():
            if source.endswith(end):
                return value
        if tensor.dtype is torch.bool:
            return any(source.rpartition(":")[0].endswith(file) and value for file, value in KNOWN.items())
        return 0.0 if tensor.dtype.is_floating_point else 0

    def _count(self, tensor: Any) -> int:
        size = int(tensor.numel())
        if self.num_experts == 1 or not self.in_layer:
            return size
        if size in (self.num_experts, self.num_experts + 1):  # which experts have any token: all
            return self.num_experts
        return -(-size // self.num_experts)

    def _nonzero(self, _source: str, tensor: Any) -> Any:
        return torch.empty((self._count(tensor), tensor.dim()), dtype=torch.long, device=tensor.device)

    def _masked_select(self, _source: str, tensor: Any, _mask: Any) -> Any:
        return torch.empty((tensor.numel(),), dtype=tensor.dtype, device=tensor.device)

    def _equal(self, _source: str, _a: Any, _b: Any) -> bool:
        return True


_RULES: dict[Any, Callable[..., Any]] = {
    _ATEN._local_scalar_dense.default: Values._scalar,
    _ATEN.nonzero.default: Values._nonzero,
    _ATEN.masked_select.default: Values._masked_select,
    _ATEN.equal.default: Values._equal,
}
