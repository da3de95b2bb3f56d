"""The two engines: ``meta`` (A) with any torch, ``fake-cuda`` (B) for programs that need CUDA semantics.

Imported only once torch is wanted.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from memfit.trace import facade
from memfit.trace.hidden import Gpu, HiddenRules
from memfit.trace.recorder import Recorder
from memfit.trace.result import Trace
from memfit.trace.sdpa import cuda_attention
from memfit.trace.shims import replaced, shimmed
from memfit.trace.unlock import UnlockError, prepare, unlocked
from memfit.trace.values import Values
from memfit.trace.where import Where

DEVICE = {"meta": "meta", "fake-cuda": "cuda"}
"""The device type that stands for the GPU in each engine."""
_COMPOSITE_ON_META: tuple[type, ...] = tuple(
    getattr(torch.nn, name) for name in ("RMSNorm", "Mish") if hasattr(torch.nn, name)
)


class _Mode(FakeTensorMode):  # type: ignore[misc]
    """Fake tensors that never touch a device, although ``torch.cuda.is_available`` says yes meanwhile."""

    @property
    def avoid_device_init(self) -> bool:
        """Constants are made on the CPU and moved by a recorded operation."""
        return True


class _ScriptMode(_Mode):
    """The same for a whole script: integers on the CPU stay real, so that samplers and indices have values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run operations on real integers as they are."""
        kwargs = kwargs or {}
        if func._schema.name in _PINNING:  # host memory is host memory here
            return args[0] if "pin_memory" in func._schema.name else False
        device = kwargs.get("device")
        if device is None or torch.device(device).type == "cpu":
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            plain = all(
                type(t) is torch.Tensor and t.device.type == "cpu" and not t.dtype.is_floating_point for t in tensors
            )
            dtype = kwargs.get("dtype")
            whole = dtype in _WHOLE or (dtype is None and (bool(tensors) or func._schema.name in _INTEGERS))
            if plain and whole:
                return func(*args, **kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)


_PINNING = frozenset({"aten::pin_memory", "aten::_pin_memory", "aten::is_pinned"})
_INTEGERS = frozenset({"aten::randperm", "aten::randint", "aten::arange"})
_WHOLE = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool})


def run_meta(model: Any, step: Callable[[Any], Any], **options: Any) -> Trace:
    """``run`` with engine A: works with any wheel on any system; knows no autocast, no streams, no ``cuda``."""
    return run(model, step, engine="meta", **options)


def run_fake(model: Any, step: Callable[[Any], Any], **options: Any) -> Trace:
    """``run`` with engine B: fake ``cuda`` tensors; raises ``UnlockError`` where torch does not allow it."""
    return run(model, step, engine="fake-cuda", **options)


def run(
    model: Any,
    step: Callable[[Any], Any],
    *,
    engine: str = "meta",
    steps: int = 2,
    gpu: Gpu | None = None,
    attention: str = "auto",
    hidden: bool = True,
    torch_version: str | None = None,
    values: Values | None = None,
    frames: bool = True,
    before: Callable[[], Any] | None = None,
    watch: Callable[[Recorder, Where], None] | None = None,
) -> Trace:
    """Trace a program.

    Args:
        model: a module, or a tuple of modules, optimizers and tensors, that lies on the engine's device already; or a
            function that builds it there: building inside the trace gives the real order of allocations.
        step: called with what ``model`` is or returned, once per step: forward, backward, optimizer.
        engine: ``meta`` or ``fake-cuda``.
        steps: how many steps; the last is the steady one, so two at least.
        gpu: the GPU that is meant, an H100 unless stated.
        attention: ``auto`` for PyTorch's order of attention backends, or ``flash``, ``efficient``, ``cudnn``, ``math``.
        hidden: book the temporaries inside CUDA kernels by the table.
        torch_version: release whose kernels are meant, the running one unless stated.
        values: answers for operations that need data.
        frames: note the source line of each forward allocation.
        before: runs before anything is recorded and outside the modes (process groups, device meshes); ``model`` is
            then called with its result.
        watch: told of the recorder and of what follows the program, before it runs; with it the program counts its own
            steps (``steps`` 0).

    Raises:
        UnlockError: engine ``fake-cuda`` and this torch does not run fake CUDA tensors.
    """
    gpu = gpu or Gpu()
    version = torch_version or torch.__version__
    rules = HiddenRules.for_gpu(gpu, version) if hidden else None
    where = Where(frames=frames)
    values = values or Values()
    backends: dict[str, int] = {}
    device = DEVICE[engine]
    kind = _Mode if watch is None else _ScriptMode
    mode = kind(allow_non_fake_inputs=True) if engine == "fake-cuda" else None

    def owns(tensor: Any) -> bool:
        return not isinstance(tensor, FakeTensor) or tensor.fake_mode is mode

    recorder = Recorder(device, where, hidden=rules, values=values, stream=facade.stream_number, owns=owns)
    with ExitStack() as stack:
        stack.enter_context(without_collector())
        notes: list[str] = []
        if mode is not None:
            notes += stack.enter_context(unlocked())
            devices = 8 if watch is None else 1  # a script that sees several would copy its model to each
            stack.enter_context(facade.cuda_facade(gpu, recorder.in_use, recorder.used, devices))
            stack.enter_context(quiet_propagation(recorder))
            stack.enter_context(labelled_reductions(recorder))
        else:
            prepare()
        notes += stack.enter_context(shimmed(device))
        stack.enter_context(cuda_attention(gpu, device, attention, backends))
        prepared = (before(),) if before else ()
        if mode is not None:
            stack.enter_context(mode)
        stack.enter_context(where)
        stack.enter_context(recorder)
        if watch is not None:
            watch(recorder, where)
        built = callable(model) and not isinstance(model, torch.nn.Module)
        state = model(*prepared) if built else model
        adopt(recorder, where, state)
        for index in range(steps):
            recorder.begin(index)
            step(state)
            recorder.end_step()
        recorder.label_modules()
        return recorder.finish(
            engine,
            steps or max(recorder.step + 1, 1),
            settings={
                "gpu": gpu.name,
                "capability": gpu.capability,
                "torch": version,
                "attention": backends,
                "hidden": rules.used if rules else None,
                "in_place_accumulations": recorder.num_in_place,
            },
            warnings=(*values.warnings(), *_coarse(where, engine)),
            notes=tuple(notes),
        )


def _coarse(where: Where, engine: str) -> list[str]:
    """Modules that fall apart on ``meta`` where a GPU has one kernel (PyTorch's dispatch table, 2.13)."""
    if engine != "meta":
        return []
    found = {type(m).__name__ for root in where.modules for m in root.modules() if isinstance(m, _COMPOSITE_ON_META)}
    return [f"{name} is several operations on meta, one on a GPU: engine fake-cuda is exact" for name in sorted(found)]


def available(engine: str) -> str | None:
    """None when the engine works with this torch, else the reason why not."""
    if engine == "meta":
        return None
    try:
        with unlocked():
            return None
    except UnlockError as error:
        return str(error)


def adopt(recorder: Recorder, where: Where, state: Any) -> None:
    """Name the modules in ``state`` and book whatever of it was not made under the recorder."""
    items = state if isinstance(state, (tuple, list)) else (state,)
    for item in items:
        if isinstance(item, torch.nn.Module):
            where.name_modules(item)
            recorder.adopt((*item.parameters(), *item.buffers()), "parameters")
        elif isinstance(item, torch.Tensor):
            recorder.adopt((item,), "activations")
            recorder.label(item, "activations")
        elif isinstance(item, list):  # flat buffers of a reducer
            for tensor in item:
                recorder.label(tensor, "communication")
        elif isinstance(item, torch.optim.Optimizer):
            for entry in item.state.values():
                recorder.adopt((t for t in entry.values() if isinstance(t, torch.Tensor)), "optimizer")


@contextmanager
def without_collector() -> Iterator[None]:
    """While open, objects die by reference count alone; the cyclic collector would free at arbitrary moments."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def quiet_propagation(recorder: Recorder) -> Iterator[None]:
    """DTensor works out shapes by running operations on fake tensors: no memory, so the recorder pauses meanwhile."""
    with ExitStack() as stack:
        if torch.distributed.is_available():
            from torch.distributed.device_mesh import DeviceMesh
            from torch.distributed.tensor._sharding_prop import ShardingPropagator

            def paused(original: Any) -> Any:
                def propagate(*args: Any, **kwargs: Any) -> Any:
                    recorder.paused += 1
                    try:
                        return original(*args, **kwargs)
                    finally:
                        recorder.paused -= 1

                return propagate

            for name in dir(ShardingPropagator):
                if name.startswith("_propagate_tensor_meta"):
                    method = getattr(ShardingPropagator, name)
                    stack.enter_context(replaced(ShardingPropagator, name, paused(method)))
            stack.enter_context(replaced(DeviceMesh, "__init__", _outside_modes(DeviceMesh.__init__)))
        yield


@contextmanager
def labelled_reductions(recorder: Recorder) -> Iterator[None]:
    """FSDP2's reduction: what it is given are gradients, what it makes on the way is communication."""
    try:
        from torch.distributed.fsdp._fully_shard import _fsdp_param_group as group
    except ImportError:
        yield
        return

    def reduce(params: Any, grads: Any, *args: Any, **kwargs: Any) -> Any:
        for index in range(len(grads)):  # no variable may hold one: the list is what keeps them alive
            recorder.label(grads[index], "gradients")
        recorder.inside = "communication"
        try:
            return original(params, grads, *args, **kwargs)
        finally:
            recorder.inside = None

    original = group.foreach_reduce
    with replaced(group, "foreach_reduce", reduce):
        yield


def _outside_modes(original: Any) -> Any:
    """A function that runs without the dispatch modes: device meshes compute on real (CPU) tensors of ranks."""
    from torch.utils._python_dispatch import _disable_current_modes

    def outside(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return original(*args, **kwargs)

    return outside
