"""The axes of a sweep: ``seq=2k..128k`` doubles, ``seq=4k..32k:4k`` adds, ``zero=0,1,3`` lists."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from memfit.cli.jobs import Given, field_of
from memfit.cli.output import UsageFaultError
from memfit.errors import MemfitError, UnknownNameError
from memfit.job import BY_NAME, Field
from memfit.report.sweep import Axis, Sweep
from memfit.units import parse_count

if TYPE_CHECKING:
    from memfit.speed.calibration import Calibration

_MOST_VALUES = 1000
_MOST_CELLS = 5000
_HOW = "write for example seq=2k..128k, micro_batch=1..8:1 or zero=0,2,3"


def parse_axis(text: str) -> Axis:
    """One axis as typed.

    Raises:
        MemfitError: not of the form ``field=values``, an unknown field, or values that make no axis.
    """
    name, sign, values = text.partition("=")
    if not sign or not values.strip():
        raise UsageFaultError(f"`{text[:80]}` is not a sweep", hint=_HOW)
    spec = field_of(name)
    if spec is None:
        raise UnknownNameError("field to sweep", name[:60], BY_NAME, hint=_HOW)
    found = _range(spec, values, text) if ".." in values else _list(spec, values, text)
    if len(found) > _MOST_VALUES:
        raise UsageFaultError(f"`{text[:80]}` has more than {_MOST_VALUES} values")
    return Axis(field=spec.path, values=tuple(dict.fromkeys(found)))


def _list(spec: Field, values: str, text: str) -> list[int | str]:
    words = [word.strip() for word in values.split(",", _MOST_VALUES + 1)]
    if not all(words):
        raise UsageFaultError(f"`{text[:80]}` has an empty value", hint=_HOW)
    return [_count(word, text) for word in words] if spec.type == "int" else list(words)


def _range(spec: Field, values: str, text: str) -> list[int | str]:
    if spec.type not in ("int", "checkpointing"):
        raise UsageFaultError(
            f"`{text[:80]}`: {spec.name} is not counted, so it has no range", hint="list values: a,b,c"
        )
    ends, sign, step_text = values.partition(":")
    first_text, _, last_text = ends.partition("..")
    first, last = _count(first_text, text), _count(last_text, text)
    step = _count(step_text, text) if sign else 0
    if first > last:
        raise UsageFaultError(f"`{text[:80]}` runs backwards", hint=f"write {spec.name}={last}..{first}")
    if (sign and step < 1) or (not sign and first < 1):
        raise UsageFaultError(
            f"`{text[:80]}` does not get anywhere", hint="doubling starts at 1 or more, a step is at least 1"
        )
    found: list[int | str] = []
    at = first
    while at < last and len(found) <= _MOST_VALUES:
        found.append(at)
        at = at + step if sign else at * 2
    return [*found, last]


def _count(word: str, text: str) -> int:
    try:
        return parse_count(word)
    except ValueError:
        raise UsageFaultError(f"`{text[:80]}`: `{word.strip()[:40]}` is not a count", hint=_HOW) from None


def run(job: Given, texts: Sequence[str], calibration: Calibration | None = None) -> Sweep:
    """Estimates the job at every combination of the axes.

    Raises:
        MemfitError: more than two axes, too many cells, or no cell has an answer (the first cell's error).
    """
    from memfit.speed.estimate import Estimate, estimate

    axes = tuple(parse_axis(text) for text in texts)
    if len(axes) > 2 or len({axis.field for axis in axes}) < len(axes):
        raise UsageFaultError("a sweep has one axis, or two different ones")
    if len(axes) == 2 and len(axes[0].values) * len(axes[1].values) > _MOST_CELLS:
        raise UsageFaultError(f"the sweep has more than {_MOST_CELLS} cells", hint="take fewer values")
    cells: list[Estimate | MemfitError] = []
    for values in product(*(axis.values for axis in axes)):
        try:
            one = job.job({axis.field: v for axis, v in zip(axes, values, strict=True)})
            cells.append(estimate(one, calibration=calibration))
        except MemfitError as error:
            cells.append(error)
    sweep = Sweep(axes=axes, cells=tuple(cells))
    if not sweep.estimates:
        first = cells[0]
        assert isinstance(first, MemfitError)
        raise first
    return sweep
