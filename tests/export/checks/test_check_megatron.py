"""Megatron-Core's and Megatron-Bridge's own configuration classes, and Lightning's Trainer, on the exports."""

from __future__ import annotations

import dataclasses
import importlib.abc
import importlib.machinery
import importlib.util
import re
import shlex
import sys
from unittest.mock import MagicMock

import pytest

pytestmark = pytest.mark.export
pytest.importorskip("megatron.core")

from check_support import accepted, run, tiny, tokens, torchrun  # noqa: E402

from memfit.formula.training import rank_layers  # noqa: E402

TRAINING = {
    "attention_backend", "data_path", "disable_bias_linear", "fp4_format", "fp4_recipe", "fp8_format", "fp8_recipe",
    "global_batch_size", "group_query_attention", "log_interval", "lr", "lr_decay_style", "max_position_embeddings",
    "micro_batch_size", "min_lr", "mock_data", "num_experts", "num_layers_per_virtual_pipeline_stage",
    "position_embedding_type", "rotary_base", "save", "save_interval", "seq_length", "swiglu", "tokenizer_model",
    "tokenizer_type", "train_iters", "transformer_impl", "untie_embeddings_and_output_weights", "use_mcore_models",
    "qk_layernorm", "clip_grad", "bf16", "fp16", "num_virtual_stages_per_pipeline_rank",
    "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers",
}  # fmt: skip
"""Arguments of megatron/training/arguments.py that no configuration of Megatron-Core holds under the same name."""


RENAMED = {
    "num_experts": "num_moe_experts",
    "decoder_first_pipeline_num_layers": "num_layers_in_first_pipeline_stage",
    "decoder_last_pipeline_num_layers": "num_layers_in_last_pipeline_stage",
}
"""Argument -> field of ``TransformerConfig``, where they are called differently."""


def layers_of_ranks(config):
    """Decoder layers of each pipeline rank, by Megatron-Core."""
    from megatron.core.transformer.enums import LayerType
    from megatron.core.transformer.transformer_block import get_num_layers_to_build

    chunks = range(config.virtual_pipeline_model_parallel_size or 1)
    layout = config.pipeline_model_parallel_layout
    return tuple(
        sum(
            layout.layout[rank][chunk].count(LayerType.decoder)
            if layout
            else get_num_layers_to_build(config, vp_stage=chunk, pp_rank=rank)
            for chunk in chunks
        )
        for rank in range(config.pipeline_model_parallel_size)
    )


def arguments(text):
    """The arguments of the script's arrays, as Megatron's parser would see them."""
    found = {}
    for array in re.findall(r"^[A-Z]+=\(\n(.*?)^\)", text, re.DOTALL | re.MULTILINE):
        words = shlex.split(array, comments=True)
        for at, word in enumerate(words):
            if word.startswith("--"):
                values = []
                for value in words[at + 1 :]:
                    if value.startswith("--"):
                        break
                    values.append(value)
                found[word[2:].replace("-", "_")] = values
    return found


def typed(values, kind):
    if not values:
        return True
    if ("List" in str(kind) or "list" in str(kind)) and "Union[str, list" not in str(kind):
        return values
    word = values[0]
    return int(word) if re.fullmatch(r"-?\d+", word) else float(word) if re.fullmatch(r"-?\d*\.\d+", word) else word


def build(cls, given, **fixed):
    fields = {field.name: field.type for field in dataclasses.fields(cls) if field.init}
    return cls(**{key: typed(values, fields[key]) for key, values in given.items() if key in fields}, **fixed), fields


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    """Offloading asks how new Transformer Engine is, which a CPU cannot have: new enough."""
    import megatron.core.optimizer.optimizer_config as asking

    monkeypatch.setattr(asking, "is_te_min_version", lambda *_: True)


def test_core_classes_take_every_argument():
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer import TransformerConfig

    count = 0
    for what, answer in accepted("megatron"):
        plan = answer.plan
        given = arguments(answer.files[0].text)
        shaped = {
            key: value for key, value in given.items() if key not in ("attention_backend", "fp8_recipe", "fp4_recipe")
        }
        renamed = {field: given[name] for name, field in RENAMED.items() if name in given}
        if plan.virtual_pp > 1:
            renamed["virtual_pipeline_model_parallel_size"] = [str(plan.virtual_pp)]
        import torch

        pipeline = {"pipeline_dtype": torch.bfloat16} if plan.pp > 1 else {}
        config, model = build(
            TransformerConfig, {**shaped, **renamed}, add_bias_linear=False, gated_linear_unit=True, **pipeline
        )
        _, optimizer = build(OptimizerConfig, shaped)
        _, ddp = build(DistributedDataParallelConfig, shaped)
        unknown = set(given) - set(model) - set(optimizer) - set(ddp) - TRAINING
        assert not unknown, what
        assert config.tensor_model_parallel_size == plan.tp
        assert config.num_layers == plan.arch.decoder.num_layers
        assert config.sequence_parallel == plan.sequence_parallel
        assert layers_of_ranks(config) == rank_layers(plan.estimate.resolved), what
        assert int(given["global_batch_size"][0]) == plan.global_batch
        count += 1
    assert count > 25


