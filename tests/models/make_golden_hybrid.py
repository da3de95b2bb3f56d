"""Writes golden_counts_hybrid.json: true parameter counts of the models in configs_hybrid.json.

Needs torch and transformers. Run from the repository root: ``python tests/models/make_golden_hybrid.py``.
The classes are built on the meta device: no weights are allocated or downloaded.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIGS = HERE / "configs_hybrid.json"
GOLDEN = HERE / "golden_counts_hybrid.json"
# one three-dimensional parameter for all experts of a layer
FUSED_EXPERTS = re.compile(r"\.experts\.(gate_up_proj|up_proj|down_proj)$")


def build(config: dict[str, Any], *, untied: bool = False) -> Any:
    """The model of a configuration on the `meta` device; ``untied`` gives it an output head of its own."""
    import torch
    import transformers
    from transformers import CONFIG_MAPPING

    name = config["architectures"][0]
    loaded = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
    with torch.device("meta"):
        model = getattr(transformers, name)._from_config(loaded)
        if untied:
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def shapes(model: Any) -> Counter[tuple[int, ...]]:
    """How often each parameter shape occurs, with fused experts taken apart and sizes of one dropped.

    A gate and up projection in one parameter counts as two: (E, 2 F, D) is 2 E times (F, D). Orientation is dropped too
    (Llama-4 stores its experts transposed), so shapes are sorted.
    """
    found: Counter[tuple[int, ...]] = Counter()
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        match = FUSED_EXPERTS.search(name)
        if not match:
            found[normal(shape)] += 1
            continue
        count, *rest = shape
        if match[1] == "gate_up_proj":
            # the doubled dim is the one that is not the width of the down projection's output
            down = model.get_parameter(name.replace("gate_up_proj", "down_proj")).shape[1:]
            axis = 0 if sorted((rest[0] // 2, rest[1])) == sorted(down) else 1
            rest[axis] //= 2
            count *= 2
        found[normal(tuple(rest))] += count
    return found


def normal(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without sizes of one, sorted."""
    return tuple(sorted(n for n in shape if n != 1))


def main() -> None:
    import transformers

    models = json.loads(CONFIGS.read_text("utf-8"))["models"]
    lines = []
    for name, entry in models.items():
        model = build(entry["config"], untied=entry.get("untied", False))
        count = sum(p.numel() for p in model.parameters())
        lines.append(f"  {json.dumps(name)}: {count}")
    source = f"transformers {transformers.__version__}, sum(p.numel() for p in model.parameters()) on meta"
    body = ",\n".join(lines)
    GOLDEN.write_text(f'{{\n"source": {json.dumps(source)},\n"parameters": {{\n{body}\n}}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
