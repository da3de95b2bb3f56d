"""Megatron-Core 0.16: GPTModel with the local layer spec (no TransformerEngine), its unfused attention and loss.

Main gradients and master weights are allocated, the distributed optimizer is not run. What is compiled in a real job
(``jit_fuser``) runs eagerly, but for the experts' activation.
"""

from __future__ import annotations

import contextlib
from typing import Any

from _frameworks import megatron_experts
from _frameworks.common import Missing, Setting, Traced

SMALL = 1024
PLAIN = {"precision": "bf16", "attention": "eager", "zero": 0, "optimizer": "sgd"}

SETTINGS: dict[str, Setting] = {
    "blocks": Setting(vocab=SMALL, strategy=PLAIN),
    "blocks, batch 2": Setting(vocab=SMALL, batch=2, seq=1024, strategy=PLAIN),
    "full recompute, blocks": Setting(vocab=SMALL, strategy={**PLAIN, "checkpointing": "full"}),
    "selective recompute, blocks": Setting(vocab=SMALL, strategy={**PLAIN, "checkpointing": "attention"}),
    "experts": Setting(model="qwen3-30b-a3b", vocab=SMALL, batch=32, seq=128, strategy=PLAIN),
    "experts, full recompute": Setting(
        model="qwen3-30b-a3b", vocab=SMALL, batch=32, seq=128, strategy={**PLAIN, "checkpointing": "full"}
    ),
    "experts, ep 4": Setting(
        model="qwen3-30b-a3b", vocab=SMALL, batch=32, seq=128, gpus=4, strategy={**PLAIN, "ep": 4}
    ),
    "experts, ep 4, full recompute": Setting(
        model="qwen3-30b-a3b",
        vocab=SMALL,
        batch=32,
        seq=128,
        gpus=4,
        strategy={**PLAIN, "ep": 4, "checkpointing": "full"},
    ),
    "shared experts": Setting(model="qwen2-57b-a14b", vocab=SMALL, batch=32, seq=128, strategy=PLAIN),
}


def program(setting: Setting) -> Traced:
    """Forward and backward of a micro-batch as the schedules run it.

    Raises:
        Missing: megatron-core is not installed.
    """
    import torch

    from memfit.trace import sharded

    torch.compile = lambda function, **_options: function  # megatron.core.jit takes it by name
    megatron_experts.kernels()
    try:
        from megatron.core import parallel_state
        from megatron.core.models.gpt import GPTModel
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from megatron.core.tensor_parallel import random
        from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
        from megatron.core.transformer.transformer_config import TransformerConfig
    except ImportError as error:
        raise Missing(f"megatron-core: {error}") from error
    c = setting.config()
    mode = setting.says("checkpointing", "none")
    recompute: dict[str, Any] = {}
    if mode == "full":
        recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    elif mode == "attention":
        recompute = {"recompute_granularity": "selective"}
    experts, ep = megatron_experts.config_of(c), setting.says("ep", 1)
    config = TransformerConfig(
        num_layers=setting.layers,
        hidden_size=c["hidden_size"],
        num_attention_heads=c["num_attention_heads"],
        num_query_groups=c["num_key_value_heads"],
        kv_channels=c.get("head_dim"),
        ffn_hidden_size=c["intermediate_size"],
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        normalization="RMSNorm",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=True,
        params_dtype=torch.bfloat16,
        bias_activation_fusion=True,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=True,
        perform_initialization=False,
        expert_model_parallel_size=ep,
        **experts,
        **recompute,
    )
    if experts:
        megatron_experts.equal_shares(setting.batch * setting.seq * experts["moe_router_topk"])

    # states of random generators, which no dropout reads here
    random.CudaRNGStatesTracker.fork = lambda *_args, **_kwargs: contextlib.nullcontext()
    random._get_all_rng_states = lambda: (None, None, None)
    random._fork_rng = contextlib.nullcontext
    random._set_all_rng_states = lambda *_states: None

    def before() -> Any:
        made = sharded.meshes(setting.gpus, 1, 0)()
        parallel_state.destroy_model_parallel()
        parallel_state.initialize_model_parallel(create_gloo_process_groups=False, expert_model_parallel_size=ep)
        return made

    def build(_mesh: Any) -> Any:
        with torch.device("cuda"):
            model = GPTModel(
                config=config,
                transformer_layer_spec=get_gpt_layer_local_spec(
                    num_experts=experts.get("num_moe_experts"),
                    moe_grouped_gemm=bool(experts),
                    moe_use_legacy_grouped_gemm=True,
                    qk_layernorm=c["model_type"].startswith("qwen3"),
                    normalization="RMSNorm",
                ),
                vocab_size=c["vocab_size"],
                max_sequence_length=setting.seq,
                position_embedding_type="rope",
                share_embeddings_and_output_weights=False,
            )
        model = model.to(torch.bfloat16).to("cuda")
        megatron_experts.fuse_activations(model)
        for weight in model.parameters():
            weight.main_grad, weight.master = (torch.empty_like(weight, dtype=torch.float32) for _ in range(2))
        return model

    def step(model: Any) -> None:
        ids = torch.zeros(setting.batch, setting.seq, dtype=torch.long, device="cuda")
        positions = torch.arange(setting.seq, device="cuda").unsqueeze(0)
        mask = torch.ones(1, 1, setting.seq, setting.seq, dtype=torch.bool, device="cuda")
        MoEAuxLossAutoScaler.main_loss_backward_scale = torch.ones(1, device="cuda")  # as the schedules do
        loss = model(ids, positions, mask, labels=ids)
        loss.float().mean().backward()
        model.zero_grad()
        parallel_state.get_global_memory_buffer().buffer.clear()

    return Traced(build, step, "decoder.layers", before)
