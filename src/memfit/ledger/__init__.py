"""The two things every part of memfit produces, compares or shows: a Timeline and a Ledger."""

from memfit.ledger.band import Band
from memfit.ledger.compare import Difference, compare
from memfit.ledger.component import COMPONENTS, PROVENANCES, Component, Provenance
from memfit.ledger.ledger import Entry, Ledger
from memfit.ledger.timeline import Event, Timeline

__all__ = [
    "COMPONENTS",
    "PROVENANCES",
    "Band",
    "Component",
    "Difference",
    "Entry",
    "Event",
    "Ledger",
    "Provenance",
    "Timeline",
    "compare",
]
