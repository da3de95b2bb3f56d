"""torchtune 0.6: the steps of recipes/full_finetune_single_device.py and lora_finetune_single_device.py.

The loss step deletes the logits before the backward pass. torchao must still have ``dtypes.nf4tensor`` (0.12 has).
"""

from __future__ import annotations

from typing import Any

from _frameworks.common import Missing, Setting, Traced, stand_in

LORA = {"rank": 8, "targets": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
"""The adapters of the llama3_1/8B_*lora*.yaml recipes."""
SHARED = True  # layers share their rotary embedding and their activation
SMALL = 1024
NONE = {"checkpointing": "none"}

SETTINGS: dict[str, Setting] = {
    "full": Setting(),
    "full, batch 4": Setting(batch=4),
    "full, 8-bit": Setting(batch=4, strategy={"optimizer": "adamw-8bit"}),
    "full, in backward": Setting(batch=2, strategy={"optimizer": "adamw-8bit", "optimizer_in_backward": True}),
    "full, no checkpointing": Setting(batch=2, strategy={**NONE, "optimizer": "adamw-8bit"}),
    "full, no checkpointing, blocks": Setting(vocab=SMALL, strategy={**NONE, "optimizer": "adamw-8bit"}),
    "full, blocks": Setting(vocab=SMALL, strategy={"optimizer": "adamw-8bit"}),
    "full, eager loss": Setting(batch=2, strategy={"loss": "eager", "optimizer": "adamw-8bit"}),
    "full, tied": Setting(model="llama-3.2-1b", batch=2, strategy={"optimizer": "adamw-8bit"}),
    "full, accumulation": Setting(batch=2, strategy={"optimizer": "adamw-8bit", "grad_accum": 2}),
    "lora": Setting(batch=2, method="lora", lora=LORA),
    "lora, no checkpointing": Setting(batch=2, method="lora", lora=LORA, strategy=NONE),
    "lora, no checkpointing, blocks": Setting(vocab=SMALL, method="lora", lora=LORA, strategy=NONE),
    "lora, dropout, blocks": Setting(vocab=SMALL, method="lora", lora={**LORA, "dropout": 0.05}, strategy=NONE),
    "lora, q and v": Setting(
        vocab=SMALL, method="lora", lora={"rank": 8, "targets": ["q_proj", "v_proj"]}, strategy=NONE
    ),
    "qlora": Setting(batch=2, method="qlora", lora=LORA),
    "qlora, no checkpointing": Setting(vocab=SMALL, method="qlora", lora=LORA, strategy=NONE),
    "qlora, blocks": Setting(vocab=SMALL, method="qlora", lora=LORA),
}


def model_of(setting: Setting) -> Any:
    """torchtune's builder for the setting's model."""
    from torchtune.models import llama3_1, llama3_2
    from torchtune.models.llama3_1 import _position_embeddings as rope

    c = setting.config()
    shape = {
        "vocab_size": c["vocab_size"],
        "num_layers": c["num_hidden_layers"],
        "num_heads": c["num_attention_heads"],
        "num_kv_heads": c["num_key_value_heads"],
        "embed_dim": c["hidden_size"],
        "max_seq_len": setting.seq,
        "intermediate_dim": c["intermediate_size"],
    }
    # reads values of the frequencies; the tensor it gives has their shape
    rope.Llama3ScaledRoPE.apply_scaling = lambda _self, freqs, *_args: freqs
    package, suffix = (llama3_2, "llama3_2") if c.get("tie_word_embeddings") else (llama3_1, "llama3_1")
    builders = __import__(f"{package.__name__}._component_builders", fromlist=["x"])
    if not setting.lora:
        return getattr(builders, suffix)(**shape)
    names = {"o_proj": "output_proj"}
    targets = setting.lora["targets"]
    return getattr(builders, f"lora_{suffix}")(
        lora_attn_modules=[names.get(t, t) for t in targets if t in ("q_proj", "k_proj", "v_proj", "o_proj")],
        apply_lora_to_mlp="up_proj" in targets,
        lora_rank=setting.lora["rank"],
        lora_alpha=16,
        lora_dropout=setting.lora.get("dropout", 0.0),
        quantize_base=setting.method == "qlora",
        **shape,
    )


def program(setting: Setting) -> Traced:
    """The recipes' ``_loss_step`` and loop.

    Raises:
        Missing: torchtune, or a torchao that it works with, is not installed.
    """
    stand_in("torch._inductor.kernel.flex_attention", "construct_strides", "maybe_realize")  # torchao 0.12 looks there
    try:
        import torchtune  # noqa: F401
        from torchtune import modules, training
        from torchtune.modules.loss import CEWithChunkedOutputLoss
        from torchtune.modules.peft import get_adapter_params, set_trainable_params
    except ImportError as error:
        raise Missing(f"torchtune: {error}") from error
    import torch

    from memfit.trace.optimizers import OPTIMIZERS

    chunked = setting.says("loss", "chunked") == "chunked"
    loss_fn = CEWithChunkedOutputLoss() if chunked else torch.nn.CrossEntropyLoss(ignore_index=-100)
    accumulate = setting.says("grad_accum", 1)
    dtype = torch.float32 if setting.says("precision", "bf16") == "fp32" else torch.bfloat16
    name = setting.says("optimizer", "adamw")
    make = OPTIMIZERS["adamw-fused" if name == "adamw" else name]

    def build() -> Any:
        with training.set_default_dtype(dtype), torch.device("cuda"):
            model = model_of(setting)
        if chunked:
            model.set_num_output_chunks(loss_fn.num_output_chunks)
        if setting.lora:
            set_trainable_params(model, get_adapter_params(model))
        if setting.says("checkpointing", "full") != "none":
            training.set_activation_checkpointing(model, auto_wrap_policy={modules.TransformerSelfAttentionLayer})
        trained = [p for p in model.parameters() if p.requires_grad]
        if setting.says("optimizer_in_backward", False):
            each = {p: make([p]) for p in trained}

            def apply(parameter: Any) -> None:
                each[parameter].step()
                each[parameter].zero_grad()

            for parameter in trained:
                parameter.register_post_accumulate_grad_hook(apply)
            return model, None
        return model, make(trained)

    def loss_step(model: Any) -> Any:
        tokens = torch.zeros(setting.batch, setting.seq, dtype=torch.long, device="cuda")
        logits = model(tokens=tokens)
        if not isinstance(logits, list):
            tokens = tokens.reshape(-1)
            logits = logits.reshape(-1, logits.size(-1))
        loss = loss_fn(logits, tokens)
        del logits
        return loss

    def step(state: Any) -> None:
        model, optimizer = state
        running = 0
        for _ in range(accumulate):
            current = loss_step(model) * 1.0
            running += current
            current.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return Traced(build, step, "layers")
