"""Builders that families share: tensors of Linear layers, norms, attention, MLP, experts; layouts; the model.

Dimension legend: D hidden, H query heads, K key/value heads, N head dim, F feed-forward width, V vocabulary,
E experts.
Every builder returns a tuple of tensors under ``owner``; join them with ``*``. Sizes come from the Attention, Mlp or
Moe given, so that what the memory model reads and what is counted cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from memfit.errors import ConfigError
from memfit.models.architecture import Architecture, Attention, Block, Mlp, Moe, Part, Stack, Tensor
from memfit.models.config import Config

Tensors = tuple[Tensor, ...]
Kind = TypeVar("Kind", bound=Hashable)


def dotted(owner: str, name: str) -> str:
    """``owner.name``, or the name alone without an owner."""
    return f"{owner}.{name}" if owner else name


def linear(
    name: str,
    in_features: int,
    out_features: int,
    part: Part,
    *,
    bias: bool = False,
    tp: str | None = None,
    splits: tuple[tuple[str, int], ...] = (),
    count: int = 1,
    expert: bool = False,
    transposed: bool = False,
) -> Tensors:
    """A Linear layer: weight (out, in) and bias.

    Args:
        name: of the module, without ``.weight``.
        in_features: input width.
        out_features: output width.
        part: what it belongs to.
        bias: adds the bias tensor.
        tp: "column" (output split), "row" (input split) or None (replicated).
        splits: roles inside the output dim of a fused projection.
        count: equal layers held, e.g. experts.
        expert: split over the expert-parallel axis.
        transposed: the framework stores (in, out), as GPT-2's Conv1D does.
    """
    dim = {"column": 0, "row": 1, None: None}[tp]
    shape = (out_features, in_features)
    if transposed:
        shape = shape[::-1]
        dim = None if dim is None else 1 - dim
    weight = Tensor(
        name=f"{name}.weight",
        shape=shape,
        part=part,
        count=count,
        linear=True,
        tp_dim=dim,
        expert=expert,
        splits=splits,
    )
    if not bias:
        return (weight,)
    return (
        weight,
        Tensor(
            name=f"{name}.bias",
            shape=(out_features,),
            part=part,
            count=count,
            tp_dim=0 if tp == "column" else None,
            expert=expert,
            splits=splits,
        ),
    )


def vector(name: str, width: int, part: Part = "other", *, tp_dim: int | None = None, buffer: bool = False) -> Tensors:
    """One parameter vector under its full name."""
    return (Tensor(name=name, shape=(width,), part=part, tp_dim=tp_dim, buffer=buffer),)


def norm(name: str, width: int, *, bias: bool = False) -> Tensors:
    """A norm's weight, and bias for LayerNorm."""
    weight = Tensor(name=f"{name}.weight", shape=(width,), part="norm")
    return (weight, Tensor(name=f"{name}.bias", shape=(width,), part="norm")) if bias else (weight,)


def norms(names: Sequence[str], width: int, *, bias: bool = False) -> Tensors:
    """Several norms of the same width."""
    return tuple(t for name in names for t in norm(name, width, bias=bias))


def embedding(name: str, rows: int, width: int, *, split: bool = True) -> Tensors:
    """An embedding table (rows, width); ``split``: over the vocabulary by tensor parallelism."""
    return (Tensor(name=f"{name}.weight", shape=(rows, width), part="embedding", tp_dim=0 if split else None),)


