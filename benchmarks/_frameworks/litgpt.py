"""litgpt 0.5: the steps of finetune/full.py and finetune/lora.py (``fit``) on litgpt's own GPT and Lightning's Fabric.

The loop's variables live until they are assigned again, so the logits of a step are held through the backward pass,
the optimizer step and the next forward pass. Fabric's precision plugins hand out the module's output in the default
dtype: 16-bit logits come to the loss as an fp32 copy.
"""

from __future__ import annotations

from typing import Any

from _frameworks.common import Missing, Setting, Traced

LORA = {"rank": 8, "targets": ["q_proj", "v_proj"], "dropout": 0.05}
"""The defaults of finetune/lora.py."""
SMALL = 1024

SETTINGS: dict[str, Setting] = {
    "full": Setting(strategy={"loss": "chunked"}),
    "full, blocks": Setting(vocab=SMALL, strategy={"optimizer": "adamw-8bit"}),
    "full, blocks, batch 2": Setting(vocab=SMALL, batch=2, strategy={"optimizer": "adamw-8bit"}),
    "full, checkpointing, blocks": Setting(vocab=SMALL, strategy={"checkpointing": "full", "optimizer": "adamw-8bit"}),
    "full, accumulation": Setting(strategy={"grad_accum": 2}),
    "full, bf16-mixed": Setting(strategy={"precision": "bf16-mixed"}),
    "full, bf16-mixed, blocks": Setting(vocab=SMALL, strategy={"precision": "bf16-mixed", "optimizer": "adamw-8bit"}),
    "full, tinyllama": Setting(model="tinyllama-1.1b", strategy={}),
    "full, pythia": Setting(model="pythia-1.4b"),
    "full, gemma": Setting(model="gemma-2b"),
    "full, phi-2": Setting(model="phi-2"),
    "full, batch 4": Setting(batch=4),
    "lora": Setting(method="lora", lora=LORA),
    "lora, batch 4": Setting(method="lora", lora=LORA, batch=4),
    "lora, tinyllama, batch 4": Setting(model="tinyllama-1.1b", method="lora", lora=LORA, batch=4),
    "lora, blocks": Setting(method="lora", lora=LORA, vocab=SMALL),
    "lora, all": Setting(method="lora", lora={**LORA, "targets": "all-linear"}, vocab=SMALL),
    "lora, checkpointing": Setting(method="lora", lora=LORA, vocab=SMALL, strategy={"checkpointing": "full"}),
    "lora, phi-2": Setting(model="phi-2", method="lora", lora=LORA),
    "qlora, blocks": Setting(method="qlora", lora=LORA, vocab=SMALL, strategy={"weights": "nf4"}),
    "qlora, checkpointing": Setting(
        method="qlora", lora=LORA, vocab=SMALL, strategy={"weights": "nf4", "checkpointing": "full"}
    ),
    "qlora, 0.4": Setting(method="qlora", lora=LORA, strategy={"weights": "nf4"}),
    "qlora": Setting(method="qlora", lora=LORA, strategy={"weights": "nf4", "framework_version": "0.5.13"}),
}


def config_of(setting: Setting, kind: Any) -> Any:
    """litgpt's Config for the setting's model."""
    names = {
        "llama-3.1-8b": "Llama-3.1-8B",
        "tinyllama-1.1b": "tiny-llama-1.1b",
        "pythia-1.4b": "pythia-1.4b",
        "gemma-2b": "Gemma-2b",
        "phi-2": "phi-2",
    }
    more: dict[str, Any] = {"n_layer": setting.layers}
    if setting.vocab:
        more |= {"vocab_size": setting.vocab, "padded_vocab_size": setting.vocab}
    if setting.lora:
        targets = setting.lora["targets"]
        every = targets == "all-linear"
        more |= {
            "lora_r": setting.lora["rank"],
            "lora_alpha": 16,
            "lora_dropout": setting.lora.get("dropout", 0.0),
            "lora_query": every or "q_proj" in targets,
            "lora_key": every or "k_proj" in targets,
            "lora_value": every or "v_proj" in targets,
            "lora_projection": every or "o_proj" in targets,
            "lora_mlp": every,
            "lora_head": False,
        }
    return kind.from_name(names[setting.model], block_size=setting.seq, **more)


