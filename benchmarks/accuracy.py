"""How far are the estimates from what was measured?

``python benchmarks/accuracy.py FILES... [--json] [--rows out.csv] [--certainty high,medium] [--group G] [--worst N]``

Each file holds truth records, one JSON object a line: ``id``, ``group``, ``certainty``, ``job``, ``measured``. Every
measured quantity is compared with the prediction of its own kind: ``allocated``, ``active`` (compared with allocated:
memfit does not tell them apart), ``reserved``, ``device``; a peak of ``unknown`` kind is compared with reserved and
stands apart. ``scope`` says whose peak it is: "rank0" or "first pipeline stage" is stage 0, "sum over GPUs" the sum
over all stages and the ranks of each, anything else the fullest stage.

Serving records give ``serve:allocated``, ``serve:reserved`` or ``serve:device`` (the whole), ``serve:weights``,
``serve:kv`` (only where it is the need: engines that fill the card report a pool), ``serve:kv/token`` (pool over
tokens) and ``serve:state``. The whole of an engine whose arithmetic is not modelled stands apart.

Not scored: ``score: false``, the keys in ``score_except``, certainties that were not asked for, jobs that cannot be
read. An error is predicted/measured - 1. Errors are averaged within a group, absolute for the error and signed for the
bias, then the median over the groups is taken: otherwise one long table decides. ``p90`` and the share of
under-predictions are over rows.

Where a record says whether the job ran (``outcome`` ok or oom) and the card is known, the verdict is scored too:
precision and recall of "fits", and the Brier score of the probability to run out of memory.

With ``--json`` the result is one object: ``summary`` {quantity: {``records``, ``groups``, ``median_abs_error``,
``p90_abs_error``, ``bias``, ``under_share``, ``by_group`` {group: {``records``, ``mean_abs_error``, ``bias``}}}},
``apart`` (the same for quantities that are not held against memfit), ``feasibility`` {set: {``records``, ``ok``,
``oom``, ``precision``, ``recall``, ``brier``, ``wrong`` [ids]}}, ``rows`` [{``id``, ``group``, ``quantity``,
``measured_gib``, ``predicted_gib``, ``error``, ``stage``, ``phase``, ``components_gib``, ``source_file``}],
``skipped`` [{``id``, ``group``, ``reason``}], ``unread`` [messages]. Exit code 0; 2 when a file or option cannot be
read.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from _shared import text_table
from memfit.errors import InputFileError, MemfitError
from memfit.readers import read_text
from memfit.units import GIB

if TYPE_CHECKING:
    from memfit.formula.estimate import Estimate
    from memfit.ledger import Ledger

MAX_FILE_BYTES = 256 << 20
UNDER = 0.10
"""A prediction that is lower than the measurement by more than this share counts as an under-prediction."""
CERTAINTIES = ("high", "medium", "low")
PEAK_KINDS = {
    "allocated": "allocated",
    "active": "allocated",
    "reserved": "reserved",
    "device": "device",
    "unknown": "reserved",
}
"""Kind of a measured peak -> the kind of prediction it is compared with."""
POOL_ENGINES = frozenset({"vllm", "sglang", "tensorrt-llm"})
"""Engines that fill the card: their key/value figure is what was left over, not what the job needs."""
PLAIN_ENGINES = frozenset({"transformers", "torch", "exllama"})
"""Engines without a memory manager of their own; the whole of any other one is not modelled by the plain form."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured quantity beside its prediction, in GiB; ``apart`` rows are shown but not held against memfit."""

    id: str
    group: str
    quantity: str
    measured_gib: float
    predicted_gib: float
    stage: int = 0
    phase: str = ""
    components_gib: Mapping[str, float] = field(default_factory=dict)
    source_file: str = ""
    apart: bool = False

    @property
    def error(self) -> float:
        """Predicted over measured, minus one."""
        return self.predicted_gib / self.measured_gib - 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Whether a job ran, beside the verdict."""

    id: str
    group: str
    ran: bool
    p_oom: float
    has_peak: bool

    @property
    def said(self) -> bool:
        """The prediction: it runs."""
        return self.p_oom <= 0.5


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A record, or one quantity of it, that is not scored, and why."""

    id: str
    group: str
    reason: str


