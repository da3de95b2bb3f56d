"""``memfit.trace.trace``: any step function over any modules, without touching them. Imported once torch is wanted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from memfit.trace.engine import DEVICE, available, run
from memfit.trace.result import Trace


def trace(step: Callable[..., Any], *args: Any, engine: str = "auto", **options: Any) -> Trace:
    """Trace ``step(*args)``, run ``steps`` times, as if it ran on a GPU.

    Modules, optimizers and tensors among ``args`` are replaced by copies without data on the engine's device, so
    nothing of yours is changed and nothing is computed; all other arguments are passed as they are. The copies of an
    optimizer train the copies of the module. Inside ``step`` take the device from the arguments
    (``x.device``, ``next(model.parameters()).device``), or write ``"cuda"`` with the engine ``fake-cuda``.

    Args:
        step: one training or inference step.
        args: its arguments.
        engine: ``meta``, ``fake-cuda``, or ``auto``: fake-cuda where this torch allows it, else meta.
        options: see ``memfit.trace.engine.run``.

    Raises:
        UnlockError: ``fake-cuda`` was asked for and this torch does not run fake CUDA tensors.
    """
    refused = available("fake-cuda") if engine == "auto" else None
    if engine == "auto":
        engine = "meta" if refused else "fake-cuda"
    device = DEVICE[engine]

    def build() -> tuple[Any, ...]:
        return without_data(args, device)

    made = run(build, lambda state: step(*state), engine=engine, **options)
    return made.with_warnings(
        (f"traced on meta, which knows no autocast and no streams: {refused}",) if refused else ()
    )


def without_data(args: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """Copies of the arguments whose tensors lie on ``device`` and hold no data; shared storages stay shared."""
    memo: dict[int, Any] = {}
    storages: dict[int, Any] = {}

    def bare(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in storages:
            storages[key] = torch.empty(storage.nbytes(), dtype=torch.uint8, device=device)
        return storages[key].view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def place(tensor: Any) -> None:
        if id(tensor) in memo:
            return
        if isinstance(tensor, torch.nn.Parameter):
            copied = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            memo[id(tensor)] = torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
            if tensor.grad is not None:
                memo[id(tensor)].grad = torch.empty_like(copied)
        else:
            memo[id(tensor)] = bare(tensor.detach()).requires_grad_(tensor.requires_grad)

    for item in args:
        if isinstance(item, torch.nn.Module):
            for tensor in (*item.parameters(), *item.buffers()):
                place(tensor)
        elif isinstance(item, torch.optim.Optimizer):
            for group in item.param_groups:
                for tensor in group["params"]:
                    place(tensor)
            for state in item.state.values():
                for value in state.values():
                    # a step count that lives on the host stays there
                    if isinstance(value, torch.Tensor) and value.dim():
                        place(value)
        elif isinstance(item, torch.Tensor):
            place(item)
    return tuple(copy.deepcopy(item, memo) for item in args)
