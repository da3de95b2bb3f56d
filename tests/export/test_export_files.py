"""The files: complete, commented, written into one folder, never over others; hostile imports are refused."""

from __future__ import annotations

import json
import re
from contextlib import suppress

import pytest
from click.testing import CliRunner
from export_jobs import LAUNCHERS, PROGRAMS, TINY, base, changes, job
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit import __version__
from memfit.cli.app import app
from memfit.errors import InputFileError, JobErrors, MemfitError
from memfit.export import NAMES, File, export, target
from memfit.export.folder import write_files
from memfit.export.importing import READABLE, import_files
from memfit.export.modules import parse_module
from memfit.export.reading import Source
from memfit.export.text import Setting, scalar, tree, yaml
from memfit.readers import parse_text

PLAIN = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb", "MEMFIT_DEBUG": "1"}


def run(*words, stdin=None):
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin, env=PLAIN)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_head_says_who_wrote_it_for_which_version_and_why(name):
    answer = export(job(**base(name)), name, program="fsdp2" if name in LAUNCHERS else None)
    heads = [file.text for file in answer.files if not file.name.endswith((".json", "node.sh"))]
    assert any(f"written by memfit {__version__} for" in text for text in heads)
    whole = "\n".join(heads)
    assert f"for {answer.target.tool}." in whole
    assert "What was chosen, and why:" in whole
    assert re.search(r"#   seq_len +2048 +stated", whole)
    assert "Run: " in whole


@pytest.mark.parametrize("name", PROGRAMS)
def test_scripts_are_python_and_shell_begins_with_its_shebang(name):
    for lever, around, value in changes():
        try:
            answer = export(job(**{**base(name, **around), lever: value}), name)
        except JobErrors:
            continue
        for file in answer.files:
            if file.name.endswith(".py"):
                compile(file.text, file.name, "exec")
            elif file.name.endswith(".sh"):
                assert file.text.startswith("#!/usr/bin/env bash\n")
                assert file.executable
            elif file.name.endswith(".json"):
                assert json.loads(file.text)
            else:
                assert isinstance(parse_text(file.text, "yaml", file.name), dict)
            assert file.text.endswith("\n")
            assert "None GiB" not in file.text
        if lever not in ("precision", "method", "zero"):
            continue  # the others change values, not the structure


def test_a_model_given_by_its_configuration_is_written_too():
    (config,) = [f for f in export(job(**base("fsdp2", config=TINY)), "fsdp2").files if f.name == "model/config.json"]
    assert json.loads(config.text) == TINY


@pytest.mark.parametrize(
    ("model", "loads", "task"),
    [
        ("qwen3-0.6b", "AutoModelForCausalLM", '"CAUSAL_LM"'),
        ("bert-base-uncased", "AutoModelForMaskedLM", "None"),
        ("t5-base", "AutoModelForSeq2SeqLM", '"SEQ_2_SEQ_LM"'),
        ("qwen2-vl-2b", "AutoModelForImageTextToText", '"CAUSAL_LM"'),
    ],
)
def test_scripts_load_each_kind_of_model_by_its_class(model, loads, task):
    fields = {"model": model, "gpu": "rtx-4090", "seq_len": 512, "method": "lora"}
    for name in ("transformers", "accelerate"):
        text = next(file.text for file in export(job(**fields), name).files if file.name == "train.py")
        assert f"{loads}.from_pretrained(" in text
        assert set(re.findall(r"AutoModelFor\w+", text)) == {loads}
        assert f"task_type={task}" in text


@pytest.mark.parametrize("name", [n for n in NAMES if n not in LAUNCHERS and "encoder" not in target(n).kinds])
def test_a_model_that_the_tool_does_not_train_is_refused(name):
    with pytest.raises(JobErrors) as caught:
        export(job(model="bert-base-uncased", gpu="rtx-4090", seq_len=512), name)
    assert caught.value.errors[0].path == "model.name"
    assert "transformers" in caught.value.errors[0].hint


def test_layers_of_a_vision_model_are_its_decoder_s():
    text = export(job(model="qwen2.5-vl-7b", gpu="2xh100", zero=3), "fsdp2").files[0].text
    torch = pytest.importorskip("torch")
    code = re.search(r"def layers_of.*?\n\n\n", text, re.DOTALL).group()
    space = {"torch": torch}
    exec(code, space)
    model = torch.nn.Module()
    model.visual, model.text = torch.nn.Module(), torch.nn.Module()
    model.visual.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    model.text.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(2))
    assert space["layers_of"](model) is model.text.layers


@pytest.mark.parametrize("name", ["megatron", "megatron-bridge"])
def test_stages_of_unequal_length_are_spelled_out(name):
    fields = {"model": "llama-3.1-405b", "gpu": "512xh100", "tp": 8, "pp": 16, "zero": 1, "sequence_parallel": True}
    text = "".join(file.text for file in export(job(**fields, loss="compiled"), name).files)
    layout = re.search(r"E[t*0-9|]+L", text).group()
    stages = [int(part.removeprefix("t*")) for part in layout.strip("EL").split("|")]
    assert stages == [8] * 14 + [7] * 2
    even = export(job(**{**fields, "model": "llama-3.1-70b"}, loss="compiled"), name)
    assert all("layout" not in file.text for file in even.files)


