"""The dispatch mode that turns a run on tensors without data into allocations and frees.

Storages are followed by weak references: PyTorch destroys them at the same moments as on a GPU, so the order of the
frees is the real one. Imported only once torch is wanted.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memfit.ledger import Component
from memfit.trace.hidden import HiddenRules
from memfit.trace.result import Block, RawEvent, Trace
from memfit.trace.values import Values
from memfit.trace.where import Where, in_backward

_ADD = torch.ops.aten.add.Tensor
_WAIT = "_c10d_functional::wait_tensor"


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Records what tensors of one device type allocate.

    Args:
        device: the device type that stands for the GPU: ``meta`` or ``cuda``.
        where: follows phases and modules.
        hidden: rules for temporaries inside kernels, or None to leave them out.
        values: answers for operations that need data.
        stream: returns the number of the current CUDA stream.
        owns: says whether a tensor of that device belongs to the program (not to shape propagation beside it).
    """

    def __init__(
        self,
        device: str,
        where: Where,
        *,
        hidden: HiddenRules | None,
        values: Values,
        stream: Callable[[], int] = lambda: 0,
        owns: Callable[[Any], bool] = lambda _tensor: True,
    ) -> None:
        super().__init__()
        self.device = device
        self.where = where
        self.hidden = hidden
        self.values = values
        self.stream = stream
        self.owns = owns
        self.paused = 0
        self.step = -1
        self.num_ops = 0
        self.num_in_place = 0
        self.vocab: set[int] = set()
        self._events: list[RawEvent | None] = []
        self._facts: list[tuple[Any, ...]] = []
        self._live: dict[int, tuple[int, int, Any]] = {}
        self._alias: dict[int, int] = {}
        self._freed_at: dict[int, int] = {}
        self._hooks: dict[int, Any] = {}
        self._pending: tuple[int, int, int] | None = None
        self._labels: dict[int, Component] = {}
        self._likely: dict[int, Component] = {}  # what a block is unless it is labelled later
        self.inside: Component | None = None
        self._names: dict[int, str] = {}  # by block
        self._parameters: dict[int, str] = {}  # names of parameters, by id
        self._began = time.perf_counter()
        self._resize = torch.UntypedStorage.resize_
        where.on_step.append(self._on_step)

    # -- events ------------------------------------------------------------------------------------------------

    def in_use(self) -> int:
        """Requested bytes in use now."""
        return sum(size for _, size, _ in self._live.values())

    def _allocate(self, size: int, op: str, shape: tuple[int, ...], dtype: str, component: Component | None) -> int:
        uid = len(self._facts)
        phase, module, recompute = self.where.now()
        stream = self.stream()
        source = self.where.source() if component is None and (phase != "backward" or recompute) else ""
        self._facts.append((size, op, module, phase, self.step, shape, dtype, component, stream, recompute, source))
        self._events.append(RawEvent(uid, size, stream, phase, self.step))
        if self.inside is not None:
            self._likely[uid] = self.inside
        return uid

    def _free(self, uid: int, size: int, phase: str) -> None:
        block = self._alias.get(uid, uid)
        self._freed_at[block] = len(self._events)
        self._events.append(RawEvent(block, -size, self._facts[uid][8], phase, self.step))

    def _dropped(self, key: int, uid: int, size: int) -> None:
        if self._live.get(key, (None,))[0] == uid:
            del self._live[key]
            if size:
                self._free(uid, size, self.where.phase())

    def _follow(self, storage: Any, uid: int, size: int) -> None:
        key = storage._cdata
        ref = weakref.ref(storage, lambda _ref: self._dropped(key, uid, size))
        self._live[key] = (uid, size, ref)

    def track(self, tensor: Any, op: str, component: Component | None = None) -> int | None:
        """Book the storage of a tensor unless it is known already; returns the new block's id or None."""
        if not self.owns(tensor):
            return None
        storage = tensor.untyped_storage()
        if storage._cdata in self._live:
            return None
        size = storage.nbytes()
        uid = self._allocate(size, op, tuple(tensor.shape), str(tensor.dtype)[6:], component) if size else -1
        if uid < 0:  # an empty storage may be resized later
            uid = len(self._facts)
            self._facts.append((0, op, "", "load", self.step, tuple(tensor.shape), "", component, 0, False, ""))
        self._follow(storage, uid, size)
        return uid

    def adopt(self, tensors: Any, component: Component) -> None:
        """Book tensors that existed before the trace, in the order given."""
        for tensor in tensors:
            for inner in inner_tensors(tensor):
                if inner.device.type == self.device:
                    self.track(inner, "given", component)

    def label(self, tensor: Any, component: Component, name: str = "") -> None:
        """State what the storage of a tensor holds, and the name of the parameter it belongs to."""
        for inner in inner_tensors(tensor):
            if inner.device.type != self.device:
                continue
            entry = self._live.get(inner.untyped_storage()._cdata)
            if entry is not None:
                uid = self._alias.get(entry[0], entry[0])
                self._labels.setdefault(uid, component)
                if name:
                    self._names.setdefault(uid, name)

    def used(self, tensor: Any, stream: int) -> None:
        """``tensor.record_stream``: another stream uses the block too."""
        entry = self._live.get(tensor.untyped_storage()._cdata)
        if entry is not None:
            uid = self._alias.get(entry[0], entry[0])
            self._events.append(RawEvent(uid, 0, stream, self.where.phase(), self.step))

    def resized(self, storage: Any) -> None:
        """A storage changed its size in place (FSDP frees gathered parameters that way)."""
        entry = self._live.get(storage._cdata)
        if entry is None:
            return
        uid, old, _ = entry
        new = storage.nbytes()
        if new == old:
            return
        self._settle()
        _, op, _, _, _, shape, dtype, component, *_ = self._facts[uid]
        if new:
            # the new memory is taken before the old is given back, as the copy between them needs
            uid_new = self._allocate(new, "resize_", shape, dtype, component or self._labels.get(uid))
        else:
            uid_new = len(self._facts)
            self._facts.append((0, op, "", "load", self.step, shape, dtype, component, 0, False, ""))
        if uid in self._labels:
            self._labels.setdefault(uid_new, self._labels[uid])
        if old:
            self._free(uid, old, self.where.phase())
        self._follow(storage, uid_new, new)

    # -- in-place accumulation ---------------------------------------------------------------------------------

    def _candidate(self, args: Any) -> int | None:
        """The block that this sum in the backward would reuse on a GPU, if its owner drops it at once.

        The engine adds gradients into the first buffer when nobody else holds it and it is no view; any active
        dispatch mode makes it add out of place instead, so the sum is booked as an alias afterwards.
        """
        if torch.is_grad_enabled() or not in_backward():
            return None
        a, b = args[0], args[1]
        if not isinstance(b, torch.Tensor) or a._is_view() or a.shape != b.shape or a.dtype != b.dtype:
            return None
        storage = a.untyped_storage()
        if a.numel() * a.element_size() != storage.nbytes():
            return None
        entry = self._live.get(storage._cdata)
        return None if entry is None else self._alias.get(entry[0], entry[0])

    def _settle(self) -> None:
        if self._pending is None:
            return
        at, out, first = self._pending
        self._pending = None
        freed = self._freed_at.get(first)
        if freed is not None and freed > at:
            self._events[at] = self._events[freed] = None
            self._alias[out] = first
            del self._freed_at[first]
            self.num_in_place += 1

    # -- the mode ----------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and book what it allocates."""
        kwargs = kwargs or {}
        for kind in types:
            if hasattr(kind, "__tensor_flatten__"):  # a wrapper (DTensor, quantised tensor): see its inner operations
                return NotImplemented
        if self.paused:
            return func(*args, **kwargs)
        self._settle()
        first = self._candidate(args) if func is _ADD else None
        name = func._schema.name
        if name == _WAIT:  # returns its input on a GPU; the shape function would make a new tensor
            out = args[0].detach()
        elif self.values.needed(func, args, self.device):
            out = self.values.answer(func, args, kwargs, self.where)
        else:
            try:
                out = func(*args, **kwargs)
            except DataDependentOutputException:
                if not self.values.host:
                    raise
                out = self.values.answer(func, args, kwargs, self.where)
        self.num_ops += 1
        if isinstance(out, torch.Tensor):
            if out.device.type == self.device:
                uid = self.track(out, name, self._cast_of(name, args, out))
                if first is not None and uid is not None:
                    self._pending = (len(self._events) - 1, uid, first)
        elif isinstance(out, (tuple, list)):
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device:
                    self.track(tensor, name)
        if self.hidden is not None:
            self._book_hidden(name, args, kwargs, out)
        return out

    def _cast_of(self, name: str, args: Any, out: Any) -> Component | None:
        """A copy of a whole parameter in another dtype is still that parameter."""
        if name == "aten::_to_copy" and out.shape == args[0].shape and args[0].device.type == self.device:
            entry = self._live.get(args[0].untyped_storage()._cdata)
            if entry is not None and self._labels.get(entry[0], self._facts[entry[0]][7]) == "parameters":
                return "parameters"
        return None

    def _book_hidden(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        assert self.hidden is not None
        stream = self.stream()
        for size in self.hidden.persistent(name, args, stream, in_backward(), self.device):
            self._allocate(size, f"hidden: {name}", (), "", "workspace")
        sizes = self.hidden.temporaries(name, args, kwargs, out, self.device)
        if sizes:
            uids = [(self._allocate(s, f"hidden: {name}", (), "", "workspace"), s) for s in sizes]
            for uid, size in reversed(uids):
                self._free(uid, size, self.where.phase())

    def __enter__(self) -> Recorder:
        recorder = self

        def resize(storage: Any, size: int) -> Any:
            result = recorder._resize(storage, size)
            recorder.resized(storage)
            return result

        torch.UntypedStorage.resize_ = resize
        super().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        torch.UntypedStorage.resize_ = self._resize
        super().__exit__(*exc)

    # -- components and result ---------------------------------------------------------------------------------

    def label_modules(self) -> None:
        """Book the parameters and buffers of every known module as such, and learn the vocabulary size."""
        for root in self.where.modules:
            for name, tensor in (*root.named_parameters(), *root.named_buffers()):
                self.label(tensor, "parameters", name)
                self._parameters[id(tensor)] = name
                # a program without an optimizer may drop its gradients before the step ends
                if id(tensor) not in self._hooks and tensor.requires_grad and type(tensor) is torch.nn.Parameter:
                    hook = tensor.register_post_accumulate_grad_hook(self._label_gradient)
                    self._hooks[id(tensor)] = hook
            config = getattr(root, "config", None)
            text: Any = (
                config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
            )
            size = getattr(text, "vocab_size", None)
            if isinstance(size, int):
                self.vocab.add(size)

    def _on_step(self, optimizer: Any, done: bool) -> None:
        if done:
            for parameter, state in list(optimizer.state.items()):
                name = self._parameters.get(id(parameter), "")
                for tensor in tree_leaves(state):
                    if isinstance(tensor, torch.Tensor):
                        self.label(tensor, "optimizer", name)
        else:
            for group in optimizer.param_groups:
                self._label_gradients(group["params"])

    def begin(self, step: int) -> None:
        """The program was built; step ``step`` begins."""
        self._settle()
        self.label_modules()
        self.where.loading = False
        self.where.after_backward = False
        self.step = step

    def end_step(self) -> None:
        """Label the gradients that live on between steps."""
        for root in self.where.modules:
            self._label_gradients(root.parameters())

    def _label_gradient(self, parameter: Any) -> None:
        self._label_gradients((parameter,))

    def _label_gradients(self, parameters: Any) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                self.label(parameter.grad, "gradients", self._parameters.get(id(parameter), ""))

    def _component(self, uid: int) -> Component:
        size, op, module, phase, _, shape, _, component, stream, *_ = self._facts[uid]
        if component is not None:
            return component  # type: ignore[no-any-return]
        if uid in self._labels:
            return self._labels[uid]
        if uid in self._likely:
            return self._likely[uid]
        if op == "resize_":  # FSDP fills the gathered parameters' storages again
            return "parameters"
        if op.startswith(("c10d::", "_c10d_functional::", "fsdp::")) or stream:
            return "communication"
        if len(shape) > 1 and shape[-1] in self.vocab and not any(part.isdigit() for part in module.split(".")):
            return "logits"
        if phase == "optimizer":
            return "workspace"
        return "parameters" if phase == "load" and size else "activations"

    def finish(self, engine: str, steps: int, **more: Any) -> Trace:
        """Close the books."""
        self._settle()
        for hook in self._hooks.values():
            hook.remove()
        events = tuple(e for e in self._events if e is not None)
        blocks = {}
        for event in events:
            if event.bytes > 0:
                size, op, module, phase, step, shape, dtype, _, stream, recompute, source = self._facts[event.id]
                blocks[event.id] = Block(
                    id=event.id,
                    bytes=size,
                    op=op,
                    module=self._names.get(event.id, module),
                    phase=phase,
                    step=step,
                    shape=shape,
                    dtype=dtype,
                    component=self._component(event.id),
                    stream=stream,
                    recompute=recompute,
                    hidden=op.startswith("hidden: "),
                    source=source,
                )
        return Trace(
            events=events,
            blocks=blocks,
            engine=engine,
            steps=steps,
            seconds=time.perf_counter() - self._began,
            num_ops=self.num_ops,
            **more,
        )


def inner_tensors(tensor: Any) -> list[Any]:
    """The plain tensors inside a wrapper subclass; a plain tensor itself."""
    if not hasattr(type(tensor), "__tensor_flatten__"):
        return [tensor]
    found = []
    for name in tensor.__tensor_flatten__()[0]:
        inner = getattr(tensor, name)
        if isinstance(inner, torch.Tensor):  # DTensor names its mesh here too
            found += inner_tensors(inner)
    return found
