"""Engine B's door: ``cuda`` tensors without data on a wheel that has no CUDA, opened by ctypes, no compiler.

Three things stand in the way of a backward pass on fake CUDA tensors when no GPU is there; each is removed by one
unlock, each unlock is tested before it is trusted and named in the result:

guard    a CPU-only wheel registers no device guard for CUDA, and the autograd engine aborts the process on the empty
         slot. PyTorch has a stand-in guard of its own (``FakeGuardImpl``); it installs it over any non-empty slot.
hooks    the engine asks the CUDA hooks whether an accelerator exists; a copy of their function table answers yes.
kernels  operations that fall apart into others where no CUDA kernel is registered get a kernel that never runs.

Private parts of PyTorch are touched, so a release not known to work is tried in a child process first.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

KNOWN_GOOD = {("2.13", "linux", "x86_64")}
"""(torch release, system, machine) on which the unlocks were run; others are tried in a child process."""

MISSING_KERNELS = ("silu_backward", "mish_backward", "_fused_rms_norm")
"""CUDA kernels whose absence changes the path: the difference of the CPU and CUDA wheels' dispatch tables (2.13)."""

_CUDA = 1  # c10::DeviceType::CUDA
_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"
_HOOKS = "_ZN2at6detail12getCUDAHooksEv"
_SLOTS = 96
_IS_BUILT, _HAS_PRIMARY_CONTEXT = 2, 4  # positions in the table of at::AcceleratorHooksInterface
_keep: list[Any] = []  # memory that libtorch points into must outlive it


class UnlockError(RuntimeError):
    """An unlock does not work with this wheel."""


def _library(name: str) -> ctypes.CDLL:
    import torch

    suffix = "dylib" if sys.platform == "darwin" else "so"
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"lib{name}.{suffix}"))


def install_guard() -> str:
    """Put PyTorch's stand-in device guard into the empty CUDA slot; stays for the life of the process."""
    import torch

    ensure = getattr(torch._C, "_ensureCUDADeviceGuardSet", None)
    if ensure is None:
        raise UnlockError("this torch has no stand-in device guard (2.11 and later have)")
    try:
        registry = (ctypes.c_void_p * 32).in_dll(_library("c10"), _REGISTRY)
    except (OSError, ValueError) as error:
        raise UnlockError(f"device guard registry not found: {error}") from error
    if registry[_CUDA]:
        ensure()
        return "guard: the wheel's own"
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)
    zero = kind(lambda _self: 0)
    table = (ctypes.c_void_p * 64)(*[ctypes.cast(zero, ctypes.c_void_p).value] * 64)
    dummy = (ctypes.c_void_p * 1)(ctypes.addressof(table))
    _keep.extend((zero, table, dummy))
    registry[_CUDA] = ctypes.addressof(dummy)
    ensure()
    if registry[_CUDA] == ctypes.addressof(dummy):
        registry[_CUDA] = None
        raise UnlockError("torch did not replace the empty device guard")
    return "guard: PyTorch's stand-in for CUDA"


@contextmanager
def hooks() -> Iterator[str]:
    """While open, PyTorch believes that a CUDA accelerator exists."""
    import torch

    if torch.accelerator.current_accelerator() is not None:
        yield "hooks: the wheel's own"
        return
    try:
        get = getattr(_library("torch_cpu"), _HOOKS)
    except (OSError, AttributeError) as error:
        raise UnlockError(f"CUDA hooks not found: {error}") from error
    get.restype = ctypes.c_void_p
    address = get()
    slot = ctypes.c_void_p.from_address(address)
    old = slot.value
    assert old is not None
    table = (ctypes.c_void_p * (_SLOTS + 2))()
    ctypes.memmove(ctypes.addressof(table), old - 16, 8 * (_SLOTS + 2))  # two words of type data stand before it
    kind = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)
    yes = kind(lambda _self: True)
    for position in (_IS_BUILT, _HAS_PRIMARY_CONTEXT):
        table[2 + position] = ctypes.cast(yes, ctypes.c_void_p).value
    _keep.extend((yes, table))
    slot.value = ctypes.addressof(table) + 16
    try:
        if torch.accelerator.current_accelerator() is None:
            raise UnlockError("torch sees no accelerator behind the changed hooks")
        yield "hooks: an accelerator is reported"
    finally:
        slot.value = old


@contextmanager
def kernels() -> Iterator[str]:
    """While open, operations that would fall apart for lack of a CUDA kernel have one."""
    import torch

    library = torch.library.Library("aten", "IMPL")
    added = []

    def never(*_args: Any, **_kwargs: Any) -> Any:
        raise UnlockError("a CUDA kernel was called on a machine without CUDA")

    for name in MISSING_KERNELS:
        known = hasattr(torch.ops.aten, name)
        if known and not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "CUDA"):
            library.impl(name, never, "CUDA")
            added.append(name)
    try:
        yield f"kernels: {', '.join(added) or 'all present'}"
    finally:
        library._destroy()


@contextmanager
def unlocked() -> Iterator[list[str]]:
    """All unlocks, tested; yields their descriptions.

    Raises:
        UnlockError: this wheel does not let itself be opened; engine A still works.
    """
    check_in_child()
    notes = [install_guard()]
    with ExitStack() as stack:
        notes.append(stack.enter_context(hooks()))
        notes.append(stack.enter_context(kernels()))
        self_test()
        yield notes


def prepare() -> None:
    """Start the autograd engine's GPU threads while it can still be done: the first backward decides for good.

    Called before a backward on ``meta``; does nothing where the unlocks are not known to work.
    """
    if "prepared" in _checked or not is_known():
        return
    _checked["prepared"] = ""
    with contextlib.suppress(UnlockError), unlocked():
        pass


def self_test() -> None:
    """Forward, backward and optimizers on fake CUDA tensors.

    Raises:
        UnlockError: something does not come out as on a GPU.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode(), torch.device("cuda"):
            weight = torch.nn.Parameter(torch.empty(8, 8))
            out = torch.nn.functional.silu(torch.empty(4, 8) @ weight).sum()
            out.backward()
            if weight.grad is None or weight.grad.device.type != "cuda":
                raise UnlockError("the backward left no gradient on cuda")
            torch.optim.AdamW([weight], foreach=True).step()
            torch.optim.AdamW([weight], fused=True).step()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if "device_ready_queues_" in str(error):
            raise UnlockError(
                "a backward pass ran in this process before the first fake CUDA trace, and PyTorch's engine has no"
                " thread for the GPU: trace first, or in a fresh process"
            ) from error
        raise UnlockError(f"self-test on fake CUDA tensors failed: {error}") from error


def is_known() -> bool:
    """Whether the unlocks were run with this release on this kind of machine."""
    import torch

    release = ".".join(torch.__version__.split(".")[:2])
    return (release, sys.platform, platform.machine()) in KNOWN_GOOD


_checked: dict[str, str] = {}


def check_in_child() -> None:
    """Try the unlocks in a child process unless this release is known: a wrong guess would end the process.

    Raises:
        UnlockError: the child did not survive.
    """
    import torch

    if is_known():
        return
    if "child" not in _checked:
        code = "from memfit.trace import unlock as u\nu.install_guard()\nwith u.hooks(), u.kernels(): u.self_test()\n"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        _checked["child"] = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it died"])[-1]
    if _checked["child"]:
        raise UnlockError(f"torch {torch.__version__} refuses: {_checked['child']}")
