"""How much throughput does a pick lose against the best configuration that anybody measured?

``python benchmarks/regret.py FILES... [--json] [--risk P] [--peers [DIR]] [--calibration FILE] [--rows out.csv] [--page
docs/speed-table.md]``

Each file holds truth records, one JSON object a line. Records with the same ``arena`` competed for the same work
(model, GPUs, global batch, length): they are the candidates, failures included. A planner predicts for each candidate
the step time and whether it fits; its pick is the smallest predicted step time among those it lets pass (the mean over
exact ties). LOST THROUGHPUT is 1 - tokens/s of the pick / tokens/s of the best measured; a pick that failed or ran out
of memory loses 1, and so does "nothing fits"; a loss under 2 % counts 0. At top-3 the best of the first three counts.

memfit lets a candidate pass, as ``memfit plan`` does, whose P(OOM) is at most ``--risk`` and whose reserved memory
exceeds the card with at most that probability (else the allocator gives its cache back in every step, which is slow,
and what is left is close to failing); where none passes, the least likely to fail is picked. Predictions within 2 % of
the fastest are ties, of which the least tp*pp*cp comes first, as in a plan.
Beside it stand: random; random among those that ran; two rules that are told what runs (least tp*pp, then the largest
micro-batch; tp up to 8 first, then the same); memfit's time model alone, told what runs; and, with ``--peers``,
llm-analysis in an environment of its own below DIR (default ``build/peers``; Calculon is not on the package index).

An arena counts with at least 3 measured members, one of a sweep with failures with at least 5. Figures are given for
each family (the arena's name up to the model) and as the mean over the families, so that many small arenas do not
drown the large ones.

Also: precision and recall of "fits" and the Brier score of P(OOM) over all candidates of the arenas, Kendall's tau
between predicted and measured step time, and the step-time error (MAPE) of every record that states tokens/s, zero-shot
and after one calibration row: the first record of each group is measured, and all others are scaled by its error.

Records with ``ttft_ms`` or ``tpot_ms`` give a second table: errors of serving latency.

Exit code 0; 2 when a file or an option cannot be read.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from _shared import text_table
from accuracy import percentile, read_records
from memfit.errors import InputFileError, MemfitError
from memfit.planner.search import TIE
from memfit.speed.calibration import Calibration
from memfit.speed.calibration import load as load_calibration

NOISE = 0.02
"""Losses below this are ties: run-to-run spread of step times is about 1 %, re-measured rows move by more."""
LEAST = 3
LEAST_WITH_FAILURES = 5
RISK = 0.01


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One measured configuration beside its predictions.

    Attributes:
        tokens_per_s: measured, per GPU; 0 when it failed.
        failed: it failed or ran out of memory.
        step_s: predicted; None when memfit has no answer.
        p_oom: predicted; ``p_retry`` that the allocator must give its cache back.
        shape: tp, pp, cp, micro_batch.
        peers: peer -> (predicted seconds, fits), or None.
    """

    id: str
    arena: str
    tokens_per_s: float
    failed: bool
    step_s: float | None
    p_oom: float
    shape: Mapping[str, int]
    p_retry: float = 0.0
    peers: dict[str, tuple[float, bool] | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A measured speed beside the prediction; both in tokens per second and GPU."""

    id: str
    group: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over measured step time, minus one."""
        return self.measured / self.predicted - 1


Key = Callable[[Candidate], float | None]
"""The score by which a planner ranks: smaller is better, None is not picked."""


def lost(candidates: Sequence[Candidate], key: Key, top: int = 1) -> tuple[float, float]:
    """(lost throughput, share of failing picks at top-1) of a ranking in one arena.

    Ties at the border of the first ``top`` are averaged over: every order of equals is as likely.
    """
    best = max(c.tokens_per_s for c in candidates)
    ranked = sorted(((k, c) for c in candidates if (k := key(c)) is not None), key=lambda pair: pair[0])
    if not ranked:
        return 1.0, 1.0
    border = ranked[min(top, len(ranked)) - 1][0]
    sure = [c for k, c in ranked if k < border]
    tied = [c for k, c in ranked if k == border]
    places = min(top, len(ranked)) - len(sure)
    floor = max((c.tokens_per_s for c in sure), default=0.0)
    speed = _expected_best(floor, sorted((c.tokens_per_s for c in tied), reverse=True), places)
    loss = 1 - speed / best
    first = [c for k, c in ranked if k == ranked[0][0]]
    return (0.0 if loss < NOISE else loss), fmean(c.failed for c in first)


def _expected_best(floor: float, speeds: Sequence[float], places: int) -> float:
    """The mean over all choices of ``places`` of ``speeds`` (descending) of the best of them and ``floor``."""
    from math import comb

    total, count = 0.0, len(speeds)
    for index, speed in enumerate(speeds):
        # the best of the choice is this one: it is in, none before it is
        left = count - index - 1
        if left >= places - 1:
            total += max(speed, floor) * comb(left, places - 1)
    return total / comb(count, places)


def first_of_ties(candidates: Sequence[Candidate], key: Key) -> float:
    """Lost throughput when the first of equals is picked: a job that was measured twice is one job."""
    best = max(c.tokens_per_s for c in candidates)
    ranked = [(k, -i, c) for i, c in enumerate(reversed(candidates)) if (k := key(c)) is not None]
    if not ranked:
        return 1.0
    loss = 1 - min(ranked, key=lambda item: item[:2])[2].tokens_per_s / best
    return 0.0 if loss < NOISE else loss


def random_loss(candidates: Sequence[Candidate]) -> float:
    """Lost throughput of a pick at random."""
    return lost(candidates, lambda c: 0.0)[0]


def memfit_key(risk: float, candidates: Sequence[Candidate]) -> Key:
    """memfit's ranking: those that pass the gates by time, ties as its planner settles them; else all by the risk."""
    passed = [c for c in candidates if c.p_oom <= risk and c.p_retry <= risk and c.step_s is not None]
    if not passed:
        return lambda c: c.p_oom if c.step_s is not None else None
    border = min(c.step_s for c in passed if c.step_s is not None) * (1 + TIE)

    def place(c: Candidate) -> tuple[float, ...]:
        assert c.step_s is not None
        if c.step_s <= border:
            return (0.0, c.shape["tp"] * c.shape["pp"] * c.shape["cp"], c.step_s)
        return (1.0, c.step_s)

    order = {where: float(index) for index, where in enumerate(sorted({place(c) for c in passed}))}
    ranks = {c.id: order[place(c)] for c in passed}
    return lambda c: ranks.get(c.id)


def _rule(c: Candidate, tp_first: bool) -> float | None:
    if c.failed:
        return None
    tp, pp, micro = c.shape["tp"], c.shape["pp"], c.shape["micro_batch"]
    if tp_first:
        return (0 if tp <= 8 else 1e9) - tp * 1e6 + pp * 1e3 - micro
    return tp * pp * 1e6 - micro


def _planners(risk: float, peers: Iterable[str]) -> dict[str, Callable[[Sequence[Candidate]], Key]]:
    def peer(name: str) -> Callable[[Sequence[Candidate]], Key]:
        def key(c: Candidate) -> float | None:
            answer = c.peers.get(name)
            return answer[0] if answer is not None and answer[1] else None

        return lambda _: key

    return {
        "memfit": lambda arena: memfit_key(risk, arena),
        "memfit's time, told what runs": lambda _: lambda c: None if c.failed else c.step_s,
        **{name: peer(name) for name in peers},
        "rule: least tp*pp (told what runs)": lambda _: lambda c: _rule(c, False),
        "rule: tp <= 8 first (told what runs)": lambda _: lambda c: _rule(c, True),
        "random among what runs": lambda _: lambda c: None if c.failed else 0.0,
        "random": lambda _: lambda c: 0.0,
    }


def kendall(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Kendall's tau-b of (predicted, measured)."""
    good = bad = first = second = 0
    for i, (a, b) in enumerate(pairs):
        for c, d in pairs[i + 1 :]:
            product = (a - c) * (b - d)
            good += product > 0
            bad += product < 0
            first += a == c and b != d
            second += a != c and b == d
    scale = ((good + bad + first) * (good + bad + second)) ** 0.5
    return (good - bad) / scale if scale else None


def family(arena: str) -> str:
    """The family of an arena: the first two words of its name."""
    return "-".join(arena.split("-")[:2]) if arena.startswith(("playbook", "vtrain")) else arena.split("-")[0]


def score_arenas(arenas: Mapping[str, Sequence[Candidate]], risk: float, peers: Sequence[str]) -> dict[str, Any]:
    """Scores by family and planner."""
    counted = {}
    for name, members in arenas.items():
        failures = any(c.failed for c in members)
        if sum(not c.failed for c in members) >= (LEAST_WITH_FAILURES if failures else LEAST):
            counted[name] = members
    out: dict[str, Any] = {}
    for planner, make in _planners(risk, peers).items():
        table: dict[str, list[tuple[float, float, float, float]]] = {}
        for name, members in counted.items():
            key = make(members)
            one, failing = lost(members, key)
            three, _ = lost(members, key, top=3)
            table.setdefault(family(name), []).append((one, three, failing, first_of_ties(members, key)))
        out[planner] = {
            name: {
                "arenas": len(rows),
                "top1": fmean(r[0] for r in rows),
                "top1_p90": percentile([r[0] for r in rows], 0.9),
                "top1_max": max(r[0] for r in rows),
                "top3": fmean(r[1] for r in rows),
                "failing_picks": sum(r[2] for r in rows),
                "top1_first": fmean(r[3] for r in rows),
            }
            for name, rows in sorted(table.items())
        }
    taus: dict[str, list[float]] = {}
    for name, members in counted.items():
        pairs = [(c.step_s, 1 / c.tokens_per_s) for c in members if not c.failed and c.step_s is not None]
        tau = kendall(pairs)
        if tau is not None:
            taus.setdefault(family(name), []).append(tau)
    return {
        "planners": out,
        "kendall_tau": {name: fmean(values) for name, values in sorted(taus.items())},
        "feasibility": feasibility([c for members in counted.values() for c in members]),
        "arenas": {
            name: {
                "candidates": len(members),
                "failed": sum(c.failed for c in members),
                "pick": _pick(members, risk),
                "best": max(members, key=lambda c: c.tokens_per_s).id,
                "lost": lost(members, memfit_key(risk, members))[0],
            }
            for name, members in sorted(counted.items())
        },
    }


def _pick(members: Sequence[Candidate], risk: float) -> str | None:
    key = memfit_key(risk, members)
    passed = [(k, c.id) for c in members if (k := key(c)) is not None]
    return min(passed)[1] if passed else None


def feasibility(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Precision and recall of "fits" and the Brier score of P(OOM), where anything failed at all."""
    failing = {c.arena for c in candidates if c.failed}
    rows = [c for c in candidates if c.arena in failing]
    said = [c for c in rows if c.p_oom <= 0.5]
    ran = [c for c in rows if not c.failed]
    right = sum(not c.failed for c in said)
    return {
        "candidates": len(rows),
        "failed": len(rows) - len(ran),
        "precision": right / len(said) if said else None,
        "recall": right / len(ran) if ran else None,
        "brier": fmean((c.p_oom - c.failed) ** 2 for c in rows) if rows else None,
    }


def score_times(timings: Sequence[Timing]) -> dict[str, dict[str, float]]:
    """Step-time errors by group, as they are and scaled by the error of the group's first record."""
    groups: dict[str, list[Timing]] = {}
    for t in timings:
        groups.setdefault(t.group, []).append(t)
    out = {}
    for name, rows in sorted(groups.items()):
        scale = 1 + rows[0].error
        rest = rows[1:] or rows
        out[name] = {
            "records": len(rows),
            "mape": fmean(abs(t.error) for t in rows),
            "median": median(abs(t.error) for t in rows),
            "bias": median(t.error for t in rows),
            "mape_calibrated": fmean(abs((1 + t.error) / scale - 1) for t in rest),
        }
    return out


Answer = tuple[float | None, float | None, float, float, Mapping[str, int]]
"""Step seconds, tokens per second and GPU, P(OOM), P(the cache is given back), and the shape of a candidate."""


class Reader:
    """Reads records into candidates, timings and latencies."""

    def __init__(self, calibration: Calibration | None) -> None:
        self.calibration = calibration
        self.arenas: dict[str, list[Candidate]] = {}
        self.jobs: dict[str, Mapping[str, Any]] = {}
        self.timings: list[Timing] = []
        self.latencies: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """One record."""
        if record.get("score") is False:
            return
        measured = record["measured"]
        if measured.get("ttft_ms") or measured.get("tpot_ms"):
            self._latency(record)
            return
        speed = measured.get("tokens_per_s_per_gpu")
        failed = measured.get("outcome") in ("oom", "failed")
        if not speed and not failed:
            return
        step_s, rate, p_oom, p_retry, shape = self._predict(record)
        name = str(record.get("id"))
        if speed and not failed and rate is not None:
            self.timings.append(Timing(id=name, group=str(record.get("group")), measured=float(speed), predicted=rate))
        arena = record.get("arena")
        if arena:
            self.jobs[name] = record["job"]
            self.arenas.setdefault(arena, []).append(
                Candidate(
                    id=name,
                    arena=arena,
                    tokens_per_s=0.0 if failed else float(speed),
                    failed=failed,
                    step_s=step_s,
                    p_oom=p_oom,
                    p_retry=p_retry,
                    shape=shape,
                )
            )

    def _predict(self, record: Mapping[str, Any]) -> Answer:
        from memfit.formula.estimate import estimate
        from memfit.speed import step_time

        strategy = record["job"].get("strategy", {})
        shape = {n: strategy.get(n) or 1 for n in ("tp", "pp", "cp", "micro_batch")}
        try:
            answer = estimate(record["job"])
            seconds = step_time(answer.resolved, calibration=self.calibration)
        except MemfitError as error:
            self.skipped.append({"id": str(record.get("id")), "reason": error.message})
            return None, None, 1.0, 1.0, shape
        return seconds.step_s, seconds.tokens_per_s_per_gpu, answer.p_oom or 0.0, answer.p_retry or 0.0, shape

    def _latency(self, record: Mapping[str, Any]) -> None:
        from memfit.formula.resolve import resolve
        from memfit.job import parse
        from memfit.speed import latency

        measured = record["measured"]
        try:
            answer = latency(resolve(parse(record["job"])), calibration=self.calibration)
        except MemfitError as error:
            self.skipped.append({"id": str(record.get("id")), "reason": error.message})
            return
        row: dict[str, Any] = {"id": str(record.get("id")), "group": _engine(record)}
        for key, predicted in (("ttft_ms", answer.ttft_s * 1e3), ("tpot_ms", answer.tpot_s * 1e3)):
            if measured.get(key):
                row[key] = {"measured": float(measured[key]), "predicted": predicted}
        self.latencies.append(row)


def _engine(record: Mapping[str, Any]) -> str:
    job = record["job"]
    return f"{job['strategy'].get('framework')} {job['hardware'].get('gpu')}"


def score_latencies(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Errors of TTFT and TPOT by engine and card."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
        groups.setdefault("all", []).append(row)
    out = {}
    for name, members in sorted(groups.items()):
        out[name] = {"records": len(members)}
        for key in ("ttft_ms", "tpot_ms"):
            errors = [m[key]["predicted"] / m[key]["measured"] - 1 for m in members if key in m]
            if errors:
                out[name][key] = {
                    "mape": fmean(map(abs, errors)),
                    "median": median(map(abs, errors)),
                    "bias": median(errors),
                }
    return out


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value * 100:{sign}.1f}%"


def report(scores: Mapping[str, Any]) -> str:
    """Everything as text."""
    planners = scores["planners"]
    families = sorted({name for table in planners.values() for name in table})
    out = []
    for name in families:
        first = next(iter(planners.values()))[name]
        out += [f"## Lost throughput: {name}, {first['arenas']} arenas", ""]
        rows = [
            [
                planner,
                *(_percent(table[name][k]) for k in ("top1", "top1_p90", "top1_max", "top1_first", "top3")),
                f"{table[name]['failing_picks']:.1f}",
            ]
            for planner, table in planners.items()
        ]
        out += [text_table(["planner", "top-1", "p90", "max", "first of ties", "top-3", "failing picks"], rows), ""]
    means = [[p, _percent(fmean(t[f]["top1"] for f in families))] for p, t in planners.items() if families]
    if means:
        out += ["## Mean over the families", "", text_table(["planner", "top-1"], means), ""]
    f = scores["feasibility"]
    if f["candidates"]:
        out += [
            "## Does it fit? (arenas with failures)",
            "",
            f"{f['candidates']} candidates, {f['failed']} failed: precision of fits {_percent(f['precision'])}, "
            f"recall {_percent(f['recall'])}, Brier {f['brier']:.3f}",
            "",
        ]
    if scores["kendall_tau"]:
        taus = ", ".join(f"{name} {value:.2f}" for name, value in scores["kendall_tau"].items())
        out += ["## Kendall's tau of step times", "", taus, ""]
    if scores["times"]:
        rows = [
            [
                name,
                str(t["records"]),
                *(_percent(t[k], "+" if k == "bias" else "") for k in ("mape", "median", "bias", "mape_calibrated")),
            ]
            for name, t in scores["times"].items()
        ]
        head = ["group", "records", "MAPE", "median", "bias", "MAPE after one row"]
        out += ["## Step time", "", text_table(head, rows), ""]
    if scores["latency"]:
        rows = []
        for name, t in scores["latency"].items():
            cells = [name, str(t["records"])]
            for key in ("ttft_ms", "tpot_ms"):
                e = t.get(key)
                cells += [_percent(e["mape"]), _percent(e["median"]), _percent(e["bias"], "+")] if e else ["-"] * 3
            rows.append(cells)
        head = ["engine, card", "records", "TTFT MAPE", "median", "bias", "TPOT MAPE", "median", "bias"]
        out += ["## Serving latency", "", text_table(head, rows), ""]
    if scores["skipped"]:
        out += [f"{len(scores['skipped'])} records without an answer, e.g. {scores['skipped'][0]}"]
    return "\n".join(out).rstrip()


def score_files(
    files: Iterable[Path], *, risk: float = RISK, calibration: Calibration | None = None, peers: Path | None = None
) -> dict[str, Any]:
    """All scores of some files, JSON-ready.

    Raises:
        InputFileError: a file is missing, too large or not text.
    """
    reader = Reader(calibration)
    unread: list[str] = []
    for path in files:
        for record in read_records(path, unread):
            reader.add(record)
    names: list[str] = []
    if peers is not None:
        from _regret_peers import ask

        names = ask(reader.arenas, reader.jobs, peers)
    return {
        **score_arenas(reader.arenas, risk, names),
        "times": score_times(reader.timings),
        "latency": score_latencies(reader.latencies),
        "rows": [asdict(c) for members in reader.arenas.values() for c in members],
        "skipped": reader.skipped,
        "unread": unread,
    }


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Scores picks against measured sweeps.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILES", help="truth records, one JSON object a line")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--risk", type=float, default=RISK, help=f"P(OOM) that still passes (default {RISK})")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="figures from `memfit calibrate`")
    parser.add_argument("--rows", type=Path, metavar="CSV", help="also write every candidate to this file")
    parser.add_argument("--page", type=Path, metavar="MD", help="also write the tables to this page")
    parser.add_argument(
        "--peers", nargs="?", const=Path("build/peers"), type=Path, metavar="DIR", help="ask llm-analysis too"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = _arguments(arguments)
    try:
        calibration = load_calibration(options.calibration) if options.calibration else None
        scores = score_files(options.files, risk=options.risk, calibration=calibration, peers=options.peers)
    except InputFileError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    if options.rows:
        with options.rows.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["id", "arena", "tokens_per_s", "failed", "step_s", "p_oom"])
            for row in scores["rows"]:
                out.writerow([row[k] for k in ("id", "arena", "tokens_per_s", "failed", "step_s", "p_oom")])
    if options.page:
        names = ", ".join(f"`{path.name}`" for path in options.files)
        head = f"Written by `benchmarks/regret.py --page` from {names}.\n\n"
        options.page.write_text(f"{head}```text\n{report(scores)}\n```\n", encoding="utf-8")
    for message in scores["unread"]:
        print(message, file=sys.stderr)
    print(json.dumps(scores, indent=1) if options.json else report(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
