"""Reading a job: types, shorthands, overrides, keyword arguments, hints, and truth of the field table."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from memfit import job
from memfit.errors import InputFileError, JobErrors
from memfit.job import BY_NAME, BY_PATH, FIELDS, Hardware, Job, Lora, Model, Strategy, Task
from memfit.job.fields import FOREIGN, IRRELEVANT, SECTIONS, default_of

EXAMPLE = """
schema = 1
[model]
name = "llama-3.1-8b"
extra = { mtp_layers = 1 }
[task]
kind = "train"
method = "lora"
seq_len = "8k"
global_batch = 64
lora = { rank = 16, targets = ["q_proj", "v_proj"], train_also = [] }
[strategy]
framework = "torchtitan"
framework_version = "0.3"
precision = "bf16-mixed"
micro_batch = 1
grad_accum = 8
dp = 8
zero = 3
checkpointing = 2
offload = ["parameters", "optimizer"]
weights = { bpw = 4.9 }
[hardware]
gpu = "h100-sxm-80gb"
gpus = 8
memory_gib = "79.2GiB"
"""


def faults(source, overrides=None):
    with pytest.raises(JobErrors) as caught:
        job.load(source, overrides)
    return {error.path: error for error in caught.value.errors}


def strategy(**values):
    return job.parse({"strategy": values}).strategy


def test_the_example_is_read(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(EXAMPLE)
    assert job.load(path) == Job(
        model=Model(name="llama-3.1-8b", extra={"mtp_layers": 1}),
        task=Task(
            kind="train", method="lora", seq_len=8192, global_batch=64,
            lora=Lora(rank=16, targets=("q_proj", "v_proj"), train_also=()),
        ),
        strategy=Strategy(
            framework="torchtitan", framework_version="0.3", precision="bf16-mixed", micro_batch=1, grad_accum=8, dp=8,
            zero=3, checkpointing=2, offload=("optimizer", "parameters"), weights={"bpw": 4.9},
        ),
        hardware=Hardware(gpu="h100-sxm-80gb", gpus=8, memory_gib=79.2),
    )  # fmt: skip


def test_nothing_stated_is_a_job():
    assert job.load(None) == job.load({}) == job.parse({"task": {}, "model": None}) == job.from_kwargs() == Job()


def test_empty_toml_is_a_job(tmp_path):
    (tmp_path / "a.toml").write_text("")
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert job.load(tmp_path / "a.toml") == job.load(str(tmp_path / "a.yaml")) == Job()


def test_null_is_not_stated():
    assert job.parse({"strategy": {"zero": None}, "task": {"lora": None}}) == Job()


def test_jobs_are_hashable_and_frozen():
    one = job.from_kwargs(config={"hidden_size": 8}, weights="4.9bpw", offload="optimizer")
    assert hash(one) == hash(job.from_kwargs(config={"hidden_size": 8}, weights={"bpw": 4.9}, offload=["optimizer"]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.strategy.zero = 3


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("seq_len", "8k", 8192), ("seq_len", "1m", 1 << 20), ("seq_len", "4_096", 4096), ("seq_len", 4096.0, 4096),
        ("micro_batch", "4", 4), ("micro_batch", np.int64(4), 4), ("memory_gib", "79.2", 79.2),
        ("memory_gib", "80GB", 80e9 / 2**30), ("memory_gib", "512MiB", 0.5), ("memory_gib", 80, 80.0),
        ("others_gib", 0, 0.0), ("compile", "yes", True), ("compile", "off", False), ("compile", True, True),
        ("precision", "BF16", "bf16"), ("precision", "bfloat16", "bf16"), ("optimizer", "adamw_8bit", "adamw-8bit"),
        ("optimizer", "paged_adamw_8bit", "paged-adamw-8bit"), ("optimizer", "adam", "adamw"),
        ("framework", "ms-swift", "swift"), ("framework", "TRT-LLM", "tensorrt-llm"), ("weights", "Q4_K_M", "q4_k_m"),
        ("weights", "q4-k-m", "q4_k_m"), ("weights", "bpw=4.9", {"bpw": 4.9}), ("weights", "4.9bpw", {"bpw": 4.9}),
        ("weights", {"bpw": 4}, {"bpw": 4.0}), ("kv", "q8_0", "q8_0"), ("kv", "fp8_e4m3", "fp8"),
        ("checkpointing", "full", "full"), ("checkpointing", "3", 3), ("checkpointing", 1, "full"),
        ("checkpointing", True, "full"), ("checkpointing", False, "none"), ("offload", "none", ()),
        ("offload", "activations,optimizer", ("optimizer", "activations")), ("offload", ["params"], ("parameters",)),
        ("trainable", 4, 4), ("trainable", "4", 4), ("trainable", 0.1, 0.1), ("trainable", "0.1", 0.1),
        ("trainable", "lm_head,*norm*", ("lm_head", "*norm*")), ("trainable", ["lm_head"], ("lm_head",)),
        ("lora", 8, Lora(rank=8)), ("lora", {"targets": "all"}, Lora(targets="all-linear")),
        ("lora_rank", "8", Lora(rank=8)), ("lora_targets", "q_proj,v_proj", Lora(targets=("q_proj", "v_proj"))),
        ("lora_targets", ["all-linear"], Lora(targets="all-linear")), ("zero", "3", 3), ("dp_shard", 2, 2),
        ("name", " llama ", "llama"), ("config", '{"hidden_size": 8, "x": null}', {"hidden_size": 8, "x": None}),
        ("memory_fraction", "0.9", 0.9), ("memory_fraction", 1, 1.0), ("gpu", "RTX 4090", "RTX 4090"),
        ("pp_layers", "7,8, 8,7", (7, 8, 8, 7)), ("pp_layers", "7,8x3,7", (7, 8, 8, 8, 7)),
        ("pp_layers", [0, 2], (0, 2)), ("pp_layers", (np.int64(3), "5"), (3, 5)),
    ],
)  # fmt: skip
def test_values_as_people_write_them(name, given, read):
    spec = BY_NAME[name]
    section = "task" if spec.section == "task.lora" else spec.section
    leaf = "lora" if spec.section == "task.lora" else name
    value = getattr(getattr(job.load(None, {name: given}), section), leaf)
    assert value == read
    assert type(value) is type(read)
    assert job.from_kwargs(**{name: given}) == job.load(None, {spec.path: given})


@pytest.mark.parametrize("text", [
    "8xh100", "8 x h100", "8Xh100", "8×h100", "8*h100", "8 h100", "h100x8", "h100 x 8", "h100*8", "h100:8", "h100: 8",
])  # fmt: skip
def test_number_and_name_of_the_gpu(text):
    wanted = Hardware(gpu="h100", gpus=8)
    assert job.parse({"hardware": {"gpu": text}}).hardware == wanted
    assert job.from_kwargs(gpu=text).hardware == wanted
    assert job.load({"hardware": {"gpu": "a100", "gpus": 2}}, {"gpu": text}).hardware == wanted
    assert job.parse({"hardware": {"gpu": text, "gpus": 8}}).hardware == wanted


@pytest.mark.parametrize("text", ["2x4090", "2 4090", "4090 x2", "4090:2"])
def test_names_of_digits_are_no_number(text):
    assert job.from_kwargs(gpu=text).hardware == Hardware(gpu="4090", gpus=2)


@pytest.mark.parametrize(
    "name", ["rtx-4090", "rtx 4090", "h100-sxm-80gb", "xh100", "mi300x", "2080-ti", "4070 Ti Super 16GB", "x"]
)
def test_gpu_names_with_digits_are_names(name):
    assert job.from_kwargs(gpu=name).hardware == Hardware(gpu=name)


def test_overridden_number_beats_the_number_in_the_document():
    assert job.load({"hardware": {"gpu": "8xh100"}}, {"gpus": 4}).hardware == Hardware(gpu="h100", gpus=4)
    assert "hardware.gpu" in faults(None, {"gpu": "8xh100", "gpus": 4})
    assert "hardware.gpus" in faults({"hardware": {"gpu": "0xh100"}})


def test_overrides_win_and_leave_the_source_alone():
    document = {"task": {"seq_len": 1, "lora": {"rank": 4}}, "strategy": {"zero": 1}}
    before = json.dumps(document)
    changed = job.load(
        document, {"seq_len": "2k", "strategy.zero": "3", "task.lora.targets": "q_proj", "model": "gpt2"}
    )
    assert (changed.task.seq_len, changed.strategy.zero, changed.model.name) == (2048, 3, "gpt2")
    assert changed.task.lora == Lora(rank=4, targets=("q_proj",))
    assert json.dumps(document) == before
    assert job.load(document, {"seq_len": None}) == job.load(document)


def test_overrides_meet_short_forms_and_broken_sections():
    assert job.load({"task": {"lora": 4}}, {"lora_alpha": 8}).task.lora == Lora(rank=4, alpha=8.0)
    assert list(faults({"strategy": [1]}, {"zero": 3})) == ["strategy"]


def test_a_path_names_a_model():
    assert job.from_kwargs(model=Path("models/llama")).model.name == str(Path("models/llama"))


@pytest.mark.parametrize(("name", "value"), [("tp", "1" * 50), ("memory_gib", "٣"), ("name", "x" * 5000), ("dp", "²")])
def test_overlong_and_foreign_digits(name, value):
    assert list(faults(None, {name: value})) == [BY_NAME[name].path]


def test_flag_spellings_of_overrides():
    assert job.load(None, {"--micro-batch": "4", "grad-accum": 2}).strategy == Strategy(micro_batch=4, grad_accum=2)


def test_what_follows_from_an_override_is_derived_anew():
    document = {
        "task": {"kind": "train", "global_batch": 64},
        "strategy": {"micro_batch": 1, "grad_accum": 8, "dp": 8, "dp_shard": 8},
        "hardware": {"gpus": 8},
    }

    def shape(**overrides):
        done = job.complete(job.load(document, overrides)).job
        s = done.strategy
        return s.micro_batch, s.grad_accum, s.dp, s.dp_shard, s.tp, done.hardware.gpus, done.task.global_batch

    assert shape() == (1, 8, 8, 8, 1, 8, 64)
    assert shape(micro_batch=2) == (2, 4, 8, 8, 1, 8, 64)
    assert shape(grad_accum=1) == (1, 1, 8, 8, 1, 8, 8)
    assert shape(tp=2) == (1, 16, 4, 4, 2, 8, 64)
    assert shape(gpus=16) == (1, 4, 16, 8, 1, 16, 64)
    assert shape(gpu="4xh100") == (1, 16, 4, 4, 1, 4, 64)
    assert shape(dp=16, gpus=16) == (1, 4, 16, 8, 1, 16, 64)
    del document["task"]["global_batch"]  # then nothing contradicts grad_accum, and it stays
    assert shape(tp=2) == (1, 8, 4, 4, 2, 8, 32)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("7,-9,9", "rank 1: '-9' is out of bounds"), ([7, -9], "rank 1: -9 is out of bounds"),
        ("7,x", "rank 1: 'x' is not a whole number of layers"), ([], "has 0 numbers"), (8, "is not a list of numbers"),
        ("1x99999", "has 4097 numbers"), ({"a": 1}, "is not a list of numbers"), ([1.5], "rank 0: 1.5 is not"),
    ],
)  # fmt: skip
def test_layers_of_ranks_that_are_none(given, says):
    assert says in faults({"strategy": {"pp_layers": given}})["strategy.pp_layers"].message


def test_another_pipeline_has_another_split():
    document = {"strategy": {"pp": 4, "pp_layers": [7, 9, 9, 7]}}
    assert job.load(document, {"pp": 2}).strategy == Strategy(pp=2)
    assert job.load(document, {"pp_layers": "15,17"}).strategy == Strategy(pp_layers=(15, 17))


def test_an_override_never_changes_the_hardware():
    document = {"task": {"kind": "train"}, "strategy": {"dp": 8}, "hardware": {"gpus": 8}}
    assert list(faults(document, {"dp": 4})) == ["hardware.gpus"]


def test_a_contradiction_among_overrides_stays_one():
    assert list(faults(None, {"micro_batch": 2, "grad_accum": 2, "dp": 2, "global_batch": 9})) == ["task.global_batch"]
    both = faults({"strategy": {"zero": 7}}, {"nonsense": 1, "seq_len": 0})
    assert set(both) == {"nonsense", "strategy.zero", "task.seq_len"}


def test_keyword_arguments():
    config = {"model_type": "llama", "hidden_size": 64}
    assert job.from_kwargs(model=config) == job.from_kwargs(config=config) == Job(model=Model(config=config))
    assert job.from_kwargs(model={"name": "a"}, task={"seq_len": "1k"}, zero=2, schema=1) == Job(
        model=Model(name="a"), task=Task(seq_len=1024), strategy=Strategy(zero=2)
    )
    with pytest.raises(JobErrors) as caught:
        job.from_kwargs(batch_size=4, zero=9)
    assert [e.path for e in caught.value.errors] == ["batch_size", "strategy.zero"]
    assert "micro_batch" in caught.value.errors[0].hint


@pytest.mark.parametrize(
    ("document", "path", "hint"),
    [
        ({"hardwear": {}}, "hardwear", "did you mean `hardware`?"),
        ({"strategy": {"zerro": 1}}, "strategy.zerro", "did you mean `zero`?"),
        ({"strategy": {"seq_len": 1}}, "strategy.seq_len", "`seq_len` belongs in [task]"),
        ({"gpu": "h100"}, "gpu", "`gpu` belongs in [hardware]"),
        ({"task": {"rank": 8}}, "task.rank", "`rank` belongs in [task.lora]"),
        ({"task": {"lora_rank": 8}}, "task.lora_rank", "`rank` belongs in [task.lora]"),
        ({"strategy": {"gradient-accumulation-steps": 8}}, "strategy.gradient-accumulation-steps",
         "memfit calls it `grad_accum` in [strategy]"),
        ({"task": {"max_model_lem": 8}}, "task.max_model_lem", "did you mean `task.context`?"),
        ({"task": {"lr": 1}}, "task.lr", "leave it out"),
        ({"strategy": {"Micro_Batch": 1}}, "strategy.Micro_Batch", "did you mean `micro_batch`?"),
        ({"strategy": {"precision": "bf16-mixt"}}, "strategy.precision", "did you mean `bf16-mixed`?"),
        ({"strategy": {"weights": "q4_k_mm"}}, "strategy.weights", "did you mean `q4_k_m`?"),
        ({"task": {"seq_len": "8 kilo"}}, "task.seq_len", "8192 or 8k"),
        ({"strategy": {"qqqqqq": 1}}, "strategy.qqqqqq", "known here: framework"),
    ],
)  # fmt: skip
def test_hints(document, path, hint):
    found = faults(document)
    assert list(found) == [path]
    assert hint in found[path].hint


def test_errors_carry_value_and_bound():
    error = faults({"strategy": {"zero": 5}})["strategy.zero"]
    assert (error.value, error.bound) == (5, "0 to 3")
    assert faults({"task": {"kind": "x"}})["task.kind"].bound == "train, serve"


@pytest.mark.parametrize(
    "document",
    [
        3, [], "x", {1: 2}, {None: {}}, {"task": {1: 2}}, {"task": {("a",): 2}}, {"strategy": {"zero": {}}},
        {"strategy": {"weights": {"bpw": []}}}, {"strategy": {"offload": [["a"]]}}, {"strategy": {"tp": 10**9999}},
        {"model": {"config": {1: 2}}}, {"model": {"config": {"a": float("nan")}}}, {"model": {"extra": "{"}},
        {"hardware": {"memory_gib": float("nan")}}, {"hardware": {"gpu": 7}}, {"strategy": {"dp": 1 + 1j}},
        {"task": {"lora": {"targets": ["a"] * 600}}}, {"task": {"trainable": []}}, {"task": {"trainable": True}},
    ],
)  # fmt: skip
def test_strange_mappings_give_job_errors(document):
    with pytest.raises(JobErrors) as caught:
        job.parse(document)
    assert len(str(caught.value)) < 800


def test_more_gpus_than_any_number_is_a_name():
    assert job.parse({"hardware": {"gpu": "9999999999xh"}}).hardware == Hardware(gpu="9999999999xh")


def test_sources_of_other_kinds():
    with pytest.raises(JobErrors):
        job.load(3)
    with pytest.raises(InputFileError, match="no such file"):
        job.load("llama-3.1-8b")


def test_table_is_whole():
    records = {"model": Model, "task": Task, "strategy": Strategy, "hardware": Hardware, "task.lora": Lora}
    for section, record in records.items():
        names = [f.name for f in dataclasses.fields(record)]
        assert names == [f.path.rpartition(".")[2] for f in FIELDS if f.section == section]
    assert set(BY_PATH) == {f.path for f in FIELDS}
    assert len(BY_NAME) == len(FIELDS)
    for f in FIELDS:
        assert f.doc
        assert f.flags[0] == "--model" if f.name == "name" else "--" + f.name.replace("_", "-") in f.flags
        assert f.choices == tuple(dict.fromkeys(f.choices))
        assert set(f.aliases.values()) <= set(f.choices)
        assert f.low <= f.high


def test_flags_and_foreign_names_are_unambiguous():
    flags = [flag for f in FIELDS for flag in f.flags]
    assert len(flags) == len(set(flags))
    foreign = [name for f in FIELDS for name in f.also]
    assert len(foreign) == len(set(foreign)) == len(FOREIGN)
    assert not (set(foreign) | IRRELEVANT) & (set(BY_NAME) | set(SECTIONS))


def test_defaults_pass_their_own_checks():
    for kind in ("train", "serve"):
        for f in FIELDS:
            default = default_of(f, kind)
            if default is not None:
                assert job.load(None, {f.path: default}) is not None
