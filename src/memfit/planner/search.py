"""The search: the best candidates of a space by branch and bound, with the memory model and the time model as they are.

A node of the tree has chosen some levers. Its bound in time is the time with the remaining levers at their fastest
values, its bound in memory the need with them at their leanest (``levers.BOUNDED``); rows that cannot be among the
best, or cannot fit, go no further. Nothing else is left out, so the first answer is the optimum of the two models
wherever these values are what they are said to be, which a test compares with brute force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from memfit import speed
from memfit.formula import arrays
from memfit.formula.resolve import Resolved
from memfit.formula.slack import calm_bytes
from memfit.planner import levers
from memfit.planner.capabilities import ADAPTERS
from memfit.planner.space import Layout, Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]

APART = ("tp", "pp", "cp", "ep", "zero", "micro_batch", "precision", "optimizer", "offload")
"""Plans that agree in these are one plan: only the best of them is listed."""
RANK = 1e9
"""Seconds that one unit of a penalty weighs: more than any step takes."""

TIE = 0.02
"""Plans whose times differ by less are equal: repeated runs of one configuration differ by up to 1 %, the same design
at two vendors by 2 % (MLPerf step times)."""

NEARLY = 1.2
"""Another pipeline schedule does not save a sixth of what plain 1F1B needs."""

Penalty = Callable[[Mapping[str, Any], Mapping[str, "Ints"]], Any]
"""(values chosen so far, columns) -> what counts before time: changes from today's job, minus sequences in flight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One configuration: all searched fields by name, its figures by the two models.

    Attributes:
        values: field name -> value.
        seconds: of one optimizer step.
        need_bytes: middle of what must be there for the run to finish.
        penalty: what counts before time; 0 when time alone decides.
    """

    values: Mapping[str, Any]
    seconds: float
    need_bytes: int
    penalty: float = 0.0

    @property
    def apart(self) -> tuple[Any, ...]:
        """What tells it from other plans."""
        v = self.values
        alone = v["dp"] * v["cp"] == 1  # one rank has nothing to shard over: all stages are one
        return tuple(min(v[name], 1) if name == "zero" and alone else v[name] for name in APART)

    @property
    def simple(self) -> tuple[int, ...]:
        """How much it asks of links, of the host and of the framework; less is simpler."""
        v = self.values
        needless = v["zero"] > 0 and v["dp"] * v["cp"] == 1 and not v["offload"]
        return (v["tp"] * v["pp"] * v["cp"], len(v["offload"]), int(needless))

    @property
    def order(self) -> tuple[Any, ...]:
        """Best first, ties by need, then by the values themselves, so that the answer never depends on chance."""
        return (self.penalty, self.seconds, self.need_bytes, tuple(str(self.values[n]) for n in levers.ALL))


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a search found.

    Attributes:
        best: best first, each apart from the others; of those that tie with the fastest the simplest first.
        fastest: the best without that rule, None when nothing fits.
        unlimited: the best if memory were no limit (its ``need_bytes`` is that of its fastest form), None without rows.
        leanest: the candidate that needs least, fitting or not; None without rows.
        front: evaluated candidates that fit and that none beats in both time and need, fastest first.
        considered, evaluated: size of the space, and candidates whose memory or time was computed.
        limit_bytes: largest need that was accepted.
    """

    best: tuple[Candidate, ...]
    fastest: Candidate | None
    unlimited: Candidate | None
    leanest: Candidate | None
    front: tuple[Candidate, ...]
    considered: int
    evaluated: int
    limit_bytes: int


@dataclass
class _State:
    keep: int
    found: dict[tuple[Any, ...], Candidate] = field(default_factory=dict)
    fitting: list[tuple[float, int, Candidate]] = field(default_factory=list)
    threshold: float = float("inf")
    ties: float = float("inf")
    mesh: float = float("inf")
    evaluated: int = 0

    def add(self, candidate: Candidate) -> None:
        known = self.found.get(candidate.apart)
        if known is None or candidate.order < known.order:
            self.found[candidate.apart] = candidate
        if len(self.found) < self.keep:
            return
        ranked = sorted(self.found.values(), key=lambda c: c.penalty * RANK + c.seconds)
        last, fastest = ranked[self.keep - 1], ranked[0]
        self.threshold = min(self.threshold, last.penalty * RANK + last.seconds)
        self.ties = min(self.ties, max(self.threshold, fastest.penalty * RANK + fastest.seconds * (1 + TIE)))
        self.mesh = min(c.simple[0] for c in ranked if ties(c, fastest))

    def limits(self, rows: Mapping[str, Ints], pp: int) -> Any:
        """What the score of each row must not exceed: a tie is of interest where it is no less simple."""
        import numpy as np

        mesh = rows["tp"] * rows["cp"] * pp
        return np.where(mesh <= self.mesh, self.ties, self.threshold)


