"""transformers, accelerate, TRL and PyTorch: their own classes and launchers on the exports, short runs on a CPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys

import pytest

pytestmark = pytest.mark.export
pytest.importorskip("trl")
pytest.importorskip("accelerate")

import yaml  # noqa: E402
from check_support import LAUNCHED, accepted, losses, run, tiny, tokens, torchrun  # noqa: E402

STEPS = ("--steps", "3", "--data", "../tokens.pt")


def texts(answer):
    return {file.name: file.text for file in answer.files}


def module_of(path):
    spec = importlib.util.spec_from_file_location(f"exported_{path.parent.name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# ---- classes ---------------------------------------------------------------------------------------------------------


def test_accelerate_reads_every_configuration(tmp_path):
    """Its config class takes the file, and its launcher has an option for each key (unknown FSDP keys pass unseen)."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin, ParallelismConfig

    options = {action.dest for action in launch_command_parser()._actions}
    fields = {field.name for field in dataclasses.fields(FullyShardedDataParallelPlugin)}
    renamed = {
        "version": "fsdp_version",
        "offload_params": "cpu_offload",
        "transformer_layer_cls_to_wrap": "auto_wrap_policy",
    }
    count = 0
    for what, answer in accepted("accelerate"):
        path = tmp_path / "accelerate.yaml"
        path.write_text(texts(answer)["accelerate.yaml"])
        config = load_config_from_file(str(path))
        for key in config.fsdp_config:
            assert key in options, what
            plain = key.removeprefix("fsdp_")
            assert renamed.get(plain, plain) in fields, what
        assert set(config.parallelism_config) <= options
        assert config.num_processes == answer.plan.gpus
        if config.parallelism_config:
            sizes = {k.removeprefix("parallelism_config_"): v for k, v in config.parallelism_config.items()}
            assert ParallelismConfig(**sizes).total_size == answer.plan.gpus
        count += 1
    assert count > 30


def test_training_arguments_take_every_yaml(tmp_path):
    from transformers import HfArgumentParser, TrainingArguments

    path = tmp_path / "train.py"
    count = 0
    for what, answer in accepted("transformers"):
        files = texts(answer)
        path.write_text(files["train.py"])
        arguments = module_of(path).Arguments
        settings = yaml.safe_load(files["training.yaml"])
        if settings.pop("deepspeed", None):  # DeepSpeed's own check has its own environment
            assert json.loads(files["deepspeed.json"])["zero_optimization"]["stage"] == answer.plan.zero
        # Needs the program, not its configuration: checked where it is installed.
        assert not settings.pop("use_liger_kernel", None) or answer.plan.loss == "fused"
        args, training = HfArgumentParser((arguments, TrainingArguments)).parse_dict({**settings, "use_cpu": True})
        plan = answer.plan
        assert training.per_device_train_batch_size == plan.micro_batch, what
        assert training.gradient_accumulation_steps == plan.grad_accum
        assert args.seq_len == plan.seq_len
        assert training.bf16 == (plan.precision == "bf16-mixed")
        if plan.zero == 3 and "fsdp" in settings:
            assert training.fsdp_plugin_args["reshard_after_forward"] is plan.reshard
            assert training.fsdp_plugin_args["activation_checkpointing"] == (plan.checkpointing == "full")
        count += 1
    assert count > 40


