"""How a program runs its blocks: the static choices that shape a layer program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """Static choices; each is a row of a framework profile or follows from the job.

    Attributes:
        width: bytes of an activation in the compute dtype (2 or 4).
        residual: bytes of an element of the residual stream (4 under autocast with fp32 weights).
        autocast: matrix products cast their inputs to the compute dtype and keep the cast copy.
        norm: ``composite`` norms keep an fp32 copy of their input and the normalised result; ``fused`` only the input.
        mlp: ``fused`` keeps gate and up only; ``eager`` also the activation's output.
        rope: ``composite`` makes temporaries of q and k; ``fused`` none.
        copy_q: queries of a group lie beside their key in the fused projection, so that taking them is a copy.
        experts: ``local`` computes them where the tokens are; ``sent`` sends rows to the ranks of their experts and
            multiplies them by the router's weights when they are back; ``weighted`` multiplies inside the experts.
        attention: ``flash``; ``efficient`` (keys and values repeated to all heads); ``eager`` keeps score matrices.
        masks: attention runs through SDPA, which needs a mask tensor for windows and takes no unlike head dims.
        compiled: a compiler keeps matrix products and recomputes what is cheap.
        checkpoint: what checkpointing keeps of a checkpointed block: ``full``, ``selective`` or ``attention``.
        gather_inputs: with sequence parallelism, the gathered input of a column-parallel product is kept
            (else it is gathered again in the backward pass).
        sequence_parallel: the residual stream is split over the tensor-parallel axis.
        trained: all weights get gradients.
        lora: (role, rank) of each adapted projection; rank 0 trains the module itself.
        lora_width: bytes of an adapter's activation.
        lora_cast: the adapter casts its input to its own dtype, a copy for each adapted module.
        lora_dropout: the adapter's dropout makes a copy of its input and a mask.
        pad_qkv: adapters on a part of a fused projection are padded to its whole width.
        padded: the parts of this block's fused projection that are.
        dora: adapted projections also hold the magnitude path.
        dequantize: frozen linear weights are expanded to the compute dtype around each product.
        kbit_inputs: products with such weights keep their input.
        kbit_bytes: bytes of an element of such a weight while one runs; 0 for one copy in the compute dtype.
        weight_grads: bytes per element of the weight gradients that appear in the backward pass of a block.
    """

    width: int = 2
    residual: int = 2
    autocast: bool = False
    norm: Literal["composite", "fused"] = "composite"
    mlp: Literal["eager", "fused"] = "eager"
    rope: Literal["composite", "fused"] = "composite"
    copy_q: bool = False
    experts: Literal["local", "sent", "weighted"] = "local"
    attention: Literal["flash", "efficient", "eager"] = "flash"
    masks: bool = False
    compiled: bool = False
    checkpoint: Literal["full", "selective", "attention"] = "full"
    gather_inputs: bool = False
    sequence_parallel: bool = False
    trained: bool = True
    lora: tuple[tuple[str, int], ...] = ()
    lora_width: int = 2
    lora_cast: bool = False
    lora_dropout: bool = False
    pad_qkv: bool = False
    padded: tuple[str, ...] = ()
    dora: bool = False
    dequantize: bool = False
    kbit_inputs: bool = False
    kbit_bytes: int = 0
    weight_grads: int = 2
