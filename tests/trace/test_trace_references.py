"""Llama-3.1-8B against the CUDA build of torch itself."""

import pytest

from memfit.trace.reference import RELEASE, references, retrace
from memfit.units import GIB

pytestmark = pytest.mark.slow
REFERENCES = references()
ROWS = {row["name"]: row for row in REFERENCES["rows"] if not row.get("long")}


@pytest.mark.parametrize("name", ROWS)
def test_peaks_are_those_of_the_real_allocator(name):
    pytest.importorskip("transformers")
    row = ROWS[name]
    trace = retrace(row)
    result = trace.simulate(release=RELEASE)
    if "allocated" in row:
        assert trace.peak_allocated == result.allocated_peak == row["allocated"]
        assert (result.reserved_peak, result.num_segments_peak) == (row["reserved"], row["segments"])
    else:
        assert f"{result.allocated_peak / GIB:.4f}" == f"{row['allocated_gib']:.4f}"
        assert f"{result.reserved_peak / GIB:.4f}" == f"{row['reserved_gib']:.4f}"
    for config, smallest in REFERENCES["smallest_gib"].get(name, {}).items():
        found = trace.smallest_capacity("" if config == "default" else config, release=RELEASE)
        assert found / GIB == pytest.approx(smallest, abs=2 / 1024)
