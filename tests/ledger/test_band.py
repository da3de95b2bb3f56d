"""Laws of bands: probabilities."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.ledger import Band
from strategies import bands


@given(bands())
def test_the_middle_is_exceeded_half_the_time(band):
    assert band.p_above(band.mid) == 0.5


@given(bands())
def test_nine_runs_in_ten_lie_inside(band):
    assert band.p_above(band.high) == pytest.approx(0.05, abs=1e-9)
    assert band.p_above(band.low) == pytest.approx(0.95, abs=1e-9)


@given(bands(), st.integers(0, 1 << 41), st.integers(0, 1 << 41))
def test_a_larger_limit_is_exceeded_less_often(band, one, other):
    assert 0 <= band.p_above(max(one, other)) <= band.p_above(min(one, other)) <= 1


def test_a_band_without_width_is_a_step():
    band = Band(10, 10, 10)
    assert [band.p_above(limit) for limit in (9, 10, 11)] == [1.0, 0.0, 0.0]


@given(st.integers(0, 1 << 45), st.floats(0, 0.99), st.floats(0, 3))
def test_around_encloses_the_middle(mid, below, above):
    band = Band.around(mid, below, above)
    assert band.low <= band.mid <= band.high
    assert band.to_list() == [band.low, mid, band.high]
