"""torchtitan 0.2: Llama 3 with its own checkpointing, FSDP2 units and loss, on rank 0 of a process group without peers.

Triton kernels of its mixture-of-experts module are stood in for. Compilation is not traced. The norms are those of the
torch that runs the trace (one kernel from 2.9 on).
"""

from __future__ import annotations

from typing import Any

from _frameworks.common import Missing, Setting, Traced, stand_in

SMALL = 1024


def eager(**strategy: Any) -> dict[str, Any]:
    """A strategy without the compiler."""
    return {"framework_version": "0.2.0", "compile": False, "loss": "eager", **strategy}


SETTINGS: dict[str, Setting] = {
    "selective": Setting(gpus=8, strategy=eager()),
    "selective, seq 8k": Setting(gpus=8, seq=8192, layers=2, strategy=eager()),
    "selective, blocks": Setting(gpus=8, vocab=SMALL, batch=2, strategy=eager()),
    "full": Setting(gpus=8, strategy=eager(checkpointing="full")),
    "full, blocks": Setting(gpus=8, vocab=SMALL, batch=2, strategy=eager(checkpointing="full")),
    "none, blocks": Setting(gpus=8, vocab=SMALL, batch=2, strategy=eager(checkpointing="none")),
    "none, 64 ranks": Setting(gpus=64, batch=2, strategy=eager(checkpointing="none")),
    "none, not resharded": Setting(gpus=64, strategy=eager(checkpointing="none", reshard=False)),
    "full, 64 ranks, blocks": Setting(gpus=64, vocab=SMALL, strategy=eager(checkpointing="full"), layers=6),
    "full, not resharded, blocks": Setting(
        gpus=64, vocab=SMALL, layers=6, strategy=eager(checkpointing="full", reshard=False)
    ),
}


def program(setting: Setting) -> Traced:
    """``forward_backward_step`` and the optimizer step of train.py.

    Raises:
        Missing: torchtitan 0.2 is not installed.
    """
    stand_in("torchtitan.models.moe.kernels", "generate_permute_indices", unless="triton")
    try:
        from torchtitan.components.loss import cross_entropy_loss
        from torchtitan.config import job_config
        from torchtitan.distributed.activation_checkpoint import apply_ac
        from torchtitan.models.llama3.infra.parallelize import _op_sac_save_list, apply_fsdp
        from torchtitan.models.llama3.model.args import TransformerModelArgs
        from torchtitan.models.llama3.model.model import Transformer
    except ImportError as error:
        raise Missing(f"torchtitan 0.2: {error}") from error
    import torch

    from memfit.trace import sharded

    c = setting.config()
    hidden, ffn = c["hidden_size"], c["intermediate_size"]
    args = TransformerModelArgs(
        dim=hidden,
        n_layers=setting.layers,
        n_heads=c["num_attention_heads"],
        n_kv_heads=c["num_key_value_heads"],
        vocab_size=c["vocab_size"],
        multiple_of=1,
        ffn_dim_multiplier=(ffn + 0.5) / int(8 * hidden / 3),
        max_seq_len=setting.seq,
    )
    mode = setting.says("checkpointing", "selective")
    reshard = "default" if setting.says("reshard", True) else "never"

    def build(mesh: Any) -> Any:
        with torch.device("meta"):
            model = Transformer(args)
        assert model.layers["0"].feed_forward.w1.weight.shape == (ffn, hidden)
        if mode != "none":
            config = job_config.ActivationCheckpoint(mode=mode, selective_ac_option="op")
            apply_ac(model, config, op_sac_save_list=_op_sac_save_list)
        with sharded.fewer_chunks():
            apply_fsdp(
                model,
                mesh["dp"],
                param_dtype=torch.bfloat16,
                reduce_dtype=torch.float32,
                pp_enabled=False,
                reshard_after_forward_policy=reshard,
            )
        model.to_empty(device="cuda")
        model.freqs_cis = torch.empty(setting.seq, hidden // args.n_heads // 2, dtype=torch.complex64, device="cuda")
        return model, torch.optim.AdamW(model.parameters(), fused=True)

    def step(state: Any) -> None:
        model, optimizer = state
        optimizer.zero_grad()
        ids = torch.zeros(setting.batch, setting.seq, dtype=torch.long, device="cuda")
        pred = model(ids)
        loss = cross_entropy_loss(pred, ids)
        del pred
        loss.backward()
        optimizer.step()

    return Traced(build, step, "layers", sharded.meshes(setting.gpus, 1, 0))
