"""Memory outside the allocator: the runtime's context and communicators.

Sources: research notes of 2026-11 on PyTorch issues: a context with lazily loaded kernels takes 0.3 to 0.55 GiB
(more before CUDA 11.7), the first NCCL communicator of a process about 0.4 to 1.5 GiB by channels and version.
"""

from __future__ import annotations

from memfit.formula.dims import Dims, Int, where
from memfit.units import MIB

RUNTIMES = {
    "nvidia": ("CUDA context", "NCCL", "nvidia-smi"),
    "amd": ("ROCm (HIP) context", "RCCL", "rocm-smi"),
    "intel": ("Level Zero context", "oneCCL", "xpu-smi"),
    "apple": ("Metal context", "collectives", "the system"),
}
"""By vendor: what stands on a card before PyTorch allocates, the library of collectives, and who shows what is used."""

CONTEXT_BYTES = 520 * MIB
NCCL_FIRST_BYTES = 900 * MIB
NCCL_NEXT_BYTES = 300 * MIB


def nccl_bytes(d: Dims, pp: int) -> Int:
    """NCCL's channels and buffers: one communicator for each mesh axis that is larger than one."""
    axes = where(d.dp > 1, 1, 0) + where(d.tp > 1, 1, 0) + where(d.cp > 1, 1, 0) + where(d.ep > 1, 1, 0) + (pp > 1)
    return where(axes > 0, NCCL_FIRST_BYTES + NCCL_NEXT_BYTES * (axes - 1), 0)
