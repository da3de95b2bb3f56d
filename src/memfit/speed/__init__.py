"""The time model: seconds of a training step, and of a prompt and a token when serving.

It reads the same layer programs, profiles and cards as the memory model. ``step_time(job)`` answers for one job,
``evaluate(job, **columns)`` for a million, and ``least_seconds`` bounds them from below.
"""

from __future__ import annotations

from memfit.speed.arrays import StepTime, Times, evaluate, least_seconds, step_time
from memfit.speed.calibration import Calibration
from memfit.speed.serving import Latency, latency
from memfit.speed.step import PARTS

__all__ = ["PARTS", "Calibration", "Latency", "StepTime", "Times", "evaluate", "latency", "least_seconds", "step_time"]