def test_trl_takes_every_yaml(tmp_path):
    from trl import DPOConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

    count = 0
    for what, answer in accepted("trl"):
        name = "dpo" if answer.plan.method == "dpo" else "sft"
        settings = yaml.safe_load(texts(answer)[f"{name}.yaml"])
        settings.pop("deepspeed", None)
        path = tmp_path / "x.yaml"
        path.write_text(yaml.safe_dump({**settings, "use_cpu": True}))
        config = DPOConfig if name == "dpo" else SFTConfig
        parser = TrlParser((ScriptArguments, config, ModelConfig))
        _, training, model = parser.parse_args_and_config(["--config", str(path)], fail_with_unknown_args=True)
        plan = answer.plan
        assert training.max_length == plan.seq_len, what
        assert model.use_peft == plan.adapters
        assert training.activation_checkpointing == (plan.checkpointing == "full" and "fsdp" not in settings)
        assert training.bf16 == (plan.precision == "bf16-mixed")
        count += 1
    assert count > 40


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Losses of the plain script on two processes, without sharding, in fp32; and where everything lies."""
    root = tmp_path_factory.mktemp("runs")
    tokens(root / "tokens.pt")
    tiny("fsdp2", root / "plain", precision="fp32")
    return root, losses(run(torchrun("train.py", *STEPS), root / "plain"))


LAYOUTS = {
    "zero1": {"zero": 1},
    "fsdp2": {"zero": 3},
    "keep": {"zero": 3, "reshard": False},
    "recomputed": {"zero": 3, "checkpointing": "full", "loss": "chunked"},
    "selective": {"zero": 3, "checkpointing": "selective"},
    "every-second": {"zero": 0, "checkpointing": 2},
    "offload": {"zero": 0, "offload": ("activations",), "loss": "chunked"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_plain_scripts_agree(reference, name):
    """Sharding, recomputation, chunks and offloading change memory, not what is computed."""
    root, wanted = reference
    assert len(wanted) == 3
    tiny("fsdp2", root / name, precision="fp32", **LAYOUTS[name])
    assert losses(run(torchrun("train.py", *STEPS), root / name)) == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("lora", {"method": "lora", "zero": 3, "precision": "bf16-mixed", "weights": "bf16"}),
        ("freeze", {"method": "freeze", "trainable": 1, "precision": "bf16", "zero": 0}),
        ("backward", {"optimizer_in_backward": True, "grad_accum": 1, "zero": 3, "precision": "bf16"}),
        ("muon", {"optimizer": "muon", "precision": "fp32"}),
    ],
)
def test_plain_scripts_run(reference, name, fields):
    root, _ = reference
    tiny("fsdp2", root / name, **fields)
    found = losses(run(torchrun("train.py", *STEPS), root / name))
    assert len(found) == 3
    assert all(5 < loss < 8 for loss in found)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_accelerate_launches_the_loop(reference, name):
    root, wanted = reference
    folder = tiny("accelerate", root / f"accelerate-{name}", precision="fp32", zero=3 if name == "fsdp" else 0)
    path = folder / "accelerate.yaml"
    path.write_text(path.read_text().replace("use_cpu: false", "use_cpu: true"))
    words = ["accelerate", "launch", "--config_file", "accelerate.yaml", LAUNCHED, "train.py", *STEPS]
    found = losses(run(words, folder, ACCELERATE_USE_CPU="true"))
    assert found == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize("fields", [{"zero": 0}, {"zero": 3, "framework": "torch", "checkpointing": "full"}])
def test_the_trainer_script_runs(tmp_path, fields):
    tiny("transformers", tmp_path, precision="fp32", **fields)
    text = run(torchrun("train.py", "training.yaml", "--cpu"), tmp_path)
    assert "train_loss" in text


@pytest.mark.parametrize(
    "fields", [{"zero": 0, "method": "lora"}, {"zero": 3, "framework": "torch", "checkpointing": "full"}]
)
def test_trl_trains(tmp_path, fields):
    """`trl.scripts.sft` itself, on two processes, with a tiny model and a local data set."""
    tiny("trl", tmp_path, precision="fp32", **fields)
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"text": "the memory of a card holds what a step needs " * 8}] * 64
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = torchrun("-m", "trl.scripts.sft", "--config", "sft.yaml")  # accelerate starts one process without a GPU
    extra = ["--dataset_name", str(data), "--use_cpu", "true", "--max_steps", "2", "--report_to", "none"]
    text = run([*words, *extra, "--save_strategy", "no"], tmp_path)
    assert "train_loss" in text