def test_what_an_old_card_lacks_is_said():
    answer = export(job(model="qwen3-0.6b", gpu="t4", method="qlora"), "transformers")
    assert any("FlashAttention" in text for text in answer.warnings)
    assert any("bf16" in text for text in answer.warnings)
    able = {"precision": "fp16-mixed", "attention": "sdpa"}
    answer = export(job(model="qwen3-0.6b", gpu="t4", method="qlora", **able), "transformers")
    assert answer.warnings == ()
    assert "compute_dtype=torch.float16" in next(f.text for f in answer.files if f.name == "train.py")


def test_settings_as_yaml_read_back():
    rows = [
        Setting("", None, "a title"),
        Setting("plain", "meta-llama/Llama-3.1-8B", "why"),
        Setting("odd", "yes"),
        Setting("regex", r".*\bq_proj\b.*"),
        Setting("small", 0.00002),
        Setting("switch", True),
        Setting("nothing", None),
        Setting("names", ["q_proj", "no", "1e5"]),
        Setting("inner", [Setting("a", 1, "x " * 90), Setting("b", {"c": 0.5})]),
        Setting("rows", [{"path": "a b", "type": "x: y"}]),
    ]
    import yaml as pyyaml

    text = yaml(rows)
    assert parse_text(text, "yaml", "x") == tree(rows)
    assert pyyaml.safe_load(text) == tree(rows)
    assert max(map(len, text.splitlines())) <= 120


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**9), 10**9)
        | st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=("Cs", "Cc", "Cn", "Co")), max_size=12),
        st.lists,
        max_leaves=4,
    )
)
def test_scalars_read_back_by_both_readers(value):
    import yaml as pyyaml

    text = scalar(value)
    assert pyyaml.safe_load(f"a: {text}\n") == {"a": value}


def test_nothing_is_written_over(tmp_path):
    files = [
        File(name="a.yaml", text="1\n"),
        File(name="model/config.json", text="{}\n"),
        File(name="r.sh", text="x", executable=True),
    ]
    paths = write_files(files, tmp_path / "out")
    assert [path.read_text() for path in paths] == ["1\n", "{}\n", "x"]
    assert paths[2].stat().st_mode & 0o111
    with pytest.raises(MemfitError, match=r"a\.yaml` and 2 more exist:"):
        write_files(files, tmp_path / "out")
    write_files([File(name="a.yaml", text="2\n")], tmp_path / "out", force=True)
    assert paths[0].read_text() == "2\n"
    with pytest.raises(MemfitError, match="exists: nothing is written"):
        write_files([File(name="b.yaml", text="3\n"), File(name="a.yaml", text="3\n")], tmp_path / "out")
    assert not (tmp_path / "out/b.yaml").exists()


def test_links_and_folders_are_never_written_over(tmp_path):
    (tmp_path / "secret").write_text("keep")
    (tmp_path / "a.yaml").symlink_to(tmp_path / "secret")
    (tmp_path / "b.yaml").mkdir()
    for name in ("a.yaml", "b.yaml"):
        with pytest.raises(MemfitError, match="not a plain file"):
            write_files([File(name=name, text="x")], tmp_path, force=True)
    assert (tmp_path / "secret").read_text() == "keep"
    with pytest.raises(MemfitError, match="cannot be written to"):
        write_files([File(name="x/y", text="x")], tmp_path / "secret")


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_export_on_the_command_line(tmp_path):
    words = ["export", "llama-3.2-1b", "--gpu", "8xh100", "--zero", "3", "--to", "trl"]
    shown = run(*words)
    assert shown.exit_code == 0
    assert "==> sft.yaml <==" in shown.stdout
    wrote = run(*words, "--out", tmp_path / "run")
    assert wrote.stdout.startswith("wrote ")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"sft.yaml", "deepspeed.json", "run.sh"}
    again = run(*words, "--out", tmp_path / "run")
    assert (again.exit_code, again.stdout) == (2, "")
    assert "--force" in again.stderr
    assert run(*words, "--out", tmp_path / "run", "--force").exit_code == 0
    document = json.loads(run(*words, "--json").stdout)
    assert document["target"] == "trl"
    assert {row["name"] for row in document["levers"]} >= {"zero", "precision", "loss"}
    assert document["files"][0]["text"].startswith("# configuration of `trl sft`")
    assert run(*words, "-q").stdout.split() == ["sft.yaml", "deepspeed.json", "run.sh"]


def test_a_job_of_another_framework_is_said():
    shown = run("export", "llama-3.2-1b", "--gpu", "8xh100", "--zero", "3", "-f", "torch", "--to", "accelerate")
    assert "warning: the job is of torch" in shown.stderr