def test_core_refuses_what_it_should():
    from megatron.core.transformer import TransformerConfig

    (_, answer), *_ = accepted("megatron")
    given = {k: v for k, v in arguments(answer.files[0].text).items() if k != "attention_backend"}
    with pytest.raises(ValueError, match="multiple of"):
        build(TransformerConfig, {**given, "tensor_model_parallel_size": ["7"]})


class Stub(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """GPU libraries that Megatron-Bridge imports and that a CPU cannot have."""

    roots = ("transformer_engine", "transformer_engine_torch", "mamba_ssm", "causal_conv1d", "fla", "timm", "open_clip",
             "nvidia_resiliency_ext", "mlflow", "wandb", "qwen_vl_utils", "einops",
             "flash_attn", "triton", "modelopt")  # fmt: skip

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in self.roots else None

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__, module.__version__ = [], spec, spec.name, "2.12.0"
        return module

    def exec_module(self, module):
        pass


def test_bridge_builds_every_container(tmp_path, monkeypatch):
    """``config()`` of the script with Megatron-Bridge's own classes; only the checkpoint's reader is replaced."""
    pytest.importorskip("omegaconf")
    if importlib.util.find_spec("megatron.bridge") is None:
        pytest.skip("megatron-bridge is not installed")
    monkeypatch.setattr(sys, "meta_path", [Stub(), *sys.meta_path])
    from megatron.bridge.models.gpt_provider import GPTModelProvider
    from megatron.bridge.training.config import ConfigContainer

    class Bridge:
        @classmethod
        def from_hf_pretrained(cls, name):
            return cls()

        def to_megatron_provider(self, load_weights):
            return GPTModelProvider(num_layers=16, hidden_size=2048, num_attention_heads=32, num_moe_experts=None)

    count = 0
    for what, answer in accepted("megatron-bridge"):
        path = tmp_path / f"train_{count}.py"
        text = answer.files[0].text
        path.write_text(text.replace("from megatron.bridge import AutoBridge\n", ""))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        module.AutoBridge = Bridge
        spec.loader.exec_module(module)
        config = module.config()
        plan = answer.plan
        assert isinstance(config, ConfigContainer), what
        assert config.model.tensor_model_parallel_size == plan.tp
        assert config.train.global_batch_size == plan.global_batch
        assert config.ddp.use_distributed_optimizer == (plan.zero > 0)
        assert config.get_data_parallel_size(plan.gpus) == plan.dp
        assert layers_of_ranks(config.model) == rank_layers(plan.estimate.resolved), what
        assert (config.peft is not None) == plan.adapters
        count += 1
    assert count > 25


@pytest.mark.parametrize("fields", [{"zero": 0}, {"zero": 0, "method": "lora", "precision": "bf16"}])
def test_lightning_trains(tmp_path, fields):
    pytest.importorskip("lightning")
    tokens(tmp_path / "tokens.pt")
    folder = tiny("lightning", tmp_path / "run", **{"precision": "fp32", **fields})
    text = run(torchrun("train.py", "--steps", "2", "--data", "../tokens.pt"), folder)
    assert re.search(r"^loss \d\.\d+", text, re.MULTILINE)


def test_lightning_takes_every_precision_and_strategy():
    """Names of precision and strategy are those of Lightning."""
    pytest.importorskip("lightning")
    from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy

    for _, answer in accepted("lightning"):
        text = answer.files[0].text
        compile(text, "train.py", "exec")
        call = re.search(r"strategy=(\w+\(.*?\))", text)
        if call and call[1].startswith("ModelParallel"):
            eval(call[1], {"ModelParallelStrategy": ModelParallelStrategy})
        elif call:
            assert all(f"{name}=" in call[1] for name in re.findall(r"(\w+)=", call[1]))
            assert DeepSpeedStrategy.__init__.__code__.co_varnames[: len(re.findall(r"(\w+)=", call[1]))]
