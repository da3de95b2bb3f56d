"""The files of results: what was run, the truth records made of it, the tables of kernels.

A folder holds ``runs.jsonl`` (one line a case, everything that was measured, with the prediction made before),
``truth.jsonl`` (the same as truth records, one for each kind of peak), ``kernels.jsonl`` (rows of the tables) and
``*.pickle.gz`` (snapshots of the allocator).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

GIB = 1 << 30
KINDS = ("allocated", "reserved", "device")
OUTCOMES = ("ok", "oom", "failed")
_FOLDER = re.compile(r"(?<![\w./:])/(?:home|root|opt|usr|tmp|work|mnt|data|Users|workspace)/")
GIGA = ("peak_gib", "total_gib", "weights_gib", "kv_gib")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; none when it does not exist.

    A last line without its end, left by a process that was stopped, is passed over.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]


def put(folder: Path, run: Mapping[str, Any], table: Iterable[Mapping[str, Any]]) -> None:
    """Write one run, its truth records and its rows into a folder, in place of what an earlier run of the case left."""
    case = run["case"]
    files: dict[str, list[Mapping[str, Any]]] = {
        "runs.jsonl": [run],
        "truth.jsonl": [{"case": case, **record} for record in truth_records(run)],
        "kernels.jsonl": [{"case": case, **row} for row in table],
    }
    for name, entries in files.items():
        path = folder / name
        kept = [entry for entry in read_lines(path) if entry.get("case") != case]
        if entries or kept:
            fresh = path.with_suffix(".new")
            fresh.write_text("".join(json.dumps(entry) + "\n" for entry in (*kept, *entries)), encoding="utf-8")
            fresh.replace(path)


def done(runs: Iterable[Mapping[str, Any]]) -> set[str]:
    """Cases that need not be run again: those that ran, or ran out of memory."""
    return {run["case"] for run in runs if run["result"]["outcome"] in ("ok", "oom")}


def with_share(row: Mapping[str, Any], peaks: Mapping[str, float]) -> dict[str, Any]:
    """A row with ``of_peak``: the share of what the card's maker states, where it states it."""
    peak = peaks.get(str(row.get("dtype")), 0)
    if "tflops" in row and peak:
        return {**row, "of_peak": round(row["tflops"] * 1e12 / peak, 5)}
    memory = peaks.get("memory_bytes_per_s", 0)
    if "gb_per_s" in row and memory and "host" not in row["kernel"]:
        return {**row, "of_peak": round(row["gb_per_s"] * 1e9 / memory, 5)}
    return dict(row)


def where(environment: Mapping[str, Any]) -> str:
    """Card and versions on one line."""
    words = [environment.get("gpu") or "no card"]
    words += [f"{name} {environment[name]}" for name in ("driver", "cuda", "torch", "transformers", "memfit")
              if environment.get(name)]  # fmt: skip
    return ", ".join(words)


