"""What is asked of the planner, and which sets of GPUs it may use."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from memfit.errors import JobError, MemfitError, UnknownNameError
from memfit.hardware import OLD_MONTHS, Gpu, Price, cheapest, gpus, lookup_gpu, nodes, prices
from memfit.hardware import price as price_of
from memfit.job import Job
from memfit.planner.capabilities import check_allowed, check_method, names

Objective = Literal["time", "throughput", "cost", "gpus", "seq", "batch", "changes"]

OBJECTIVES: Mapping[str, str] = {
    "time": "least time",
    "throughput": "most tokens per second and GPU",
    "cost": "fewest dollars per token",
    "gpus": "fewest GPUs",
    "seq": "longest sequence that fits",
    "batch": "most sequences at once",
    "changes": "fewest changes from today's job",
}

MOST_RISK = 0.1
"""Plans that run out of memory more often than this are no plans."""
MOST_GPUS = 1 << 16
_MOST_SEARCHED = 1024
"""GPUs up to which a number is looked for when nothing else bounds it."""
_PROVIDERS = {"aws": "AWS", "azure": "Azure", "gcp": "Google", "oci": "Oracle"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One question.

    Attributes:
        job: what is fixed; its hardware may name a card, ``any``, or none.
        today: the job that runs now, whose strategy is not fixed; None without one.
        keep: fields of strategy that stay as ``job`` has them although a job of today is given.
        objective: what is best.
        allow: levers or values that may change results.
        risk: largest accepted probability of running out of memory.
        top: number of plans.
        budget: dollars an hour for all GPUs, None for no limit.
        within: providers; empty for all.
        prices: card name -> dollars per GPU-hour that the user pays; the key "" is for whatever card is used.
        price_list: the prices that are known, in place of the snapshot; None for the snapshot.
        spot: use interruptible prices where they are known.
        tokens: length of the whole run, for its cost; None when not asked.
        host_bytes: memory of one host; None takes the machine shape's, where it is known.
        calibration: constants of the time model.
    """

    job: Job
    today: Job | None = None
    keep: frozenset[str] = frozenset()
    objective: Objective = "time"
    allow: frozenset[str] = frozenset()
    risk: float = 0.01
    top: int = 3
    budget: float | None = None
    within: tuple[str, ...] = ()
    prices: Mapping[str, float] = field(default_factory=dict)
    price_list: tuple[Price, ...] | None = None
    spot: bool = False
    tokens: int | None = None
    host_bytes: int | None = None
    calibration: Any = None

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            MemfitError: a number out of bounds, an unknown word.
        """
        if not 0 < self.risk <= MOST_RISK:
            message = f"must be a probability of running out of memory, above 0 and at most {MOST_RISK:.0%}"
            bound = f"above 0, at most {MOST_RISK:g}"
            raise JobError("risk", message, value=self.risk, bound=bound, hint="1% is the default; 0.1% is careful")
        if not 1 <= self.top <= 20:
            raise JobError("top", "must be a number of plans from 1 to 20", value=self.top, bound="1 to 20")
        if self.budget is not None and not (math.isfinite(self.budget) and self.budget > 0):
            raise JobError("budget", "must be dollars an hour for all GPUs", value=self.budget, bound="above 0")
        if self.objective not in OBJECTIVES:
            raise UnknownNameError("objective", str(self.objective)[:60], OBJECTIVES)
        if self.objective == "changes" and self.today is None:
            raise MemfitError("fewest changes from what? today's job is not given", hint="--from job.toml")
        check_allowed(self.allow)
        framework, task = self.job.strategy.framework, self.job.task
        if framework in names() and task.kind != "serve":
            check_method(str(framework), task.method or ("lora" if task.lora is not None else "full"))
        known = sorted({*self.priced_providers, *_PROVIDERS})
        for word in self.within:
            if word not in known:
                raise UnknownNameError("provider", word[:60], known, hint=f"one of {', '.join(known)}")

    @property
    def known_prices(self) -> tuple[Price, ...]:
        """The prices that are known: the user's list, or the snapshot."""
        return prices() if self.price_list is None else self.price_list

    @property
    def priced_providers(self) -> list[str]:
        """Who asks them, in lower case and in order."""
        return sorted({p.provider.lower() for p in self.known_prices})


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One set of GPUs: the card, how many, what one costs an hour."""

    gpu: Gpu
    gpus: int
    price: Price | None
    spot: bool = False

    @property
    def usd_per_hour(self) -> float | None:
        """Of all GPUs, in whole machines."""
        return None if self.price is None else self.price.per_hour(self.gpus, spot=self.spot)

    @property
    def paid_gpus(self) -> int:
        """GPUs that are paid for: those of whole machines."""
        return self.gpus if self.price is None else self.price.paid_gpus(self.gpus)

    @property
    def is_spot(self) -> bool:
        """Whether the figure is the interruptible price."""
        return self.spot and self.price is not None and self.price.spot_usd_per_hour is not None


def options(request: Request) -> list[Option]:
    """Every set of GPUs that may be used, fewest GPUs first.

    Raises:
        UnknownNameError: the card does not exist.
        MemfitError: nothing bounds the search, or no price is known where one is needed.
    """
    hardware = request.job.hardware
    free = hardware.gpu is not None and hardware.gpu.strip().lower() == "any"
    if free and hardware.gpus is None and request.budget is None and request.objective != "gpus":
        raise MemfitError(
            "any card in any number has no best one", hint="bound it: --budget 20/h, --gpus 8, or --objective gpus"
        )
    cards = list(_cards(request)) if free else [_card(request)]
    needs_price = request.budget is not None or request.objective == "cost"
    found, counts = [], _counts(request, free)
    for card in cards:
        for count in counts:
            price = _price(request, card, count)
            if needs_price and price is None:
                continue
            found.append(Option(gpu=card, gpus=count, price=price, spot=request.spot))
    if not found:
        raise _no_price(request, cards, counts)
    payable = [o for o in found if request.budget is None or (o.usd_per_hour or 0.0) <= request.budget]
    if not payable:
        raise _too_dear(request, found)
    return sorted(payable, key=lambda o: (o.gpus, o.gpu.name))


def _no_price(request: Request, cards: list[Gpu], counts: list[int]) -> MemfitError:
    """No card has a price, and one is needed."""
    what = cards[0].name if len(cards) == 1 else "any of these cards"
    if counts == [request.job.hardware.gpus] and counts[0] > 1:
        what = f"{counts[0]} x {what}"
    old = [] if request.within else list(_old(request, cards, counts))
    if old:
        newest = max(old, key=lambda p: p.date)
        return MemfitError(
            f"what is known of the price of {what} is older than {OLD_MONTHS} months"
            f" ({newest.provider}, {newest.date})",
            hint=f"--within {newest.provider.lower()} uses it, --price {newest.gpu}=2.5 states what you pay",
        )
    example = cards[0].name if len(cards) == 1 else "h100"
    known = ", ".join(request.priced_providers) or "no provider"
    return MemfitError(
        f"no price is known for {what}" + (f" at {', '.join(request.within)}" if request.within else ""),
        hint=f"--price {example}=2.5 states what you pay for a GPU-hour, --prices FILE gives a list;"
        f" prices are known of {known}",
    )


def _old(request: Request, cards: list[Gpu], counts: list[int]) -> Iterator[Price]:
    """The old prices that naming their provider would bring in."""
    for provider in request.priced_providers:
        asked = replace(request, within=(provider,))
        yield from (p for card in cards for n in counts if (p := _price(asked, card, n)) is not None)


def _too_dear(request: Request, found: list[Option]) -> MemfitError:
    """Everything costs more than the budget: what costs least is named."""
    least = min(found, key=lambda o: o.usd_per_hour or 0.0)
    assert least.price is not None
    where = " ".join(w for w in (least.price.provider, least.price.machine) if w)
    whole = f", rented as {least.paid_gpus}" if least.paid_gpus > least.gpus else ""
    return MemfitError(
        f"no card costs as little as {request.budget:g} dollars an hour: {least.gpus} x {least.gpu.name} costs"
        f" {least.usd_per_hour:,.2f} ({where}{whole})",
        hint=f"--price {least.gpu.name}=2.5 states what you pay for a GPU-hour, --prices FILE gives a list",
    )


def price_notes(request: Request) -> tuple[str, ...]:
    """Providers that were named beside others and have no price."""
    without = [w for w in request.within if w not in request.priced_providers]
    if not without or len(without) == len(request.within):
        return ()
    return (f"no price of {' and '.join(without)} is known (--price h100=2.5 or --prices FILE states it)",)


def _card(request: Request) -> Gpu:
    name = request.job.hardware.gpu
    if name is None:
        hint = "for example --gpu 8xh100, or --gpu any --budget 20/h"
        raise JobError("hardware.gpu", "a plan is made for a card, and none is named", hint=hint)
    return lookup_gpu(name)[0]


def _cards(request: Request) -> Iterator[Gpu]:
    """Cards that somebody rents out: those with a price, and those of known machine shapes."""
    wanted = {p.gpu for p in request.known_prices if not request.within or p.provider.lower() in request.within}
    titles = [_PROVIDERS[w] for w in request.within if w in _PROVIDERS]
    wanted |= {n.gpu for n in nodes() if not request.within or any(n.title.startswith(t) for t in titles)}
    wanted |= {lookup_gpu(name)[0].name for name in request.prices if name}
    for card in gpus():
        if card.name in wanted and card.vendor in ("nvidia", "amd") and card.kind != "embedded":
            yield card


def _price(request: Request, card: Gpu, count: int) -> Price | None:
    given = {lookup_gpu(name)[0].name if name else "": value for name, value in request.prices.items()}
    own = given.get(card.name, given.get(""))
    if own is not None:
        return price_of(card, own)
    return cheapest(
        card,
        count,
        per_node=request.job.hardware.gpus_per_node,
        rows=request.known_prices,
        within=request.within,
        spot=request.spot,
    )


def _counts(request: Request, free: bool) -> list[int]:
    stated = request.job.hardware.gpus
    if request.objective == "gpus":
        most = stated or _MOST_SEARCHED
        return [n for n in _steps(most) if n <= most]
    if stated is not None:
        return [stated]
    if request.budget is not None or free:
        return _steps(_MOST_SEARCHED)
    return [1]


def _steps(most: int) -> list[int]:
    """1, 2, 4, 8, then whole nodes: 16, 24, 32, 48, 64, 96 ..."""
    out = [n for n in (1, 2, 4, 8) if n <= most]
    size = 16
    while size <= most:
        out += [n for n in (size, size * 3 // 2) if n <= most]
        size *= 2
    return out if most in out else sorted([*out, most])
