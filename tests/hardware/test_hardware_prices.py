"""Prices: the snapshot, what is counted of it, and lists of the user's own."""

import json
import math
import re
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.errors import InputFileError, JobError
from memfit.hardware import (
    OLD_MONTHS,
    Price,
    cheapest,
    default_node,
    gpus,
    lookup_gpu,
    lookup_node,
    nodes,
    price,
    prices,
    read_prices,
)
from memfit.hardware.data import DATA_DATE, read

DATE = re.compile(r"20\d\d-(0[1-9]|1[0-2])$")
RELEASE = re.compile(r"\b\d+\.\d+\.\d+\b|catalogs/v\d")


def card(name):
    return lookup_gpu(name)[0]


def row(**fields):
    plain = {"gpu": "h100-sxm-80gb", "provider": "P", "usd_per_hour": 2.0, "spot_usd_per_hour": None, "source": "s"}
    return Price(**{**plain, "date": DATA_DATE[:7], **fields})


# ---- the snapshot ----------------------------------------------------------------------------------------------------


def test_the_file_has_the_fields_of_a_price_and_no_others():
    for entry in read("prices"):
        assert set(entry) == set(Price.__dataclass_fields__)


@pytest.mark.parametrize("entry", prices(), ids=lambda p: f"{p.provider}-{p.gpu}-{p.machine}")
def test_every_price_is_whole(entry):
    assert card(entry.gpu).name == entry.gpu
    assert DATE.match(entry.date)
    assert entry.date <= DATA_DATE[:7]
    assert RELEASE.search(entry.source), "which release of which source"
    assert 0 < entry.usd_per_hour < 20
    assert entry.spot_usd_per_hour is None or 0 < entry.spot_usd_per_hour < entry.usd_per_hour
    assert (entry.machine_gpus is None) == (entry.machine == "")
    if entry.machine_gpus is not None:
        assert 1 <= entry.machine_gpus <= 16


def test_the_newest_price_of_a_provider_is_kept_alone():
    keys = [(p.provider, p.gpu, p.machine_gpus) for p in prices()]
    assert len(set(keys)) == len(keys)


def test_machines_agree_with_the_shapes_that_are_known():
    shapes = {n.name: n for n in nodes()}
    seen = [p for p in prices() if p.machine.lower().replace(" ", "-") in shapes]
    assert {p.machine for p in seen} >= {"p5.48xlarge", "p4d.24xlarge", "ND96asr v4", "g5.48xlarge"}
    for entry in seen:
        shape = lookup_node(entry.machine.replace(" ", "-"))
        assert (entry.gpu, entry.machine_gpus) == (shape.gpu, shape.num_gpus)


def test_more_cards_of_a_machine_never_cost_less():
    for entry in prices():
        costs = [entry.per_hour(n) for n in range(1, 33)]
        assert all(a <= b for a, b in pairwise(costs))


# ---- what counts -----------------------------------------------------------------------------------------------------


def test_the_lowest_price_wins_and_an_override_wins_over_it():
    v100 = price(card("v100"))
    assert v100 is not None
    assert (v100.usd_per_hour, v100.provider) == (0.14, "Verda")
    assert price(card("rtx-3090")) is None
    mine = price(card("rtx-3090"), override=0.25)
    assert mine is not None
    assert (mine.usd_per_hour, mine.provider) == (0.25, "given")


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_bad_price_is_an_error(bad):
    with pytest.raises(JobError, match="price"):
        price(card("h100"), override=bad)


def test_machines_are_rented_whole():
    h100 = card("h100")
    one = cheapest(h100, 1, within=("aws",))
    assert one.machine == "p5.48xlarge"
    assert one.paid_gpus(1) == 8
    assert one.per_hour(1) == pytest.approx(one.per_hour(8)) == pytest.approx(8 * one.usd_per_hour)
    assert one.per_hour(9) == pytest.approx(2 * one.per_hour(8))
    assert one.per_hour(8) == pytest.approx(55.04)  # what AWS asks for the machine


@given(st.integers(1, 64), st.one_of(st.none(), st.integers(1, 16)))
def test_what_is_paid_for_holds_what_is_used(count, size):
    entry = row(machine="m" if size else "", machine_gpus=size)
    paid = entry.paid_gpus(count)
    assert count <= paid < count + (size or 1)
    assert paid % (size or 1) == 0
    assert math.isclose(entry.per_hour(count), paid * entry.usd_per_hour)


