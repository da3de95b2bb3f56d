"""torchtitan's own config manager on every module that exports write."""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.export
pytest.importorskip("torchtitan")

from check_support import accepted, run  # noqa: E402

from memfit.formula.training import rank_layers  # noqa: E402


def layers_of_ranks(config, dims):
    """Decoder layers of each pipeline rank, by torchtitan's own split of the model."""
    from torchtitan.distributed import pipeline_parallel as own

    mesh = config.parallelism
    stages, layers, *weights = own._get_pipeline_metadata(dims, mesh, config.model_spec.model)
    parts = mesh.module_fqns_per_model_part or own._generate_llm_fqn_per_model_part(stages, layers, *weights)
    assert [name for part in parts for name in part] == [
        "tok_embeddings", *(f"layers.{i}" for i in range(layers)), "norm", "lm_head",
    ]  # fmt: skip
    return tuple(
        sum(
            name.startswith("layers.")
            for index in own._get_pp_rank_to_stage_indices_mapping(
                rank, dims.pp, mesh.pipeline_parallel_schedule, len(parts)
            )
            for name in parts[index]
        )
        for rank in range(dims.pp)
    )


@pytest.fixture(autouse=True)
def hopper(monkeypatch):
    """Low-precision layers ask the card, which is not there, whether it has the units."""
    from torchtitan.components.quantization import float8, mx, nvfp4

    for module in (float8, mx, nvfp4):
        if hasattr(module, "has_cuda_capability"):
            monkeypatch.setattr(module, "has_cuda_capability", lambda *_: True)


def test_its_manager_builds_every_configuration(tmp_path, monkeypatch):
    """The manager imports the module and builds the configuration; its arithmetic of meshes takes every layout."""
    from torchtitan.config.manager import ConfigManager
    from torchtitan.distributed import ParallelDims

    monkeypatch.syspath_prepend(str(tmp_path))
    count = 0
    for what, answer in accepted("torchtitan"):
        name = f"exported_{count}"
        (tmp_path / f"{name}.py").write_text(answer.files[0].text)
        config = ConfigManager().parse_args(["--module", name, "--config", "job"])
        plan = answer.plan
        mesh = config.parallelism
        assert mesh.tensor_parallel_degree == plan.tp, what
        assert mesh.pipeline_parallel_degree == plan.pp
        assert mesh.context_parallel_degree == plan.cp
        assert mesh.expert_parallel_degree == plan.ep
        assert mesh.data_parallel_replicate_degree * mesh.data_parallel_shard_degree == plan.dp
        assert config.training.seq_len == plan.seq_len
        assert config.training.global_batch_size == plan.global_batch
        assert config.model_spec.flavor in ("1B", "8B", "30B-A3B")
        names = type(config.activation_checkpoint).__qualname__
        assert (
            names
            == {"none": "NoneType", "selective": "SelectiveAC.Config", "full": "FullAC.Config"}[plan.checkpointing]
        )
        dims = ParallelDims(
            dp_replicate=mesh.data_parallel_replicate_degree,
            dp_shard=mesh.data_parallel_shard_degree,
            cp=mesh.context_parallel_degree,
            tp=mesh.tensor_parallel_degree,
            pp=mesh.pipeline_parallel_degree,
            ep=mesh.expert_parallel_degree,
            world_size=plan.gpus,
        )
        assert dims.world_size == plan.gpus
        if plan.pp > 1:
            assert layers_of_ranks(config, dims) == rank_layers(plan.estimate.resolved), what
        sys.modules.pop(name)
        count += 1
    assert count > 30


def test_the_command_line_of_the_manager(tmp_path):
    (_, answer), *_ = accepted("torchtitan")
    (tmp_path / answer.files[0].name).write_text(answer.files[0].text)
    words = [sys.executable, "-m", "torchtitan.config.manager", "--module", "memfit_torchtitan", "--config", "job"]
    run(words, tmp_path, PYTHONPATH=str(tmp_path))