@dataclass(frozen=True, slots=True)
class _Node:
    """Rows that are still in the race, with their bounds."""

    chosen: Mapping[str, Any]
    rows: Mapping[str, Ints]
    seconds: Floats
    need: Ints


def _none(_: Mapping[str, Any], __: Mapping[str, Ints]) -> float:
    return 0.0


class Search:
    """One search of one space.

    Args:
        space: what may be chosen.
        limit_bytes: largest need that is accepted.
        calm: (capacity, risk): where given, reserved memory must stay within the capacity with that risk too, so that
            the allocator need not give its cache back in every step.
        host_bytes: largest pinned memory of a rank that is accepted, None for no limit.
        keep: how many plans are wanted.
        penalty: what counts before time.
        bar: seconds that a plan must stay below to be of interest.
        calibration: constants of the time model, as ``memfit.speed`` takes them.
    """

    def __init__(
        self,
        space: Space,
        *,
        limit_bytes: int,
        calm: tuple[int, float] | None = None,
        host_bytes: int | None = None,
        keep: int = 3,
        penalty: Penalty = _none,
        bar: float = float("inf"),
        calibration: Any = None,
    ) -> None:
        self.space = space
        self.limit = limit_bytes
        self.calm = calm
        self.host = host_bytes
        self.penalty = penalty
        self.calibration = calibration
        self.state = _State(keep, threshold=bar, ties=bar)
        self.unlimited: Candidate | None = None
        self.leanest: Candidate | None = None

    def run(self) -> Outcome:
        """Search the whole space."""
        roots = [self._root(c, layout) for c, layout in self.space.roots() if not self._beaten(c, layout)]
        for node in sorted((node for node in roots if node is not None), key=self._promise):
            self._enter(node)
        ranked = sorted(self.state.found.values(), key=lambda c: c.order)
        return Outcome(
            best=settled(ranked)[: self.state.keep],
            fastest=ranked[0] if ranked else None,
            unlimited=self.unlimited,
            leanest=self.leanest,
            front=_front(self.state.fitting),
            considered=self.space.size,
            evaluated=self.state.evaluated,
            limit_bytes=self.limit,
        )

    def fits_at_all(self) -> bool:
        """Whether any candidate fits, without looking for the best.

        Plain 1F1B keeps the fewest activations, so other schedules are only looked at where it misses by little.
        """
        roots = sorted(self.space.roots(), key=lambda r: (r[1].static["pp_schedule"] != "1f1b", -r[0]["zero"]))
        least = 1 << 62
        for chosen, layout in roots:
            plain = layout.static["pp_schedule"] == "1f1b" or "pp_schedule" in self.space.fixed
            if not plain and least > self.limit * NEARLY:
                continue
            values = {**{name: layout.static[name] for name in levers.STRUCTURAL}, **chosen}
            rows = _smallest(layout.columns)
            for lean in self._lean(values, levers.BOUNDED):
                for offload in self._hosted(lean):
                    need, fits, host = self._memory({**lean, "offload": offload}, rows)
                    least = min(least, int(need.min()))
                    if fits.any():
                        return True
                    if self.host is None or (host <= self.host).all():
                        break
        return False

    def _hosted(self, lean: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
        """What goes to the host, the most first: less may be needed where the host is small."""
        yield lean["offload"]
        for offload in reversed(self.space.options("offload", lean)):
            if offload != lean["offload"] and not self.space.forbidden({**lean, "offload": offload}):
                yield offload

    # ---- the tree ---------------------------------------------------------------------------------------------------

    def _root(self, chosen: Mapping[str, Any], layout: Layout) -> _Node | None:
        import numpy as np

        values = {**{name: layout.static[name] for name in levers.STRUCTURAL}, **chosen}
        fast = self._fast(values, levers.BOUNDED)
        if fast is None:
            return None
        rows = layout.columns
        seconds = self._time(fast, rows)
        self._note_unlimited(fast, rows, seconds)
        return _Node(values, rows, seconds, np.zeros(len(seconds), dtype=np.int64))

    def _enter(self, node: _Node) -> None:
        """A branch: its rows that are fast enough and can fit."""
        node = self._in_time(node)
        if not len(node.seconds):
            return
        need, fits = self._least(node.chosen, levers.BOUNDED, node.rows)
        self._note_leanest(node.chosen, node.rows, need)
        node = _keep(replace(node, need=need), fits)
        options = self.space.options("checkpointing", node.chosen)
        chain = levers.chain(options)
        for value in options:
            if value not in chain:
                self._head(node, (value,), fits_at=-1)
        last = len(chain) - 1
        if chain and chain[-1] != self._leanest("checkpointing", options)[0]:
            last = -1
        if chain:
            self._head(node, chain, fits_at=last)

    def _head(self, node: _Node, chain: tuple[Any, ...], *, fits_at: int, above: int = 0) -> None:
        """Rows by the first value of the chain with which they can fit at all: no faster value is worth a look.

        Args:
            node: rows.
            chain: values of checkpointing, time growing and need shrinking.
            fits_at: index with which the rows are known to fit with the leanest other levers; -1 when not known.
            above: index below which they are known not to fit.
        """
        node = self._in_time(node)
        if not len(node.seconds):
            return
        if above == fits_at:
            rest = chain[above:]
            if rest[0] != levers.fastest("checkpointing", self.space.options("checkpointing", node.chosen)):
                fast = self._fast({**node.chosen, "checkpointing": rest[0]}, levers.BOUNDED[1:])
                if fast is not None:
                    node = self._in_time(replace(node, seconds=self._time(fast, node.rows)))
            self._visit(node, levers.BOUNDED[1:], rest)
            return
        high = len(chain) - 1 if fits_at < 0 else fits_at
        middle = above if above == 0 else (above + high) // 2  # the head of a chain is what mostly fits
        need, fits = self._least({**node.chosen, "checkpointing": chain[middle]}, levers.BOUNDED[1:], node.rows)
        self._head(_keep(replace(node, need=need), fits), chain, fits_at=middle, above=above)
        if middle < high:
            self._head(_keep(node, ~fits), chain, fits_at=fits_at, above=middle + 1)

    def _beaten(self, chosen: Mapping[str, Any], layout: Layout) -> bool:
        """Whether another branch is never slower and never needs more.

        GPipe has the bubble of 1F1B and keeps every micro-batch; an eager loss makes copies that a compiled one saves.
        """
        schedules = () if "pp_schedule" in self.space.fixed else self.space.cap.schedules
        if layout.static["pp_schedule"] == "gpipe" and "1f1b" in schedules:
            return True
        return chosen["loss"] == "eager" and "compiled" in self.space.values["loss"]

    def _promise(self, node: _Node) -> float:
        return float((self.penalty(node.chosen, node.rows) * RANK + node.seconds).min())

    def _visit(self, node: _Node, rest: Sequence[str], chain: tuple[Any, ...]) -> None:
        """The values of the next lever, fast ones first, beside the values of checkpointing that are left."""
        if not len(node.seconds):
            return
        if not rest:
            self._first(node, chain)
            return
        lever, *later = rest
        options = self.space.options(lever, node.chosen)
        for value in options:
            chosen = {**node.chosen, lever: value}
            able = tuple(v for v in chain if not self.space.forbidden({**chosen, "checkpointing": v}))
            current = self._in_time(replace(node, chosen=chosen))
            if not able or not len(current.seconds):
                continue
            fast = self._fast({**chosen, "checkpointing": able[0]}, later)
            if value != levers.fastest(lever, options) or able[0] != chain[0]:
                if fast is None:
                    continue
                current = self._in_time(replace(current, seconds=self._time(fast, current.rows)))
            if len(current.seconds) and (value,) != self._leanest(lever, options):
                need, fits = self._least({**chosen, "checkpointing": able[-1]}, later, current.rows)
                current = _keep(replace(current, need=need), fits)
            self._visit(current, later, able)

    def _first(self, node: _Node, chain: tuple[Any, ...]) -> None:
        """Leaves at the first value of the chain that fits; the node's seconds are those of its head."""
        left = self._leaf(node, chain[0], timed=True)
        if len(chain) > 1 and len(left.seconds):
            self._between(left, chain[1:])

    def _between(self, node: _Node, chain: tuple[Any, ...]) -> None:
        """The same where no row fits before the chain and all fit with its last value: halved until one is left."""
        node = self._in_time(node)
        if not len(node.seconds):
            return
        if len(chain) == 1:
            self._leaf(node, chain[0], timed=False)
            return
        half = len(chain) // 2
        _, fits, _ = self._memory({**node.chosen, "checkpointing": chain[half - 1]}, node.rows)
        self._between(_keep(node, fits), chain[:half])
        slow = self._in_time(_keep(node, ~fits))
        if len(chain) - half > 1 and len(slow.seconds):
            slow = replace(slow, seconds=self._time({**slow.chosen, "checkpointing": chain[half]}, slow.rows))
        self._between(slow, chain[half:])

    def _leaf(self, node: _Node, value: Any, *, timed: bool) -> _Node:
        """Candidates with one value of checkpointing; the rows that do not fit with it are given back.

        Args:
            node: rows, with bounds of their seconds.
            value: of checkpointing.
            timed: the bounds are the seconds of this very value.
        """
        import numpy as np

        whole = replace(node, chosen={**node.chosen, "checkpointing": value})
        if not timed:
            seconds = self._time(whole.chosen, whole.rows)
            whole = replace(whole, seconds=seconds)
            limits = self.state.limits(whole.rows, whole.chosen["pp"])
            quick = self.penalty(whole.chosen, whole.rows) * RANK + seconds <= limits
            node, whole = _keep(node, quick), _keep(whole, quick)
            if not len(whole.seconds):
                return node
        need, fits, _ = self._memory(whole.chosen, whole.rows)
        left = _keep(node, ~fits)
        whole = _keep(replace(whole, need=need), fits)
        penalty = np.broadcast_to(np.asarray(self.penalty(whole.chosen, whole.rows), dtype=float), whole.seconds.shape)
        for i in np.lexsort((whole.need, whole.seconds, penalty)):
            if penalty[i] * RANK + whole.seconds[i] > self.state.ties:
                break
            candidate = _candidate(whole, int(i), float(penalty[i]))
            self.state.add(candidate)
            self.state.fitting.append((candidate.seconds, candidate.need_bytes, candidate))
        return left

    def _in_time(self, node: _Node) -> _Node:
        score = self.penalty(node.chosen, node.rows) * RANK + node.seconds
        return _keep(node, score <= self.state.limits(node.rows, node.chosen["pp"]))

    # ---- bounds -----------------------------------------------------------------------------------------------------

    def _fast(self, chosen: Mapping[str, Any], rest: Sequence[str]) -> dict[str, Any] | None:
        """The values chosen with the remaining levers at their fastest; None when the choice is excluded."""
        if self.space.forbidden(chosen):
            return None
        out = dict(chosen)
        for lever in rest:
            options = self.space.options(lever, out)
            allowed = tuple(v for v in options if not self.space.forbidden({**out, lever: v}))
            if not allowed:
                return None
            out[lever] = levers.fastest(lever, allowed)
        return out

    def _leanest(self, lever: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return levers.leanest(lever, values, adapters=self.space.base.values["method"] in ADAPTERS)

    def _lean(self, chosen: Mapping[str, Any], rest: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Completions of which one never needs more than any other."""
        if not rest:
            if not self.space.forbidden(chosen):
                yield dict(chosen)
            return
        lever, *later = rest
        options = self.space.options(lever, chosen)
        allowed = tuple(v for v in options if not self.space.forbidden({**chosen, lever: v}))
        if allowed:
            for value in self._leanest(lever, allowed):
                yield from self._lean({**chosen, lever: value}, later)

    def _least(self, chosen: Mapping[str, Any], rest: Sequence[str], rows: Mapping[str, Ints]) -> tuple[Ints, Any]:
        """(lowest need, whether any completion can fit) of each row."""
        import numpy as np

        count = len(rows["tp"])
        least = np.full(count, 1 << 62, dtype=np.int64)
        fits = np.zeros(count, dtype=bool)
        for lean in self._lean(chosen, rest):
            for offload in self._hosted(lean) if "offload" in rest else (lean["offload"],):
                left = np.flatnonzero(~fits)
                if not len(left):
                    return least, fits
                need, fit, host = self._memory({**lean, "offload": offload}, {n: c[left] for n, c in rows.items()})
                fits[left] = fit
                least[left] = np.minimum(least[left], need)
                if self.host is None or (host <= self.host).all():
                    break  # less on the host only helps where the host is too small
        return least, fits

    # ---- the models -------------------------------------------------------------------------------------------------

    def _time(self, chosen: Mapping[str, Any], rows: Mapping[str, Ints]) -> Floats:
        self.state.evaluated += len(rows["tp"])
        columns: dict[str, Any] = dict(rows)
        times = speed.evaluate(at(self.space.base, chosen), calibration=self.calibration, **columns)
        seconds: Floats = times.step_s
        if self.space.global_batch is not None:
            return seconds
        # micro-batch and accumulation are given: steps of different size are compared by the time of a sequence
        per: Floats = seconds / (rows["micro_batch"] * rows["grad_accum"] * rows["dp"])
        return per

    def _memory(self, chosen: Mapping[str, Any], rows: Mapping[str, Ints]) -> tuple[Ints, Any, Ints]:
        """(need, whether it fits, pinned host memory) of each row."""
        self.state.evaluated += len(rows["tp"])
        columns: dict[str, Any] = dict(rows)
        peaks = arrays.evaluate(at(self.space.base, chosen), **columns)
        fits = peaks.need <= self.limit
        if self.host is not None:
            fits = fits & (peaks.host <= self.host)
        if self.calm is not None:
            capacity, risk = self.calm
            outside = peaks.device - peaks.reserved
            fits = fits & (calm_bytes(peaks.reserved, outside, risk, sharded=chosen["zero"] >= 3) <= capacity)
        return peaks.need, fits, peaks.host

    def _note_unlimited(self, fast: Mapping[str, Any], rows: Mapping[str, Ints], seconds: Floats) -> None:
        import numpy as np

        i = int(np.argmin(seconds))
        if self.unlimited is None or seconds[i] < self.unlimited.seconds:
            zeros = np.zeros(len(seconds), dtype=np.int64)
            self.unlimited = _candidate(_Node(fast, rows, seconds, zeros), i, 0.0)

    def _note_leanest(self, values: Mapping[str, Any], rows: Mapping[str, Ints], need: Ints) -> None:
        import numpy as np

        i = int(np.argmin(need))
        if self.leanest is None or need[i] < self.leanest.need_bytes:
            lean = next(self._lean(values, levers.BOUNDED), None)
            if lean is not None:
                self.leanest = _candidate(_Node(lean, rows, np.zeros(len(need)), need), i, 0.0)


def ties(candidate: Candidate, fastest: Candidate) -> bool:
    """Whether a candidate is as good as the fastest, as far as a model can tell."""
    return candidate.penalty == fastest.penalty and candidate.seconds <= fastest.seconds * (1 + TIE)


def settled(ranked: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Candidates, best first, with those that tie with the fastest ordered by how simple they are."""
    near = [c for c in ranked if ties(c, ranked[0])]
    return (*sorted(near, key=lambda c: (c.simple, c.order)), *(c for c in ranked if not ties(c, ranked[0])))


def _smallest(columns: Mapping[str, Ints]) -> dict[str, Ints]:
    """The rows with the smallest micro-batch of each mesh: no other needs less."""
    import numpy as np

    names = [n for n in columns if n not in ("micro_batch", "grad_accum")]
    order = np.lexsort((columns["micro_batch"], *(columns[n] for n in names)))
    mesh = np.stack([columns[n][order] for n in names])
    first = np.concatenate(([True], (np.diff(mesh, axis=1) != 0).any(axis=0)))
    return {n: c[order[first]] for n, c in columns.items()}


def at(base: Resolved, chosen: Mapping[str, Any]) -> Resolved:
    """The base job with values chosen."""
    return replace(base, values={**base.values, **chosen})


def _keep(node: _Node, mask: Any) -> _Node:
    if mask.all():
        return node
    return _Node(node.chosen, {n: c[mask] for n, c in node.rows.items()}, node.seconds[mask], node.need[mask])


def _candidate(node: _Node, row: int, penalty: float) -> Candidate:
    numbers = {name: int(column[row]) for name, column in node.rows.items()}
    return Candidate(
        values={**node.chosen, **numbers},
        seconds=float(node.seconds[row]),
        need_bytes=int(node.need[row]),
        penalty=penalty,
    )


def _front(fitting: list[tuple[float, int, Candidate]]) -> tuple[Candidate, ...]:
    """Those that no other beats in time and in need."""
    out: list[Candidate] = []
    least: int | None = None
    for _, need, candidate in sorted(fitting, key=lambda item: (item[0], item[1], item[2].order)):
        if least is None or need < least:
            out.append(candidate)
            least = need
    return tuple(out)
