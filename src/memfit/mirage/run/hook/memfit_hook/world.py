"""One rank of a stated world, alone: process groups whose other members do not exist.

Every group is PyTorch's own ``fake`` process group under the name that the script asked for: collectives return at once
and leave their outputs as they are, which allocates what the real ones allocate in PyTorch (NCCL's own buffers lie
outside of the allocator). What a collective of Python objects returns is what this rank contributed.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from . import when
from .settings import note, warn


def install(_torch: Any) -> None:
    """Adapt torch.distributed once it is imported, and what stands on it."""
    when.imported("torch.distributed.distributed_c10d", _groups)
    when.imported("torch.nn.parallel.distributed", _ddp)
    when.imported("torch.distributed.pipelining.stage", _pipeline)


def _groups(c10d: Any) -> None:
    original = c10d._new_process_group_helper

    def new_helper(group_size: int, group_rank: int, global_ranks: Any, backend: Any, *args: Any, **kwargs: Any) -> Any:
        import torch.testing._internal.distributed.fake_pg  # noqa: F401 - registers the backend

        for name in ("backend_options", "pg_options"):
            kwargs.pop(name, None)
        kwargs.pop("device_id", None)
        group, store = original(group_size, group_rank, global_ranks, "fake", *args, **kwargs)
        if group is not c10d.GroupMember.NON_GROUP_MEMBER:
            c10d._world.pg_map[group] = (_name(backend), store)
            if group_size > 1:
                note("collectives return at once: the other ranks do not exist")
        return group, store

    def rendezvous(_url: str, rank: int = -1, world_size: int = -1, **_kwargs: Any) -> Any:
        read = os.environ.get
        rank = int(read("RANK", "0")) if rank < 0 else rank
        world_size = int(read("WORLD_SIZE", "1")) if world_size < 0 else world_size
        yield c10d.HashStore(), rank, world_size

    c10d._new_process_group_helper = new_helper
    c10d.rendezvous = rendezvous
    if not hasattr(c10d, "HashStore"):
        from torch._C._distributed_c10d import HashStore

        c10d.HashStore = HashStore
    _objects(c10d)
    c10d.monitored_barrier = lambda *_args, **_kwargs: None


def _name(backend: Any) -> str:
    """The name that ``get_backend`` gives: what was asked for, NCCL where nothing or several were."""
    text = str(backend or "nccl").lower()
    return "nccl" if ":" in text or text in ("undefined", "fake") else text


def _objects(c10d: Any) -> None:
    """Collectives of pickled objects, which would read what was never sent."""

    def size(group: Any) -> int:
        return int(c10d.get_world_size(group))

    def all_gather_object(object_list: Any, obj: Any, group: Any = None) -> None:
        for index in range(min(len(object_list), size(group))):
            object_list[index] = obj

    def gather_object(obj: Any, object_gather_list: Any = None, *_args: Any, **kwargs: Any) -> None:
        if object_gather_list is not None:
            all_gather_object(object_gather_list, obj, kwargs.get("group"))

    def broadcast_object_list(object_list: Any, src: Any = None, *_args: Any, **_kwargs: Any) -> None:
        if src is not None and src != c10d.get_rank() and any(item is None for item in object_list):
            warn("objects that another rank broadcasts are None here")

    def scatter_object_list(output: Any, inputs: Any = None, *_args: Any, **_kwargs: Any) -> None:
        if inputs:
            output[0] = inputs[min(c10d.get_rank(), len(inputs) - 1)]
        else:
            warn("objects that another rank scatters are None here")

    def send_object_list(*_args: Any, **_kwargs: Any) -> None:
        return None

    def recv_object_list(_objects: Any, src: Any = None, *_args: Any, **_kwargs: Any) -> int:
        warn("objects that another rank sends are None here")
        return src or 0

    for call in (all_gather_object, gather_object, broadcast_object_list, scatter_object_list, send_object_list,
                 recv_object_list):  # fmt: skip
        setattr(c10d, call.__name__, call)


# ---- DistributedDataParallel ----


def _ddp(module: Any) -> None:
    """DDP asks its hook for the reduced bucket: the bucket itself is the answer, and memory is the same."""
    module._verify_param_shape_across_processes = lambda *_args, **_kwargs: None
    ddp = module.DistributedDataParallel
    forward = ddp._pre_forward

    def reduced(_state: Any, bucket: Any) -> Any:
        import torch

        future: Any = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    reduced.__annotations__.clear()  # DDP checks them, as types

    def pre_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not getattr(self, "_memfit_hooked", False):
            self._memfit_hooked = True
            if not self._comm_hooks:
                self.register_comm_hook(None, reduced)
            else:
                warn("the script's own DDP communication hook is replaced by one that returns the bucket")
        return forward(self, *args, **kwargs)

    register = ddp.register_comm_hook

    def register_comm_hook(self: Any, state: Any, hook: Any) -> None:
        if hook is not reduced:
            warn(f"DDP's communication hook `{getattr(hook, '__name__', 'hook')}` is not run: its buffers are missing")
        register(self, None, reduced)

    ddp.register_comm_hook = register_comm_hook
    ddp._pre_forward = pre_forward


# ---- pipelines ----


def _pipeline(module: Any) -> None:
    """Stages learn the shapes of their neighbours from files of earlier runs, or from their own outputs."""
    stage = getattr(module, "PipelineStage", None)
    if stage is None or not hasattr(stage, "_recv_meta"):
        warn("this torch has another pipelining: stages may not find the shapes of their neighbours")
        return
    sent: list[Any] = []

    def send_meta(self: Any, meta: Any, dst_stage: int) -> None:
        if dst_stage > self.stage_index:
            sent.append(meta)
            path = _stage_file(self.stage_index)
            if path is not None:
                path.write_bytes(pickle.dumps(meta))

    def recv_meta(self: Any, src_stage: int) -> Any:
        if src_stage > self.stage_index:  # gradients of what this stage sends look like it
            return module._StageBackwardMeta(backward_metas=module._derive_grad_metas(self._stage_meta.outputs))
        path = _stage_file(src_stage)
        if path is not None and path.is_file():
            return pickle.loads(path.read_bytes())  # noqa: S301 - written by the run of the stage before
        if sent:
            warn("what a pipeline stage receives is taken to have the shape of what this rank sends")
            return sent[-1]
        msg = "this rank is no first pipeline stage: give --stages N, so that the stages before it run first"
        raise RuntimeError(msg)

    def result(self: Any, received_result: Any = None) -> Any:
        """The vote whether all stages know their shapes: all others agree with this one."""
        if received_result is not None:
            return received_result
        import torch

        dynamic = module.InferenceMode.needs_dynamic(self._user_meta, True)
        return torch.tensor([0 if dynamic else 1], dtype=torch.int32, device=self.device)

    stage._send_meta, stage._recv_meta = send_meta, recv_meta
    if hasattr(stage, "_warmup_backward_result") and hasattr(module, "InferenceMode"):
        stage._warmup_backward_result = result


def _stage_file(index: int) -> Path | None:
    folder = os.environ.get("MEMFIT_STAGES_FOLDER")
    return Path(folder) / f"stage-{index}.pickle" if folder else None
