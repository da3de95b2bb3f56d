"""How many levers differ between two configurations: what "fewest changes from today's job" counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfit.planner import levers
from memfit.planner.search import Penalty


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """The groups of levers (``levers.GROUPS``) in which two configurations differ."""
    return tuple(name for name in levers.GROUPS if bool(_differs(name, old, new)))


def penalty(today: Mapping[str, Any]) -> Penalty:
    """Counts the changes from a configuration; levers that are not chosen yet count as kept."""

    def count(chosen: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        import numpy as np

        total = np.zeros(len(columns["tp"]))
        new = {**chosen, **columns}
        for name, fields in levers.GROUPS.items():
            if all(f in new for f in fields):
                total = total + np.asarray(_differs(name, today, new), dtype=float)
        return total

    return count


def _differs(group: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Any:
    """Whether a group differs, with fields that have no effect left out; a bool or a column of them."""
    if group == "pipeline":
        return new["pp"] != old["pp"] or (
            old["pp"] > 1 and any(new[n] != old[n] for n in ("pp_schedule", "virtual_pp", "pp_layers"))
        )
    if group == "tp":
        both = (new["tp"] == old["tp"]) & (
            (new["tp"] == 1) | (bool(new["sequence_parallel"]) == bool(old["sequence_parallel"]))
        )
        return both == False  # noqa: E712 - a column of booleans
    if group == "zero":
        spans = (new["dp_shard"] == new["dp"]) & (old["dp_shard"] == old["dp"]) | (new["dp_shard"] == old["dp_shard"])
        return (new["zero"] != old["zero"]) | ((new["zero"] > 0) & (spans == False))  # noqa: E712
    if group == "reshard":
        return new["zero"] == 3 and old["zero"] == 3 and bool(new["reshard"]) != bool(old["reshard"])
    if group == "micro_batch":
        return new["micro_batch"] != old["micro_batch"]
    if group == "offload":
        return set(new["offload"] or ()) != set(old["offload"] or ())
    return new[group] != old[group]
