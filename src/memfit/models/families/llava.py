"""A tower, a small projector and a language model of any family: llava, llava_next, mistral3, paligemma, gemma3."""

from __future__ import annotations

from dataclasses import replace

from memfit.models.architecture import Architecture, Tensor
from memfit.models.config import Config
from memfit.models.families._common import Tensors, linear, norm
from memfit.models.families._vision import join, language, rectangle, tower

PROJECTOR = "model.multi_modal_projector"
TOWER = "model.vision_tower"


def _two_layers(c: Config, width: int, hidden: int) -> Tensors:
    """LLaVA's projector: two Linear layers; several tower layers may be read side by side."""
    read = c.raw("vision_feature_layer")
    count = len(read) if isinstance(read, list | tuple) and read else 1
    bias = c.flag("multimodal_projector_bias")
    return (
        *linear(f"{PROJECTOR}.linear_1", width * count, hidden, "projector", bias=bias),
        *linear(f"{PROJECTOR}.linear_2", hidden, hidden, "projector", bias=bias),
    )


def read(c: Config) -> Architecture:
    """llava; llava_next also runs crops of the picture, as many as its largest grid has, besides the whole."""
    vision = c.child("vision_config", "clip_vision_model")
    text = language(c, "llama")
    projector = _two_layers(c, vision.size("hidden_size"), text.hidden_size)
    crops = 1
    if c.model_type == "llava_next":
        projector += (Tensor(name="model.image_newline", shape=(text.hidden_size,), part="projector"),)
        side = rectangle(vision, "image_size")
        pinpoints = c.raw("image_grid_pinpoints")
        grids = [
            -(-p[0] // side[0]) * -(-p[1] // side[1])
            for p in (pinpoints if isinstance(pinpoints, list | tuple) else ())
            if isinstance(p, list | tuple) and len(p) == 2 and all(isinstance(n, int) and 0 < n < 1 << 16 for n in p)
        ]
        crops += max(grids, default=4)  # the class's own grids hold up to four crops
    stack = tower(vision, TOWER, projector, images=crops)
    return join(c, text, (replace(stack, unread=min(_unread(c), stack.num_layers - 1)),))


def _unread(c: Config) -> int:
    """Layers of the tower behind the last one whose output is taken (``vision_feature_layer``, -2 unless stated)."""
    stated = c.raw("vision_feature_layer")
    layers = stated if isinstance(stated, list | tuple) and stated else [stated]
    return min(-n - 1 if isinstance(n, int) and -64 <= n < 0 else 1 if n is None else 0 for n in layers)


def read_mistral3(c: Config) -> Architecture:
    """mistral3: patches are merged by ``spatial_merge_size`` squared before the projector."""
    vision = c.child("vision_config", "pixtral")
    text = language(c, "mistral")
    width = vision.size("hidden_size")
    merge = c.size("spatial_merge_size", high=64) ** 2
    projector = (
        *norm(f"{PROJECTOR}.norm", width),
        *linear(f"{PROJECTOR}.patch_merger.merging_layer", width * merge, width, "projector"),
        *_two_layers(c, width, text.hidden_size),
    )
    return join(c, text, (tower(vision, TOWER, projector),))


def read_paligemma(c: Config) -> Architecture:
    """paligemma and paligemma 2."""
    vision = c.child("vision_config", "siglip_vision_model")
    text = language(c, "gemma")
    projector = linear(
        f"{PROJECTOR}.linear", vision.size("hidden_size"), c.size("projection_dim"), "projector", bias=True
    )
    return join(c, text, (tower(vision, TOWER, projector),))


def read_gemma3(c: Config) -> Architecture:
    """gemma3: the tower's patches are pooled to ``mm_tokens_per_image`` and projected without bias.

    A configuration without ``vision_config`` is read as the language model alone.
    """
    text = language(c, "gemma3_text", flat=True)
    if not c.has("vision_config"):
        c.note("no `vision_config`: read as the language model alone")
        return join(c, text, ())
    vision = c.child("vision_config", "siglip_vision_model")
    width = vision.size("hidden_size")
    projector = (
        Tensor(
            name=f"{PROJECTOR}.mm_input_projection_weight",
            shape=(width, text.hidden_size),
            part="projector",
            linear=False,
        ),
        *norm(f"{PROJECTOR}.mm_soft_emb_norm", width),
    )
    return join(c, text, (tower(vision, TOWER, projector),))