def attention(
    owner: str,
    a: Attention,
    hidden: int,
    *,
    q: str = "q_proj",
    k: str = "k_proj",
    v: str = "v_proj",
    o: str = "o_proj",
    qkv: str = "qkv_proj",
    q_norm: str = "q_norm",
    k_norm: str = "k_norm",
    norm_bias: bool = False,
    kv_in: int | None = None,
    kv_proj: bool = True,
    gate_in_q: bool | None = None,
    transposed: bool = False,
) -> Tensors:
    """The projections of grouped-query attention (MHA and MQA included), its q/k norms and sinks.

    Args:
        owner: module name, e.g. ``self_attn``.
        a: the sizes; ``fused_qkv`` makes one projection named ``qkv``.
        hidden: D.
        q: name of the query projection; likewise k, v, o, qkv, q_norm, k_norm.
        k: as q.
        v: as q.
        o: as q.
        qkv: as q.
        q_norm: as q.
        k_norm: as q.
        norm_bias: the q/k norms are LayerNorms with bias.
        kv_in: input width of k and v where it is not D (cross-attention).
        kv_proj: False where the block has no k/v projections of its own.
        gate_in_q: the query projection also makes the output gate; default: whenever ``a.output_gate``.
        transposed: stored (in, out).
    """
    q_out = a.num_heads * a.head_dim
    k_out = a.num_kv_heads * a.head_dim
    v_out = a.num_kv_heads * a.v_head_dim
    o_in = a.num_heads * a.v_head_dim
    gated = a.output_gate if gate_in_q is None else gate_in_q
    kv_in = hidden if kv_in is None else kv_in
    out: list[Tensor] = []
    if a.fused_qkv:
        roles = (("q_proj", q_out), ("k_proj", k_out), ("v_proj", v_out))
        out += linear(
            dotted(owner, qkv),
            hidden,
            q_out + k_out + v_out,
            "attention",
            bias=a.qkv_bias,
            tp="column",
            splits=roles,
            transposed=transposed,
        )
    else:
        sides = [(q, hidden, q_out * (2 if gated else 1))]
        if kv_proj:
            sides += [(k, kv_in, k_out), (v, kv_in, v_out)]
        for name, width, size in sides:
            out += linear(
                dotted(owner, name),
                width,
                size,
                "attention",
                bias=a.qkv_bias,
                tp="column",
                transposed=transposed,
            )
    out += linear(dotted(owner, o), o_in, hidden, "attention", bias=a.out_bias, tp="row", transposed=transposed)
    if a.qk_norm != "none":
        full = a.qk_norm == "full"
        out += norm(dotted(owner, q_norm), q_out if full else a.head_dim, bias=norm_bias)
        if kv_proj:
            out += norm(dotted(owner, k_norm), k_out if full else a.head_dim, bias=norm_bias)
    if a.sinks:
        out += vector(dotted(owner, "sinks"), a.num_heads, "attention", tp_dim=0)
    return tuple(out)


def mla(owner: str, a: Attention, hidden: int, *, bias: bool = False) -> Tensors:
    """DeepSeek's latent attention: down-projections are replicated, up-projections split by head.

    ``bias`` is on the down- and output projections, as the transformers classes have ``attention_bias``.
    """
    out: list[Tensor] = []
    q_out = a.num_heads * a.head_dim
    if a.q_lora_rank:
        out += linear(dotted(owner, "q_a_proj"), hidden, a.q_lora_rank, "attention", bias=bias)
        out += norm(dotted(owner, "q_a_layernorm"), a.q_lora_rank)
        out += linear(dotted(owner, "q_b_proj"), a.q_lora_rank, q_out, "attention", tp="column")
    else:
        out += linear(dotted(owner, "q_proj"), hidden, q_out, "attention", tp="column")
    latent = a.kv_lora_rank + a.qk_rope_head_dim
    out += linear(dotted(owner, "kv_a_proj_with_mqa"), hidden, latent, "attention", bias=bias)
    out += norm(dotted(owner, "kv_a_layernorm"), a.kv_lora_rank)
    kv_out = a.num_heads * (a.qk_nope_head_dim + a.v_head_dim)
    out += linear(dotted(owner, "kv_b_proj"), a.kv_lora_rank, kv_out, "attention", tp="column")
    out += linear(dotted(owner, "o_proj"), a.num_heads * a.v_head_dim, hidden, "attention", bias=bias, tp="row")
    return tuple(out)


def mlp(
    owner: str,
    m: Mlp,
    hidden: int,
    *,
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    gate_up: str = "gate_up_proj",
    down_bias: bool | None = None,
    transposed: bool = False,
) -> Tensors:
    """A dense feed-forward layer; names as in llama unless given. ``down_bias`` where it differs from ``m.bias``."""
    out: list[Tensor] = []
    if m.gated and m.fused_gate_up:
        roles = (("gate_proj", m.intermediate), ("up_proj", m.intermediate))
        out += linear(dotted(owner, gate_up), hidden, 2 * m.intermediate, "mlp", bias=m.bias, tp="column", splits=roles)
    else:
        for name in (gate, up) if m.gated else (up,):
            out += linear(
                dotted(owner, name), hidden, m.intermediate, "mlp", bias=m.bias, tp="column", transposed=transposed
            )
    bias = m.bias if down_bias is None else down_bias
    out += linear(dotted(owner, down), m.intermediate, hidden, "mlp", bias=bias, tp="row", transposed=transposed)
    return tuple(out)


