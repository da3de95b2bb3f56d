import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_trace_result import TRACES

from memfit.errors import InputFileError
from memfit.trace.files import load, save


@given(trace=TRACES)
def test_a_saved_trace_is_read_back_as_it_was(tmp_path_factory, trace):
    path = tmp_path_factory.mktemp("traces") / "one.trace.json.gz"
    save(trace, path)
    assert load(path) == trace


@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_trace_give_one_clear_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("traces") / "bad.trace.json.gz"
    path.write_bytes(data)
    with pytest.raises(InputFileError):
        load(path)
    path.write_bytes(gzip.compress(data))
    with pytest.raises(InputFileError):
        load(path)


@given(trace=TRACES, data=st.data())
def test_a_damaged_document_is_refused_or_still_a_trace(tmp_path_factory, trace, data):
    path = tmp_path_factory.mktemp("traces") / "damaged.trace.json.gz"
    save(trace, path)
    document = json.loads(gzip.decompress(path.read_bytes()))
    part = data.draw(st.sampled_from(["schema", "words", "events", "blocks", "settings", "steps"]))
    junk = data.draw(st.sampled_from([None, "x", [], {}, -1, [None], {"id": [1]}, [[[]]]]))
    if isinstance(document[part], dict) and document[part] and part != "settings":
        document[part][data.draw(st.sampled_from(sorted(document[part])))] = junk
    else:
        document[part] = junk
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    harmless = (part == "settings" and isinstance(junk, dict)) or (part == "steps" and junk == -1)
    if harmless:
        assert load(path).events == trace.events
    else:
        with pytest.raises(InputFileError):
            load(path)