def test_list_and_usage():
    text = run("export", "--list").stdout
    assert all(f"{name} " in text for name in NAMES)
    assert {t["name"] for t in json.loads(run("export", "--list", "--json").stdout)["targets"]} == set(NAMES)
    assert run("export", "llama-3.2-1b").exit_code == 2
    assert "no job is given" in run("export", "--to", "trl").stderr
    assert "wound down" in run("export", "llama-3.2-1b", "--to", "torchtune", "--precision", "bf16").stderr


def test_import_and_estimate_on_the_command_line(tmp_path):
    run("export", "llama-3.2-1b", "--gpu", "8xh100", "--zero", "3", "--to", "axolotl", "--out", tmp_path)
    found = run("import", tmp_path / "axolotl.yaml", "--gpu", "8xh100")
    assert (found.exit_code, found.stderr) == (0, "")
    piped = run("estimate", "-", "-q", stdin=found.stdout)
    direct = run("estimate", tmp_path / "axolotl.yaml", "--from", "auto", "--gpu", "8xh100", "-q")
    assert piped.stdout == direct.stdout
    assert piped.stdout.startswith("fits")
    for flag in ("--json", "--yaml"):
        again = run("import", tmp_path / "axolotl.yaml", "--gpu", "8xh100", flag)
        assert run("estimate", "-", "-q", stdin=again.stdout).stdout == direct.stdout
    assert run("import", tmp_path / "axolotl.yaml", "--json", "--yaml").exit_code == 2
    assert run("estimate", "--from", "axolotl").exit_code == 2
    assert run("estimate", "-", stdin="{").exit_code == 2
    assert run("estimate", "-", stdin="- 1").exit_code == 2


def test_what_a_configuration_leaves_open_is_said(tmp_path):
    path = tmp_path / "axolotl.yaml"
    path.write_text("base_model: ${MODEL}\nadapter: lora\nmicro_batch_size: 2\nsequence_len: 1024\n", encoding="utf-8")
    found = run("import", path)
    assert found.exit_code == 0
    assert "`base_model` = ${MODEL} was not understood" in found.stderr
    assert "the model is not stated" in found.stderr
    path.write_text("model: {_component_: torchtune.x}\noutput_dir: x\nlearning_rate: 1\n", encoding="utf-8")
    assert "a configuration of torchtune, which is not read" in run("import", path).stderr
    assert import_files(path, of="LLaMA_Factory").targets == (target("llama-factory"),)
    assert run("estimate", "-", stdin="model: llama-3.1-8b").stderr.count("hint: write a table [model]") == 1


# ---- hostile configurations ------------------------------------------------------------------------------------------

KEYS = sorted(
    {key for name in READABLE for mark in target(name).marks for key in mark}
    | set(
        """adapter lora_r lora_target_modules lora_target deepspeed fsdp fsdp_config optim optimizer bf16 fp16 dtype
        gradient_checkpointing activation_offloading torch_compile attn_implementation unfrozen_parameters trainable
        quantization_bit zero_optimization offload_optimizer stage device training parallelism model compile
        activation_checkpoint local_batch_size tensor_parallel_degree pipeline_parallel_degree parallelism_config
        dp_shard_size deepspeed_config dynamo_config mixed_precision num_processes liger_kernel_config lora_alpha
        bnb_config_kwargs rl freeze_trainable_layers additional_target converters flavor name seq_len loss
        pipeline_parallel_schedule pipeline_parallel_layers_per_stage model_spec""".split()  # noqa: SIM905
    )
)
LEAVES = st.none() | st.booleans() | st.integers(-5, 1 << 40) | st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.sampled_from(
    ("auto", "true", "no", "cpu", "bf16", "full", "lora", "qlora", "zero3.json", "", "1f1b", "-1", "é")
)
TREES = st.dictionaries(
    st.sampled_from(KEYS),
    st.recursive(
        LEAVES | WORDS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
        max_leaves=6,
    ),
    max_size=8,
)  # fmt: skip


@pytest.mark.parametrize("name", READABLE)
@settings(max_examples=100)
@given(tree=TREES)
def test_no_tree_breaks_a_reader(name, tree):
    """Whatever a file holds, it is read, or refused as the job that it would make."""
    from memfit.export.importing import _document, _settle
    from memfit.job import load

    read = target(name).read
    assert read is not None
    found = read(Source(name="x", tree=tree))
    _settle(found)
    try:
        load(_document(found))
    except JobErrors:
        return


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader_of_modules(text):
    with suppress(InputFileError):
        parse_module(text, "x")


@pytest.mark.parametrize(("model", "sees"), [("qwen2.5-vl-3b", True), ("gemma-3-4b", True), ("llama-3.2-3b", False)])
def test_axolotl_trains_a_vision_model_with_its_processor(model, sees):
    text = export(job(model=model, gpu="h100", method="lora", framework="axolotl"), "axolotl").files[0].text
    found = parse_text(text, "yaml", "axolotl.yaml")
    assert found.get("processor_type") == ("AutoProcessor" if sees else None)
    assert found.get("skip_prepare_dataset") == (True if sees else None)
    assert found.get("remove_unused_columns") == (False if sees else None)
    assert found["sample_packing"] is not sees
    assert found["datasets"][0]["type"] == ("chat_template" if sees else "alpaca")
