"""What a Megatron-Core MoE layer needs to run without data and without a GPU's kernels.

Experts get equal shares of the tokens: the dispatcher's counts are set, and ``masked_select`` finds as many as the
router chose. Kernels of other packages have stand-ins, which keep what the real ones keep and give empty results.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import numpy as np


def config_of(c: dict[str, Any]) -> dict[str, Any]:
    """The fields of a ``TransformerConfig`` that say a configuration's experts; none of a dense model."""
    if "num_experts" not in c:
        return {}
    shared = c.get("shared_expert_intermediate_size")
    return {
        "num_moe_experts": c["num_experts"],
        "moe_router_topk": c["num_experts_per_tok"],
        "moe_ffn_hidden_size": c["moe_intermediate_size"],
        "moe_shared_expert_intermediate_size": shared,
        "moe_shared_expert_gate": shared is not None,
        "moe_grouped_gemm": True,
        "moe_token_dispatcher_type": "alltoall",
        "moe_aux_loss_coeff": 1e-3,
    }


def kernels() -> None:
    """Stand-ins for grouped_gemm (ops.py of 1.1.4, which keeps both operands) and for the product that adds a weight's
    gradient to its buffer (apex); to be called before Megatron-Core is imported."""
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Any, b: Any) -> Any:
            ctx.save_for_backward(a, b)
            return a.new_empty(a.shape[0], b.shape[2])

        @staticmethod
        def backward(ctx: Any, grad: Any) -> tuple[Any, None]:
            a, _ = ctx.saved_tensors
            return a.new_empty(a.shape), None

    def gmm(a: Any, b: Any, _sizes: Any, trans_b: bool = False) -> Any:
        return Product.apply(a, b)

    _module("grouped_gemm", ops=types.SimpleNamespace(gmm=gmm))
    _module("fused_weight_gradient_mlp_cuda", wgrad_gemm_accum_fp32=lambda *_operands: None)


def _module(name: str, **members: Any) -> None:
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        sys.modules[name] = made = types.ModuleType(name)
        vars(made).update(members)


def equal_shares(chosen: int) -> None:
    """Counts of the dispatcher and sizes of the permutation for ``chosen`` rows a rank, spread evenly."""
    import torch
    from megatron.core.transformer.moe import moe_utils
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher as Dispatcher

    class Select(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, source: Any, mask: Any) -> Any:
            ctx.save_for_backward(mask)
            ctx.shape = source.shape
            return source.new_empty(chosen)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> tuple[Any, None]:
            return grad.new_zeros(ctx.shape), None

    def counts(self: Any, _point: str, _tokens: Any = None) -> Any:
        ranks = self.ep_size
        self.input_splits = self.output_splits = np.full(ranks, chosen // ranks)
        self.num_global_tokens_per_local_expert = np.full(
            (ranks, self.num_local_experts), chosen // (ranks * self.num_local_experts)
        )
        order = np.arange(ranks * self.num_local_experts)
        self.sort_input_by_local_experts = order.reshape(-1, self.num_local_experts).T.ravel()
        self.restore_output_by_local_experts = order.reshape(self.num_local_experts, -1).T.ravel()
        return np.full(self.num_local_experts, chosen // self.num_local_experts)

    Dispatcher._maybe_dtoh_and_synchronize = counts
    torch.Tensor.masked_select = lambda self, mask: Select.apply(self, mask)
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None  # 0.16.1 does not define it without TransformerEngine


def fuse_activations(model: Any) -> None:
    """Experts run the fused activation of ``TEGroupedMLP`` instead of one that is compiled."""
    from megatron.core.fusions.fused_bias_swiglu import weighted_bias_swiglu_impl
    from megatron.core.transformer.moe.experts import GroupedMLP

    for module in model.modules():
        if isinstance(module, GroupedMLP):
            module.activation_func_with_probs = lambda x, probs: weighted_bias_swiglu_impl(x, None, probs)
