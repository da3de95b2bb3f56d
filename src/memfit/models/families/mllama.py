"""mllama (Llama 3.2 Vision): cross-attention layers inside the language model read the tower's output."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Attention, Block, Mlp, Stack, Tensor
from memfit.models.config import Config
from memfit.models.families._common import (
    Tensors,
    assemble,
    attention,
    embedding,
    layout,
    linear,
    mlp,
    norm,
    norms,
    uniform,
)
from memfit.models.families._vision import bidirectional, grid, join, kernel, part, plain_block

TOWER = "model.vision_model"
NORMS = ("input_layernorm", "post_attention_layernorm")
IMAGE_ROWS = 8  # rows of the token embedding beyond the vocabulary of the head
TILE_MULTIPLE = 8  # the tower pads the patches of a tile to a multiple of this


def read(c: Config) -> Architecture:
    """mllama: the listed layers attend to the image alone and are gated; the others are llama's."""
    vision = part(c, "vision_config", "mllama_vision_model")
    text = _text(part(c, "text_config", "mllama_text_model"))
    return join(c, text, _towers(vision, text.hidden_size))


def _text(c: Config) -> Architecture:
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = c.head_dim(hidden, heads)
    m = Mlp(intermediate=c.size("intermediate_size"), act=c.text("hidden_act"))

    def make(cross: bool) -> Block:
        a = Attention(
            num_heads=heads,
            num_kv_heads=c.kv_heads(heads),
            head_dim=head_dim,
            v_head_dim=head_dim,
            causal=not cross,
            cross=cross,
            rotary_dim=0 if cross else head_dim,
            qk_norm="head" if cross else "none",
            dropout=c.number("dropout"),
        )
        gates: Tensors = ()
        if cross:
            gates = (
                Tensor(name="cross_attn_attn_gate", shape=(1,), part="other"),
                Tensor(name="cross_attn_mlp_gate", shape=(1,), part="other"),
            )
        return Block(
            kind="cross" if cross else "full",
            attention=a,
            ffn=m,
            tensors=(
                *attention("cross_attn" if cross else "self_attn", a, hidden),
                *mlp("mlp", m, hidden),
                *norms(NORMS, hidden),
                *gates,
            ),
        )

    stated = c.sizes("cross_attention_layers", high=1 << 16)
    crossing = set(range(3, 40, 5) if stated is None else stated)  # the class default: 3, 8, ... 38
    blocks, layers = layout([i in crossing for i in range(c.layers())], make)
    whole = assemble(
        c,
        hidden=hidden,
        blocks=blocks,
        layers=layers,
        prefix="model.language_model.layers.{}",
        embed="model.language_model.embed_tokens",
        final_norm=norm("model.language_model.norm", hidden),
        embeddings=(),
        tied=False,
    )
    table = embedding("model.language_model.embed_tokens", whole.vocab_size + IMAGE_ROWS, hidden)
    return Architecture(
        model_type=c.model_type,
        hidden_size=hidden,
        vocab_size=whole.vocab_size,
        decoder=whole.decoder,
        embeddings=table,
        final_norm=whole.final_norm,
        head=whole.head,
        tied=False,
        max_positions=whole.max_positions,
        dtype=whole.dtype,
        quantization=whole.quantization,
    )


def _towers(c: Config, text_hidden: int) -> tuple[Stack, Stack]:
    """The local encoder and the global one after it; all tiles of an image run as one sequence."""
    hidden = c.size("hidden_size")
    heads = c.size("attention_heads", "num_attention_heads", high=1 << 16)
    a = bidirectional(c, hidden, heads, bias=False)
    m = Mlp(intermediate=c.size("intermediate_size"), gated=False, act=c.text("hidden_act"), bias=True)
    patches, size = grid(c)
    rows = patches + 1
    tiles = c.size("max_num_tiles", high=1 << 10)
    ratios = c.raw("supported_aspect_ratios")
    shapes = (len(ratios) if isinstance(ratios, list | tuple) and ratios else 8) + 1
    tokens = tiles * (-(-rows // TILE_MULTIPLE) * TILE_MULTIPLE)

    def tile_positions(name: str) -> Tensors:
        owner = f"{TOWER}.{name}"
        return (
            Tensor(name=f"{owner}.gate", shape=(1,), part="embedding"),
            *embedding(f"{owner}.embedding", shapes, tiles * hidden, split=False),
        )

    positions = f"{TOWER}.gated_positional_embedding"
    front = (
        Tensor(name=f"{TOWER}.class_embedding", shape=(hidden,), part="embedding"),
        *kernel(f"{TOWER}.patch_embedding", hidden, c.size("num_channels"), size, bias=False),
        Tensor(name=f"{positions}.gate", shape=(1,), part="embedding"),
        Tensor(name=f"{positions}.embedding", shape=(rows, hidden), part="embedding"),
        *embedding(f"{positions}.tile_embedding", shapes, tiles * rows * hidden, split=False),
        *tile_positions("pre_tile_positional_embedding"),
        *tile_positions("post_tile_positional_embedding"),
        *norms((f"{TOWER}.layernorm_pre", f"{TOWER}.layernorm_post"), hidden, bias=True),
    )
    projector = linear("model.multi_modal_projector", c.size("vision_output_dim"), text_hidden, "projector", bias=True)

    def stack(name: str, count: int, gates: Tensors, extra: Tensors) -> Stack:
        block = plain_block(a, m, hidden, norm_names=NORMS, kind=name, extra=gates)
        blocks, layers = uniform(block, count)
        return Stack(
            name="vision",
            hidden_size=hidden,
            blocks=blocks,
            layout=layers,
            prefix=f"{TOWER}.{name}.layers.{{}}",
            extra=extra,
            tokens=tokens,
        )

    gates = (
        Tensor(name="gate_attn", shape=(1,), part="other"),
        Tensor(name="gate_ffn", shape=(1,), part="other"),
    )
    return (
        stack("transformer", c.layers(), (), front),
        stack("global_transformer", c.layers("num_global_layers"), gates, projector),
    )
