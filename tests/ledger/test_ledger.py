"""Laws of ledgers: they close against the capacity, and nothing is counted twice."""

from hypothesis import given
from hypothesis import strategies as st

from memfit.ledger import COMPONENTS, Entry, Ledger, compare
from strategies import entries, sizes

lists = st.lists(entries, max_size=12)


@given(lists, sizes)
def test_capacity_is_device_plus_free(parts, capacity):
    ledger = Ledger.of(parts, capacity_bytes=capacity)
    assert ledger.device_bytes + ledger.free_bytes == capacity


@given(lists)
def test_parts_sum_to_the_device_bytes(parts):
    ledger = Ledger.of(parts)
    assert ledger.device_bytes == sum(p.bytes for p in parts) == sum(ledger.by_component().values())
    assert ledger.free_bytes is None


@given(lists)
def test_allocated_reserved_and_device_are_nested(parts):
    ledger = Ledger.of(parts)
    assert ledger.allocated_bytes + ledger.sum_of("slack") == ledger.reserved_bytes
    assert ledger.reserved_bytes + ledger.sum_of("runtime", "others", "unaccounted") == ledger.device_bytes


@given(lists)
def test_lines_stand_in_display_order_without_zeros(parts):
    ledger = Ledger.of(parts)
    order = list(COMPONENTS)
    places = [order.index(e.component) for e in ledger.entries]
    assert places == sorted(places)
    assert all(e.bytes for e in ledger.entries)
    assert list(ledger.by_component()) == [c for c in COMPONENTS if any(e.component == c for e in ledger.entries)]


@given(lists, lists)
def test_differences_sum_to_the_difference_of_the_device_bytes(left, right):
    a, b = Ledger.of(left), Ledger.of(right)
    found = compare(a, b)
    assert sum(d.delta_bytes for d in found) == b.device_bytes - a.device_bytes
    assert {d.component for d in found} == set(a.by_component()) | set(b.by_component())
    assert [d.delta_bytes for d in compare(b, a)] == [-d.delta_bytes for d in found]


@given(lists)
def test_a_ledger_does_not_differ_from_itself(parts):
    ledger = Ledger.of(parts)
    assert all(d.delta_bytes == 0 for d in compare(ledger, ledger))


def test_lines_of_one_component_are_summed():
    ledger = Ledger.of(
        [
            Entry(component="runtime", name="NCCL", bytes=5),
            Entry(component="parameters", name="weights", bytes=7),
            Entry(component="parameters", name="gathered", bytes=2),
            Entry(component="slack", name="slack", bytes=3),
        ],
        label="rank 0",
        moment="loss",
        capacity_bytes=16,
    )
    assert ledger.by_component() == {"parameters": 9, "slack": 3, "runtime": 5}
    assert (ledger.allocated_bytes, ledger.reserved_bytes, ledger.device_bytes, ledger.free_bytes) == (9, 12, 17, -1)
