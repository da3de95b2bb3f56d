"""nemotron_h: every layer is one mixer behind one norm: Mamba 2, attention, a dense or a routed feed-forward layer."""

from __future__ import annotations

from dataclasses import replace

from memfit.errors import ConfigError
from memfit.models.architecture import Architecture, Attention, Block, Mlp, Moe
from memfit.models.config import MAX_LAYERS, Config
from memfit.models.families._common import Tensors, assemble, attention, layout, linear, mlp, moe, norm, vector
from memfit.models.families._recurrent import mamba2, mamba2_size

LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
NAMES = {"linear_attention": "mamba", "full_attention": "attention", **{n: n for n in LETTERS.values()}}


def _kinds(c: Config) -> list[str]:
    """The mixer of each layer, from ``layers_block_type`` or the letters of ``hybrid_override_pattern``."""
    stated = c.texts("layers_block_type", "layer_types", allowed=tuple(NAMES))
    if stated:
        kinds = [NAMES[name] for name in stated]
    else:
        pattern = c.raw("hybrid_override_pattern")
        if not isinstance(pattern, str) or not pattern or set(pattern) - set(LETTERS):
            raise ConfigError(
                f"configuration key `{c.path}hybrid_override_pattern`: must be a text of {' '.join(LETTERS)}",
                hint="nemotron_h states the mixer of each layer there, or in `layers_block_type`",
            )
        kinds = [LETTERS[letter] for letter in pattern]
    if len(kinds) > MAX_LAYERS:
        raise ConfigError(f"the configuration names {len(kinds)} layers, more than {MAX_LAYERS}")
    return kinds


def read(c: Config) -> Architecture:
    """nemotron_h (Nemotron-H, Nemotron Nano 2 and 3): squared-ReLU feed-forward without gate, no rotary embedding."""
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = c.size("head_dim", "attention_head_dim")
    a = Attention(
        num_heads=heads,
        num_kv_heads=c.kv_heads(heads),
        head_dim=head_dim,
        v_head_dim=head_dim,
        dropout=c.number("attention_dropout"),
    )
    r = mamba2_size(
        c.size("mamba_num_heads"),
        c.size("mamba_head_dim"),
        c.size("n_groups", "mamba_n_groups"),
        c.size("ssm_state_size"),
        c.size("conv_kernel", "mamba_d_conv"),
        c.size("chunk_size", "mamba_chunk_size"),
    )
    act, bias = c.text("mlp_hidden_act"), c.flag("mlp_bias")
    dense = Mlp(intermediate=c.size("intermediate_size"), gated=False, act=act, bias=bias)
    routed = Moe(
        num_experts=c.size("n_routed_experts", "num_local_experts"),
        top_k=c.size("num_experts_per_tok"),
        intermediate=c.size("moe_intermediate_size"),
        gated=False,
        act=act,
        shared_intermediate=c.size("moe_shared_expert_intermediate_size", low=0),
    )
    latent = c.opt_size("moe_latent_size")

    def experts() -> Tensors:
        tensors = moe("mixer", routed, hidden, correction="gate.e_score_correction_bias")
        if bias and routed.shared_intermediate:
            tensors += vector("mixer.shared_experts.up_proj.bias", routed.shared_intermediate, "mlp", tp_dim=0)
            tensors += vector("mixer.shared_experts.down_proj.bias", hidden, "mlp")
        if latent is None:
            return tensors
        # the experts work in a narrower space behind two shared projections
        return (
            *(
                replace(t, shape=tuple(latent if n == hidden else n for n in t.shape)) if t.expert else t
                for t in tensors
            ),
            *linear("mixer.fc1_latent_proj", hidden, latent, "mlp", bias=bias),
            *linear("mixer.fc2_latent_proj", latent, hidden, "mlp", bias=bias),
        )

    def make(kind: str) -> Block:
        before = norm("norm", hidden)
        if kind == "mamba":
            mixer = mamba2("mixer", r, hidden, bias=c.flag("use_bias"), conv_bias=c.flag("use_conv_bias"))
            return Block(kind=kind, recurrent=r, num_norms=1, tensors=(*before, *mixer))
        if kind == "attention":
            return Block(kind="full", attention=a, num_norms=1, tensors=(*before, *attention("mixer", a, hidden)))
        if kind == "mlp":
            return Block(kind="mlp", ffn=dense, num_norms=1, tensors=(*before, *mlp("mixer", dense, hidden)))
        return Block(kind="moe", ffn=routed, num_norms=1, tensors=(*before, *experts()))

    blocks, layers = layout(_kinds(c), make)
    if c.opt_size("num_nextn_predict_layers", low=0):
        c.note("multi-token-prediction layers are stated but not counted")
    return assemble(
        c,
        hidden=hidden,
        blocks=blocks,
        layers=layers,
        embed="model.embeddings",
        final_norm=norm("model.norm_f", hidden),
    )
