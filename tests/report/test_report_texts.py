"""The texts to the letter, on hand-made figures, at three widths; and what holds for every text."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from report_fixtures import ESTIMATES, GOLDEN, WIDTHS, fits, make, not_fitting, reading, rendered, sweep, tight

from memfit import estimate
from memfit.ledger import Entry, Ledger
from memfit.report.estimate import estimate_text, flags, next_command, quiet_text
from memfit.report.ledger import ledger
from memfit.report.page import Cell, Column, Page, cells, clean, table, wrap
from memfit.report.plan import settings as plan_settings
from memfit.report.sweep import Axis, Sweep, frontier_text, sweep_text
from memfit.report.words import LETTERS, MARKS, gib, job_line, per_second, percent, signed_gib, value
from memfit.units import GIB

TEXTS = {f"{name}-{width}": text for width in WIDTHS for name, text in rendered(width).items()}


def test_the_golden_folder_holds_what_is_rendered():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(TEXTS)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_golden(name):
    assert TEXTS[name] == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_lines_keep_to_the_page(name):
    width = int(name.rpartition("-")[2])
    for line in TEXTS[name].splitlines():
        assert line == line.rstrip()
        # The next command is meant to be copied: it is not broken.
        assert cells(line) <= width or line.startswith("next: ")


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_plain_pages_hold_no_escapes(name):
    assert "\x1b" not in TEXTS[name]
    assert TEXTS[name].endswith("\n")
    assert not TEXTS[name].endswith("\n\n")


def test_ascii_pages_are_ascii():
    assert all(text.isascii() for name, text in TEXTS.items() if name.startswith("ascii"))


@pytest.mark.parametrize("width", [40, 50, 60, 80, 100, 140])
@pytest.mark.parametrize("name", sorted(ESTIMATES))
def test_no_width_cuts_a_number(name, width):
    """The same sizes stand in the ledger on every page, and they add up to its total."""

    def sizes(at):
        text = estimate_text(Page(width=at), ESTIMATES[name]())
        return re.findall(r"(?<![\d.])\d+\.\d\d(?![\d%])", text)

    assert sorted(sizes(width)) == sorted(sizes(120))


@pytest.mark.parametrize("name", sorted(ESTIMATES))
def test_colour_changes_nothing_but_colour(name):
    build = ESTIMATES[name]
    plain = estimate_text(Page(width=80), build())
    colored = estimate_text(Page(width=80, color=True), build())
    assert colored != plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain


def test_the_ledger_closes():
    """Components of the table sum to the line at the peak; with what is free they make the capacity."""
    book = fits().ledger
    assert sum(book.by_component().values()) == book.device_bytes
    assert book.device_bytes + book.free_bytes == book.capacity_bytes


def test_bars_follow_each_other_up_to_the_total():
    lines = (GOLDEN / "fits-120.txt").read_text(encoding="utf-8").splitlines()
    bars = [(m.start(), m.end()) for line in lines if "│" in line and (m := re.search("█+", line))]
    for (_, stop), (start, _) in pairwise(bars):
        assert 0 <= start - stop <= 1  # a component thinner than a cell may lie between


def test_verdict_comes_first_and_alone_when_quiet():
    estimate = fits()
    full = estimate_text(Page(width=120), estimate)
    assert full.startswith(quiet_text(Page(), estimate).rstrip())
    assert quiet_text(Page(), estimate).count("\n") == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.0, "<0.1%"),
        (0.0009, "<0.1%"),
        (0.014, "1.4%"),
        (0.5, "50%"),
        (0.95, "95.0%"),
        (0.9995, ">99.9%"),
        (1, ">99.9%"),
    ],
)
def test_probabilities_do_not_claim_too_much(given, expected):
    assert percent(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0, "0.00"), (1, "<0.01"), (-1, ">-0.01"), (GIB, "1.00"), (int(7.996 * GIB), "8.00"), (-GIB, "-1.00")],
)
def test_sizes(given, expected):
    assert gib(given) == expected


def test_signed_sizes():
    assert (signed_gib(GIB), signed_gib(-GIB), signed_gib(12)) == ("+1.00", "-1.00", "0.00")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (True, "true"),
        ((), "none"),
        (("a", "b"), "a,b"),
        ({"bpw": 4.5}, "bpw=4.5"),
        (0.05, "0.05"),
        ("x\x1b[1m", "x[1m"),
    ],
)
def test_values(given, expected):
    assert value(given) == expected


def test_one_letter_each():
    assert len(set(LETTERS.values())) == len(LETTERS)
    assert len(set(MARKS.values())) == len(MARKS)


def test_hostile_names_are_disarmed():
    bad = "evil\x1b[31m\x07\u202e\nname"
    assert clean(bad) == "evil[31mname"
    hurt = make((reading(label=bad, moment=bad),), warnings=(bad,))
    text = estimate_text(Page(width=80), hurt)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "evil[31mname" in text


def test_wide_characters_count_twice():
    assert cells("模型") == 4
    lines = table(Page(width=40), [Column("a"), Column("b")], [["模型", "x"], ["abcd", Cell("y")]])
    assert [line.index(c) + line.count("模型") * 2 for line, c in zip(lines[1:], "xy", strict=True)] == [6, 6]


@pytest.mark.parametrize("width", [8, 11, 20, 79])
@pytest.mark.parametrize(
    "text", ["a", "two words", "x" * 100, "  led by spaces and then on", "混合 text 模型模型模型模型模型"]
)
def test_wrapping_keeps_every_word(text, width):
    lines = wrap(text, width, "    ")
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(cells(line) <= max(width, 12) for line in lines)
    assert lines[0].startswith(text[: len(text) - len(text.lstrip())])


NARROW = [
    ("qwen3-coder-480b-a35b", "480.2B", "qwen3_moe", "Qwen/Qwen3-Coder-480B-A35B-Instruct"),
    ("smollm-135m", "134.5M", "llama", "HuggingFaceTB/SmolLM-135M"),
]
NARROW_COLUMNS = [Column("model"), Column("params", "right"), Column("type", flex=True), Column("hub id", flex=True)]


@pytest.mark.parametrize("width", [40, 50, 60, 70, 80, 100])
def test_no_width_breaks_a_word_of_a_table(width):
    """Words of more than 20 cells may break, and only at their seams."""
    lines = table(Page(width=width), NARROW_COLUMNS, NARROW)
    whole = {word for row in NARROW for cell in row for word in cell.split()}
    broken = {word for line in lines[1:] for word in line.split()} - whole - {"hub", "id"}
    assert all(any(re.search(rf"(^|[-/]){re.escape(part)}($|(?<=[-/]))", word) for word in whole) for part in broken)
    assert max(map(cells, lines)) <= max(width, cells("qwen3-coder-480b-a35b  480.2B  qwen3_moe"))


def test_what_a_narrow_line_has_no_room_for_stands_below_it():
    assert table(Page(width=50), NARROW_COLUMNS, NARROW) == [
        "model                  params  type",
        "    hub id",
        "qwen3-coder-480b-a35b  480.2B  qwen3_moe",
        "    Qwen/Qwen3-Coder-480B-A35B-Instruct",
        "smollm-135m            134.5M  llama",
        "    HuggingFaceTB/SmolLM-135M",
    ]


def test_the_first_column_stands_above_its_line():
    columns = [Column("how it came about", flex=True), Column("GiB", "right"), Column("step", "right")]
    assert table(Page(width=30), columns, [["loss kernel: loss compiled", "70.00 GiB", "8.32 s"]]) == [
        "how it came about",
        "      GiB    step",
        "loss kernel: loss compiled",
        "70.00 GiB  8.32 s",
    ]


@pytest.mark.parametrize(
    ("word", "lines"),
    [
        ("Qwen/Qwen3-Coder-480B", ["Qwen/Qwen3-", "Coder-480B"]),
        ("activations,optimizer", ["activations,", "optimizer"]),
        ("30,532,122,624.5", ["30,532,122,62", "4.5"]),  # a number has no seams
        ("--gradient-checkpointing", ["--gradient-", "checkpointing"]),
    ],
)
def test_long_words_break_at_seams(word, lines):
    assert wrap(word, 13) == lines


def test_small_rates_keep_their_digits():
    assert [per_second(rate) for rate in (1684.4, 100, 45.32, 1.494, 0.0123)] == [
        "1,684",
        "100",
        "45.3",
        "1.49",
        "0.0123",
    ]


def test_flags_say_what_the_fields_say():
    fields = {"loss": "fused", "compile": False, "reshard": True, "offload": ("optimizer",), "global_batch": None}
    assert flags(fields) == "--loss fused --no-compile --reshard --offload optimizer"


def test_next_command():
    assert next_command(fits(), "memfit estimate x") == "memfit estimate x --sweep micro_batch=1..64"
    # No single change is enough: the one that saves most goes first.
    assert next_command(not_fitting(), "memfit estimate x") == "memfit estimate x --loss fused"
    # A change of 8 GiB would do: there is no need for the larger ones.
    assert next_command(tight(), "memfit estimate x") == "memfit estimate x --offload optimizer"
    # What saves more of the reserved peak need not help: blocks that the allocator holds are given back.
    saves_slack = [replace(tight().changes[0], p_oom=1.0), replace(tight().changes[1], p_oom=0.3)]
    lean = not_fitting()
    lean.__dict__["changes"] = tuple(saves_slack)
    assert next_command(lean, "memfit estimate x") == "memfit estimate x --micro-batch 1"
    assert next_command(make(capacity=None), "memfit estimate x") == "memfit estimate x --gpu 8xh100"
    # What is stated anew is not stated twice.
    told = "memfit estimate x --loss eager -b 2 --loss=chunked 'a b.toml'"
    assert next_command(not_fitting(), told) == "memfit estimate x -b 2 'a b.toml' --loss fused"


def swept(values, sizes, capacity=80 * GIB, field="task.seq_len"):
    built = tuple(make((reading({"weights": size * GIB}),), capacity=capacity) for size in sizes)
    return Sweep(axes=(Axis(field=field, values=values),), cells=built)


@pytest.mark.parametrize(
    ("values", "sizes", "says"),
    [
        ((1, 2), (9, 9), "fits at every seq_len"),
        ((1,), (9,), "fits at seq_len 1"),
        ((1, 2), (99, 99), "does not fit at any seq_len"),
        ((1, 2, 3), (9, 9, 99), "fits up to seq_len 2"),
        ((1, 2, 3), (99, 9, 9), "fits from seq_len 2 on"),
        ((1, 2, 3), (9, 99, 9), "fits at seq_len 1, 3"),
        ((3, 2, 1), (99, 9, 9), "fits at seq_len 2, 1"),
    ],
)
def test_where_it_fits(values, sizes, says):
    made = swept(values, sizes)
    assert sweep_text(Page(width=80), made).splitlines()[-1] == says
    assert frontier_text(Page(width=80), made) == says + "\n"


def test_a_sweep_without_a_card_says_so():
    text = sweep_text(Page(width=80), swept((1, 2), (9, 99), capacity=None))
    assert "no card is named" in text
    assert "fit at" not in text


def test_a_narrow_sweep_leaves_the_bars_out():
    text = sweep_text(Page(width=40), swept((1, 2), (9, 99)))
    assert "█" not in text
    assert "does not fit" in text


def test_a_wide_grid_is_written_in_blocks():
    """No column is lost, no block is much wider than another."""
    one = swept(tuple(range(1000, 1010)), [9] * 9 + [99])
    axes = (Axis(field="strategy.zero", values=(0, 3)), one.axes[0])
    text = sweep_text(Page(width=60), Sweep(axes=axes, cells=(*one.cells, *one.cells)))
    heads = [line.split()[1:] for line in text.splitlines() if line.startswith("zero ") and "10" in line[:20]]
    assert [word for head in heads for word in head] == [str(n) for n in range(1000, 1010)]
    assert {len(head) for head in heads} == {5}
    assert text.count("!") == 2 + 1


def test_notes_are_for_the_verbose():
    entries = [
        Entry(component="parameters", name="weights", bytes=GIB, note="one note"),
        Entry(component="gradients", name="gradients", bytes=GIB, note="two notes"),
        Entry(component="gradients", name="buckets", bytes=GIB, note="three notes"),
    ]
    book = Ledger.of(entries, capacity_bytes=4 * GIB)
    said = "\n".join(ledger(Page(width=80, verbose=True), book))
    assert all(entry.note in said for entry in entries)
    assert "note" not in "\n".join(ledger(Page(width=80), book))


def test_a_negative_rest_is_shown():
    rest = Entry(component="unaccounted", name="unaccounted", bytes=-GIB, provenance="measured")
    weights = Entry(component="parameters", name="weights", bytes=3 * GIB)
    lines = ledger(Page(width=80), Ledger.of([weights, rest], capacity_bytes=4 * GIB))
    assert any("unaccounted" in line and "-1.00 m" in line for line in lines)
    assert any(line.startswith("at the peak") and "2.00" in line for line in lines)


@pytest.mark.parametrize(("need", "name"), [(None, "missing"), (5 * GIB, "missing"), (4 * GIB, "to give back")])
def test_what_exceeds_the_card_is_missing_unless_it_is_cache(need, name):
    parts = [
        Entry(component="parameters", name="weights", bytes=3 * GIB),
        Entry(component="slack", name="cache", bytes=2 * GIB),
    ]
    lines = ledger(Page(width=80), Ledger.of(parts, capacity_bytes=4 * GIB), need=need)
    assert any(line.startswith(name) and "1.00" in line for line in lines)


def test_frontier_in_words():
    text = (GOLDEN / "sweep-80.txt").read_text(encoding="utf-8")
    assert text.splitlines()[-1] == "fits up to seq_len 4096"
    assert sweep().frontier() == [(None, [2048, 4096])]
    assert sweep(2).frontier() == [(1, ["full"]), (2, ["full"])]


def test_one_rank_shards_nothing():
    lever = {"dp": 1, "cp": 1, "tp": 1, "pp": 4, "pp_schedule": "1f1b", "virtual_pp": 1, "zero": 3, "dp_shard": 1,
             "reshard": False, "sequence_parallel": False, "micro_batch": 1, "grad_accum": 8, "checkpointing": "none",
             "loss": "chunked", "attention": "flash", "compile": False, "optimizer_in_backward": False,
             "offload": ()}  # fmt: skip
    assert "zero 3 (shards nothing), micro_batch" in plan_settings(lever)
    assert "reshard" not in plan_settings(lever)
    assert "zero 3, no reshard" in plan_settings({**lever, "dp": 2, "dp_shard": 2})
    assert "zero 3, no reshard" in plan_settings({**lever, "cp": 2, "dp_shard": 1})


def test_the_split_of_a_pipeline_in_words():
    train = {"model": "llama-3.2-1b", "framework": "megatron", "gpu": "h100"}
    assert "pp 4, layers 3 | 5 x 2 | 3" in job_line(estimate(**train, pp_layers=(3, 5, 5, 3)))
    assert "layers" not in job_line(estimate(**train, pp=4))
    served = estimate(model="llama-3.2-1b", kind="serve", gpu="h100", pp=2, pp_layers=(9, 7))
    assert "layers" not in job_line(served)  # nothing that a served model follows
    assert any("pp_layers" in text for text in served.warnings)
