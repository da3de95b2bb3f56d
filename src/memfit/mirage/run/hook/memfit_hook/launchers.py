"""Launchers start one process for each GPU; a dry run goes on as one of them, in the launcher's own process.

The launcher runs unmodified up to the point where it would start workers: its arguments are read by its own code.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from . import when
from .settings import SETTINGS, note


def install(_torch: Any) -> None:
    """Adapt torchrun (and with it accelerate and DeepSpeed), and ``torch.multiprocessing.spawn``."""
    when.imported("torch.distributed.launcher.api", _elastic)
    when.imported("torch.multiprocessing.spawn", _spawn)


def world(ranks: int, rank: int, local: int) -> dict[str, str]:
    """The variables that torchrun gives to a worker."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank % local),
        "LOCAL_WORLD_SIZE": str(local),
        "GROUP_RANK": str(rank // local),
        "GROUP_WORLD_SIZE": str(max(ranks // local, 1)),
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": "memfit",
    }


def _elastic(api: Any) -> None:
    def call(self: Any, *args: Any) -> Any:
        config, entry = self._config, self._entrypoint
        local = config.nproc_per_node
        stated = local * config.max_nodes
        ranks = SETTINGS.ranks or stated
        local = min(local if not SETTINGS.ranks or local > 1 else SETTINGS.gpus_per_node, ranks)
        rank = min(SETTINGS.rank, ranks - 1)
        os.environ.update(world(ranks, rank, local))
        note(f"the launcher's {stated} workers are one: rank {rank} of {ranks}")
        if callable(entry):
            return {rank: entry(*args)}
        _become([str(entry), *map(str, args)])
        return {}

    api.elastic_launch.__call__ = call


def _become(words: list[str]) -> None:
    """Replace this process by the one that the launcher would have started."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execvp(words[0], words)  # noqa: S606


def _spawn(module: Any) -> None:
    def start_processes(fn: Any, args: Any = (), nprocs: int = 1, *_args: Any, **_kwargs: Any) -> None:
        rank = min(SETTINGS.rank, nprocs - 1)
        if nprocs > 1:
            note(f"torch.multiprocessing.spawn: process {rank} of {nprocs} runs alone")
        fn(rank, *args)

    def spawn(fn: Any, args: Any = (), nprocs: int = 1, *_args: Any, **_kwargs: Any) -> None:
        start_processes(fn, args, nprocs)

    module.start_processes, module.spawn = start_processes, spawn
    package = sys.modules.get("torch.multiprocessing")
    for name in ("spawn", "start_processes"):
        if package is not None and callable(getattr(package, name, None)):
            setattr(package, name, locals()[name])
