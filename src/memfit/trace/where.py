"""Where the program is: module path, phase, recomputation, source line. Imported only once torch is wanted."""

from __future__ import annotations

import bisect
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules import module as nn_module
from torch.optim import optimizer as torch_optimizer

_TORCH_DIR = str(Path(torch.__file__).parent)
_OWN_DIR = str(Path(__file__).parent)
_OWN_STEP = str(Path(__file__).with_name("program.py"))


class Where:
    """Follows a program by PyTorch's own global hooks; use as a context manager.

    The phase follows from what runs: the autograd engine is the backward; whatever comes after it without a module
    (clipping, the optimizer) belongs to the optimizer; the next module call begins a forward.
    """

    def __init__(self, *, frames: bool = True) -> None:
        self.names: dict[int, str] = {}
        self.stack: list[str] = []
        self.stepping = 0
        self.loading = True
        self.after_backward = False
        self.frames = frames
        self.modules: list[torch.nn.Module] = []
        self.optimizers: list[Any] = []
        self.on_step: list[Any] = []
        self._handles: list[Any] = []
        self._bounds: list[int] = []
        self._paths: list[str] = []

    def name_modules(self, root: torch.nn.Module, prefix: str = "") -> None:
        """Give every module below ``root`` its path."""
        for name, module in root.named_modules(prefix=prefix):
            self.names.setdefault(id(module), name)
        self.modules.append(root)

    def __enter__(self) -> Where:
        self._handles = [
            nn_module.register_module_forward_pre_hook(self._enter_module),
            # always_call: a checkpoint that stops its recomputation early leaves the module by an exception
            nn_module.register_module_forward_hook(self._leave_module, always_call=True),
            torch_optimizer.register_optimizer_step_pre_hook(self._enter_step),
            torch_optimizer.register_optimizer_step_post_hook(self._leave_step),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter_module(self, module: torch.nn.Module, _args: Any) -> None:
        path = self.names.get(id(module))
        if path is None:
            if self.stack:  # made after the model was named: a functional wrapper
                path = self.stack[-1]
            else:
                self.name_modules(module)
                path = self.names[id(module)]
        self.stack.append(path)
        if not in_backward():
            self.after_backward = False
            self._bound(path)

    def _leave_module(self, _module: torch.nn.Module, _args: Any, _out: Any) -> None:
        if self.stack:
            self.stack.pop()
        if not in_backward():
            self._bound(self.path)

    def _bound(self, path: str) -> None:
        # Autograd nodes are numbered as they are made: the number at each change of module tells later,
        # in the backward, whose node is running.
        number = torch._C._autograd._get_sequence_nr()
        if self._bounds and self._bounds[-1] == number:
            self._paths[-1] = path
        elif not self._bounds or number > self._bounds[-1]:
            self._bounds.append(number)
            self._paths.append(path)

    def _enter_step(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        self.stepping += 1
        if not any(optimizer is o for o in self.optimizers):
            self.optimizers.append(optimizer)
        for call in self.on_step:
            call(optimizer, False)

    def _leave_step(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        self.stepping -= 1
        for call in self.on_step:
            call(optimizer, True)

    @property
    def path(self) -> str:
        """Path of the innermost running module."""
        return self.stack[-1] if self.stack else ""

    def now(self) -> tuple[str, str, bool]:
        """(phase, module path, recomputing) of this moment."""
        if self.stepping:
            return "optimizer", "", False
        if in_backward():
            self.after_backward = True
            if self.stack:
                return "backward", self.stack[-1], True
            node = torch._C._current_autograd_node()
            if node is None:
                return "backward", "", False
            number = node._sequence_nr()
            at = bisect.bisect_right(self._bounds, number) - 1
            # AccumulateGrad carries the largest number there is
            path = self._paths[at] if at >= 0 and number < (1 << 62) else ""
            return "backward", path, False
        if self.loading:
            return "load", self.path, False
        if self.after_backward and not self.stack:
            return "optimizer", "", False
        return "forward", self.path, False

    def phase(self) -> str:
        """The phase alone: cheaper than ``now``."""
        if self.stepping:
            return "optimizer"
        if in_backward():
            return "backward"
        if self.loading:
            return "load"
        return "optimizer" if self.after_backward and not self.stack else "forward"

    def source(self) -> str:
        """``file:line`` of the innermost frame outside torch and this package, "" where the step is memfit's own."""
        if not self.frames:
            return ""
        frame = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if not name.startswith((_TORCH_DIR, _OWN_DIR, "<")):
                return f"{name}:{frame.f_lineno}"
            if name == _OWN_STEP:
                return ""
            frame = frame.f_back  # type: ignore[assignment]
        return ""


def in_backward() -> bool:
    """Whether the autograd engine runs on this thread (recomputation under checkpointing included)."""
    return bool(torch._C._current_graph_task_id() != -1)
