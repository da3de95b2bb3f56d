"""What the tests of this folder share: a job's compiled parts and the figures of one stage."""

from __future__ import annotations

import copy
from typing import Any

from memfit.formula.dims import Dims, evaluate
from memfit.formula.resolve import resolve
from memfit.formula.setup import Setup
from memfit.formula.stage import StageModel
from memfit.formula.training import StagePeak, dims_of, peaks, setup_of, stages_of
from memfit.job import from_kwargs
from memfit.models import catalog

RESIDENT = ("weights", "master", "states")


def parts_of(**fields: Any) -> tuple[Setup, Dims]:
    """The compiled setup and the numeric axes of a job."""
    resolved = resolve(from_kwargs(**fields))
    return setup_of(resolved), dims_of(resolved)


def stage_peaks(**fields: Any) -> list[StagePeak]:
    """Every stage's peak."""
    return peaks(*parts_of(**fields), every=True)


def models_of(**fields: Any) -> list[StageModel]:
    """The evaluated model of every stage."""
    s, d = parts_of(**fields)
    return [StageModel(s, d, stage) for stage in stages_of(s, d)]


def at_step(**fields: Any) -> dict[str, int]:
    """Entries at the optimizer step of the first stage."""
    moments = stage_peaks(**fields)[0].moments
    return dict(next(m.parts for m in moments if m.phase == "optimizer"))


def at(what: str, **fields: Any) -> dict[str, int]:
    """Entries of the first stage at the moment named ``what``."""
    moments = stage_peaks(**fields)[0].moments
    return dict(next(m.parts for m in moments if m.what == what))


def trained_elements(**fields: Any) -> int:
    """Elements that get gradients, over all stages."""
    return sum(sum(m.weights_bytes()[1:]) for m in models_of(**fields))


def kept_of_layers(**fields: Any) -> list[int]:
    """Bytes that each kind of decoder layer holds for its backward pass, checkpointed as the job says."""
    s, d = parts_of(**fields)
    model = StageModel(s, d, stages_of(s, d)[0])
    tower = s.decoder
    out = []
    for kind in tower.kinds:
        form = kind.program.kept if s.choices.checkpointing == "none" else kind.program.checkpoint
        out.append(int(evaluate(form, model.atoms(tower, kind, d.tokens, d.stream_tokens))))
    return out


def config_of(model: str, **changes: Any) -> dict[str, Any]:
    """A copy of a catalog model's configuration with some keys replaced."""
    entry = catalog.lookup(model)
    assert entry is not None
    return {**copy.deepcopy(entry.config), **changes}
