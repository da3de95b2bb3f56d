"""Optimizers by name. Those of libraries that need a GPU to import are stood in for by their memory.

Imported only once torch is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class BlockwiseAdam(torch.optim.Optimizer):  # type: ignore[misc]
    """The memory of bitsandbytes' block-wise Adam: two quantised states with one fp32 maximum per block.

    Tensors below ``min_size`` elements keep fp32 states; the two code books are shared. The step runs in place.
    Source: bitsandbytes 0.50 optim/optimizer.py (Optimizer2State.init_state): blocks of 256, ``min_8bit_size`` 4096.

    Args:
        params: as for any optimizer.
        bits: 8, or 4 for two codes per byte (torchao's AdamW4bit packs so, in blocks of 128).
        paged: states of 100,000 elements or more live in managed memory, outside the allocator.
    """

    def __init__(self, params: Iterable[Any], *, bits: int = 8, block: int = 256, paged: bool = False) -> None:
        super().__init__(params, {"bits": bits, "block": block, "paged": paged, "min_size": 4096})
        self._books: tuple[Any, Any] | None = None

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Any = None) -> None:
        """Make the states on the first call; the update itself allocates nothing."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and not self.state[p]:
                    self._make(p, group)

    def _make(self, p: Any, group: dict[str, Any]) -> None:
        state = self.state[p]
        n, device = p.numel(), p.device
        paged = group["paged"] and n >= 100_000
        if n < group["min_size"]:
            for name in ("state1", "state2"):
                state[name] = torch.zeros_like(p, dtype=torch.float32)
            return
        for name in ("state1", "state2"):
            if not paged:
                state[name] = torch.zeros(n * group["bits"] // 8, dtype=torch.uint8, device=device)
        if self._books is None:
            self._books = (torch.empty(256, device=device), torch.empty(256, device=device))
        state["qmap1"], state["qmap2"] = self._books
        for name in ("absmax1", "absmax2"):
            state[name] = torch.zeros(-(-n // group["block"]), dtype=torch.float32, device=device)


class Lion(torch.optim.Optimizer):  # type: ignore[misc]
    """Lion as published (arXiv 2302.06675): one momentum, the update computed tensor by tensor."""

    def __init__(self, params: Iterable[Any]) -> None:
        super().__init__(params, {})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Any = None) -> None:
        """One update."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                update = state["momentum"].clone().mul_(0.9).add_(p.grad, alpha=0.1).sign_()
                p.add_(update, alpha=-1e-4)
                state["momentum"].mul_(0.99).add_(p.grad, alpha=0.01)


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adamw-foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, fused=True),
    "adamw-loop": lambda p: torch.optim.AdamW(p, foreach=False, fused=False),
    "adamw-8bit": lambda p: BlockwiseAdam(p),
    "adamw-4bit": lambda p: BlockwiseAdam(p, bits=4, block=128),
    "paged-adamw-8bit": lambda p: BlockwiseAdam(p, paged=True),
    "sgd": lambda p: torch.optim.SGD(p, foreach=True),
    "momentum": lambda p: torch.optim.SGD(p, momentum=0.9, foreach=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, foreach=False),
    "lion": Lion,
}
"""Makers of optimizers over a list of parameters."""