def test_single_cards_are_no_node_of_four():
    a10g = card("a10g")
    assert cheapest(a10g, 1, within=("aws",)).machine == "g5.xlarge"
    assert cheapest(a10g, 4, within=("aws",)).machine_gpus >= 4
    assert cheapest(a10g, 4, per_node=1, within=("aws",)).machine == "g5.xlarge"
    single = [row(gpu="a10g", machine="g5.xlarge", machine_gpus=1)]
    assert cheapest(a10g, 4, rows=single) is None
    assert cheapest(a10g, 16, rows=[row(gpu="a10g", machine="half", machine_gpus=4)]) is None
    assert default_node(a10g).num_gpus == 8


def test_a_larger_machine_may_be_cheaper_than_a_smaller_one():
    rows = [row(machine="four", machine_gpus=4, usd_per_hour=3.0), row(machine="eight", machine_gpus=8)]
    assert cheapest(card("h100"), 4, rows=rows).machine == "four"  # 12 against 16
    assert cheapest(card("h100"), 6, per_node=4, rows=rows).machine == "eight"  # 24 against 16


def test_spot_prices_decide_where_spot_is_asked_for():
    rows = [row(provider="A", usd_per_hour=2.0), row(provider="B", usd_per_hour=3.0, spot_usd_per_hour=1.0)]
    assert cheapest(card("h100"), rows=rows).provider == "A"
    assert cheapest(card("h100"), rows=rows, spot=True).provider == "B"


def test_the_newest_of_equal_prices_is_taken():
    rows = [row(date="2026-05"), row(provider="Q", date="2026-09"), row(provider="R", date="2026-07")]
    assert cheapest(card("h100"), rows=rows).provider == "Q"


# ---- old prices ------------------------------------------------------------------------------------------------------


def months_ago(months):
    total = int(DATA_DATE[:4]) * 12 + int(DATA_DATE[5:7]) - 1 - months
    return f"{total // 12}-{total % 12 + 1:02}"


def test_a_price_grows_old_after_18_months():
    assert OLD_MONTHS == 18
    assert not row(date=months_ago(18)).is_old
    assert row(date=months_ago(19)).is_old
    assert row(date=months_ago(19) + "-28").is_old
    assert row(date="2022").is_old
    assert not row(date="").is_old


def test_old_prices_never_stand_beside_new_ones():
    h100 = card("h100")
    old = row(provider="Old", usd_per_hour=0.5, date=months_ago(48))
    new = row(provider="New", usd_per_hour=3.0)
    assert cheapest(h100, rows=[old, new]) == new
    assert cheapest(h100, rows=[old]) is None
    assert cheapest(h100, rows=[old, new], within=("old",)) == old
    both = row(provider="Old", usd_per_hour=4.0)
    assert cheapest(h100, rows=[old, both, new], within=("old",)) == both, "a newer one of the same provider"
    machine = row(provider="Old", usd_per_hour=4.0, machine="single", machine_gpus=1)
    assert cheapest(h100, 8, rows=[old, machine], within=("old",)) == old, "the newer one has no machine of eight"


def test_the_snapshot_answers_with_old_prices_only_when_asked():
    assert any(p.is_old for p in prices())
    for gpu in gpus():
        for count in (1, 2, 4, 8, 16):
            found = cheapest(gpu, count)
            assert found is None or not found.is_old
    t4 = card("t4")
    assert cheapest(t4, 4) is None
    assert cheapest(t4, 4, within=("aws",)).is_old
    assert not cheapest(t4, 1, within=("aws",)).is_old


# ---- lists -----------------------------------------------------------------------------------------------------------

