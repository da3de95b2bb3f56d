"""Where the script is: phase, step, module, operation. The allocator's history carries it with every entry.

PyTorch attaches a text to each entry of its allocator history, per thread. Here that text is a number into ``table``,
set when a module begins or ends its forward, when a node of the autograd graph runs, and around optimizer steps. None
of this allocates, changes the graph or keeps a tensor: pre-hooks on nodes see the gradients and let them go.

As in ``memfit trace``, what follows the backward without a module belongs to the optimizer, and the next call of a
module begins a forward; if an optimizer has stepped since the last one, it begins a step.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable
from typing import Any

from . import when

LOAD, FORWARD, BACKWARD, OPTIMIZER = "load", "forward", "backward", "optimizer"

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def clean_path(path: str) -> str:
    """A module path without the names that wrappers add."""
    parts = [part for part in path.split(".") if part not in _WRAPPERS]
    text = ".".join(parts)
    return text[len("base_model.model.") :] if text.startswith("base_model.model.") else text


class Place:
    """Follows a program through PyTorch's global hooks.

    Args:
        torch: the module.
        on_root: called with a module that is called from outside of any other, before it runs.
        on_step: called with an optimizer and whether its step is over.
    """

    def __init__(self, torch: Any, on_root: Callable[[Any], None], on_step: Callable[[Any, bool], None]) -> None:
        self.torch = torch
        self.table: list[tuple[str, int, bool, str, str]] = []
        self._numbers: dict[tuple[str, int, bool, str, str], str] = {}
        self.names: dict[int, str] = {}
        self.step = -1
        self.stepped = False
        self.after_backward = False
        self._threads = threading.local()
        self._on_root, self._on_step = on_root, on_step
        self._bounds: list[int] = []
        self._paths: list[str] = []
        self._recomputed_bounds = 0
        self._set: Callable[[str], None] = torch.cuda.memory._set_memory_metadata
        self._in_graph: Callable[[], int] = torch._C._current_graph_task_id
        self._compiling: Callable[[], bool] = torch.compiler.is_compiling

    def install(self) -> None:
        """Register the hooks, for good."""
        from torch.nn.modules import module
        from torch.optim import optimizer

        when.imported("torch._dynamo.callback", self._compilation)
        module.register_module_forward_pre_hook(self._enter)
        module.register_module_forward_hook(self._leave, always_call=True)
        optimizer.register_optimizer_step_pre_hook(self._enter_step)
        optimizer.register_optimizer_step_post_hook(self._leave_step)
        autograd = self.torch.autograd
        self._engine = autograd._engine_run_backward
        autograd._engine_run_backward = self._backward
        self.mark(LOAD, "", "")

    def _compilation(self, dynamo: Any) -> None:
        """Dynamo traces through hooks that it meets, which changes the graph: it must not meet these."""
        from torch.nn.modules import module

        names = ("_global_forward_pre_hooks", "_global_forward_hooks", "_global_forward_hooks_always_called",
                 "_global_forward_hooks_with_kwargs")  # fmt: skip
        tables = [getattr(module, name) for name in names if hasattr(module, name)]
        taken: list[dict[Any, Any]] = []

        def begin(*_args: Any) -> None:
            if not taken:
                taken.extend(dict(table) for table in tables)
                for table in tables:
                    table.clear()

        def end(*_args: Any) -> None:
            for table, entries in zip(tables, taken):  # noqa: B905 - Python 3.9
                table.update(entries)
            taken.clear()

        dynamo.callback_handler.register_start_callback(begin)
        dynamo.callback_handler.register_end_callback(end)

    def mark(self, phase: str, module: str, op: str, recompute: bool = False) -> None:
        """What this thread allocates from now on happens here."""
        key = (phase, self.step, recompute, module, op)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = str(len(self.table))
            self.table.append(key)
        self._set(number)

    def name_modules(self, root: Any) -> None:
        """Give every module below ``root`` its path."""
        for name, module in root.named_modules():
            self.names.setdefault(id(module), clean_path(name))

    @property
    def _stack(self) -> list[tuple[str, str]]:
        stack: list[tuple[str, str]] | None = getattr(self._threads, "stack", None)
        if stack is None:
            stack = self._threads.stack = []
        return stack

    # -- forward -----------------------------------------------------------------------------------------------

    def _enter(self, module: Any, _args: Any) -> None:
        if self._compiling():
            return
        stack = self._stack
        backward = self._in_graph() != -1
        if not stack and not backward:
            self._on_root(module)
        path = self.names.get(id(module))
        if path is None:
            if stack:  # made after the model was named: a functional wrapper
                path = stack[-1][0]
            else:
                self.name_modules(module)
                path = self.names[id(module)]
        stack.append((path, type(module).__name__))
        self._forward(backward)

    def _leave(self, _module: Any, _args: Any, _out: Any) -> None:
        if self._compiling():
            return
        stack = self._stack
        if stack:
            stack.pop()
        self._forward(self._in_graph() != -1)

    def _forward(self, backward: bool) -> None:
        stack = self._stack
        path, op = stack[-1] if stack else ("", "")
        if backward:
            self.mark(BACKWARD, path, op, bool(stack))
            return
        self.after_backward = False
        self.mark(LOAD if self.step < 0 else FORWARD, path, op)
        # Autograd numbers its nodes as they are made: the number at each change of module tells whose a node is.
        number = self.torch._C._autograd._get_sequence_nr()
        if self._bounds and self._bounds[-1] == number:
            self._paths[-1] = path
        elif not self._bounds or number > self._bounds[-1]:
            self._bounds.append(number)
            self._paths.append(path)

    # -- backward ----------------------------------------------------------------------------------------------

    def _backward(self, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self._compiling():
            return self._engine(outputs, *args, **kwargs)
        self._watch_nodes(outputs)
        self.mark(BACKWARD, "", "autograd engine")
        try:
            return self._engine(outputs, *args, **kwargs)
        finally:
            self.after_backward = True
            stack = self._stack
            if stack or self._in_graph() != -1:
                self._forward(self._in_graph() != -1)
            else:
                self.mark(OPTIMIZER, "", "")

    def _watch_nodes(self, outputs: Any) -> None:
        """Have every node of the graphs below the outputs say when it runs; nodes that only hand on are left alone."""
        waiting = [t.grad_fn for t in outputs if getattr(t, "grad_fn", None) is not None]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            name = node.name()
            if name.endswith("AccumulateGrad"):
                continue
            node.register_prehook(self._runs(self._path_of(node._sequence_nr()), name))
            for following, _ in node.next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    waiting.append(following)

    def _path_of(self, number: int) -> str:
        at = bisect.bisect_right(self._bounds, number) - 1
        return self._paths[at] if at >= 0 else ""

    def _runs(self, path: str, name: str) -> Callable[[Any], None]:
        def prehook(_gradients: Any) -> None:
            self.mark(BACKWARD, path, name)

        return prehook

    # -- optimizer ---------------------------------------------------------------------------------------------

    def _enter_step(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if self._compiling():
            return
        self._on_step(optimizer, False)
        self.mark(OPTIMIZER, "", type(optimizer).__name__)

    def _leave_step(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if self._compiling():
            return
        self.stepped = True
        self._on_step(optimizer, True)
        backward = self._in_graph() != -1  # optimizers that step inside the backward
        self.mark(BACKWARD if backward else OPTIMIZER, "", "")