def moe(
    owner: str,
    m: Moe,
    hidden: int,
    *,
    router: str = "gate",
    router_bias: bool = False,
    correction: str = "",
    correction_buffer: bool = True,
    experts: str = "experts",
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    bias: bool = False,
    fused: str = "",
    shared: str = "shared_experts",
    shared_gate: str = "shared_expert_gate",
    shared_bias: bool = False,
) -> Tensors:
    """Router, experts (one tensor with ``count`` = E for each projection) and shared experts.

    Experts are named one by one (``experts.*.up_proj.weight``), as checkpoints have them; recent transformers
    releases hold the same numbers in one three-dimensional parameter a layer.

    Args:
        owner: module name, e.g. ``mlp``.
        m: the sizes.
        hidden: D.
        router: name of the router.
        router_bias: the router is a Linear with bias.
        correction: name of the E routing biases under owner, "" without.
        correction_buffer: they are a buffer, not a parameter.
        experts: name of the list of experts.
        gate: name of an expert's projection; likewise up, down.
        up: as gate.
        down: as gate.
        bias: the experts have biases.
        fused: name of a fused gate-and-up projection in each expert, "" without.
        shared: name of the shared expert; its width is ``m.shared_intermediate``; "" where the caller adds its tensors.
        shared_gate: name of the gate on the shared expert's output, used when ``m.shared_gate``.
        shared_bias: the shared expert has biases.
    """
    each = f"{dotted(owner, experts)}.*"
    out: list[Tensor] = [*linear(dotted(owner, router), hidden, m.num_experts, "router", bias=router_bias)]
    if correction:
        out += vector(dotted(owner, correction), m.num_experts, "router", buffer=correction_buffer)
    if fused and m.gated:
        out += linear(
            f"{each}.{fused}",
            hidden,
            2 * m.intermediate,
            "expert",
            bias=bias,
            tp="column",
            splits=((gate, m.intermediate), (up, m.intermediate)),
            count=m.num_experts,
            expert=True,
        )
    else:
        for name in (gate, up) if m.gated else (up,):
            out += linear(
                f"{each}.{name}",
                hidden,
                m.intermediate,
                "expert",
                bias=bias,
                tp="column",
                count=m.num_experts,
                expert=True,
            )
    out += linear(
        f"{each}.{down}",
        m.intermediate,
        hidden,
        "expert",
        bias=bias,
        tp="row",
        count=m.num_experts,
        expert=True,
    )
    if m.shared_intermediate and shared:
        inner = Mlp(intermediate=m.shared_intermediate, gated=m.gated, act=m.act, bias=shared_bias)
        out += mlp(dotted(owner, shared), inner, hidden)
        if m.shared_gate:
            out += linear(dotted(owner, shared_gate), hidden, 1, "router")
    return tuple(out)


def layout(kinds: Sequence[Kind], make: Callable[[Kind], Block]) -> tuple[tuple[Block, ...], tuple[int, ...]]:
    """Blocks for the distinct ``kinds`` in order of first use, and the index of each layer's block."""
    order: dict[Kind, int] = {}
    for kind in kinds:
        order.setdefault(kind, len(order))
    return tuple(make(kind) for kind in order), tuple(order[kind] for kind in kinds)


def uniform(block: Block, layers: int) -> tuple[tuple[Block, ...], tuple[int, ...]]:
    """``layers`` equal blocks."""
    return (block,), (0,) * layers