CSV = """provider, gpu, usd_per_hour, spot, date, machine, machine_gpus
Acme, H100, $2.40, , 2026-11, big, 8
Acme, rtx 4090, 0.4, 0.2, , ,
"""
TOML = """
[[prices]]
provider = "Acme"
gpu = "h100"
usd_per_hour = 2.4
date = "2026-11"
machine = "big"
machine_gpus = 8
[[prices]]
provider = "Acme"
gpu = "rtx-4090"
usd_per_hour = 0.4
spot = 0.2
"""
ROWS = [
    {"provider": "Acme", "gpu": "h100", "usd_per_hour": 2.4, "date": "2026-11", "machine": "big", "machine_gpus": 8},
    {"provider": "Acme", "gpu": "rtx-4090", "usd_per_hour": 0.4, "spot": 0.2},
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", CSV),
        ("list.toml", TOML),
        ("list.json", json.dumps(ROWS)),
        ("list.yaml", json.dumps({"prices": ROWS})),
    ],
)
def test_lists_are_read(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    first, second = read_prices(path)
    assert (first.provider, first.gpu, first.usd_per_hour, first.date) == ("Acme", "h100-sxm-80gb", 2.4, "2026-11")
    assert (first.machine, first.machine_gpus, first.spot_usd_per_hour) == ("big", 8, None)
    assert (second.gpu, second.usd_per_hour, second.spot_usd_per_hour) == ("rtx-4090", 0.4, 0.2)
    assert (second.date, second.machine, second.machine_gpus) == ("", "", None)
    assert name in first.source


HEAD = "provider,gpu,usd_per_hour"
BAD = {
    "no-rows.csv": (HEAD, "holds no price"),
    "empty.csv": ("", "holds no price"),
    "empty.json": ("[]", "holds no price"),
    "short.csv": (f"{HEAD}\nA,h100", "price 1: 2 cells below a header of 3"),
    "twice.csv": ("gpu,gpu\n1,2", "names a column twice"),
    "quote.csv": (f'{HEAD}\nA,h100,"2', "is not CSV"),
    "no-gpu.csv": ("provider,usd_per_hour\nA,2", "`gpu` is missing"),
    "no-price.csv": (f"{HEAD}\nA,h100,", "`usd_per_hour` is missing"),
    "card.csv": (f"{HEAD}\nA,h100,2\nA,h1000,2", "price 2: unknown GPU `h1000`"),
    "none.csv": (f"{HEAD}\nA,0xh100,2", "must be between 1 and"),
    "count.csv": (f"{HEAD}\nA,8xh100,2", "names 8 cards"),
    "word.csv": (f"{HEAD}\nA,h100,two", "must be dollars per GPU-hour, got 'two'"),
    "minus.csv": (f"{HEAD}\nA,h100,-2", "must be dollars per GPU-hour"),
    "nan.csv": (f"{HEAD}\nA,h100,nan", "must be dollars per GPU-hour"),
    "date.csv": (f"{HEAD},date\nA,h100,2,28.11.2026", "must be like 2026-11-28"),
    "month.csv": (f"{HEAD},date\nA,h100,2,2026-13", "must be like 2026-11-28"),
    "machine.csv": (f"{HEAD},machine_gpus\nA,h100,2,0", "must be a number of GPUs"),
    "half.json": ('[{"provider": "A", "gpu": "h100", "usd_per_hour": 2, "machine_gpus": 1.5}]', "a number of GPUs"),
    "column.csv": (f"{HEAD},sopt\nA,h100,2,1", "unknown column 'sopt'"),
    "escape.csv": (f"{HEAD}\nA\x1b[2J,h100,2", "must be a name"),
    "comma.csv": (f'{HEAD}\n"A,B",h100,2', "must be a name"),
    "true.json": ('[{"provider": "A", "gpu": "h100", "usd_per_hour": true}]', "must be dollars per GPU-hour"),
    "table.json": ('[["A", "h100", 2]]', "not a table"),
    "other.json": ('{"price": []}', "is not a price list"),
    "text.json": ('{"prices": "none"}', "is not a list"),
    "number.json": ("3", "is not a list"),
    "broken.json": ("{", "is not JSON"),
    "broken.toml": ("[[prices", "is not TOML"),
    "list.xlsx": ("", "not a known kind of price list"),
    "deep.json": ("[" * 100000, "nested"),
    "zip.csv": ("PK\x03\x04", "looks like a zip archive"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_list_is_one_sentence(tmp_path, name):
    text, words = BAD[name]
    path = tmp_path / name
    path.write_bytes(text.encode())
    with pytest.raises(InputFileError) as caught:
        read_prices(path)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert "\x1b" not in caught.value.message


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(InputFileError, match="no such file"):
        read_prices(tmp_path / "none.csv")


@given(st.text(max_size=60))
def test_any_text_is_a_list_or_one_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text(HEAD + "\n" + text, encoding="utf-8", errors="replace")
    with suppress(InputFileError):
        assert all(p.gpu in {g.name for g in gpus()} for p in read_prices(path))
