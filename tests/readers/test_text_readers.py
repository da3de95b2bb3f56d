"""The text readers: what they accept, what they refuse, and that nothing else ever comes out."""

import json
import math
import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from memfit.errors import InputFileError
from memfit.readers import check_tree, parse_json, parse_toml, parse_yaml, read_text, read_tree, resolve_plain

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def refusal(action):
    """The message of the one error that a reader may raise, or None."""
    try:
        action()
    except InputFileError as error:
        return error.message
    return None


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml", ".toml", ".JSON"])
def test_ending_decides_the_reader(tmp_path, suffix):
    path = tmp_path / f"job{suffix}"
    path.write_text("a = 1\n" if suffix == ".toml" else '{"a": 1}')
    assert read_tree(path) == {"a": 1}
    assert read_tree(str(path)) == {"a": 1}


@pytest.mark.parametrize("name", ["job.json", "job.toml", "job.yaml"])
def test_byte_order_mark_is_no_content(tmp_path, name):
    path = tmp_path / name
    text = "a = 'é'\n" if name.endswith("toml") else '{"a": "é"}'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_tree(path) == {"a": "é"}


def test_windows_line_ends():
    assert parse_toml("[a]\r\nb = 1\r\n", "x") == {"a": {"b": 1}}
    assert parse_yaml("a:\r\n  b: 1\r\n", "x") == {"a": {"b": 1}}


def test_missing_file_folder_and_unusable_path(tmp_path):
    with pytest.raises(InputFileError, match="no such file"):
        read_text(tmp_path / "none.json")
    with pytest.raises(InputFileError, match="folder"):
        read_text(tmp_path)
    with pytest.raises(InputFileError, match="cannot read"):
        read_text("a\0b.json")
    with pytest.raises(InputFileError, match="cannot read"):
        read_text(tmp_path / ("x" * 5000))


def test_fifo_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "job.json")
    with pytest.raises(InputFileError, match="not a regular file"):
        read_tree(tmp_path / "job.json")


def test_size_limit_is_exact(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("1" * 10)
    assert read_text(path, limit=10) == "1" * 10
    with pytest.raises(InputFileError, match="larger than"):
        read_text(path, limit=9)


def test_large_yaml_is_refused():
    with pytest.raises(InputFileError, match="larger than"):
        parse_yaml("# " + "x" * (1 << 20) + "\n", "x")


def test_depth_limit_is_exact():
    assert parse_json("[" * 64 + "]" * 64, "x")
    assert parse_yaml("[" * 64 + "]" * 64, "x")
    for parse in (parse_json, parse_yaml):
        with pytest.raises(InputFileError, match="nested more than 64"):
            parse("[" * 65 + "]" * 65, "x")


def test_wide_data_is_not_deep():
    rows = json.dumps([[i] for i in range(500)])
    assert len(parse_json(rows, "x")) == 500


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("true", True), ("False", False), ("no", "no"), ("on", "on"),
        ("12", 12), ("-3", -3), ("0x1f", 31), ("0o17", 15), ("017", 17), ("1_000", "1_000"), ("1e-5", 1e-5),
        ("1.", 1.0), (".5", 0.5), ("1:30", "1:30"), ("2025-01-01", "2025-01-01"), ("8k", "8k"), ("-", "-"), (".", "."),
        ("+", "+"), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_plain_yaml_scalars(text, value):
    found = resolve_plain(text)
    assert found == value
    assert type(found) is type(value)
    if text != "-":  # alone, that is an empty list item
        assert parse_yaml(f"a: {text}\n", "x") == {"a": value}


@pytest.mark.parametrize("text", [".inf", "-.INF", ".NaN", "1e999", "9" * 41])
def test_numbers_out_of_bounds_in_yaml(text):
    with pytest.raises(ValueError, match="number"):
        resolve_plain(text)
    with pytest.raises(InputFileError, match="number"):
        parse_yaml(f"a: {text}", "x")


def test_quoted_yaml_is_text():
    assert parse_yaml("a: '1'\nb: \"true\"\nc: |\n  2\nd: !!str 3\n", "x") == {
        "a": "1",
        "b": "true",
        "c": "2\n",
        "d": "3",
    }


def test_yaml_nesting_is_kept():
    text = "a:\n  - {b: [1, [2]], c: {}}\n  - []\nd: {e: {f: g}}\n"
    assert parse_yaml(text, "x") == {"a": [{"b": [1, [2]], "c": {}}, []], "d": {"e": {"f": "g"}}}


def test_yaml_comments_only_is_nothing():
    assert parse_yaml("# nothing\n", "x") is None


def test_yaml_is_the_same_without_libyaml(monkeypatch):
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert parse_yaml("a: {b: [1, '2', 3.5]}\n", "x") == {"a": {"b": [1, "2", 3.5]}}
    with pytest.raises(InputFileError, match="not YAML"):
        parse_yaml("a: {b\n", "x")


def test_check_tree_names_each_fault():
    for value, words in [
        (math.nan, "finite"), (math.inf, "finite"), (10**41, "digits"), ({1: 2}, "key"), ({"a": {3}}, "set"),
        ("\ud800", "Unicode"), ({"\udfff": 1}, "Unicode"), (b"x", "bytes"), ([1.0, object()], "object"),
    ]:  # fmt: skip
        with pytest.raises(InputFileError, match=words):
            check_tree(value, "x")
    loop: list = []
    loop.append(loop)
    with pytest.raises(InputFileError, match="nested"):
        check_tree(loop, "x")


def test_check_tree_caps_the_count():
    row = [0] * 1000
    with pytest.raises(InputFileError, match="more than 1000000 values"):
        check_tree([row] * 1001, "x")


@given(PLAIN)
def test_json_reads_what_json_writes(value):
    assert parse_json(json.dumps(value), "x") == value


@given(st.text() | st.text(alphabet="{}[]\",:.-+0123456789eE \n\t#=tfnu&*!|>?'\\"))
def test_any_text_is_read_or_refused(text):
    for parse in (parse_json, parse_toml, parse_yaml):
        fault = refusal(lambda parse=parse: check_tree(parse(text, "x"), "x"))
        assert fault is None or 0 < len(fault) < 500


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(data)
    fault = refusal(lambda: read_text(path))
    if fault is None:
        assert read_text(path).encode() == data.removeprefix(b"\xef\xbb\xbf")
    else:
        assert "not what it claims to be" in fault
