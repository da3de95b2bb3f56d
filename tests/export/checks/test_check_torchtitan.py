"""torchtitan's own config manager on every module that exports write."""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.export
pytest.importorskip("torchtitan")

from check_support import accepted, run  # noqa: E402


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
        sys.modules.pop(name)
        count += 1
    assert count > 30


def test_the_command_line_of_the_manager(tmp_path):
    (_, answer), *_ = accepted("torchtitan")
    (tmp_path / answer.files[0].name).write_text(answer.files[0].text)
    words = [sys.executable, "-m", "torchtitan.config.manager", "--module", "memfit_torchtitan", "--config", "job"]
    run(words, tmp_path, PYTHONPATH=str(tmp_path))