def layer_windows(
    c: Config, layers: int, window: int | None, pattern: Callable[[int], bool] | None = None
) -> tuple[int | None, ...]:
    """The window of each layer, None for full attention.

    ``layer_types`` of the configuration decides; without it ``pattern(index)`` says which layers slide; without
    that all do.
    """
    stated = c.texts("layer_types", length=layers)
    if stated is not None:
        if window is None and any("sliding" in t or "chunked" in t for t in stated):
            raise ConfigError(f"configuration key `{c.path}layer_types` names sliding layers, but no window is given")
        return tuple(window if "sliding" in t or "chunked" in t else None for t in stated)
    return tuple(window if pattern is None or pattern(i) else None for i in range(layers))


def assemble(
    c: Config,
    *,
    hidden: int,
    blocks: tuple[Block, ...],
    layers: tuple[int, ...],
    prefix: str = "model.layers.{}",
    embed: str = "model.embed_tokens",
    embeddings: Tensors = (),
    final_norm: Tensors | None = None,
    head: str = "lm_head",
    head_bias: bool = False,
    tied: bool | None = None,
    vocab: int | None = None,
    mtp: Stack | None = None,
    extra: Tensors = (),
    logit_softcap: bool = False,
    max_positions: int | None = None,
    embed_dropout: float = 0.0,
    embed_width: int | None = None,
    headless_names: bool = True,
) -> Architecture:
    """A decoder-only language model from its blocks.

    A configuration whose ``architectures`` names a sequence classifier gets a ``score`` head of ``num_labels`` rows;
    one that names a bare model (``MistralModel``) gets no head.

    Args:
        c: the configuration, read for vocabulary, tying, dtype, positions and quantisation.
        hidden: D.
        blocks: the distinct kinds.
        layers: for each layer the index into blocks.
        prefix: of layer i.
        embed: name of the token embedding.
        embeddings: further embedding tensors (positions, embedding norm).
        final_norm: tensors after the last block; default: an RMS norm named ``model.norm``.
        head: name of the output head.
        head_bias: the head has a bias.
        tied: the head reads the token embedding; default: as ``tie_word_embeddings`` says.
        vocab: V, default ``vocab_size``.
        mtp: multi-token-prediction stack.
        extra: tensors of the decoder outside its layers.
        logit_softcap: final logits are soft-capped.
        max_positions: context length, default ``max_position_embeddings``.
        embed_dropout: dropout after the embedding.
        embed_width: width of the token embedding (and of what the head reads) where it is not D.
        headless_names: a name that ends in "Model" means no head (False where the class with the head is called so).
    """
    vocab = c.size("vocab_size", "padded_vocab_size") if vocab is None else vocab
    width = hidden if embed_width is None else embed_width
    tied = c.flag("tie_word_embeddings") if tied is None else tied
    positions = max_positions
    if positions is None:
        positions = c.opt_size("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", low=0)
    name = c.architecture_name()
    labels = 0
    head_tensors: Tensors
    if name.endswith("ForSequenceClassification"):
        labels = num_labels(c)
        tied = False
        head_tensors = linear("score", width, labels, "head")
    elif headless_names and name.endswith("Model") and not name.endswith("LMHeadModel"):
        tied = False
        head_tensors = ()
    elif tied:
        # a tied head shares the embedding's weight; its bias, if any, is its own
        head_tensors = linear(head, width, vocab, "head", bias=True, tp="column")[1:] if head_bias else ()
    else:
        head_tensors = linear(head, width, vocab, "head", bias=head_bias, tp="column")
    return Architecture(
        model_type=c.model_type,
        hidden_size=hidden,
        vocab_size=vocab,
        decoder=Stack(name="decoder", hidden_size=hidden, blocks=blocks, layout=layers, prefix=prefix, extra=extra),
        mtp=mtp,
        embeddings=(*embedding(embed, vocab, width), *embeddings),
        final_norm=norm("model.norm", hidden) if final_norm is None else final_norm,
        head=head_tensors,
        tied=tied,
        logit_softcap=logit_softcap,
        max_positions=positions or 0,
        dtype=c.dtype(),
        quantization=c.quantization(),
        embed_dropout=embed_dropout,
        labels=labels,
        unknowns=tuple(c.notes),
    )


def num_labels(c: Config) -> int:
    """Classes of a classification head: ``num_labels``, or the entries of ``id2label``, or 2."""
    names = c.raw("id2label")
    return c.size("num_labels", default=len(names) if isinstance(names, dict) and names else 2, high=1 << 20)
