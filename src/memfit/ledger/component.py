"""The names under which memory is booked, and where a number can come from."""

from __future__ import annotations

from typing import Final, Literal

Component = Literal[
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "workspace",
    "communication",
    "kv_cache",
    "state",
    "slack",
    "runtime",
    "others",
    "unaccounted",
]

COMPONENTS: Final[dict[str, str]] = {
    "parameters": "weights resident on the GPU, gathered copies and casts included",
    "gradients": "gradients and their accumulation buffers",
    "optimizer": "optimizer states and master weights",
    "activations": "tensors kept for the backward pass and the temporaries of the running block",
    "logits": "output logits, their copies and the loss",
    "workspace": "kernel workspaces and temporaries of the optimizer step",
    "communication": "buckets and buffers of collectives inside the allocator",
    "kv_cache": "keys and values of past tokens",
    "state": "recurrent state of the sequences",
    "slack": "reserved by the caching allocator, not in use",
    "runtime": "context of CUDA, ROCm or Metal, NCCL, loaded kernels: outside the allocator",
    "others": "other processes on the card",
    "unaccounted": "measured, not explained",
}
"""Each component with what it holds, in the order a ledger shows them."""

Provenance = Literal["exact", "traced", "formula", "calibrated", "measured", "assumed"]

PROVENANCES: Final[dict[str, str]] = {
    "exact": "read from the model's configuration or a file header",
    "traced": "from the allocations of the real module",
    "formula": "computed by the memory model",
    "calibrated": "a formula with a constant set by measurements",
    "measured": "measured on a GPU",
    "assumed": "a default that nobody stated",
}
