"""The formula against traces of real modules, a family of each sort; ``benchmarks/agreement.py`` has them all."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def agreement() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "agreement.py"
    spec = importlib.util.spec_from_file_location("agreement", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["agreement"] = module
    spec.loader.exec_module(module)
    return module


FAMILIES = ("llama", "gemma3", "gpt_neox", "bloom", "qwen3_moe", "deepseek_v2", "bert", "cohere")
PAIRS = [
    *((family, strategy) for family in FAMILIES for strategy in ("blocks", "blocks-full")),
    *((family, "lora-full") for family in ("llama", "gpt2", "qwen3_moe", "phi3")),
    *((family, "lora") for family in ("falcon-new", "deepseek_v2")),
    *((family, "autocast") for family in ("llama", "nemotron")),
    ("llama", "none"),
    ("qwen3", "accum"),
    ("gemma", "fp32"),
    ("t5", "eager"),
    ("llava", "blocks"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "strategy"), PAIRS)
def test_peaks_agree(agreement: ModuleType, family: str, strategy: str) -> None:
    case, s = agreement.CASES[family], agreement.STRATEGIES[strategy]
    traced, predicted = agreement.traced(case, s), agreement.predicted(case, s)
    assert predicted.peak == pytest.approx(traced["peak"], rel=0.01)
    if strategy in ("none", "blocks"):
        held = sum(predicted.kept().values()) + predicted.tail_kept()
        assert held == pytest.approx(traced["held"], rel=0.01 if family != "llava" else 0.03)
