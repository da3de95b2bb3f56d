"""Writing jobs: exact round trips, the editor schema, the rows of ``memfit job``; and no mapping breaks the reader."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit import job
from memfit.errors import JobErrors, MemfitError
from memfit.job import FIELDS, Job
from memfit.job.fields import BY_SECTION
from memfit.readers import parse_text

WORDS = (
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
    .map(str.strip)
    .filter(lambda text: text and text.isprintable())
)
SHORT = st.text(st.characters(codec="utf-8"), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | SHORT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SHORT, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def values(spec):
    """Valid values of one field."""
    low = max(spec.low, 1e-3) if spec.above else spec.low
    number = st.floats(low, spec.high, allow_subnormal=False)
    whole = st.integers(int(spec.low), int(spec.high))
    match spec.type:
        case "int":
            return whole
        case "number":
            return number
        case "bool":
            return st.booleans()
        case "choice":
            return st.sampled_from(spec.choices)
        case "choices":
            return st.lists(st.sampled_from(spec.choices), max_size=4)
        case "names":
            return st.lists(WORDS, max_size=3)
        case "counts":
            return st.lists(whole, min_size=1, max_size=4)
        case "targets":
            return st.just("all-linear") | st.lists(WORDS, min_size=1, max_size=3)
        case "trainable":
            return whole | st.floats(0.001, 1) | st.lists(WORDS, min_size=1, max_size=3)
        case "checkpointing":
            return st.sampled_from(spec.choices) | whole
        case "weights":
            return st.sampled_from(spec.choices) | number.map(lambda bits: {"bpw": bits})
        case "mapping":
            return st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=6), JSON, max_size=3)
        case "lora":
            return tables("task.lora")
        case _:
            return WORDS


def tables(section):
    return st.fixed_dictionaries({}, optional={leaf: values(spec) for leaf, spec in BY_SECTION[section].items()})


DOCUMENTS = st.fixed_dictionaries({}, optional={s: tables(s) for s in ("model", "task", "strategy", "hardware")})
LEAVES = st.sampled_from([leaf for table in BY_SECTION.values() for leaf in table])
NOISE = st.recursive(
    JSON | st.binary(max_size=3) | st.floats() | st.sampled_from(["8k", "8xh100", "-1", "1e9", "nf4", "bpw=4"]),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner)
    | st.dictionaries(st.text(max_size=3) | st.integers() | LEAVES, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip
KEYS = LEAVES | st.text(max_size=4)
ANY_JOB = st.dictionaries(
    st.sampled_from(["schema", "model", "task", "strategy", "hardware", "x"]),
    NOISE | st.dictionaries(KEYS, NOISE, max_size=5),
)


def fault_of(document, overrides=None):
    try:
        return None, job.load(document, overrides)
    except JobErrors as error:
        return error, None


@settings(max_examples=200)
@given(DOCUMENTS)
def test_round_trip_is_exact(document):
    error, one = fault_of(document)
    if error is not None:  # single values are valid: only contradictions between them are left
        assert all("unknown" not in e.message and "out of bounds" not in e.message for e in error.errors)
        return
    assert job.parse(job.to_dict(one)) == one
    for fmt in ("toml", "yaml", "json"):
        assert job.parse(parse_text(job.dumps(one, fmt), fmt, "x")) == one


@settings(max_examples=100)
@given(ANY_JOB, NOISE)
def test_any_mapping_is_a_job_or_job_errors(document, noise):
    for source in (document, {"strategy": noise}, noise if isinstance(noise, dict) else {}):
        error, one = fault_of(source)
        if error is not None:
            assert error.errors
            assert all(e.path for e in error.errors)
            continue
        try:
            completed = job.complete(one)
        except JobErrors:
            continue
        assert job.complete(completed.job).job == completed.job
        assert job.parse(job.to_dict(completed.job)) == completed.job


@given(st.dictionaries(KEYS | st.integers(), NOISE, max_size=4))
def test_any_overrides_are_taken_or_refused(overrides):
    error, one = fault_of({"task": {"seq_len": 8}}, overrides)
    assert isinstance(one, Job) or error.errors


def test_what_is_none_is_not_written():
    assert job.to_dict(Job()) == {"schema": 1}
    assert job.to_dict(job.from_kwargs(lora=8, offload=())) == {
        "schema": 1, "task": {"lora": {"rank": 8}}, "strategy": {"offload": []},
    }  # fmt: skip


def test_null_in_a_config_survives_toml(tmp_path):
    one = job.from_kwargs(config={"hidden_size": 8, "rope_scaling": None, "layers": [{"a": None}]})
    path = tmp_path / "job.toml"
    path.write_text(job.dumps(one))
    assert job.load(path) == one


@pytest.mark.parametrize(
    "name", ["no", "1e5", "0o17", "null", "- a", "a: b", "#", "*x", "1:30", "2025-01-01", "=", "true"]
)
def test_names_that_yaml_would_take_for_something_else(name):
    one = job.from_kwargs(model=name, framework_version=name)
    assert job.parse(parse_text(job.dumps(one, "yaml"), "yaml", "x")) == one


def test_yaml_writes_shared_lists_out():
    names = ["q_proj"]
    one = job.from_kwargs(config={"a": names, "b": names})
    assert "&" not in job.dumps(one, "yaml")


def test_unknown_format():
    with pytest.raises(MemfitError, match="cannot be written"):
        job.dumps(Job(), "xml")


def test_describe_has_what_matters_in_document_order():
    rows = job.describe(
        job.complete(job.from_kwargs(model="gpt2", gpu="2xa100", method="lora", kv="fp8", kind="train"))
    )
    paths = [row.path for row in rows]
    assert paths == [f.path for f in FIELDS if f.path in paths]
    by_path = {row.path: row for row in rows}
    assert by_path["model.name"][:3] == ("model.name", "gpt2", "stated")
    assert by_path["task.lora.rank"][1:3] == (16, "default")
    assert by_path["strategy.dp"][1:3] == (2, "derived")
    assert "strategy.kv" in by_path  # it has no effect, but it was stated
    assert "strategy.graphs" not in by_path
    assert all(row.doc and row.value is not None for row in rows)


def test_schema_lists_every_field_and_is_json():
    schema = job.schema()
    json.dumps(schema, allow_nan=False)
    for f in FIELDS:
        node = schema
        for part in f.path.split("."):
            node = node["properties"][part]
        assert f.doc in node["description"]
    assert schema["properties"]["strategy"]["properties"]["zero"] == {
        "description": "sharding: 0 none, 1 optimizer, 2 and gradients, 3 and parameters (FSDP)",
        "type": "integer", "minimum": 0, "maximum": 3, "default": 0,
    }  # fmt: skip
    assert schema["additionalProperties"] is False
    assert schema["properties"]["strategy"]["properties"]["memory_fraction"]["exclusiveMinimum"] == 0
