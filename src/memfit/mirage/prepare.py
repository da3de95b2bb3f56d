"""From an interpreter and a GPU of the catalog to the environment variables of the child process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from memfit.hardware import Gpu
from memfit.mirage.build import build_libraries
from memfit.mirage.machine import check_machine, default_cache
from memfit.mirage.settings import Imaginary
from memfit.mirage.torchbuild import inspect_python


def prepare(
    python: Path,
    gpu: Gpu,
    *,
    count: int = 1,
    total_bytes: int | None = None,
    context_bytes: int | None = None,
    lag: int | None = 0,
    values: Literal["zeros", "ones"] = "zeros",
    order: Literal["ascending", "descending"] | int = "ascending",
    log: Path | None = None,
    summary: Path | None = None,
    libraries: Sequence[Path] = (),
    cache: Path | None = None,
    ignore_gpu: bool = False,
) -> dict[str, str]:
    """The variables under which a child of ``python`` sees ``count`` imaginary GPUs; builds the libraries if needed.

    The result is to be laid over the parent's environment. It holds ``LD_LIBRARY_PATH`` (extended), the variables of
    :class:`Imaginary`, and cache folders of Inductor and Triton apart from the user's own, so that timings of kernels
    that never ran do not reach real runs.

    Args:
        python: interpreter whose torch is a CUDA build.
        gpu: NVIDIA card of the catalog.
        count: devices that the process sees.
        total_bytes: of device memory, instead of the card's.
        context_bytes: what is in use before the first allocation, instead of the card's.
        lag: how many kernel launches and event queries the GPU runs behind the host; None: until it is waited for.
        values: what is read back from the device where nothing is known: zeros, or ones for single numbers.
        order: of the addresses that the driver hands out; a number scatters them.
        log: file that gets one line per driver call that allocates or frees, and the unknown calls.
        summary: file that gets the totals as JSON when the process ends (``{pid}`` in its name is replaced).
        libraries: further shared libraries that need CUDA (flash-attn, custom extensions).
        cache: folder for everything built, instead of the default.
        ignore_gpu: go on beside a real driver.

    Raises:
        MissingError: not Linux, a real driver, no compiler, no CUDA build of torch.
        MemfitError: a card without CUDA, a bad argument, a library that cannot be read or built.
    """
    check_machine(ignore_gpu=ignore_gpu)
    build = inspect_python(python)
    device = Imaginary.of(
        gpu,
        cuda=build.cuda,
        count=count,
        total_bytes=total_bytes,
        context_bytes=context_bytes,
        lag=lag,
        values=values,
        order=order,
        log=log,
        summary=summary,
    )
    root = cache or default_cache()
    built = build_libraries(build, extra=tuple(libraries), cache=root)
    return {**device.environment(), **built.environment(root)}
