"""Pure state-space models: mamba, falcon_mamba, mamba2."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Block
from memfit.models.config import Config
from memfit.models.families._common import assemble, norm, uniform
from memfit.models.families._recurrent import mamba1, mamba1_size, mamba2, mamba2_size, step_rank


def _whole(c: Config, block: Block, hidden: int) -> Architecture:
    blocks, layers = uniform(block, c.layers())
    return assemble(
        c,
        hidden=hidden,
        blocks=blocks,
        layers=layers,
        prefix="backbone.layers.{}",
        embed="backbone.embeddings",
        final_norm=norm("backbone.norm_f", hidden),
        max_positions=0,
    )


def read(c: Config) -> Architecture:
    """mamba and falcon_mamba: the latter normalises dt, B and C with weights that are not learned."""
    hidden = c.size("hidden_size")
    # a stated width wins over the factor, as in the class (falcon-mamba-7b states 8192 beside `expand: 16`)
    inner = c.opt_size("intermediate_size") or int(hidden * c.number("expand", high=64.0))
    r = mamba1_size(inner, c.size("state_size"), c.size("conv_kernel"), step_rank(c, "time_step_rank", hidden))
    norms = "buffer" if c.model_type == "falcon_mamba" else "none"
    mixer = mamba1("mixer", r, hidden, bias=c.flag("use_bias"), conv_bias=c.flag("use_conv_bias"), norms=norms)
    block = Block(kind="mamba", recurrent=r, num_norms=1, tensors=(*norm("norm", hidden), *mixer))
    return _whole(c, block, hidden)


def read_mamba2(c: Config) -> Architecture:
    """mamba2 (Mamba-Codestral and conversions of state-spaces/mamba2)."""
    hidden = c.size("hidden_size")
    r = mamba2_size(
        c.size("num_heads"),
        c.size("head_dim"),
        c.size("n_groups"),
        c.size("state_size"),
        c.size("conv_kernel"),
        c.size("chunk_size"),
    )
    mixer = mamba2("mixer", r, hidden, bias=c.flag("use_bias"), conv_bias=c.flag("use_conv_bias"))
    block = Block(kind="mamba", recurrent=r, num_norms=1, tensors=(*norm("norm", hidden), *mixer))
    return _whole(c, block, hidden)
