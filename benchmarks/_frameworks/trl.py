"""TRL's SFT step: the loss that its trainer puts on a model of transformers, with the Trainer's loop around it.

``add_fused_lm_head`` is what TRL has from 1.15 on; 1.4 to 1.14 patch the model with ``_patch_chunked_ce_lm_head``. The
kernels of the newer one are Triton's, which allocate nothing: they are left out, and every label counts.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace
from typing import Any

from _frameworks.common import Missing, Setting, Traced

SMALL = 1024
NONE = {"checkpointing": "none"}
LORA = {"rank": 16, "targets": "all-linear"}
PURE = {"precision": "bf16"}
MIXED = {"precision": "bf16-mixed"}

SETTINGS: dict[str, Setting] = {
    "full": Setting(strategy=MIXED),
    "full, batch 8": Setting(batch=8, strategy=MIXED),
    "full, long": Setting(seq=16384, strategy=MIXED),
    "full, 16 bit": Setting(strategy=PURE),
    "full, 16 bit, batch 8": Setting(batch=8, strategy=PURE),
    "full, small vocabulary": Setting(batch=4, vocab=32000, strategy=PURE),
    "full, tied": Setting(model="llama-3.2-1b", batch=8, strategy=MIXED),
    "full, no checkpointing": Setting(batch=2, strategy={**PURE, **NONE}),
    "loss": Setting(layers=1, batch=2, strategy={**MIXED, **NONE}),
    "loss, long": Setting(layers=1, seq=16384, strategy=MIXED),
    "loss, 16 bit": Setting(layers=1, batch=2, strategy={**PURE, **NONE}),
    "loss, 16 bit, batch 8": Setting(layers=1, batch=8, strategy=PURE),
    "loss, 16 bit, small vocabulary": Setting(layers=1, batch=4, vocab=32000, strategy=PURE),
    "loss, tied": Setting(model="llama-3.2-1b", layers=1, batch=8, strategy=MIXED),
    "loss, lora": Setting(
        model="llama-3.2-1b",
        layers=1,
        batch=8,
        method="lora",
        lora={"rank": 8, "targets": ["q_proj"]},
        strategy={**MIXED, "weights": "bf16"},
    ),
    "full, blocks": Setting(vocab=SMALL, strategy=MIXED),
    "lora": Setting(batch=8, method="lora", lora=LORA, strategy={**MIXED, "weights": "bf16"}),
    "lora, long": Setting(seq=32768, method="lora", lora=LORA, strategy={**MIXED, "weights": "bf16"}),
    "lora, few layers": Setting(batch=1, layers=1, method="lora", lora=LORA, strategy={**MIXED, "weights": "bf16"}),
}


with suppress(metadata.PackageNotFoundError):  # the profile is that of the release that is traced
    SETTINGS = {
        name: replace(one, strategy={**one.strategy, "framework_version": metadata.version("trl")})
        for name, one in SETTINGS.items()
    }

_DONE: set[str] = set()


class _Nothing:
    """A Triton kernel that is not run."""

    def __getitem__(self, _grid: Any) -> Any:
        return lambda *_args, **_options: None


def _select_all() -> None:
    """Fake tensors do not know how many elements a mask selects: all of them, by an index of the same cost."""
    import torch

    plain = torch.Tensor.__getitem__

    def getitem(self: Any, index: Any) -> Any:
        if isinstance(index, torch.Tensor) and index.dtype is torch.bool:
            rows = torch.zeros(index.numel(), dtype=torch.long, device=index.device)
            return plain(self.reshape(-1, *self.shape[index.dim() :]), rows)
        return plain(self, index)

    torch.Tensor.__getitem__ = getitem  # type: ignore[method-assign]


def _patch(model: Any) -> None:
    """The model's forward as this release's SFTTrainer makes it."""
    from trl.trainer import sft_trainer, utils

    if not hasattr(utils, "add_fused_lm_head"):
        sft_trainer._patch_chunked_ce_lm_head(model, chunk_size=sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE)
        return
    from trl.kernels import chunked_logprob

    chunked_logprob._use_triton = utils._use_triton = lambda _device: True
    chunked_logprob._forward_kernel = chunked_logprob._backward_kernel = _Nothing()
    chunked_logprob.triton = SimpleNamespace(cdiv=lambda a, b: -(-a // b))
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))


def program(setting: Setting) -> Traced:
    """SFTTrainer.compute_loss and Trainer's loop.

    Raises:
        Missing: TRL is not installed.
    """
    try:
        from trl.trainer import sft_trainer, utils
    except ImportError as error:
        raise Missing(f"trl: {error}") from error
    import torch

    from memfit.trace import hf
    from memfit.trace.optimizers import OPTIMIZERS

    fused = hasattr(utils, "add_fused_lm_head")
    if not fused and not hasattr(sft_trainer, "_patch_chunked_ce_lm_head"):
        raise Missing("trl: this release has the loss of the model alone")
    if "select_all" not in _DONE:
        _select_all()
        _DONE.add("select_all")
    mixed = setting.says("precision", "bf16-mixed") == "bf16-mixed"
    dtype = torch.float32 if mixed and not setting.lora else torch.bfloat16

    def build() -> Any:
        model: Any = hf.build(hf.config_of(setting.config()), device="cuda", dtype=dtype)
        if setting.says("checkpointing", "full") != "none":
            hf.checkpoint(model)
        _patch(model)
        if setting.lora:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=setting.lora["rank"], target_modules=setting.lora["targets"],
                                                     task_type="CAUSAL_LM"))  # fmt: skip
            model.enable_input_require_grads()
        return model, OPTIMIZERS["adamw-fused"]([p for p in model.parameters() if p.requires_grad])

    def step(state: Any) -> None:
        model, optimizer = state
        tokens = torch.zeros(setting.batch, setting.seq, dtype=torch.long, device="cuda")
        more = {"fused_lm_head": True} if fused else {}
        with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
            loss = model(input_ids=tokens, labels=tokens, num_items_in_batch=setting.batch * setting.seq, **more).loss
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Traced(build, step, "base_model.model.model.layers" if setting.lora else "model.layers")