def truth_records(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The truth records of one run: one for each kind of peak; times stand in the first. None for tables."""
    if run.get("job") is None or run["result"]["outcome"] not in OUTCOMES:
        return []
    result, job, environment = run["result"], run["job"], run["environment"]
    serve, outcome = job["task"]["kind"] == "serve", result["outcome"]
    if run["kind"] == "sharded" and outcome == "ok":
        kinds: tuple[str, ...] = KINDS[:2]  # no communicator was opened, so the card's use is not a real one's
    else:
        kinds = KINDS if outcome == "ok" else KINDS[:1]
    notes = [where(environment), _how(run)]
    if result.get("error"):
        notes.append(str(result["error"]))
    base: dict[str, Any] = {"certainty": "high", "source": "benchmarks/gpu/record.py"}
    reason = _reason(run)
    if reason:
        base |= {"score": False, "reason": reason}
    records = []
    for index, kind in enumerate(kinds):
        measured: dict[str, Any] = {"kind": kind, "scope": "one rank", "outcome": outcome}
        if outcome == "ok":
            measured["total_gib" if serve else "peak_gib"] = round(result["peak_bytes"][kind] / GIB, 5)
            if index == 0:
                measured |= _serving(result) if serve else _training(result)
        records.append(
            {
                "id": f"{run['group']}/{run['case']}/{kind}",
                "group": run["group"],
                **base,
                "job": job,
                "measured": measured,
                "predicted": run.get("predicted"),
                "settings": run.get("settings") or {},
                "environment": environment,
                "notes": " | ".join(notes),
            }
        )
    return records


def _reason(run: Mapping[str, Any]) -> str:
    """Why a run is not scored; empty when it is."""
    if run["environment"].get("smoke"):
        return str(run["environment"]["smoke"])
    if run["result"]["outcome"] == "failed":
        return "the run failed for a reason that need not be memory"
    return str(run.get("apart") or "")


def _how(run: Mapping[str, Any]) -> str:
    if run["kind"] == "trainer":
        return "transformers.Trainer with its defaults (gradients clipped to norm 1)"
    if run["kind"] == "sharded":
        return "FSDP2, rank 0, collectives of a fake process group: no communicator, no times"
    if run["kind"] == "generate":
        return "model.generate, greedy, transformers' dynamic cache"
    held = run["job"]["strategy"]["framework"] == "torch"
    loop = "output held until the step ends" if held else "only the loss held, fused AdamW"
    settings = ", ".join(f"{key} {value}" for key, value in (run.get("settings") or {}).items())
    return f"plain loop, {loop}" + (f", {settings}" if settings else "")


def _training(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"step_s": result.get("step_s"), "tokens_per_s_per_gpu": result.get("tokens_per_s")}


def _serving(result: Mapping[str, Any]) -> dict[str, Any]:
    out = {"weights_gib": round(result["weights_bytes"] / GIB, 5)}
    if result.get("kv_bytes"):
        out["kv_gib"] = round(result["kv_bytes"] / GIB, 5)
    out["nontorch_gib"] = round(result["outside_bytes"] / GIB, 5)
    out["ttft_ms"] = round(result["first_token_s"] * 1e3, 3)
    out["tpot_ms"] = round(result["token_s"] * 1e3, 4)
    return out


def faults(record: Any) -> list[str]:
    """What keeps an object from being a truth record; nothing when it is one.

    The job itself is read by memfit, so that a record can be scored.
    """
    from memfit.errors import MemfitError
    from memfit.job import parse

    if not isinstance(record, dict):
        return ["not an object"]
    found = [
        f"`{key}` is {record.get(key)!r}"
        for key in ("id", "group", "source", "notes")
        if not isinstance(record.get(key), str) or not record[key]
    ]
    if record.get("certainty") not in ("high", "medium", "low"):
        found.append(f"`certainty` is {record.get('certainty')!r}")
    if record.get("score") is False and not record.get("reason"):
        found.append("`score: false` without a `reason`")
    smoke = (record.get("environment") or {}).get("smoke")
    if smoke:
        found.append(f"not measured: {smoke}")
    if _FOLDER.search(json.dumps(record)):
        found.append("names a folder of the machine it was measured on")
    measured = record.get("measured")
    found += _measured_faults(measured) if isinstance(measured, dict) else ["no `measured`"]
    try:
        parse(record["job"])
    except (KeyError, TypeError, MemfitError) as error:
        found.append(f"`job` cannot be read: {error}")
    return found


def _measured_faults(measured: Mapping[str, Any]) -> list[str]:
    found = []
    if measured.get("kind") not in KINDS:
        found.append(f"`measured.kind` is {measured.get('kind')!r}")
    if measured.get("outcome") not in OUTCOMES:
        found.append(f"`measured.outcome` is {measured.get('outcome')!r}")
    numbers = {key: value for key, value in measured.items() if key not in ("kind", "scope", "outcome")}
    for key, value in numbers.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value) and value > 0):
            found.append(f"`measured.{key}` is {value!r}")
    if measured.get("outcome") == "ok" and not any(measured.get(key) for key in GIGA[:2]):
        found.append("no peak though it ran")
    return found
