"""What a model is made of: blocks by kind, tensors by name and shape, exact counts.

Dimension legend: D hidden, H query heads, K key/value heads, N head dim, F feed-forward width,
V vocabulary, L layers, E experts. Shapes follow ``torch.nn.Module`` parameters: Linear is (out, in).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Part = Literal["embedding", "head", "norm", "attention", "mlp", "expert", "router", "mixer", "projector", "other"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One parameter, or ``count`` equal ones (experts of one layer).

    Attributes:
        name: parameter name inside its owner as the transformers library has it, e.g. ``self_attn.q_proj.weight``;
            with ``count`` > 1 the index is written ``*``, e.g. ``mlp.experts.*.up_proj.weight``.
        shape: as the framework holds it; a Linear weight is (out_features, in_features).
        part: what the tensor belongs to.
        count: how many tensors of this shape the owner holds.
        linear: the weight of a Linear (or equivalent) layer: a target of quantisation and LoRA.
        tp_dim: the dim that Megatron-style tensor parallelism splits, None when replicated.
            column-parallel Linear: 0; row-parallel: 1; vocabulary-parallel embedding: 0.
        expert: split over the expert-parallel axis (by ``count``).
        splits: for fused projections, the roles inside dim 0 with their sizes,
            e.g. ``(("q_proj", 4096), ("k_proj", 1024), ("v_proj", 1024))``; empty when the leaf name is the role.
        buffer: not trained and not counted as a parameter, but resident (e.g. a stored position table).
    """

    name: str
    shape: tuple[int, ...]
    part: Part
    count: int = 1
    linear: bool = False
    tp_dim: int | None = None
    expert: bool = False
    splits: tuple[tuple[str, int], ...] = ()
    buffer: bool = False

    @property
    def numel(self) -> int:
        """Elements of all ``count`` tensors together."""
        return math.prod(self.shape) * self.count

    @property
    def role(self) -> str:
        """The module name that LoRA targets use, e.g. ``q_proj``."""
        parts = self.name.split(".")
        return parts[-2] if len(parts) > 1 else parts[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Softmax attention of one block.

    Attributes:
        kind: ``gqa`` covers MHA (K = H), GQA and MQA (K = 1); ``mla`` is DeepSeek's latent attention.
        num_heads, num_kv_heads, head_dim: H, K, N. For MLA head_dim is the query/key head dim (nope + rope).
        v_head_dim: value head dim; equals head_dim except for MLA.
        window: sliding-window length in tokens (chunk length for chunked attention), None for full attention.
        causal: False for encoders.
        cross: keys and values come from another stream (encoder-decoder, vision cross-attention).
        rotary_dim: elements of each head that rotary embedding turns; 0 without rotary embedding.
        fused_qkv: one projection makes q, k and v.
        qkv_bias, out_bias: biases of the projections.
        qk_norm: "none", "head" (normalised per head, weight of size N) or "full" (over all heads).
        softcap: attention logit soft-capping (forces eager or flex attention).
        sinks: learned attention sinks (gpt-oss).
        output_gate: the attention output is multiplied by a sigmoid gate (qwen3-next).
        kv_shared: this block has no k/v cache of its own; it reads an earlier block's (gemma 3n, gemma 4).
        q_lora_rank, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim: MLA sizes, 0 otherwise.
        dropout: attention dropout probability in training.
    """

    kind: Literal["gqa", "mla"] = "gqa"
    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    causal: bool = True
    cross: bool = False
    rotary_dim: int = 0
    fused_qkv: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    softcap: bool = False
    sinks: bool = False
    output_gate: bool = False
    kv_shared: bool = False
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Recurrent:
    """A mixer whose state does not grow with the context.

    Attributes:
        kind: ``mamba1``, ``mamba2``, ``gdn`` (gated delta net), ``kda`` (Kimi delta attention),
            ``lightning`` (MiniMax linear attention), ``conv`` (short convolution, LFM2).
        inner: width of the inner stream (mamba: d_inner; gdn: value_heads*value_dim; conv: hidden).
        num_heads: value heads (mamba2: heads), 0 for mamba1.
        head_dim: value head dim (mamba2: head dim), 0 for mamba1.
        num_key_heads, key_dim: gdn/kda key heads and their dim; mamba2: num groups, state size; mamba1: 1, state size.
        conv_kernel: causal convolution width, 0 without one.
        conv_dim: channels the convolution runs over.
        state_elements: elements of the recurrent state of one sequence in one block (without the convolution state).
        dt_rank: mamba1 time-step rank.
        chunk: chunk length of the parallel scan.
    """

    kind: Literal["mamba1", "mamba2", "gdn", "kda", "lightning", "conv"]
    inner: int
    num_heads: int = 0
    head_dim: int = 0
    num_key_heads: int = 0
    key_dim: int = 0
    conv_kernel: int = 0
    conv_dim: int = 0
    state_elements: int = 0
    dt_rank: int = 0
    chunk: int = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Mlp:
    """A dense feed-forward layer: ``gated`` is act(gate(x)) * up(x) -> down, else act(up(x)) -> down.

    ``dropout`` stands between the activation and the last projection.
    """

    intermediate: int
    gated: bool = True
    fused_gate_up: bool = False
    act: str = "silu"
    bias: bool = False
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Moe:
    """A routed feed-forward layer.

    Attributes:
        num_experts, top_k: E and experts per token.
        intermediate: width of one expert.
        gated, act: as in Mlp.
        shared_intermediate: total width of the always-on shared experts, 0 without.
        shared_gate: the shared expert's output is multiplied by a sigmoid gate (qwen2-moe).
        dense: a dense Mlp that runs beside the experts (arctic, gemma 4), or None.
    """

    num_experts: int
    top_k: int
    intermediate: int
    gated: bool = True
    act: str = "silu"
    shared_intermediate: int = 0
    shared_gate: bool = False
    dense: Mlp | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """How the transformers class of a block computes it; the defaults are Llama's way.

    Attributes:
        norm: ``low`` multiplies the weight in the compute dtype (Llama), ``float`` in fp32 (Gemma, OLMo 2; a LayerNorm
            runs on an fp32 copy), ``written`` is a LayerNorm written out in fp32 tensor operations (Cohere), ``mixed``
            keeps the input beside its fp32 copy (T5).
        norm_casts: a LayerNorm that runs in the compute dtype under autocast, too (Nemotron).
        norm_at: the norms stand before a sub-layer (``input``), behind it (``output``, OLMo 2) or behind the residual
            sum (``sum``, BERT).
        kernel: what SDPA can run: ``sdpa`` the fused kernels, ``masked`` always with a mask (no flash kernel),
            ``math`` never a fused kernel, ``eager`` the class has no SDPA.
        rope_cat: rotated heads are joined from parts even when the whole head is turned (Phi 3).
        expand_kv: keys and values of a fused projection are copied to all heads at once (Falcon 40B).
        low_softmax: written-out attention runs its softmax in the compute dtype (GPT-2, BERT).
        float_scores: queries and keys are raised to fp32 before the product (GPT-J).
        position_bias: a bias of scores shape is added (T5).
        router_float: the router runs on an fp32 copy of its input (DeepSeek V3).
        native_loss: the loss is computed on the logits as they are, without an fp32 copy (T5).
        clamped_glu: experts clamp gate and up and write the gate's sigmoid out (gpt-oss).
        token_major: rotated heads are joined while tokens lie before heads, so that merging them is no copy (GPT-J).
        broadcast_kv: a lone key/value head is given to SDPA as it is, not expanded before (Falcon 7B).
        keeps_mixed, keeps_normed: variables of the layer's code hold the mixer's output, and its normalised input,
            until the layer ends.
        scaled_embedding: the embedding is multiplied by a constant before the first block (Gemma).
        expert_adapters: how LoRA of all linear layers reaches the experts: ``none`` where they are stacked parameters
            that PEFT leaves alone, ``folded`` where it adds the adapters to a copy of the stacked weights at each run,
            ``linear`` where each expert is a layer of its own.
    """

    norm: Literal["low", "float", "written", "mixed"] = "low"
    norm_casts: bool = False
    norm_at: Literal["input", "output", "sum"] = "input"
    kernel: Literal["sdpa", "masked", "math", "eager"] = "sdpa"
    rope_cat: bool = False
    expand_kv: bool = False
    low_softmax: bool = False
    float_scores: bool = False
    position_bias: bool = False
    router_float: bool = False
    clamped_glu: bool = False
    native_loss: bool = False
    token_major: bool = False
    broadcast_kv: bool = False
    keeps_mixed: bool = False
    keeps_normed: bool = False
    scaled_embedding: bool = False
    expert_adapters: Literal["none", "folded", "linear"] = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One kind of layer.

    Attributes:
        kind: short name, unique inside the architecture, e.g. ``full+moe``.
        attention, recurrent: the mixer; both in parallel hybrids (Falcon-H1), none in MLP-only blocks (Nemotron-H).
        cross: a further cross-attention sub-layer (encoder-decoder models).
        ffn: the feed-forward sub-layer, None where the block has none.
        norm: ``rms``, ``layer`` or ``none`` (OLMo-1 layer norm without weights counts as ``layer``).
        num_norms: hidden-size norms in the block (2 usual, 4 in gemma 2/3, 1 in parallel blocks with one norm).
        parallel: attention and feed-forward read the same residual (falcon, gpt-neox, phi, cohere).
        dropout: residual dropout probability in training.
        tensors: all parameters of one block, names relative to the layer.
        code: how transformers computes the block.
    """

    kind: str
    attention: Attention | None = None
    recurrent: Recurrent | None = None
    cross: Attention | None = None
    ffn: Mlp | Moe | None = None
    norm: Literal["rms", "layer", "none"] = "rms"
    num_norms: int = 2
    parallel: bool = False
    dropout: float = 0.0
    tensors: tuple[Tensor, ...]
    code: Code = Code()

    @property
    def num_params(self) -> int:
        """Parameters of one block."""
        return sum(t.numel for t in self.tensors if not t.buffer)

    @property
    def active_params(self) -> int:
        """Parameters that one token uses: routed experts count ``top_k`` of ``num_experts``."""
        if not isinstance(self.ffn, Moe):
            return self.num_params
        moe = self.ffn
        routed = sum(t.numel for t in self.tensors if t.expert)
        return self.num_params - routed + routed * moe.top_k // moe.num_experts


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """A run of blocks over one stream of tokens: the decoder, an encoder or a vision/audio tower.

    Attributes:
        name: ``decoder``, ``encoder``, ``vision``, ``audio`` or ``mtp``; the tensors' owner prefix is ``prefix``.
        hidden_size: D of this stream.
        blocks: the distinct kinds.
        layout: for each layer the index into ``blocks``.
        prefix: name prefix of layer i, with ``{}`` for i, e.g. ``model.layers.{}``.
        extra: tensors outside the layers (embeddings, final norm, patch embedding, projector), full names.
        tokens: tokens in this stream for one image at the default resolution; 0 for the text streams.
        unread: last layers that run although nothing reads them: they get no gradient (LLaVA reads the layer before).
    """

    name: str
    hidden_size: int
    blocks: tuple[Block, ...]
    layout: tuple[int, ...]
    prefix: str
    extra: tuple[Tensor, ...] = ()
    tokens: int = 0
    unread: int = 0

    @property
    def num_layers(self) -> int:
        """Layers in the stack."""
        return len(self.layout)

    @property
    def num_params(self) -> int:
        """Parameters of the stack."""
        return sum(self.blocks[i].num_params for i in self.layout) + sum(t.numel for t in self.extra if not t.buffer)

    @property
    def active_params(self) -> int:
        """Parameters that one token uses."""
        return sum(self.blocks[i].active_params for i in self.layout) + sum(t.numel for t in self.extra if not t.buffer)

    def counts(self, start: int = 0, stop: int | None = None) -> tuple[int, ...]:
        """How many layers of each kind stand in ``layout[start:stop]``."""
        part = self.layout[start:stop]
        return tuple(part.count(i) for i in range(len(self.blocks)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Architecture:
    """A model: the stacks, the vocabulary matrices and what the memory model must know of them.

    Compared by identity: one object per configuration.

    Attributes:
        model_type: as in config.json.
        hidden_size, vocab_size: D and V of the text decoder (of the encoder for encoder-only models).
        decoder: the text stack that makes logits (for encoder-only models: the encoder).
        towers: further stacks (encoder of T5, vision and audio towers) in running order.
        mtp: multi-token-prediction layers stored with the model, or None. Not run in plain fine-tuning.
        embeddings: input embedding tensors (token, position, token type), full names.
        final_norm: tensors after the last block.
        head: output head tensors; empty when tied.
        tied: the head reads the token embedding.
        logit_softcap: final logits are soft-capped (gemma 2, grok).
        max_positions: context length of the configuration, 0 when unbounded.
        dtype: storage dtype the configuration states (``bfloat16`` ...), None when it states none.
        quantization: the ``quantization_config`` of the configuration, as read, or None.
        embed_dropout: dropout after the embedding.
        causal: makes next-token logits (False for encoder-only models).
        labels: width of a classification head that replaces logits, 0 for language models.
        unknowns: facts that the configuration does not state, in words (shown as warnings).
    """

    model_type: str
    hidden_size: int
    vocab_size: int
    decoder: Stack
    towers: tuple[Stack, ...] = ()
    mtp: Stack | None = None
    embeddings: tuple[Tensor, ...]
    final_norm: tuple[Tensor, ...]
    head: tuple[Tensor, ...]
    tied: bool
    logit_softcap: bool = False
    max_positions: int = 0
    dtype: str | None = None
    quantization: dict[str, Any] | None = field(default=None, hash=False, compare=False)
    embed_dropout: float = 0.0
    causal: bool = True
    labels: int = 0
    unknowns: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        """Layers of the decoder."""
        return self.decoder.num_layers

    @property
    def kind(self) -> str:
        """What tools ask first: ``decoder``, ``encoder``, ``seq2seq`` (an encoder and a decoder) or ``vision``."""
        towers = {tower.name for tower in self.towers}
        if "encoder" in towers:
            return "seq2seq"
        return "vision" if towers else "decoder" if self.causal else "encoder"

    @property
    def outer(self) -> tuple[Tensor, ...]:
        """Tensors outside all stacks: embeddings, final norm, head."""
        return (*self.embeddings, *self.final_norm, *self.head)

    @property
    def num_params(self) -> int:
        """Trainable parameters, as summing ``numel`` over ``model.parameters()`` gives (tied once, MTP left out)."""
        outer = sum(t.numel for t in self.outer if not t.buffer)
        return outer + self.decoder.num_params + sum(s.num_params for s in self.towers)

    @property
    def active_params(self) -> int:
        """Parameters that one text token uses, embeddings and head included."""
        outer = sum(t.numel for t in self.outer if not t.buffer)
        return outer + self.decoder.active_params + sum(s.active_params for s in self.towers)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor under its full name, layer by layer (``count`` kept for experts)."""
        yield from self.embeddings
        for stack in (*self.towers, self.decoder):
            for index, kind in enumerate(stack.layout):
                prefix = stack.prefix.format(index)
                for tensor in stack.blocks[kind].tensors:
                    yield replace(tensor, name=f"{prefix}.{tensor.name}")
            yield from stack.extra
        yield from self.final_norm
        yield from self.head
