"""idefics3 and smolvlm: a SigLIP tower without class token, pixel shuffle, one projection."""

from __future__ import annotations

from memfit.models.architecture import Architecture
from memfit.models.config import Config
from memfit.models.families._common import linear
from memfit.models.families._vision import clip, join, language, part


def read(c: Config) -> Architecture:
    """idefics3, smolvlm: ``scale_factor`` squared patches become one token."""
    vision = part(c, "vision_config", f"{c.model_type}_vision")
    text = language(c, "llama", owner="model.text_model")
    width = vision.size("hidden_size") * c.size("scale_factor", high=64) ** 2
    projector = linear("model.connector.modality_projection.proj", width, text.hidden_size, "projector")
    c.note("the tower's tokens are those of one crop; the processor decides how many crops a picture gives")
    return join(c, text, (clip(vision, "model.vision_model", projector, siglip=True),))
