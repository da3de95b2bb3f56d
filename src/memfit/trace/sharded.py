"""One rank of many, on a process group that moves nothing: FSDP2, tensor parallelism, DDP's buckets.

Imported only once torch is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from memfit.errors import MemfitError
from memfit.trace.shims import replaced

DDP_BUCKET = 25 << 20
"""Default ``bucket_cap_mb`` of DistributedDataParallel."""
DDP_FIRST_BUCKET = 1 << 20
"""Size of the bucket that is filled first (torch.distributed._DEFAULT_FIRST_BUCKET_BYTES)."""


def meshes(ranks: int, tp: int, rank: int = 0) -> Callable[[], Any]:
    """A function that opens a fake process group of ``ranks * tp`` and returns the meshes {"dp", "tp"}, or None each.

    Raises:
        MemfitError: a process group is open already.
    """

    def before() -> dict[str, Any]:
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.testing._internal.distributed.fake_pg import FakeStore

        if dist.is_initialized():
            raise MemfitError("a process group is open already: the trace needs one of its own")
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks * tp)
        if tp == 1:
            return _ready({"dp": init_device_mesh("cuda", (ranks,)), "tp": None})
        both = init_device_mesh("cuda", (ranks, tp), mesh_dim_names=("dp", "tp"))
        return _ready({"dp": both["dp"] if ranks > 1 else None, "tp": both["tp"]})

    return before


def _ready(found: dict[str, Any]) -> dict[str, Any]:
    # what a mesh works out lazily must be worked out here: inside the modes it would compute on fake tensors
    for mesh in found.values():
        if mesh is not None:
            mesh.get_local_rank()
            mesh.get_coordinate()
            mesh.get_group()
    return found


def close() -> None:
    """End the fake process group."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "fake":
        dist.destroy_process_group()


def blocks_of(model: Any) -> list[Any]:
    """The modules that are wrapped one by one: what transformers says must not be split."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [m for m in model.modules() if type(m).__name__ in names]
    if not found:
        lists = [list(m) for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 1]
        found = max(lists, key=len) if lists else []
    return found


def apply(model: Any, mesh: dict[str, Any], *, reshard: bool, compute: Any, reduce: Any) -> None:
    """Split a model over the meshes: tensor parallelism first, then FSDP2 block by block.

    Args:
        model: on ``meta``.
        mesh: what ``meshes`` made.
        reshard: free gathered parameters after each forward.
        compute, reduce: types of gathered parameters and of reduced gradients, None to keep.
    """
    blocks = blocks_of(model)
    if mesh["tp"] is not None:
        parallelize(model, mesh["tp"])
    if mesh["dp"] is not None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce)
        with fewer_chunks():
            for block in blocks:
                fully_shard(block, mesh=mesh["dp"], mp_policy=policy, reshard_after_forward=reshard)
            fully_shard(model, mesh=mesh["dp"], mp_policy=policy)


def hold(model: Any) -> None:
    """Gradients accumulate whole and gathered parameters stay, as torch.distributed.pipelining asks of its stages."""
    model.set_is_last_backward(False)
    model.set_reshard_after_backward(False)
    model.set_requires_gradient_sync(False)


def reduce_held(model: Any) -> None:
    """Reduce what ``hold`` let accumulate, as ``_PipelineStage.perform_reduce_grad`` does."""
    from torch.distributed.fsdp import fully_shard

    model.set_is_last_backward(True)
    model.set_reshard_after_backward(True)
    model.set_requires_gradient_sync(True)
    root = fully_shard.state(model)
    for state in root._state_ctx.all_states:
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
        for group in filter(None, groups):
            group.post_backward()
    root._root_post_backward_final_callback()


def fewer_chunks() -> Any:
    """While open, FSDP2 makes only the parts of parameters that it asks for."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param

    known = hasattr(_fsdp_param, "_chunk_with_empty")
    return replaced(_fsdp_param, "_chunk_with_empty", _Chunks) if known else nullcontext()


class _Chunks:
    """What FSDP2 splits a parameter into, each part made when it is asked for: of 512 ranks only two are."""

    def __init__(self, tensor: Any, num_chunks: int, dim: int) -> None:
        self.tensor, self.num, self.dim = tensor, num_chunks, dim

    def __getitem__(self, index: int) -> Any:
        size = self.tensor.size(self.dim)
        part = -(-size // self.num)
        start = index * part
        if start >= size:
            return self.tensor.new_empty(0)
        return self.tensor.narrow(self.dim, start, min(part, size - start))


def parallelize(model: Any, mesh: Any) -> None:
    """Tensor parallelism by the plan that the model's own configuration states.

    Raises:
        MemfitError: the model states no plan, or one that plain column and row splits do not cover.
    """
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    styles: dict[str, Callable[[], Any]] = {
        "colwise": ColwiseParallel,
        "rowwise": RowwiseParallel,
        "colwise_rep": lambda: ColwiseParallel(output_layouts=Replicate()),
        "colwise_gather_output": lambda: ColwiseParallel(output_layouts=Replicate()),
        "rowwise_rep": lambda: RowwiseParallel(input_layouts=Replicate()),
        "embedding_rowwise": lambda: RowwiseParallel(input_layouts=Replicate()),
    }
    whole = ("replicated_with_grad_allreduce", "replicate", "all_reduce", "local")
    config = getattr(model, "config", None)
    stated = getattr(config, "base_model_tp_plan", None) or {}
    if not stated:
        raise MemfitError("the model's configuration states no tensor-parallel plan")
    prefix = getattr(model, "base_model_prefix", "model")
    plan: dict[str, Any] = {}
    for name, style in stated.items():
        if style in styles:
            plan[f"{prefix}.{name}"] = styles[style]()
        elif style not in whole:
            raise MemfitError(f"tensor-parallel style `{style}` of `{name}` is not traced")
    names = {n for n, _ in model.named_modules()}
    if f"{prefix}.embed_tokens" in names:
        plan[f"{prefix}.embed_tokens"] = styles["embedding_rowwise"]()
    if "lm_head" in names:
        plan["lm_head"] = styles["colwise_rep"]()
    parallelize_module(model, mesh, plan)
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # both ends were split over the vocabulary, each on its own


def share(parameters: list[Any], ranks: int, rank: int) -> list[Any]:
    """The parameters whose optimizer states one rank keeps: the largest first, each to the rank that has least.

    Source: torch.distributed.optim.ZeroRedundancyOptimizer._partition_parameters.
    """
    sizes, mine = [0] * ranks, []
    for parameter in sorted(parameters, key=lambda p: -p.numel()):
        owner = sizes.index(min(sizes))
        sizes[owner] += parameter.numel()
        if owner == rank:
            mine.append(parameter)
    return mine


def ddp_buckets(model: Any, device: str) -> list[Any]:
    """Flat buffers as large as DistributedDataParallel's buckets, filled from the last parameter to the first."""
    sizes: list[tuple[Any, int]] = []
    limit, room, dtype = DDP_FIRST_BUCKET, 0, None
    for parameter in reversed([p for p in model.parameters() if p.requires_grad]):
        if room and (room >= limit or parameter.dtype != dtype):
            sizes.append((dtype, room))
            room, limit = 0, DDP_BUCKET
        dtype = parameter.dtype
        room += parameter.numel() * parameter.element_size()
    if room:
        sizes.append((dtype, room))
    return [torch.empty(n, dtype=torch.uint8, device=device) for _, n in sizes]
