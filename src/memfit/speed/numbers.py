"""Arithmetic that is the same for one job and for arrays of jobs.

Only operations that IEEE 754 rounds correctly are used (+ - * / sqrt, comparisons), so that arrays equal scalars.
"""

from __future__ import annotations

import math
from typing import Any

Real = Any
"""A ``float`` or a float64 array of jobs; where it counts things, an ``int`` or an int64 array."""


def _plain(value: Real) -> bool:
    return isinstance(value, int | float)


def real(value: Real) -> Real:
    """As float64."""
    return float(value) if _plain(value) else value.astype("float64")


def most(first: Real, *others: Real) -> Real:
    """Element-wise maximum."""
    for other in others:
        if _plain(first) and _plain(other):
            first = other if other > first else first
        else:
            import numpy as np

            first = np.maximum(first, other)
    return first


def least(first: Real, *others: Real) -> Real:
    """Element-wise minimum."""
    for other in others:
        if _plain(first) and _plain(other):
            first = other if other < first else first
        else:
            import numpy as np

            first = np.minimum(first, other)
    return first


def choose(condition: Real, yes: Real, no: Real) -> Real:
    """Element-wise choice."""
    if isinstance(condition, bool):
        return yes if condition else no
    import numpy as np

    return np.where(condition, yes, no)


def above(value: Real) -> Real:
    """``value`` rounded up to a whole number, as a float."""
    if _plain(value):
        return float(math.ceil(value))
    import numpy as np

    return np.ceil(value)


def root(value: Real) -> Real:
    """Square root."""
    if _plain(value):
        return math.sqrt(value)
    import numpy as np

    return np.sqrt(value)


def either(first: Real, second: Real) -> Real:
    """Two that run beside each other and wait for each other in turn: the longer where one is much longer, a fifth
    more than either where they are equal (a mean of fourth powers)."""
    squares = (first * first, second * second)
    return root(root(squares[0] * squares[0] + squares[1] * squares[1]))


def doublings(count: Real) -> Real:
    """The binary logarithm of a whole number, rounded up: steps of a tree over ``count`` ranks."""
    if _plain(count):
        return float(max(int(count) - 1, 0).bit_length())
    import numpy as np

    exponents = np.frexp(np.maximum(real(count) - 1, 0.0))[1]
    return np.maximum(exponents, 0).astype("float64")
