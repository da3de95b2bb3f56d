"""LLaMA-Factory's own parser and cross checks on every YAML."""

from __future__ import annotations

import importlib

import pytest

pytestmark = pytest.mark.export
pytest.importorskip("llamafactory")

import yaml  # noqa: E402
from check_support import accepted  # noqa: E402


@pytest.fixture
def parser(monkeypatch):
    """The parser; it looks for optional programs and refuses bf16 without a GPU, which is not what is checked here."""
    found = importlib.import_module("llamafactory.hparams.parser")
    monkeypatch.setattr(found, "_check_extra_dependencies", lambda *_: None)
    monkeypatch.setattr(found, "is_torch_bf16_gpu_available", lambda: True)
    return found


def test_its_parser_takes_every_yaml(parser):
    count = 0
    for what, answer in accepted("llama-factory"):
        settings = yaml.safe_load({file.name: file.text for file in answer.files}["llama-factory.yaml"])
        stage = settings.pop("deepspeed", None)  # DeepSpeed's own check has its own environment
        assert bool(stage) == (answer.plan.zero > 0)
        model, data, training, tuning, _ = parser.get_train_args({**settings, "use_cpu": True})
        plan = answer.plan
        assert training.per_device_train_batch_size == plan.micro_batch, what
        assert data.cutoff_len in (plan.seq_len, plan.seq_len - 1)  # packing keeps a token for padding
        assert tuning.finetuning_type == ("lora" if plan.adapters else "freeze" if plan.method == "freeze" else "full")
        assert tuning.pure_bf16 == (plan.precision == "bf16")
        assert model.disable_gradient_checkpointing == (plan.checkpointing == "none")
        assert (model.quantization_bit is not None) == (plan.weights in ("nf4", "nf4-dq", "fp4", "int8"))
        if plan.adapters:
            assert tuning.lora_rank == plan.lora_rank
        count += 1
    assert count > 40


def test_its_parser_refuses_what_it_should(parser):
    """The check means something: unknown keys and quantised full training are refused."""
    (_, answer), *_ = accepted("llama-factory")
    settings = yaml.safe_load(answer.files[0].text)
    settings.pop("deepspeed", None)
    with pytest.raises(ValueError, match="not used"):
        parser.get_train_args({**settings, "use_cpu": True, "frobnicate": 1})
    with pytest.raises(ValueError, match="only compatible"):
        parser.get_train_args({**settings, "use_cpu": True, "quantization_bit": 4})
