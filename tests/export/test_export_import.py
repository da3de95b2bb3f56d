"""Exports read back are the same job, and files of others are read as far as they are understood."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_jobs import base, changes, job

from memfit.errors import InputFileError, JobErrors, MemfitError
from memfit.export import export
from memfit.export.importing import READABLE, import_files
from memfit.export.levers import LEVERS, effective
from memfit.formula.resolve import defaults_of
from memfit.job import complete, from_kwargs, load

HERE = Path(__file__).parent
CONFIGS = HERE / "configs"
CHANGES = list(changes())
MAIN = {
    "accelerate": "accelerate.yaml",
    "transformers": "training.yaml",
    "trl": ("sft.yaml", "dpo.yaml"),
    "deepspeed": "deepspeed.json",
    "axolotl": "axolotl.yaml",
    "llama-factory": "llama-factory.yaml",
    "torchtitan": "memfit_torchtitan.py",
}
HOLDS = {  # configurations that hold a part of the levers only
    "accelerate": {"precision", "zero", "dp_shard", "reshard", "compile", "offload", "gpus", "gpus_per_node"},
    "deepspeed": {"micro_batch", "grad_accum", "precision", "zero", "offload", "dp"},
}
OUTSIDE = {"config", "extra", "name", "gpus", "gpus_per_node"}


def write(answer, folder):
    for file in answer.files:
        path = folder / file.name
        path.parent.mkdir(exist_ok=True)
        path.write_text(file.text)


def main_file(name, folder):
    names = MAIN[name] if isinstance(MAIN[name], tuple) else (MAIN[name],)
    return next(folder / one for one in names if (folder / one).exists())


def levers_of(given):
    done = complete(given, defaults_of(given.strategy))
    return effective({**done.values, "name": given.model.name, "config": None, "extra": None})


def same(name, plan, found):
    """Levers that differ between an export and what was read back."""
    read = levers_of(found)
    differ = {}
    for spec in LEVERS:
        if spec.name in OUTSIDE or spec.path not in plan.target.levers:
            continue
        if name in HOLDS and spec.name not in HOLDS[name]:
            continue
        wrote, back = plan.values[spec.name], read[spec.name]
        if spec.name == "lora_alpha" and wrote is None and plan.adapters:
            wrote = 2.0 * plan.lora_rank
        if isinstance(wrote, tuple) and spec.name == "offload":
            wrote, back = set(wrote), set(back)
        if wrote != back:
            differ[spec.name] = (wrote, back)
    return differ


@pytest.mark.parametrize("name", READABLE)
def test_an_export_read_back_has_the_same_levers(name, tmp_path):
    """The law of the two directions, for every value of every lever that the target takes."""
    wrong = []
    count = 0
    for at, (lever, around, value) in enumerate(CHANGES):
        try:
            answer = export(job(**{**base(name, **around), lever: value}), name)
        except JobErrors:
            continue
        if lever == "config":
            continue
        if name == "accelerate" and not answer.plan.precision.endswith("-mixed"):
            continue  # the dtype stands in the script
        folder = tmp_path / str(at)
        folder.mkdir()
        write(answer, folder)
        plan = answer.plan
        found = import_files(
            [main_file(name, folder)], overrides={"gpus": plan.gpus, "gpus_per_node": plan.gpus_per_node}
        )
        count += 1
        differ = same(name, plan, found.job)
        if differ or found.warnings or found.targets[0].name != name:
            wrong.append((lever, around, value, differ, found.warnings, found.targets[0].name))
    assert not wrong
    assert count > 40


@pytest.mark.parametrize("name", READABLE)
def test_the_model_is_found_again(name, tmp_path):
    if name in HOLDS:
        pytest.skip("the configuration does not name the model")
    answer = export(job(**base(name)), name)
    write(answer, tmp_path)
    found = import_files([main_file(name, tmp_path)])
    assert found.job.model.name in ("meta-llama/Llama-3.2-1B", "llama-3.2-1b")


def test_two_files_make_one_job(tmp_path):
    """accelerate's configuration says how many GPUs and how they shard, the script's arguments the rest."""
    write(export(job(**base("accelerate", zero=3, framework="torch")), "accelerate"), tmp_path)
    write(export(job(**base("transformers", framework="torch", zero=0)), "transformers"), tmp_path)
    found = import_files([tmp_path / "accelerate.yaml", tmp_path / "training.yaml"])
    assert found.job.strategy.zero == 3
    assert (found.job.strategy.micro_batch, found.job.hardware.gpus, found.job.task.seq_len) == (2, 8, 2048)


def test_deepspeed_alone_says_how_many_gpus(tmp_path):
    write(export(job(**base("deepspeed", zero=2)), "deepspeed"), tmp_path)
    found = import_files([tmp_path / "deepspeed.json"])
    assert (found.job.strategy.dp, found.job.strategy.zero, found.job.strategy.micro_batch) == (8, 2, 2)


EXPECTED = {
    "axolotl-qlora.yaml": (
        "axolotl",
        {"method": "qlora", "weights": "nf4-dq", "lora_rank": 32, "seq_len": 4096, "optimizer": "paged-adamw-8bit",
         "attention": "flash", "checkpointing": "full", "precision": "bf16-mixed"},
        0,
    ),
    "axolotl-fsdp.yaml": (
        "axolotl",
        {"method": "full", "zero": 3, "offload": ("optimizer", "parameters", "gradients"), "reshard": True,
         "loss": "fused", "precision": "bf16-mixed", "checkpointing": "full"},
        1,
    ),
    "llamafactory-lora.yaml": (
        "llama-factory",
        {"method": "lora", "lora_rank": 8, "zero": 3, "seq_len": 2048, "lora_targets": "all-linear", "grad_accum": 2},
        1,
    ),
    "accelerate-fsdp1.yaml": ("accelerate", {"zero": 3, "precision": "bf16-mixed", "gpus": 8}, 1),
    "accelerate-deepspeed.yaml": (
        "accelerate", {"zero": 3, "grad_accum": 2, "offload": ("optimizer", "parameters"), "gpus": 4}, 0),
    "trl-sft.yaml": (
        "trl", {"method": "lora", "seq_len": 2048, "lora_rank": 16, "loss": "chunked", "checkpointing": "full"}, 0),
    "trainer.json": (
        "transformers", {"optimizer": "adafactor", "zero": 3, "micro_batch": 4, "compile": True}, 1),
    "deepspeed-auto.json": ("deepspeed", {"zero": 3, "offload": ("optimizer", "parameters")}, 0),
    "torchtitan-old.toml": (
        "torchtitan",
        {"name": "llama-3.1-8b", "tp": 8, "zero": 3, "checkpointing": 2, "compile": True, "precision": "fp8",
         "micro_batch": 2, "seq_len": 8192},
        0,
    ),
    "torchtitan.py": (
        "torchtitan",
        {"name": "llama-3.1-70b", "tp": 8, "sequence_parallel": True, "checkpointing": "full", "loss": "chunked",
         "micro_batch": 8, "precision": "mxfp8"},
        0,
    ),
}  # fmt: skip


def test_every_example_is_expected():
    assert {path.name for path in CONFIGS.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_what_people_write_is_read(name):
    tool, wanted, warnings = EXPECTED[name]
    found = import_files([CONFIGS / name], overrides={"model": "llama-3.1-8b"} if "name" not in wanted else None)
    assert found.targets[0].name == tool
    values = levers_of(found.job)
    assert {key: values[key] for key in wanted} == wanted
    assert len(found.warnings) == warnings, found.warnings


def test_what_is_not_understood_is_said(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("base_model: m\nmicro_batch_size: 2\noptimizer: adopt_adamw\nfrobnicate: 3\nlearning_rate: 1e-5\n")
    found = import_files([path])
    text = "\n".join(found.warnings)
    assert "adopt_adamw" in text
    assert "frobnicate" in text
    assert "learning_rate" not in text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.yaml", "a: 1\n", "no tool that is known"),
        ("x.yaml", "- 1\n", "no tool that is known"),
        ("x.txt", "a", "not a known kind of file"),
        ("x.py", "def f(:\n", "is not Python"),
        ("x.py", "(" * 3000 + ")" * 3000, "is not Python"),
        ("x.toml", "[model]\nname = 'm'\n", "is a job already"),
        ("x.json", "{", "is not JSON"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputFileError, match=message):
        import_files([path])


def test_no_code_runs(tmp_path):
    """A Python module is parsed only: what it does when imported never happens."""
    path = tmp_path / "evil.py"
    path.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nraise SystemExit(1)\n")
    found = import_files([path])
    assert not (tmp_path / "ran").exists()
    assert any("no function" in text for text in found.warnings)


def test_named_files_stay_beside_the_configuration(tmp_path):
    """A configuration cannot make memfit read files elsewhere."""
    secret = tmp_path / "secret.json"
    secret.write_text('{"zero_optimization": {"stage": 3}}')
    inner = tmp_path / "inner"
    inner.mkdir()
    for name in (str(secret), "../secret.json"):
        (inner / "x.yaml").write_text(f"base_model: m\ndeepspeed: {name}\n")
        found = import_files([inner / "x.yaml"])
        assert found.job.strategy.zero is None
        assert any("is not there" in text for text in found.warnings)


def test_the_tool_can_be_named(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("micro_batch_size: 2\nbase_model: m\n")
    assert import_files([path], of="axolotl").job.strategy.micro_batch == 2
    with pytest.raises(MemfitError, match="are not read"):
        import_files([path], of="slurm")
    with pytest.raises(MemfitError, match="unknown tool"):
        import_files([path], of="foo")


def test_an_imported_job_is_a_job(tmp_path):
    """What comes out is a document that every command takes."""
    from memfit.job import dumps

    write(export(job(**base("axolotl", zero=3)), "axolotl"), tmp_path)
    found = import_files([tmp_path / "axolotl.yaml"], overrides={"gpu": "8xh100"}).job
    path = tmp_path / "job.toml"
    path.write_text(dumps(found))
    assert load(path) == found
    assert from_kwargs(model="m") != found


# ---- the layers of pipeline ranks ------------------------------------------------------------------------------------


def looped(virtual):
    return {"pp_schedule": "interleaved", "virtual_pp": virtual, "grad_accum": 8} if virtual > 1 else {}


@pytest.mark.parametrize(
    ("layers", "virtual"),
    [((16, 0), 1), ((0, 7, 5, 4), 1), ((7, 7, 1, 1), 1)]
    + [(one, v) for one in ((7, 9), (10, 6), (3, 5, 5, 3), (4, 4, 4, 4), (5, 3, 5, 3)) for v in (1, 2, 3)],
)
def test_the_layers_of_pipeline_ranks_come_back(tmp_path, layers, virtual):
    write(export(job(**base("torchtitan", pp_layers=layers, **looped(virtual))), "torchtitan"), tmp_path)
    found = import_files([tmp_path / "memfit_torchtitan.py"], overrides={"gpus": 8})
    assert found.job.strategy.pp_layers == layers
    assert found.job.strategy.virtual_pp == (virtual if virtual > 1 else None)
    assert not found.warnings


@pytest.mark.parametrize(("layers", "virtual"), [((8, 0, 4, 4), 1), ((16, 0), 2), ((5, 2, 5, 4), 3)])
def test_torchtitan_runs_no_empty_stage(layers, virtual):
    with pytest.raises(JobErrors, match="would be empty"):
        export(job(**base("torchtitan", pp_layers=layers, **looped(virtual))), "torchtitan")


def test_torchtitans_own_split_is_not_stated(tmp_path):
    write(export(job(**base("torchtitan", pp=4)), "torchtitan"), tmp_path)
    text = (tmp_path / "memfit_torchtitan.py").read_text()
    assert "pipeline_parallel_first_stage_less_layers=1" in text
    assert import_files([tmp_path / "memfit_torchtitan.py"], overrides={"gpus": 8}).job.strategy.pp_layers is None


SPLIT_TOML = """[model]
name = "llama3"
flavor = "8B"
[training]
seq_len = 2048
[parallelism]
pipeline_parallel_degree = {pp}
pipeline_parallel_schedule = "{schedule}"
{more}
[activation_checkpoint]
mode = "none"
"""


@pytest.mark.parametrize(
    ("pp", "schedule", "more", "layers", "warnings"),
    [
        (4, "1F1B", "", None, 0),
        (4, "1F1B", "pipeline_parallel_first_stage_less_layers = 0\npipeline_parallel_last_stage_less_layers = 0",
         (8, 8, 8, 8), 0),
        (4, "1F1B", "pipeline_parallel_first_stage_less_layers = 2\npipeline_parallel_last_stage_less_layers = 2",
         (7, 9, 9, 7), 0),
        (4, "Interleaved1F1B", "pipeline_parallel_layers_per_stage = 4\npipeline_parallel_first_stage_less_layers = 0\n"
         "pipeline_parallel_last_stage_less_layers = 0", (8, 8, 8, 8), 0),
        (4, "1F1B", 'pipeline_parallel_split_points = ["layers.6", "layers.15", "layers.24"]', (6, 9, 9, 8), 0),
        (2, "Interleaved1F1B", 'pipeline_parallel_split_points = ["layers.8", "layers.17", "layers.25"]', (16, 16), 1),
        (2, "ZBVZeroBubble", 'pipeline_parallel_split_points = ["layers.8", "layers.16", "layers.24"]', None, 1),
        (4, "1F1B", 'pipeline_parallel_split_points = ["layers.6", "layers.40", "layers.24"]', None, 1),
        (4, "1F1B", 'pipeline_parallel_split_points = ["norm"]', None, 1),
    ],
)  # fmt: skip
def test_splits_of_earlier_torchtitans(tmp_path, pp, schedule, more, layers, warnings):
    path = tmp_path / "x.toml"
    path.write_text(SPLIT_TOML.format(pp=pp, schedule=schedule, more=more))
    found = import_files([path], overrides={"gpus": 8})
    assert found.job.strategy.pp_layers == (None if warnings else layers)
    assert len(found.warnings) == warnings


def test_a_split_is_refused_where_a_tool_has_no_words_for_it():
    with pytest.raises(JobErrors, match=r"TRL .* cannot express pp_layers = 7, 9") as caught:
        export(job(**base("trl", pp_layers=(7, 9))), "trl")
    (error,) = [e for e in caught.value.errors if e.path == "strategy.pp_layers"]
    assert "torchtitan, megatron, megatron-bridge" in error.hint


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"pp_layers": (3, 5, 5, 3)},
         ["--decoder-first-pipeline-num-layers 3", "--decoder-last-pipeline-num-layers 3"]),
        ({"pp_layers": (2, 6, 6, 2), "virtual_pp": 2, "grad_accum": 8},
         ["--decoder-first-pipeline-num-layers 2", "--num-virtual-stages-per-pipeline-rank 2"]),
        ({"pp_layers": (4, 4, 5, 3)}, ["--pipeline-model-parallel-layout 'Et*4|t*4|t*5|t*3L'"]),
        ({"pp_layers": (7, 9), "virtual_pp": 2, "grad_accum": 8},
         ["--pipeline-model-parallel-layout 'Et*3|t*5|t*4|t*4L'"]),
        ({"pp_layers": (8, 8)}, ["--pipeline-model-parallel-size 2"]),
    ],
)  # fmt: skip
def test_megatron_is_told_the_split(fields, wanted):
    text = export(job(**base("megatron", **fields)), "megatron").files[0].text
    flags = ("--decoder", "--num-virtual", "--num-layers-per", "--pipeline-model-parallel-layout")
    told = [line.split("  # ")[0].strip() for line in text.splitlines() if line.strip().startswith(flags)]
    assert all(one in text for one in wanted)
    assert bool(told) == (len(set(fields["pp_layers"])) > 1)
    assert not any(line.startswith("--num-layers-per") for line in told)


def test_megatron_has_no_stage_without_layers():
    fields = base("megatron", model="llama-3.2-1b", gpus=128, tp=4, pp=32)
    with pytest.raises(JobErrors, match="16 layers are fewer than 32 stages"):
        export(job(**fields), "megatron")
