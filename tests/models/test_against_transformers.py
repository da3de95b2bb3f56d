"""Every family against the transformers class of the same configuration: count, names and multiset of shapes."""

import re
from collections import Counter
from typing import Any

import pytest
from family_cases import cases

from memfit.models import Architecture, architecture

pytestmark = pytest.mark.slow
LAYERS = 4
# Recent releases renamed these modules; memfit keeps the names that checkpoints and adapters use.
RENAMED = {
    "mixtral": ("mlp.", "block_sparse_moe."),
    "phimoe": ("mlp.", "block_sparse_moe."),
    "minimax": ("mlp.", "block_sparse_moe."),
    "minimax_m2": ("mlp.", "block_sparse_moe."),
}
RENAMED_PARTS = {
    "phimoe": {"block_sparse_moe.router": "block_sparse_moe.gate"},
    "granitemoe": {"router.weight": "router.layer.weight"},
    "granitemoeshared": {"router.weight": "router.layer.weight"},
    "ernie4_5_moe": {"mlp.gate.moe_statics": "mlp.moe_statics"},
}


def build(model_type: str, keys: dict[str, Any]) -> Any:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = CONFIG_MAPPING[model_type]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(cls(**keys))


def with_layers(model_type: str, keys: dict[str, Any]) -> dict[str, Any]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name = getattr(CONFIG_MAPPING[model_type], "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    return {name: LAYERS, **keys}


def shape(dims: Any) -> tuple[int, ...]:
    """Dims in any order, ones left out: stored transposes and (1, E) vectors compare equal."""
    return tuple(sorted(d for d in dims if d != 1))


def is_experts(name: str) -> bool:
    return re.search(r"experts\.(mlp\.)?(gate_up_proj|down_proj|w1|v1|w2)(_bias)?$", name) is not None


def reference_shapes(module: Any, ours: Architecture) -> Counter[tuple[int, ...]]:
    """The library's parameters, with experts that it keeps in one tensor taken apart as memfit lists them."""
    fused = any("gate" in n or "input" in n for t in ours.tensors() if t.expert and t.splits for n in (t.name,))
    counts: Counter[tuple[int, ...]] = Counter()
    for name, p in module.named_parameters():
        if not is_experts(name):
            counts[shape(p.shape)] += 1
            continue
        experts = next(t.count for t in ours.tensors() if t.expert)
        each = tuple(p.shape[1:]) if p.shape[0] == experts else (p.shape[0] // experts, *p.shape[1:])
        if "gate_up_proj" in name and not fused:
            counts[shape((each[0] // 2, *each[1:]))] += 2 * experts
        else:
            counts[shape(each)] += experts
    return counts


def our_shapes(ours: Architecture) -> Counter[tuple[int, ...]]:
    counts: Counter[tuple[int, ...]] = Counter()
    for t in ours.tensors():
        if not t.buffer:
            counts[shape(t.shape)] += t.count
    return counts


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "keys"), cases())
def test_family_equals_the_transformers_class(model_type: str, keys: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    keys = with_layers(model_type, keys)
    module = build(model_type, keys)
    ours = architecture({"model_type": model_type, **keys})
    assert ours.num_params == sum(p.numel() for p in module.parameters())
    assert our_shapes(ours) == reference_shapes(module, ours)
    old, new = RENAMED.get(model_type, ("", ""))
    theirs = {n.replace(old, new) if old else n for n, _ in module.named_parameters() if not is_experts(n)}
    for before, after in RENAMED_PARTS.get(model_type, {}).items():
        theirs = {n.replace(before, after) for n in theirs}
    assert {t.name for t in ours.tensors() if not t.buffer and not t.expert} == theirs
