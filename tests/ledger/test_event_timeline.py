"""Laws of timelines: what is live, when, and how much."""

from hypothesis import given
from hypothesis import strategies as st

from memfit.ledger import Event, Timeline
from memfit.ledger.timeline import timeline
from strategies import timelines


@given(timelines())
def test_the_peak_is_the_highest_total_and_its_first_place(steps):
    totals = steps.totals()
    index, peak = steps.peak
    assert peak == max(totals, default=0)
    if totals:
        assert totals.index(peak) == index
    else:
        assert (index, peak) == (-1, 0)


@given(timelines(), st.data())
def test_live_blocks_sum_to_the_total_at_every_event(steps, data):
    totals = steps.totals()
    assert all(total >= 0 for total in totals)
    if totals:
        index = data.draw(st.integers(0, len(totals) - 1))
        assert sum(e.bytes for e in steps.live_at(index).values()) == totals[index]
        assert sum(steps.components_at(index).values()) == totals[index]


@given(timelines())
def test_the_highest_phase_holds_the_peak(steps):
    peaks = steps.phase_peaks()
    assert max(peaks.values(), default=0) == steps.peak[1]
    assert set(peaks) == {e.phase for e in steps}


def test_a_mark_changes_nothing():
    steps = timeline(
        [
            Event(1, 8, "activations", "forward"),
            Event(0, 0, "others", "backward"),
            Event(1, -8, "activations", "backward"),
        ]
    )
    assert len(steps) == 3
    assert steps.totals() == [8, 8, 0]
    assert steps.peak == (0, 8)
    assert steps.phase_peaks() == {"forward": 8, "backward": 8}
    assert steps.live_at(1) == {1: steps.events[0]}
    assert steps.origin == "formula"


def test_the_first_of_equal_peaks_counts():
    steps = Timeline((Event(1, 4, "logits", "loss"), Event(1, -4, "logits", "loss"), Event(2, 4, "logits", "loss")))
    assert steps.peak == (0, 4)
