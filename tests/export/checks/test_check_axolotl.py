"""axolotl's own validation on every YAML, with the capabilities of eight H100s."""

from __future__ import annotations

import sys
import types

import pytest

pytestmark = pytest.mark.export
pytest.importorskip("axolotl.utils.config")

import yaml  # noqa: E402
from check_support import accepted  # noqa: E402


def validated(settings, plan):
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    sys.modules.setdefault("ring_flash_attn", types.ModuleType("ring_flash_attn"))  # GPU kernels; only looked for here

    card = {
        "bf16": True,
        "fp8": True,
        "tf32": True,
        "n_gpu": plan.gpus,
        "n_node": plan.nodes,
        "compute_capability": "sm_90",
    }
    return validate_config(DictDefault(settings), capabilities=card, env_capabilities={"torch_version": "2.13.0"})


def test_its_validation_takes_every_yaml():
    from axolotl.utils.schemas.config import AxolotlInputConfig

    known = set(AxolotlInputConfig.model_fields) | {"liger_fused_linear_cross_entropy"}
    count = 0
    for what, answer in accepted("axolotl"):
        settings = yaml.safe_load({file.name: file.text for file in answer.files}["axolotl.yaml"])
        assert set(settings) <= known, what
        config = validated(settings, answer.plan)
        plan = answer.plan
        assert config.sequence_len == plan.seq_len, what
        assert config.micro_batch_size == plan.micro_batch
        assert config.gradient_accumulation_steps == plan.grad_accum
        assert bool(config.adapter) == plan.adapters
        assert (config.tensor_parallel_size or 1) == plan.tp
        assert (config.context_parallel_size or 1) == plan.cp
        if "fsdp_config" in settings:
            assert config.fsdp_version == 2
            assert config.fsdp_config.reshard_after_forward == plan.reshard
        count += 1
    assert count > 40


def test_its_validation_refuses_what_it_should():
    (_, answer), *_ = accepted("axolotl")
    settings = yaml.safe_load(answer.files[0].text)
    with pytest.raises(ValueError, match=r"."):
        validated({**settings, "context_parallel_size": 2, "attn_implementation": "eager"}, answer.plan)
