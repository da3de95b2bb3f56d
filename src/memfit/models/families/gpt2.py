"""GPT-2 and its line: GPT-BigCode, GPT-J, CodeGen, GPT-Neo, Starcoder 2, OPT: LayerNorm, biases, no gate."""

from __future__ import annotations

from memfit.errors import ConfigError
from memfit.models.architecture import Architecture, Mlp
from memfit.models.config import Config
from memfit.models.families._common import Tensors, embedding, layer_windows, linear, norm
from memfit.models.families._decoder import decoder, gqa
from memfit.models.families.llama import llama_like


def _mlp(c: Config, hidden: int, key: str = "n_inner") -> Mlp:
    width = c.opt_size(key, "intermediate_size") or 4 * hidden
    act = c.text("activation_function", "hidden_act", default=c.default("activation_function") or "gelu_new")
    return Mlp(intermediate=width, gated=False, act=act, bias=True)


def gpt2(c: Config) -> Architecture:
    """GPT-2: Conv1D layers, which store (in, out); learned positions."""
    hidden = c.size("hidden_size")
    a = gqa(c, hidden, rotary=0, fused_qkv=True, qkv_bias=True, out_bias=True, dropout=c.number("attn_pdrop"))
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers(),
        a=a,
        m=_mlp(c, hidden),
        owner="attn",
        names={"qkv": "c_attn", "o": "c_proj", "transposed": True},
        mlp_names={"up": "c_fc", "down": "c_proj", "transposed": True},
        norm_names=("ln_1", "ln_2"),
        norm="layer",
        norm_bias=True,
        dropout=c.number("resid_pdrop"),
        prefix="transformer.h.{}",
        embed="transformer.wte",
        embeddings=embedding("transformer.wpe", c.size("n_positions"), hidden, split=False),
        embed_dropout=c.number("embd_pdrop"),
        final_norm=norm("transformer.ln_f", hidden, bias=True),
    )


def gpt_bigcode(c: Config) -> Architecture:
    """SantaCoder, StarCoder: GPT-2 with ordinary Linear layers and one key/value head."""
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads")
    a = gqa(
        c,
        hidden,
        rotary=0,
        num_kv_heads=1 if c.flag("multi_query", default=True) else heads,
        fused_qkv=True,
        qkv_bias=True,
        out_bias=True,
        dropout=c.number("attn_pdrop"),
    )
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers(),
        a=a,
        m=_mlp(c, hidden),
        owner="attn",
        names={"qkv": "c_attn", "o": "c_proj"},
        mlp_names={"up": "c_fc", "down": "c_proj"},
        norm_names=("ln_1", "ln_2"),
        norm="layer",
        norm_bias=True,
        dropout=c.number("resid_pdrop"),
        prefix="transformer.h.{}",
        embed="transformer.wte",
        embeddings=embedding("transformer.wpe", c.size("n_positions"), hidden, split=False),
        embed_dropout=c.number("embd_pdrop"),
        final_norm=norm("transformer.ln_f", hidden, bias=True),
    )


def gptj(c: Config) -> Architecture:
    """GPT-J: parallel block with one norm, rotary embedding, a bias on the head."""
    return _parallel(c, fused=False)


def codegen(c: Config) -> Architecture:
    """CodeGen: GPT-J with fused q, k and v."""
    return _parallel(c, fused=True)


def _parallel(c: Config, *, fused: bool) -> Architecture:
    hidden = c.size("hidden_size")
    a = gqa(c, hidden, fused_qkv=fused, dropout=c.number("attn_pdrop"))
    a = gqa(
        c,
        hidden,
        fused_qkv=fused,
        dropout=c.number("attn_pdrop"),
        rotary_dim=min(c.opt_size("rotary_dim", low=0) or a.head_dim, a.head_dim),
    )
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers(),
        a=a,
        m=_mlp(c, hidden),
        owner="attn",
        names={"o": "out_proj"},
        mlp_names={"up": "fc_in", "down": "fc_out"},
        norm_names=("ln_1",),
        norm="layer",
        norm_bias=True,
        parallel=True,
        dropout=c.number("resid_pdrop"),
        prefix="transformer.h.{}",
        embed="transformer.wte",
        embed_dropout=c.number("embd_pdrop"),
        final_norm=norm("transformer.ln_f", hidden, bias=True),
        head_bias=True,
    )


