"""DeepSpeed's own parser on every DeepSpeed JSON that exports write, and a short run of its engine on the CPU."""

from __future__ import annotations

import json
import os

import pytest

pytestmark = pytest.mark.export
pytest.importorskip("deepspeed")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from check_support import accepted, losses, run, tiny, tokens, torchrun  # noqa: E402


@pytest.fixture(autouse=True)
def world(monkeypatch):
    """The parser asks torch.distributed how many processes there are; a single process says what the job says."""
    from deepspeed.runtime import config

    answers = {"size": 1}
    monkeypatch.setattr(config.dist, "get_rank", lambda *_, **__: 0)
    monkeypatch.setattr(config.dist, "get_world_size", lambda *_, **__: answers["size"])
    return answers


@pytest.mark.parametrize("name", ["deepspeed", "trl", "transformers", "axolotl", "llama-factory"])
def test_its_parser_takes_every_configuration(world, name):
    """Batch sizes multiply out, the ZeRO section has no unknown key, precision is one."""
    from deepspeed.runtime.config import DeepSpeedConfig

    count = 0
    for what, answer in accepted(name):
        texts = {file.name: file.text for file in answer.files}
        if "deepspeed.json" not in texts:
            continue
        plan = answer.plan
        world["size"] = plan.dp
        tree = json.loads(texts["deepspeed.json"])
        config = DeepSpeedConfig(tree)
        assert config.train_batch_size == plan.global_batch, what
        assert config.train_micro_batch_size_per_gpu == plan.micro_batch
        assert config.gradient_accumulation_steps == plan.grad_accum
        assert config.zero_optimization_stage == plan.zero
        assert config.bfloat16_config.enabled == plan.precision.startswith("bf16")
        moved = config.zero_config.offload_optimizer
        assert (moved is not None and moved.device == "cpu") == ("optimizer" in plan.offload)
        count += 1
    assert count > 10


def test_the_parser_refuses_what_it_should(world):
    """The check means something: a wrong product and an unknown ZeRO key are refused."""
    from deepspeed.runtime.config import DeepSpeedConfig

    (_, answer), *_ = [pair for pair in accepted("deepspeed") if pair[1].plan.zero == 3]
    tree = json.loads(answer.files[0].text)
    world["size"] = answer.plan.dp
    with pytest.raises(AssertionError):
        DeepSpeedConfig({**tree, "train_batch_size": 7})
    with pytest.raises(Exception, match=r"extra_forbidden|Extra inputs"):
        DeepSpeedConfig({**tree, "zero_optimization": {**tree["zero_optimization"], "stagge": 3}})


@pytest.mark.parametrize("zero", [2, 3])
def test_the_engine_trains(tmp_path, zero):
    tokens(tmp_path / "tokens.pt")
    folder = tiny("deepspeed", tmp_path / "run", precision="fp32", zero=zero)
    text = run(torchrun("train.py", "--steps", "2", "--data", "../tokens.pt"), folder, DS_ACCELERATOR="cpu")
    found = losses(text)
    assert len(found) == 2
    assert all(5 < loss < 8 for loss in found)
