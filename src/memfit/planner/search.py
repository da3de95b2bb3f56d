"""The search: the best candidates of a space by branch and bound, with the memory model and the time model as they are.

A node of the tree has chosen some levers. Its bound in time is the time with the remaining levers at their fastest
values, its bound in memory the need with them at their leanest (``levers.BOUNDED``); rows that cannot be among the
best, or cannot fit, go no further. What ``bounds`` says of the whole space comes before both. Nothing else is left
out, so the first answer is the optimum of the two models wherever these values are what they are said to be, which a
test compares with brute force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

from memfit import speed
from memfit.formula import arrays
from memfit.formula.slack import calm_bytes
from memfit.planner import levers
from memfit.planner.bounds import Bounds, at, per_step
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

_MANY = 1 << 16
"""Rows of a space up to which the need of all is bounded before any plan is known."""

_FEW = 128
"""Rows up to which all are evaluated at once."""

_SHORT = 2
"""Values of a chain of checkpointing up to which its end is not tried first: one of two mostly is too slow."""

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
        front: evaluated candidates that fit and that none beats in both time and need, fastest first.
        considered, evaluated: size of the space, and candidates whose memory or time was computed.
        limit_bytes: largest need that was accepted.
    """

    best: tuple[Candidate, ...]
    fastest: Candidate | None
    unlimited: Candidate | None
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
    """Rows of a branch that are still in the race, with their bounds.

    Attributes:
        chosen: levers with their values.
        layout, index: the branch's layout, and the rows' places in it.
        rows, seconds, need: their columns.
        known: what the models said of rows of the branch, see ``Search._recall``.
    """

    chosen: Mapping[str, Any]
    layout: Layout
    index: Ints
    rows: Mapping[str, Ints]
    seconds: Floats
    need: Ints
    known: dict[tuple[Any, ...], tuple[Any, ...]]


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

    @cached_property
    def bounds(self) -> Bounds:
        """Bounds of the whole space."""
        return Bounds(self.space, self.space.layouts, self.calibration)

    def run(self) -> Outcome:
        """Search the whole space: branches by their fastest row, those that a bound rules out unevaluated."""
        roots = [self._root(c, layout) for c, layout in self.space.roots() if not self._beaten(c, layout)]
        branches = [(fast, node) for fast, node in (root for root in roots if root is not None)]
        queue = [(self._promise(node), False, place, node) for place, (_, node) in enumerate(branches)]
        heapify(queue)
        while queue:
            _, exact, place, node = heappop(queue)
            fast, node = branches[place][0], self._in_time(node)
            if exact:
                self._enter(replace(node, seconds=self._time_of(fast, node)))
            elif self._hopeful(node):
                heappush(queue, (self._promise(self._quickest(node, fast)), True, place, node))
        ranked = sorted(self.state.found.values(), key=lambda c: c.order)
        return Outcome(
            best=settled(ranked)[: self.state.keep],
            fastest=ranked[0] if ranked else None,
            unlimited=self._unlimited(branches),
            front=_front(self.state.fitting),
            considered=self.space.size,
            evaluated=self.state.evaluated,
            limit_bytes=self.limit,
        )

    def fits_at_all(self) -> bool:
        """Whether any candidate fits, without looking for the best.

        Plain 1F1B keeps the fewest activations, so other schedules are only looked at where it misses by little.
        """
        small = {id(x): Layout(static=x.static, columns=_smallest(x.columns)) for x in self.space.layouts}
        bounds = Bounds(self.space, tuple(small.values()))
        roots = sorted(self.space.roots(), key=lambda r: (r[1].static["pp_schedule"] != "1f1b", -r[0]["zero"]))
        least = 1 << 62
        for chosen, whole in roots:
            layout = small[id(whole)]
            plain = layout.static["pp_schedule"] == "1f1b" or "pp_schedule" in self.space.fixed
            if not plain and least > self.limit * NEARLY:
                continue
            values = {**{name: layout.static[name] for name in levers.STRUCTURAL}, **chosen}
            for lean in self._lean(values, levers.BOUNDED):
                for offload in self._hosted(lean):
                    hosted = {**lean, "offload": offload}
                    need, host = bounds.memory(hosted, layout)
                    least = min(least, int(need.min()))
                    if (need > self.limit).all():
                        break
                    if self.host is not None and (host > self.host).all():
                        continue
                    need, fits, host = self._memory(hosted, layout.columns)
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

    def _root(self, chosen: Mapping[str, Any], layout: Layout) -> tuple[dict[str, Any], _Node] | None:
        """(the fastest values, the rows of a branch with bounds of their seconds)."""
        import numpy as np

        values = {**{name: layout.static[name] for name in levers.STRUCTURAL}, **chosen}
        fast = self._fast(values, levers.BOUNDED)
        if fast is None:
            return None
        seconds = self.bounds.seconds(fast, layout)
        index = np.arange(layout.count)
        return fast, _Node(values, layout, index, layout.columns, seconds, np.zeros(layout.count, dtype=np.int64), {})

    def _enter(self, node: _Node) -> None:
        """A branch: its rows that are fast enough and can fit."""
        node = self._in_time(node)
        if not len(node.seconds):
            return
        options = self.space.options("checkpointing", node.chosen)
        chain = levers.chain(options)
        last = -1
        if len(chain) > _SHORT and chain[-1] == self._leanest("checkpointing", options)[0]:
            node, last = self._able(node, levers.BOUNDED), len(chain) - 1
        for value in options:
            if value not in chain:
                self._head(node, (value,), fits_at=-1)
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
        head = {**node.chosen, "checkpointing": chain[above]}
        slower = chain[above] != levers.fastest("checkpointing", self.space.options("checkpointing", node.chosen))
        high = len(chain) - 1 if fits_at < 0 else fits_at
        fast = self._fast(head, levers.BOUNDED[1:]) if slower else None
        if above == high:
            if fast is not None:
                node = self._timed(self._roomy(node, head, levers.BOUNDED[1:]), fast)
            if fits_at < 0:
                node = self._able(node, levers.BOUNDED[1:], checkpointing=chain[above])
            self._visit(node, levers.BOUNDED[1:], chain[above:])
            return
        if fast is not None:
            node = self._bounded(node, fast)
        middle = above if above == 0 else (above + high) // 2  # the head of a chain is what mostly fits
        need, fits = self._least({**node.chosen, "checkpointing": chain[middle]}, levers.BOUNDED[1:], node)
        self._head(_keep(replace(node, need=need), fits), chain, fits_at=middle, above=above)
        self._head(_keep(node, ~fits), chain, fits_at=fits_at, above=middle + 1)

    def _beaten(self, chosen: Mapping[str, Any], layout: Layout) -> bool:
        """Whether another branch is never slower and never needs more.

        GPipe has the bubble of 1F1B and keeps every micro-batch; an eager loss makes copies that a compiled one saves.
        """
        schedules = () if "pp_schedule" in self.space.fixed else self.space.cap.schedules
        if layout.static["pp_schedule"] == "gpipe" and "1f1b" in schedules:
            return True
        return chosen["loss"] == "eager" and "compiled" in self.space.values["loss"]

    def _quickest(self, node: _Node, fast: Mapping[str, Any]) -> _Node:
        """The rows of a branch among which the best is, with their seconds; those of the node are bounds."""
        if self.penalty is _none and len(node.seconds) > _FEW:
            near = _keep(node, node.seconds <= node.seconds.min() * (1 + TIE))
            node = _keep(node, node.seconds <= self._time_of(fast, near).min())
        return replace(node, seconds=self._time_of(fast, node))

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
                current = self._timed(self._roomy(current, {**chosen, "checkpointing": able[-1]}, later), fast)
            if (value,) != self._leanest(lever, options):
                current = self._able(current, later, checkpointing=able[-1])
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
        _, fits, _ = self._memory_of({**node.chosen, "checkpointing": chain[half - 1]}, node)
        self._between(_keep(node, fits), chain[:half])
        slow = self._in_time(_keep(node, ~fits))
        if len(chain) - half > 1 and len(slow.seconds):
            slow = replace(slow, seconds=self._time_of({**slow.chosen, "checkpointing": chain[half]}, slow))
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
            seconds = self._time_of(whole.chosen, whole)
            whole = replace(whole, seconds=seconds)
            limits = self.state.limits(whole.rows, whole.chosen["pp"])
            quick = self.penalty(whole.chosen, whole.rows) * RANK + seconds <= limits
            node, whole = _keep(node, quick), _keep(whole, quick)
            if not len(whole.seconds):
                return node
        need, fits, _ = self._memory_of(whole.chosen, whole)
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

    def _timed(self, node: _Node, fast: Mapping[str, Any]) -> _Node:
        """Rows that are fast enough with these values, with their seconds."""
        node = self._bounded(node, fast)
        return self._in_time(replace(node, seconds=self._time_of(fast, node))) if len(node.seconds) else node

    def _bounded(self, node: _Node, fast: Mapping[str, Any]) -> _Node:
        """Rows that are fast enough with these values as far as a bound can tell."""
        if not len(node.seconds):
            return node
        seconds = self.bounds.seconds(fast, node.layout)[node.index]
        score = self.penalty(node.chosen, node.rows) * RANK + seconds
        return _keep(node, score <= self.state.limits(node.rows, node.chosen["pp"]))

    def _able(self, node: _Node, rest: Sequence[str], **more: Any) -> _Node:
        """Rows that can fit with some values of the remaining levers, with bounds of their need."""
        if not len(node.seconds):
            return node
        need, fits = self._least({**node.chosen, **more}, rest, node)
        return _keep(replace(node, need=need), fits)

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

    def _least(self, chosen: Mapping[str, Any], rest: Sequence[str], node: _Node) -> tuple[Ints, Any]:
        """(lowest need, whether any completion can fit) of each row."""
        import numpy as np

        count = len(node.seconds)
        least = np.full(count, 1 << 62, dtype=np.int64)
        fits = np.zeros(count, dtype=bool)
        for lean in self._lean(chosen, rest):
            able = ~fits
            for offload in self._hosted(lean) if "offload" in rest else (lean["offload"],):
                hosted = {**lean, "offload": offload}
                need, host = self._bounds_of(hosted, node)
                able &= need <= self.limit
                here = able & ~fits & (self.host is None or host <= self.host)
                short = bool((able & ~fits & ~here).any())
                if here.any():
                    need, fit, host = self._memory_of(hosted, _keep(node, here))
                    fits[here] = fit
                    least[here] = np.minimum(least[here], need)
                    short = short or not (self.host is None or (host <= self.host).all())
                if not short:
                    break  # less on the host only helps where the host is too small
        return least, fits

    def _bounds_of(self, chosen: Mapping[str, Any], node: _Node) -> tuple[Any, Any]:
        """Bounds of need and of pinned host memory of each row; zeros where working them out would not pay."""
        import numpy as np

        within = self.state.ties if self.penalty is _none else float("inf")
        if within == float("inf") and self.space.rows > _MANY:
            return np.zeros_like(node.index), np.zeros_like(node.index)
        need, host = self.bounds.memory(chosen, node.layout, within=within)
        return need[node.index], host[node.index]

    def _hopeful(self, node: _Node) -> bool:
        """Whether the bounds leave a row that is fast enough and fits with some value of checkpointing."""
        if not len(node.seconds):
            return False
        options = self.space.options("checkpointing", node.chosen)
        chain = levers.chain(options)
        if len(chain) > _SHORT:
            return True
        for value in options:
            chosen = {**node.chosen, "checkpointing": value}
            fast = self._fast(chosen, levers.BOUNDED[1:])
            left = self._bounded(node, fast) if fast is not None else node
            if len(self._roomy(left, chosen, levers.BOUNDED[1:]).seconds):
                return True
        return False

    def _roomy(self, node: _Node, chosen: Mapping[str, Any], rest: Sequence[str]) -> _Node:
        """Rows that can fit with some values of the remaining levers as far as the bounds can tell."""
        import numpy as np

        if not len(node.seconds):
            return node
        room = np.zeros(len(node.seconds), dtype=bool)
        for lean in self._lean(chosen, rest):
            for offload in self._hosted(lean) if "offload" in rest else (lean["offload"],):
                need, host = self._bounds_of({**lean, "offload": offload}, node)
                room |= (need <= self.limit) & (self.host is None or host <= self.host)
                if room.all() or self.host is None:
                    break
        return _keep(node, room)

    # ---- the models -------------------------------------------------------------------------------------------------

    def _time_of(self, chosen: Mapping[str, Any], node: _Node) -> Floats:
        """Seconds of each row."""
        seconds: Floats = self._recall("time", chosen, node, lambda rows: (self._time(chosen, rows),))[0]
        return seconds

    def _memory_of(self, chosen: Mapping[str, Any], node: _Node) -> tuple[Any, ...]:
        """What ``_memory`` gives."""
        return self._recall("memory", chosen, node, lambda rows: self._memory(chosen, rows))

    def _recall(
        self,
        model: str,
        chosen: Mapping[str, Any],
        node: _Node,
        compute: Callable[[Mapping[str, Ints]], tuple[Any, ...]],
    ) -> tuple[Any, ...]:
        """Columns of one of the models, each row of a branch computed once for each choice of its levers."""
        import numpy as np

        key = (model, *(chosen[name] for name in levers.BOUNDED))
        known = node.known.get(key)
        missing = node.index if known is None else node.index[~known[0][node.index]]
        if len(missing):
            found = compute({n: c[missing] for n, c in node.layout.columns.items()})
            if known is None:
                empty = (np.empty(node.layout.count, dtype=column.dtype) for column in found)
                known = node.known[key] = (np.zeros(node.layout.count, dtype=bool), *empty)
            for into, column in zip(known, (True, *found), strict=True):
                into[missing] = column
        assert known is not None
        return tuple(column[node.index] for column in known[1:])

    def _time(self, chosen: Mapping[str, Any], rows: Mapping[str, Ints]) -> Floats:
        self.state.evaluated += len(rows["tp"])
        columns: dict[str, Any] = dict(rows)
        times = speed.evaluate(at(self.space.base, chosen), calibration=self.calibration, **columns)
        return per_step(self.space, times.step_s, rows)

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

    def _unlimited(self, branches: Sequence[tuple[dict[str, Any], _Node]]) -> Candidate | None:
        """The fastest of all candidates, fitting or not."""
        import numpy as np

        best: Candidate | None = None
        at_place = -1
        for place in sorted(range(len(branches)), key=lambda i: float(branches[i][1].seconds.min())):
            fast, node = branches[place]
            node = _keep(node, node.seconds <= (best.seconds if best else np.inf))
            if not len(node.seconds):
                continue
            node = self._quickest(node, fast)
            i = int(np.argmin(node.seconds))
            if best is None or (float(node.seconds[i]), place) < (best.seconds, at_place):
                best, at_place = _candidate(replace(node, chosen=fast), i, 0.0), place
        return best

    def least_need(self) -> int | None:
        """The need of the leanest candidate, fitting or not; None without any."""
        import numpy as np

        leaves = []
        for chosen, layout in self.space.roots():
            if not self._beaten(chosen, layout):
                values = {**{name: layout.static[name] for name in levers.STRUCTURAL}, **chosen}
                leaves += [(lean, layout) for lean in self._lean(values, levers.BOUNDED)]
        bounds = [self.bounds.memory(lean, layout)[0] for lean, layout in leaves]
        best: int | None = None
        for place in sorted(range(len(leaves)), key=lambda i: int(bounds[i].min())):
            lean, layout = leaves[place]
            left = np.flatnonzero(bounds[place] < best) if best is not None else np.arange(layout.count)
            if len(left):
                need = int(self._memory(lean, {n: c[left] for n, c in layout.columns.items()})[0].min())
                best = need if best is None else min(best, need)
        return best


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


def _keep(node: _Node, mask: Any) -> _Node:
    if mask.all():
        return node
    rows = {n: c[mask] for n, c in node.rows.items()}
    return replace(node, index=node.index[mask], rows=rows, seconds=node.seconds[mask], need=node.need[mask])


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