@dataclass
class Scores:
    """Everything that came out of the records, in the order of the files."""

    rows: list[Row] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Errors of one quantity; all figures are shares, 0.05 means 5 %."""

    records: int
    groups: int
    median_abs_error: float
    p90_abs_error: float
    bias: float
    under_share: float
    by_group: Mapping[str, Mapping[str, float]]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie, interpolated linearly between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarise(rows: Sequence[Row]) -> Summary:
    """Scores of the rows of one quantity: averaged within each group, then the median over the groups."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row.error)
    by_group = {
        name: {"records": len(e), "mean_abs_error": fmean(map(abs, e)), "bias": fmean(e)}
        for name, e in sorted(groups.items())
    }
    return Summary(
        records=len(rows),
        groups=len(groups),
        median_abs_error=median(g["mean_abs_error"] for g in by_group.values()),
        p90_abs_error=percentile([abs(r.error) for r in rows], 0.9),
        bias=median(g["bias"] for g in by_group.values()),
        under_share=sum(r.error < -UNDER for r in rows) / len(rows),
        by_group=by_group,
    )


def summaries(rows: Iterable[Row]) -> dict[str, Summary]:
    """Scores by quantity, training kinds first."""
    table: dict[str, list[Row]] = {}
    for row in rows:
        table.setdefault(row.quantity, []).append(row)
    return {name: summarise(table[name]) for name in sorted(table, key=_quantity_order)}


def _quantity_order(name: str) -> tuple[int, int, str]:
    kinds = list(PEAK_KINDS)
    word = name.removeprefix("serve:").split(" ", maxsplit=1)[0]
    return (int(name.startswith("serve:")), kinds.index(word) if word in kinds else len(kinds), name)


