"""One search over all remedies together: the best configuration that fits, and why it is the best."""

from __future__ import annotations

from memfit.planner.answer import Answer, plan
from memfit.planner.plans import Plan
from memfit.planner.request import OBJECTIVES, Option, Request

__all__ = ["OBJECTIVES", "Answer", "Option", "Plan", "Request", "plan"]