def gpt_neo(c: Config) -> Architecture:
    """GPT-Neo: global and local layers in turn; only the output projection has a bias."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    window = c.opt_size("window_size")
    windows = tuple(window if kind == "local" else None for kind in _neo_kinds(c, layers))
    return decoder(
        c,
        hidden=hidden,
        layers=layers,
        a=gqa(c, hidden, rotary=0, out_bias=True),
        m=_mlp(c, hidden, "intermediate_size"),
        windows=windows,
        owner="attn.attention",
        names={"o": "out_proj"},
        mlp_names={"up": "c_fc", "down": "c_proj"},
        norm_names=("ln_1", "ln_2"),
        norm="layer",
        norm_bias=True,
        dropout=c.number("resid_dropout"),
        prefix="transformer.h.{}",
        embed="transformer.wte",
        embeddings=embedding("transformer.wpe", c.size("max_position_embeddings"), hidden, split=False),
        embed_dropout=c.number("embed_dropout"),
        final_norm=norm("transformer.ln_f", hidden, bias=True),
    )


def _neo_kinds(c: Config, layers: int) -> tuple[str, ...]:
    """``attention_types`` is a list of [names, repeats]; without it global and local take turns."""
    stated = c.raw("attention_types")
    if stated is None:
        return tuple("local" if i % 2 else "global" for i in range(layers))
    kinds: list[str] = []
    for item in stated if isinstance(stated, list) else [None]:
        names, repeats = item if isinstance(item, list) and len(item) == 2 else (None, None)
        if not isinstance(names, list) or isinstance(repeats, bool) or not isinstance(repeats, int):
            raise ConfigError("configuration key `attention_types`: must be a list of [[names], repeats]")
        if not all(n in ("global", "local") for n in names):
            raise ConfigError("configuration key `attention_types`: known are global and local")
        kinds += names * min(max(repeats, 0), layers)
    if len(kinds) != layers:
        raise ConfigError(f"configuration key `attention_types`: describes {len(kinds)} layers, there are {layers}")
    return tuple(kinds)


def starcoder2(c: Config) -> Architecture:
    """Starcoder 2: llama's attention with biases, GPT-2's MLP and norms."""
    bias = c.flag("use_bias")
    return llama_like(
        c,
        a={"qkv_bias": bias, "out_bias": bias},
        m={"gated": False, "bias": bias},
        windows=layer_windows(c, c.layers(), c.opt_size("sliding_window")),
        mlp_names={"up": "c_fc", "down": "c_proj"},
        norm="layer",
        norm_bias=True,
        dropout=c.number("residual_dropout"),
        embed_dropout=c.number("embedding_dropout"),
        final_norm=norm("model.norm", c.size("hidden_size"), bias=True),
    )


def opt(c: Config) -> Architecture:
    """OPT: learned positions (two rows more than the context), and for 350M an embedding narrower than D."""
    hidden = c.size("hidden_size")
    width = c.opt_size("word_embed_proj_dim") if c.has("word_embed_proj_dim") else hidden
    width = width or hidden
    bias = c.flag("enable_bias", default=True)
    affine = c.flag("layer_norm_elementwise_affine", default=True)
    m = Mlp(
        intermediate=c.size("ffn_dim", "intermediate_size"),
        gated=False,
        act=c.text("activation_function", default="relu"),
        bias=bias,
    )
    final: Tensors = ()
    if c.flag("do_layer_norm_before", default=True) and not c.flag("_remove_final_layer_norm") and affine:
        final = norm("model.decoder.final_layer_norm", hidden, bias=True)
    if width != hidden:
        final = (*final, *linear("model.decoder.project_out", hidden, width, "other"))
    positions = c.size("max_position_embeddings")
    embeddings = embedding("model.decoder.embed_positions", positions + 2, hidden, split=False)
    if width != hidden:
        embeddings = (*embeddings, *linear("model.decoder.project_in", width, hidden, "other"))
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers(),
        a=gqa(c, hidden, rotary=0, qkv_bias=bias, out_bias=bias),
        m=m,
        names={"o": "out_proj"},
        ffn="",
        mlp_names={"up": "fc1", "down": "fc2"},
        norm_names=("self_attn_layer_norm", "final_layer_norm"),
        norm="layer",
        norm_bias=True,
        norm_weight=affine,
        dropout=c.number("dropout"),
        prefix="model.decoder.layers.{}",
        embed="model.decoder.embed_tokens",
        embeddings=embeddings,
        embed_width=width,
        final_norm=final,
    )