def program(setting: Setting) -> Traced:
    """The step of ``fit`` in finetune/full.py or finetune/lora.py.

    Raises:
        Missing: litgpt is not installed.
    """
    try:
        import litgpt
        import litgpt.lora
        from lightning.fabric.plugins.precision import HalfPrecision, MixedPrecision
        from litgpt.utils import chunked_cross_entropy
    except ImportError as error:
        raise Missing(f"litgpt: {error}") from error
    import torch
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        CheckpointImpl,
        apply_activation_checkpointing,
        checkpoint_wrapper,
    )

    from memfit.trace.nf4 import Linear4Bit
    from memfit.trace.optimizers import OPTIMIZERS

    adapters = bool(setting.lora)
    package = litgpt.lora if adapters else litgpt
    mixed = setting.says("precision", "bf16").endswith("-mixed")
    accumulate = setting.says("grad_accum", 1)
    precision = MixedPrecision("bf16-mixed", "cuda") if mixed else HalfPrecision("bf16-true")

    def quantise(model: Any) -> Any:
        """BitsandbytesPrecision quantises every Linear, the head too, from fp16. Then finetune/lora.py puts a new
        embedding with a LayerNorm in place of the old one, which its own variable and the optimizer hold on to; the
        new one trains, but no optimizer clears its gradient."""
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if type(child) is torch.nn.Linear:
                    setattr(module, name, FourBit(child))
        if setting.says("framework_version", "") == "":  # 0.4
            return None
        old = model.transformer.wte
        new = torch.nn.Embedding(old.num_embeddings, old.embedding_dim, device="cuda", dtype=torch.bfloat16)
        norm = torch.nn.LayerNorm(old.embedding_dim, device="cuda", dtype=torch.bfloat16)
        model.transformer.wte = torch.nn.Sequential(new, norm)
        return old

    class Product(torch.autograd.Function):
        """MatMul4Bit of bitsandbytes 0.42, the version litgpt pins (autograd/_functions.py): keeps its input; the
        weight comes back in the type it was quantised from, which Lightning makes fp16, and is cast."""

        @staticmethod
        def forward(ctx: Any, x: Any, layer: Any) -> Any:
            ctx.layer, ctx.tensors = layer, (x,)
            return torch.nn.functional.linear(x, layer.unpacked(torch.float16).to(x.dtype), layer.bias)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return torch.matmul(grad, ctx.layer.unpacked(torch.float16).to(grad.dtype)), None

    class FourBit(Linear4Bit):
        def forward(self, x: Any) -> Any:
            return Product.apply(x, self)

    def build() -> Any:
        held: dict[str, Any] = {}
        dtype = torch.float32 if mixed else torch.bfloat16
        model = package.GPT(config_of(setting, package.Config)).to(device="cuda", dtype=dtype)
        model.cos, model.sin = model.rope_cache(device="cuda")  # as the setter of max_seq_length does
        if adapters:
            litgpt.lora.mark_only_lora_as_trainable(model)
        if setting.method == "qlora":
            held["old"] = quantise(model)
        if setting.says("checkpointing", "none") != "none":
            apply_activation_checkpointing(
                model,
                checkpoint_wrapper_fn=lambda m: checkpoint_wrapper(m, CheckpointImpl.NO_REENTRANT),
                check_fn=lambda m: isinstance(m, package.Block if adapters else litgpt.model.Block),
            )
        trained = [p for n, p in model.named_parameters() if (p.requires_grad and "wte" not in n) or not adapters]
        name = setting.says("optimizer", "adamw")
        optimizer = OPTIMIZERS["adamw-foreach" if name == "adamw" else name](trained)
        return model, optimizer, held

    def step(state: Any) -> None:
        model, optimizer, held = state
        for _ in range(accumulate):
            ids = torch.zeros(setting.batch, setting.seq, dtype=torch.long, device="cuda")
            with precision.forward_context():  # `fit` binds the new logits while it still has the old ones
                logits = model(ids, lm_head_chunk_size=128) if adapters else model(ids)
            logits = precision.convert_output(logits)
            held["logits"] = logits
            if adapters:
                logits[-1] = logits[-1][..., :-1, :]
                loss = chunked_cross_entropy(logits, ids[..., 1:])
            else:
                loss = chunked_cross_entropy(logits[..., :-1, :], ids[..., 1:])
            del logits
            (loss / accumulate).backward()
            held["loss"] = loss
        optimizer.step()
        optimizer.zero_grad()

    return Traced(build, step, "transformer.h")
