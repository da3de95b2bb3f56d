"""A plan as text: the verdict, its memory and time, how it came about, what else was close, what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from memfit.hardware import OLD_MONTHS, Price
from memfit.planner import OBJECTIVES
from memfit.planner.explain import Step
from memfit.planner.levers import WORDS
from memfit.report.ledger import ledger
from memfit.report.page import Cell, Column, Page, Row, Style, cells, clean, paragraph, table
from memfit.report.verdict import need_of
from memfit.report.words import cards, gib, job_line, per_second, percent, signed_gib, split, uneven, value
from memfit.units import GIB, format_count

if TYPE_CHECKING:
    from memfit.planner import Answer, Plan
    from memfit.planner.request import Option

_PARTS_LEAST = 0.005
_BAR_LEAST = 8
_ENGINE = "engine of FSDP or ZeRO, which shards nothing here"


def plan_text(page: Page, answer: Answer, *, command: str | None = None, written: str | None = None) -> str:
    """The whole answer.

    Args:
        page: what it is written on.
        answer: the result.
        command: the command line that asked, for the hint what to run next.
        written: the file that the best plan was written to.
    """
    if answer.impossible is not None:
        return _text([_impossible(page, answer), _notes(page, answer)])
    best = answer.plans[0]
    book = ledger(page, best.estimate.ledger, need=need_of(best.estimate).mid)
    parts = [_verdict(page, answer), book, _time(page, best), _binding(page, answer)]
    parts += [_waterfall(page, answer), _choices(page, answer), _others(page, answer), _front(page, answer)]
    parts += [_qualities(page, best), _warnings(page, best), _checked(page, answer), _probes(page, answer)]
    parts += [_notes(page, answer), _next(page, answer, command, written)]
    return _text(parts)


def plan_headline(answer: Answer) -> str:
    """The verdict in one sentence."""
    if answer.impossible is not None:
        return f"impossible: {answer.impossible.reason}"
    best = answer.plans[0]
    need = best.need
    text = f"{_title(answer)}: {_speed(best)}, needs {gib(need.mid)} GiB ({gib(need.low)} to {gib(need.high)})"
    return f"{text} of {gib(best.estimate.capacity_bytes or 0)} GiB, P(OOM) {percent(best.p_oom)}"


def settings(values: Mapping[str, Any]) -> str:
    """The levers of a plan that have an effect, in words as short as flags."""
    return ", ".join(_settings(values))


def seconds(amount: float) -> str:
    """A time with three digits: ``845 ms``, ``6.26 s``, ``31800 s``."""
    if abs(amount) < 1:
        return f"{amount * 1000:.3g} ms"
    return f"{amount:.3g} s" if abs(amount) < 1000 else f"{amount:.0f} s"


def _text(parts: list[list[str]]) -> str:
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _title(answer: Answer) -> str:
    request = answer.request
    if request.objective == "seq":
        length = answer.seq_len or answer.plans[0].job.task.context
        return f"longest sequence: {length} tokens"
    if request.objective == "batch":
        task, strategy = answer.plans[0].job.task, answer.plans[0].job.strategy
        count = task.concurrency or (strategy.micro_batch or 1) * (strategy.dp or 1)
        return f"most sequences at once: {count}"
    if request.objective == "gpus":
        count = answer.plans[0].option.gpus
        return f"fewest GPUs: {count}"
    if request.objective == "changes":
        return f"fewest changes: {int(answer.plans[0].candidate.penalty) if answer.plans[0].candidate else 0}"
    return {"time": "fastest", "throughput": "best throughput", "cost": "cheapest"}[request.objective]


def _speed(plan: Plan) -> str:
    rate = f"{per_second(plan.tokens_per_s_per_gpu or 0)} tokens/s/GPU"
    if plan.step_s is not None:
        return f"{seconds(plan.step_s)} a step, {rate}"
    return f"{seconds(plan.ttft_s or 0)} to the first token, {seconds(plan.tpot_s or 0)} for each further, {rate}"


def _verdict(page: Page, answer: Answer) -> list[str]:
    best = answer.plans[0]
    head = paragraph(page, plan_headline(answer))
    word = _title(answer)
    lines = [page.paint(word, "good") + head[0].removeprefix(word), *head[1:]] if head[0].startswith(word) else head
    lines += paragraph(page, f"  {cards(best.estimate.resolved)}{_price(best)}", "    ")
    lines += paragraph(page, f"  {job_line(best.estimate, _SHOWN)}", "    ")
    lines += paragraph(page, f"  {settings(_values(best))}", "    ")
    tokens = answer.request.tokens
    if tokens and (hours := best.hours_of(tokens)) is not None:
        cost = best.usd_of(tokens)
        money = f", ${cost:,.0f}" if cost is not None else ""
        lines += paragraph(page, f"  {format_count(tokens)} tokens take {hours:,.0f} hours{money}", "    ")
    if answer.most_sequences:
        lines += paragraph(page, f"  up to {answer.most_sequences} sequences of this length fit at once", "    ")
    return lines


_SHOWN = ("micro_batch", "checkpointing", "dp", "tp", "pp", "cp", "ep", "zero", "weights", "kv")


def price_words(price: Price, gpus: int, *, spot: bool = False) -> str:
    """Who asks a price and when, for so many GPUs."""
    paid = price.paid_gpus(gpus)
    words = (
        clean(" ".join(w for w in (price.provider, price.machine) if w)),
        "spot" if spot else "",
        price.date,
        f"older than {OLD_MONTHS} months" if price.is_old else "",
        f"{gpus} of {paid} GPUs used" if paid > gpus else "",
    )
    return ", ".join(w for w in words if w)


def _price(plan: Plan) -> str:
    option = plan.option
    hour = option.usd_per_hour
    if hour is None or option.price is None:
        return "; no price is known (--price)"
    where = price_words(option.price, option.gpus, spot=option.is_spot)
    each = plan.usd_per_mtoken
    return f", ${hour:,.2f} an hour ({where})" + (f", ${each:,.3g} per million tokens" if each is not None else "")


def _values(plan: Plan) -> Mapping[str, Any]:
    if plan.candidate is not None:
        return {**plan.candidate.values, "pp_layers": uneven(plan.estimate.resolved)}
    strategy = plan.job.strategy
    return {n: getattr(strategy, n) for n in ("tp", "pp", "weights", "kv")}


def _settings(v: Mapping[str, Any]) -> Iterator[str]:
    if "dp" in v:
        yield f"dp {v['dp']}"
    for name in ("tp", "pp", "cp", "ep"):
        if (v.get(name) or 1) > 1:
            yield f"{name} {v[name]}"
    if (v.get("tp") or 1) > 1 and v.get("sequence_parallel"):
        yield "sequence parallel"
    if (v.get("pp") or 1) > 1 and v.get("pp_schedule"):
        chunks = f" x{v['virtual_pp']}" if v["virtual_pp"] > 1 else ""
        yield f"{v['pp_schedule']}{chunks}"
        if v.get("pp_layers"):
            yield f"layers {split(v['pp_layers'])}"
    if v.get("zero"):
        yield from _sharding(v)
    if "micro_batch" in v:
        yield f"micro_batch {v['micro_batch']} x {v['grad_accum']}"
        yield f"checkpointing {_ckpt(v['checkpointing'])}"
        yield f"loss {v['loss']}"
        if v["attention"] != "flash":
            yield f"attention {v['attention']}"
        if v["compile"]:
            yield "compile"
        if v["optimizer_in_backward"]:
            yield "optimizer in backward"
        if v["offload"]:
            yield f"offload {value(v['offload'])}"
    for name in ("weights", "kv"):
        if v.get(name):
            yield f"{name} {value(v[name])}"


def _alone(v: Mapping[str, Any]) -> bool:
    """Nothing is sharded: what FSDP or ZeRO leaves then is how its engine keeps weights and gradients."""
    return bool(v["dp"] * v["cp"] == 1)


def _sharding(v: Mapping[str, Any]) -> Iterator[str]:
    if _alone(v):
        yield f"zero {v['zero']} (shards nothing)"
        return
    over = f" over {v['dp_shard']}" if v["dp_shard"] != v["dp"] else ""
    yield f"zero {v['zero']}{over}"
    if v["zero"] == 3:
        yield "reshard" if v["reshard"] else "no reshard"


def _ckpt(mode: Any) -> str:
    return f"every {mode} layers" if isinstance(mode, int) else str(mode)


def _time(page: Page, plan: Plan) -> list[str]:
    """The step in its parts, with bars."""
    total = plan.step_s if plan.step_s is not None else plan.tpot_s
    if not plan.parts or not total:
        return []
    words = _part_words(plan)
    shown = [(n, s) for n, s in plan.parts.items() if abs(s) >= total * _PARTS_LEAST]
    rows: list[Row] = [[words.get(n, n).partition(" that ")[0], seconds(s), f"{s / total:.0%}"] for n, s in shown]
    rows.append([Cell("step" if plan.step_s else "token", "bold"), Cell(seconds(total), "bold"), ""])
    lines = table(page, [Column("time", flex=True), Column("", "right"), Column("", "right")], rows)
    if any(len(line) > page.width for line in lines) or len(lines) != len(rows) + 1:
        return lines
    used = max(cells(_plain(page, line)) for line in lines)
    room = page.width - used - 2
    if room < _BAR_LEAST:
        return lines
    at = 0.0
    for k, (_, part) in enumerate(shown, start=1):
        start, stop = round(at / total * room), round((at + part) / total * room)
        at += part
        bar = " " * start + (page.full * (stop - start) or page.thin)
        lines[k] += " " * (used + 2 - cells(_plain(page, lines[k]))) + page.paint(bar, "A")
    return [line.rstrip() for line in lines]


def _plain(page: Page, line: str) -> str:
    if not page.color:
        return line
    import re

    return re.sub(r"\x1b\[[0-9]*m", "", line)


def _part_words(plan: Plan) -> Mapping[str, str]:
    if plan.step_s is not None:
        from memfit.speed import PARTS

        return PARTS
    from memfit.speed.serving import PARTS as SERVING_PARTS

    return SERVING_PARTS


def _binding(page: Page, answer: Answer) -> list[str]:
    found = answer.binding
    if found is None:
        return []
    if found.kind == "memory" and found.unlimited is not None:
        text = (
            f"memory binds, at {clean(found.what)}: without its limit a step would take {found.share:.0%} less "
            f"({settings(found.unlimited.values)})"
        )
    else:
        text = f"memory does not bind; the largest part is {clean(found.what)}, {found.share:.0%}"
    return paragraph(page, text)


def _waterfall(page: Page, answer: Answer) -> list[str]:
    if len(answer.waterfall) < 2:
        return []
    capacity = answer.plans[0].estimate.capacity_bytes or 0
    start = "today's job" if answer.request.today is not None else "naive: plain data parallel"
    alone = _alone(_values(answer.plans[0]))
    rows: list[Row] = []
    for step in answer.waterfall:
        style: Style = "bad" if step.need_bytes > capacity else ""
        first = step.lever == "start"
        rows.append(
            [
                start if first else _remedy(step, alone),
                Cell(gib(step.need_bytes), style),
                "" if first else _delta(step.delta_bytes),
                seconds(step.step_s),
                "" if first else _later(step.delta_s),
            ]
        )
    columns = [
        Column("how it came about", flex=True),
        Column("GiB", "right"),
        Column("", "right"),
        Column("step", "right"),
        Column("", "right"),
    ]
    return table(page, columns, rows)


def _remedy(step: Step, alone: bool) -> str:
    name = _ENGINE if alone and step.lever == "zero" else WORDS[step.lever]
    told = ", ".join(_told(n, after) for n, (_, after) in step.fields.items() if n != "grad_accum")
    return f"{name}: {told}" if told else name


def _told(name: str, item: Any) -> str:
    if name == "pp_layers":
        return f"layers {split(item)}" if item else "layers as the framework splits"
    return f"{name} {value(item)}"


def _delta(num_bytes: int) -> Cell:
    style: Style = "good" if num_bytes < 0 else "bad" if num_bytes > 0 else ""
    return Cell(signed_gib(num_bytes), style)


def _later(amount: float) -> Cell:
    style: Style = "good" if amount < 0 else "bad" if amount > 0 else ""
    return Cell(("+" if amount > 0 else "-" if amount < 0 else "") + seconds(abs(amount)), style)


def _others(page: Page, answer: Answer) -> list[str]:
    """The other plans and why they lost."""
    if len(answer.plans) < 2:
        return []
    if not answer.losses:
        rows: list[Row] = [
            [str(i), _speed(p), gib(p.need.mid), percent(p.p_oom), _cards(p.option), settings(_values(p))]
            for i, p in enumerate(answer.plans[1:], start=2)
        ]
        heads = [Column("next"), Column("speed", flex=True), Column("GiB", "right"), Column("P(OOM)", "right")]
        return table(page, [*heads, Column("", flex=True), Column("", flex=True)], rows)
    words = _part_words(answer.plans[0])
    rows = []
    best = _values(answer.plans[0])
    for i, loss in enumerate(answer.losses, start=2):
        plan = loss.plan
        worse = [f"{words.get(n, n).partition(' that ')[0]} {_sign(s)}" for n, s in loss.parts if s > 0][:2]
        if loss.delta_s < 0:
            share = -loss.delta_s / ((plan.step_s or 0.0) - loss.delta_s)
            worse = [f"a tie: {share:.1%} faster by the model, less simple"]
        if fewer := _penalty(answer, plan):
            worse = [fewer]
        differs = {n: x for n, x in _values(plan).items() if best.get(n) != x}
        told = [_cards(plan.option)] if plan.option != answer.plans[0].option else []
        told += list(_differences(differs, _values(plan)))
        rows.append(
            [
                str(i),
                seconds(plan.step_s or 0),
                gib(plan.need.mid),
                percent(plan.p_oom),
                ", ".join(told) or "the same",
                "; ".join(worse) or "needs more",
            ]
        )
    columns = [
        Column("next"),
        Column("step", "right"),
        Column("GiB", "right"),
        Column("P(OOM)", "right"),
        Column("instead", flex=True),
        Column("lost by", flex=True),
    ]
    return table(page, columns, rows)


def _penalty(answer: Answer, plan: Plan) -> str:
    """What counted before time, where it decided."""
    best, own = answer.plans[0].candidate, plan.candidate
    if best is None or own is None or own.penalty == best.penalty:
        return ""
    if answer.request.objective == "changes":
        return f"{int(own.penalty)} changes"
    return f"{int(-own.penalty)} sequences at once"


def _cards(option: Option) -> str:
    return f"{option.gpus} x {option.gpu.name}"


def _differences(fields: Mapping[str, Any], v: Mapping[str, Any]) -> Iterator[str]:
    """Those of the changed ``fields`` that have an effect in the plan with the values ``v``."""
    for name, item in fields.items():
        if name in ("dp", "grad_accum") or (name == "dp_shard" and (v["dp_shard"] == v["dp"] or not v["zero"])):
            continue
        if name in ("pp_schedule", "virtual_pp", "pp_layers") and v["pp"] == 1:
            continue
        if name == "reshard" and (v["zero"] < 3 or _alone(v)):
            continue
        if name == "sequence_parallel" and v["tp"] == 1:
            continue
        yield _told(name, item)


def _sign(amount: float) -> str:
    return f"+{seconds(amount)}"


def _choices(page: Page, answer: Answer) -> list[str]:
    """An explained lever: each value with the best beside it."""
    if not answer.choices:
        return []
    best = answer.plans[0]
    rows: list[Row] = []
    for choice in answer.choices:
        if choice.plan is None:
            rows.append([value(choice.value), "-", "-", "nothing fits"])
            continue
        plan = choice.plan
        gap = (plan.step_s or 0) / (best.step_s or 1) - 1
        mark = Cell("the plan", "good") if abs(gap) < 1e-9 else f"{gap:+.1%}"
        rows.append([value(choice.value), seconds(plan.step_s or 0), gib(plan.need.mid), mark, settings(_values(plan))])
    heads = [Column(answer.lever), Column("step", "right"), Column("GiB", "right"), Column("", "right")]
    full = [[*row, ""] if len(row) == 4 else row for row in rows]
    return table(page, [*heads, Column("everything else searched again", flex=True)], full)


def _front(page: Page, answer: Answer) -> list[str]:
    if len(answer.front) < 2:
        return []
    priced = any(p.usd_per_step is not None for p in answer.front)
    several = len({(p.option.gpu.name, p.option.gpus) for p in answer.front}) > 1
    rows: list[Row] = []
    for point in answer.front:
        row = [seconds(point.step_s), gib(point.need_bytes)]
        if priced:
            row.append("-" if point.usd_per_step is None else f"{point.usd_per_step:.3g}")
        if several:
            row.append(_cards(point.option))
        rows.append([*row, settings(point.values)])
    columns = [Column("step", "right"), Column("GiB", "right")]
    columns += [Column("$ a step", "right")] if priced else []
    columns += [Column("GPUs", flex=True)] if several else []
    return table(page, [*columns, Column("front: nothing is better in all of these", flex=True)], rows)


def _qualities(page: Page, plan: Plan) -> list[str]:
    lines = []
    for q in plan.qualities:
        head, *rest = paragraph(page, f"quality: {q.lever} {q.value}: {q.costs} ({q.source})")
        lines += [head.replace("quality:", page.paint("quality:", "warn"), 1), *rest]
    return lines


def _warnings(page: Page, plan: Plan) -> list[str]:
    lines = []
    for text in (*plan.estimate.warnings, *_host(plan)):
        head, *rest = paragraph(page, f"warning: {clean(text)}")
        lines += [head.replace("warning:", page.paint("warning:", "warn"), 1), *rest]
    return lines


def _host(plan: Plan) -> Iterator[str]:
    host = plan.estimate.host_bytes
    if host:
        per_node = host * min(plan.option.gpus, plan.job.hardware.gpus_per_node or plan.option.gpus)
        yield (
            f"{gib(host)} GiB of pinned host memory for each rank, {gib(per_node)} GiB in a node, must be there"
            " (--host-memory bounds it)"
        )


def _checked(page: Page, answer: Answer) -> list[str]:
    if not answer.checked:
        return []
    lines = []
    for i, check in enumerate(answer.checked, start=1):
        name = "the plan" if i == 1 else f"number {i}"
        if check.need_bytes is None:
            lines += paragraph(page, f"{name} was not traced: {clean(check.why)}")
        else:
            word = "finishes" if check.fits else "does not finish"
            lines += paragraph(
                page, f"{name} traced through the real module: {word}, needs {gib(check.need_bytes)} GiB"
            )
    return lines


def _probes(page: Page, answer: Answer) -> list[str]:
    lines = []
    best = _values(answer.plans[0])
    for probe in answer.probes:
        told = ", ".join(_differences(probe.fields, {**best, **probe.fields}))
        lines += paragraph(page, f"probe first: {told or 'the plan itself'}: {probe.why}")
    return lines


def _notes(page: Page, answer: Answer) -> list[str]:
    lines = []
    for note in answer.notes:
        lines += paragraph(page, f"assumed: {clean(note)}")
    if answer.considered:
        wanted = f"wanted: {OBJECTIVES[answer.request.objective]}, P(OOM) at most {answer.request.risk:.3g}"
        count = f"{answer.considered:,} candidate{'s' if answer.considered > 1 else ''} considered"
        rest = (
            f", {answer.evaluated:,} evaluated and the rest bounded out" if answer.evaluated < answer.considered else ""
        )
        lines += paragraph(page, f"{wanted}; {count}{rest}")
    return lines


def _next(page: Page, answer: Answer, command: str | None, written: str | None) -> list[str]:
    del answer
    if written is not None:
        return [f"{page.paint('written:', 'bold')} {clean(written)}; next: memfit estimate {clean(written)}"]
    return [f"{page.paint('next:', 'bold')} {command} --out plan.toml"] if command is not None else []


def _impossible(page: Page, answer: Answer) -> list[str]:
    found = answer.impossible
    assert found is not None
    head = paragraph(page, plan_headline(answer))
    lines = [page.paint("impossible", "bad") + head[0].removeprefix("impossible"), *head[1:]]
    text = f"  {found.option.gpus} x {found.option.gpu.title}"
    if found.need_bytes is not None and found.capacity_bytes:
        text += f": the leanest way needs {gib(found.need_bytes)} of {found.capacity_bytes / GIB:.2f} GiB"
    lines += paragraph(page, text, "    ")
    if not found.ways:
        return [*lines, *paragraph(page, "  no single change makes it possible")]
    rows: list[Row] = [[w.what, w.flags, w.costs] for w in found.ways]
    columns = [
        Column("one of these makes it possible", flex=True),
        Column("flags", flex=True),
        Column("costs", flex=True),
    ]
    return [*lines, "", *table(page, columns, rows)]