def feasibility(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Precision and recall of "fits" and the Brier score of ``p_oom``; a figure without cases is None."""
    said = [o for o in outcomes if o.said]
    ran = [o for o in outcomes if o.ran]
    right = sum(o.ran for o in said)
    return {
        "records": len(outcomes),
        "ok": len(ran),
        "oom": len(outcomes) - len(ran),
        "precision": right / len(said) if said else None,
        "recall": right / len(ran) if ran else None,
        "brier": fmean((o.p_oom - (not o.ran)) ** 2 for o in outcomes) if outcomes else None,
        "wrong": [o.id for o in outcomes if o.said != o.ran],
    }


def read_records(path: Path, unread: list[str]) -> list[dict[str, Any]]:
    """The records of a file; lines that are none are described in ``unread``, one message a file.

    Raises:
        InputFileError: the file is missing, too large or not text.
    """
    records, bad = [], []
    for number, line in enumerate(read_text(path, limit=MAX_FILE_BYTES).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            bad.append(f"line {number}: not JSON")
            continue
        if not isinstance(record, dict):
            bad.append(f"line {number}: not an object")
        elif not isinstance(record.get("job"), dict) or not isinstance(record.get("measured"), dict):
            bad.append(f"line {number}: no `job` or no `measured`")
        else:
            records.append(record)
    if bad:
        shown = "; ".join(bad[:3]) + (f"; and {len(bad) - 3} more" if len(bad) > 3 else "")
        unread.append(f"{path.name}: {len(bad)} of {len(bad) + len(records)} lines are not truth records ({shown})")
    return records


def whole(estimate: Estimate, kind: str, scope: str) -> tuple[int, int]:
    """The predicted bytes of a kind in a scope, and the index of the stage whose ledger explains them."""

    def of(ledger: Ledger) -> int:
        return int(getattr(ledger, f"{kind}_bytes"))

    if "sum over gpus" in scope:
        # A run that is split by layers has one ledger for each stage, or one that stands for every stage. Data
        # parallel copies count only where the job states them: one server process is one copy.
        strategy = estimate.job.strategy
        copies = (strategy.tp or 1) * (strategy.cp or 1) * (estimate.resolved.stated.strategy.dp or 1)
        stages = (strategy.pp or 1) if len(estimate.stages) == 1 else 1
        return sum(map(of, estimate.stages)) * copies * stages, estimate.fullest
    if "rank0" in scope or "first pipeline stage" in scope:
        return of(estimate.stages[0]), 0
    stage = max(range(len(estimate.stages)), key=lambda i: of(estimate.stages[i]))
    return of(estimate.stages[stage]), stage


def serving_parts(estimate: Estimate, measured: Mapping[str, Any], scope: str) -> dict[str, tuple[str, float] | str]:
    """Measured key -> (quantity, predicted bytes), or the reason why it is not scored, for the parts of a server."""
    serving, strategy = estimate.serving, estimate.job.strategy
    assert serving is not None
    copies = (strategy.tp or 1) * (strategy.pp or 1) if "sum over gpus" in scope else 1
    parts: dict[str, tuple[str, float] | str] = {}
    if measured.get("weights_gib") is not None:
        parts["weights_gib"] = ("serve:weights", serving.weights * copies)
    if measured.get("state_gib") is not None:
        parts["state_gib"] = ("serve:state", serving.state * copies)
    if measured.get("kv_gib") is not None:
        pool = strategy.framework in POOL_ENGINES
        tokens = measured.get("kv_tokens")
        if not pool:
            parts["kv_gib"] = ("serve:kv", serving.kv * copies)
        elif _is_size(tokens):
            # What a token costs is a property of the model, how many fit is one of the engine.
            parts["kv_gib"] = ("serve:kv/token", serving.kv_per_token * copies * float(tokens))
        else:
            parts["kv_gib"] = f"the key/value figure of {strategy.framework} is its pool"
    return parts


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _estimate(job: Mapping[str, Any]) -> Estimate:
    from memfit.formula.estimate import estimate

    return estimate(job)


class Scorer:
    """Scores records one by one into ``scores``."""

    def __init__(self, certainty: Iterable[str] = ("high",), groups: Iterable[str] = ()) -> None:
        self.certainty = frozenset(certainty)
        self.groups = frozenset(groups)
        self.scores = Scores()

    def add(self, record: Mapping[str, Any], source_file: str = "") -> None:
        """Scores one record."""
        name, group = str(record.get("id", "?")), str(record.get("group", "?"))
        if self.groups and group not in self.groups:
            return

        def skip(reason: str) -> None:
            self.scores.skipped.append(Skipped(id=name, group=group, reason=reason))

        measured, excepted = record["measured"], record.get("score_except") or ()
        reason = self._left_out(record)
        if reason:
            skip(reason)
            return
        try:
            estimate = _estimate(record["job"])
        except MemfitError as error:
            skip(f"cannot be read: {error.message}")
            return
        except Exception as error:  # a bug in memfit must not hide the other rows
            skip(f"memfit failed: {type(error).__name__}: {error}")
            return
        values = {k: v for k, v in measured.items() if k not in excepted and v is not None}
        for key, value in values.items():
            if key in ("peak_gib", "total_gib", "weights_gib", "kv_gib", "state_gib") and not _is_size(value):
                skip(f"{key} is {value!r}")
        values = {k: v for k, v in values.items() if not k.endswith("_gib") or _is_size(v)}
        for row in self._rows(name, group, estimate, values, source_file, skip):
            self.scores.rows.append(row)
        self._outcome(name, group, estimate, measured)

    def _left_out(self, record: Mapping[str, Any]) -> str | None:
        measured = record["measured"]
        if record.get("certainty") not in self.certainty:
            return f"certainty {record.get('certainty')}"
        if record.get("score") is False:
            return f"not scored: {record.get('reason', 'no reason given')}"
        if not any(key.endswith("_gib") for key in measured) and not self._ran(measured):
            return "no memory and no outcome measured"
        return None

    @staticmethod
    def _ran(measured: Mapping[str, Any]) -> bool:
        return measured.get("outcome") in ("ok", "oom")

    def _outcome(self, name: str, group: str, estimate: Estimate, measured: Mapping[str, Any]) -> None:
        # An engine that fills the card runs or not by its own settings, so only what is modelled is asked.
        served = estimate.serving is not None and estimate.job.strategy.framework not in PLAIN_ENGINES
        if estimate.p_oom is None or served or not self._ran(measured):
            return
        has_peak = any(_is_size(measured.get(key)) for key in ("peak_gib", "total_gib"))
        ran = measured["outcome"] == "ok"
        self.scores.outcomes.append(Outcome(id=name, group=group, ran=ran, p_oom=estimate.p_oom, has_peak=has_peak))

    def _rows(
        self, name: str, group: str, estimate: Estimate, values: Mapping[str, Any], source_file: str, skip: Any
    ) -> Iterable[Row]:
        scope = str(values.get("scope") or "").lower()

        def row(quantity: str, key: str, predicted: float, stage: int, apart: bool = False) -> Row:
            ledger = estimate.stages[stage]
            return Row(
                id=name,
                group=group,
                quantity=quantity,
                measured_gib=float(values[key]),
                predicted_gib=predicted / GIB,
                stage=stage,
                phase=estimate.stage_phases[stage],
                components_gib={k: v / GIB for k, v in ledger.by_component().items()},
                source_file=source_file,
                apart=apart,
            )

        for key in ("peak_gib", "total_gib"):
            kind = values.get("kind")
            if key not in values:
                continue
            if kind not in PEAK_KINDS:
                skip(f"{key} of kind {kind!r}")
                continue
            predicted, stage = whole(estimate, PEAK_KINDS[kind], scope)
            engine = estimate.job.strategy.framework
            if estimate.serving is None:
                yield row(kind, key, predicted, stage, apart=kind == "unknown")
            elif engine in PLAIN_ENGINES:
                yield row(f"serve:{kind}", key, predicted, stage, apart=kind == "unknown")
            else:
                yield row(f"serve:{kind} ({engine})", key, predicted, stage, apart=True)
        if estimate.serving is None:
            return
        for key, part in serving_parts(estimate, values, scope).items():
            if isinstance(part, str):
                skip(part)
            else:
                yield row(part[0], key, part[1], 0)


def to_json(scores: Scores) -> dict[str, Any]:
    """The result as documented at the top of this file."""
    held = [r for r in scores.rows if not r.apart]
    return {
        "summary": {k: asdict(v) for k, v in summaries(held).items()},
        "apart": {k: asdict(v) for k, v in summaries(r for r in scores.rows if r.apart).items()},
        "feasibility": {k: feasibility(v) for k, v in _outcome_sets(scores).items()},
        "rows": [{**{k: v for k, v in asdict(r).items() if k != "apart"}, "error": r.error} for r in scores.rows],
        "skipped": [asdict(s) for s in scores.skipped],
        "unread": scores.unread,
    }


def _outcome_sets(scores: Scores) -> dict[str, list[Outcome]]:
    return {
        "all with an outcome": scores.outcomes,
        "outcome without a peak": [o for o in scores.outcomes if not o.has_peak],
    }


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value * 100:{sign}.1f} %"


def _summary_lines(table: Mapping[str, Summary]) -> str:
    header = ["quantity", "records", "groups", "median |error|", "p90 (rows)", "bias", f"under by > {UNDER:.0%} (rows)"]
    return text_table(
        header,
        [
            [
                name,
                str(s.records),
                str(s.groups),
                _percent(s.median_abs_error),
                _percent(s.p90_abs_error),
                _percent(s.bias, "+"),
                _percent(s.under_share),
            ]
            for name, s in table.items()
        ],
    )


def _group_lines(table: Mapping[str, Summary]) -> str:
    rows = [
        [name, group, str(g["records"]), _percent(g["mean_abs_error"]), _percent(g["bias"], "+")]
        for name, s in table.items()
        for group, g in s.by_group.items()
    ]
    return text_table(["quantity", "group", "records", "mean |error|", "bias"], rows, left=2)


def _ledger_line(row: Row) -> str:
    return ", ".join(f"{name} {size:.2f}" for name, size in row.components_gib.items())


def report(scores: Scores, worst: int) -> str:
    """The printed result."""
    out = []
    held = summaries(r for r in scores.rows if not r.apart)
    training = {k: v for k, v in held.items() if not k.startswith("serve:")}
    serving = {k: v for k, v in held.items() if k.startswith("serve:")}
    apart = summaries(r for r in scores.rows if r.apart)
    for title, table in (
        ("Training: peak by kind", training),
        ("Serving", serving),
        ("Apart: kind not known, or an engine whose arithmetic is not modelled", apart),
    ):
        if table:
            out += [f"## {title}", "", _summary_lines(table), "", _group_lines(table), ""]
    lines = []
    for name, outcomes in _outcome_sets(scores).items():
        if outcomes:
            f = feasibility(outcomes)
            brier = "-" if f["brier"] is None else f"{f['brier']:.4f}"
            counts = [str(f[k]) for k in ("records", "ok", "oom")]
            lines.append([name, *counts, _percent(f["precision"]), _percent(f["recall"]), brier, str(len(f["wrong"]))])
    if lines:
        header = ["verdict", "records", "ok", "oom", "precision of fits", "recall of fits", "Brier", "wrong"]
        wrong = feasibility(scores.outcomes)["wrong"]
        out += ["## Does it fit?", "", text_table(header, lines)]
        out += ["", f"wrong: {', '.join(wrong[:20])}{' ...' if len(wrong) > 20 else ''}"] if wrong else []
        out.append("")
    ranked = sorted((r for r in scores.rows if not r.apart), key=lambda r: (-abs(r.error), r.id, r.quantity))
    if ranked[:worst]:
        out += [f"## The worst {len(ranked[:worst])} (GiB)", ""]
        for r in ranked[:worst]:
            figures = f"measured {r.measured_gib:.2f}, predicted {r.predicted_gib:.2f} ({_percent(r.error, '+')})"
            where = f"stage {r.stage}, {r.phase}" if r.phase else f"stage {r.stage}"
            out += [f"{r.id} [{r.group}] {r.quantity}: {figures}", f"    {where}: {_ledger_line(r)}"]
        out.append("")
    if scores.skipped:
        counts = Counter(s.reason for s in scores.skipped)
        out += ["## Not scored", ""]
        for reason, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            ids = [s.id for s in scores.skipped if s.reason == reason]
            few = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
            out.append(f"{n:5d}  {reason}" + ("" if reason.startswith("certainty ") else f" ({few})"))
        out.append("")
    return "\n".join(out).rstrip()


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The scored rows as CSV, one column for each component."""
    names = list(dict.fromkeys(name for row in rows for name in row.components_gib))
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        head = ("id", "group", "quantity", "apart", "measured_gib", "predicted_gib", "error", "stage", "phase")
        out.writerow([*head, "source_file", *names])
        for r in rows:
            figures = (f"{r.measured_gib:.4f}", f"{r.predicted_gib:.4f}", f"{r.error:.5f}")
            parts = [f"{r.components_gib.get(name, 0):.4f}" for name in names]
            out.writerow([r.id, r.group, r.quantity, int(r.apart), *figures, r.stage, r.phase, r.source_file, *parts])


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Scores memory estimates against measured runs.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILES", help="truth records, one JSON object a line")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--rows", type=Path, metavar="CSV", help="also write every scored row to this file")
    parser.add_argument("--certainty", default="high", help="comma-separated, of high, medium, low (default high)")
    parser.add_argument("--group", action="append", default=[], help="only this group; may be repeated")
    parser.add_argument("--worst", type=int, default=10, metavar="N", help="how many of the worst rows to show")
    options = parser.parse_args(arguments)
    options.certainty = [word.strip() for word in options.certainty.split(",") if word.strip()]
    strange = [word for word in options.certainty if word not in CERTAINTIES]
    if strange or not options.certainty:
        parser.error(f"--certainty: {', '.join(strange) or 'nothing'} is not of {', '.join(CERTAINTIES)}")
    if options.worst < 0:
        parser.error("--worst: at least 0")
    return options


def score_files(files: Iterable[Path], certainty: Iterable[str] = ("high",), groups: Iterable[str] = ()) -> Scores:
    """Scores of the records of some files.

    Raises:
        InputFileError: a file is missing, too large or not text.
    """
    scorer = Scorer(certainty, groups)
    for path in files:
        for record in read_records(path, scorer.scores.unread):
            scorer.add(record, path.name)
    return scorer.scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = _arguments(arguments)
    try:
        scores = score_files(options.files, options.certainty, options.group)
        if options.rows:
            write_rows(options.rows, scores.rows)
    except InputFileError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write {options.rows}: {error.strerror}", file=sys.stderr)
        return 2
    for message in scores.unread:
        print(message, file=sys.stderr)
    print(json.dumps(to_json(scores), indent=1) if options.json else report(scores, options.worst))
    return 0


if __name__ == "__main__":
    sys.exit(main())
