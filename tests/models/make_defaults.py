"""Writes src/memfit/models/defaults.json: defaults and key aliases of the transformers configuration classes.

Needs transformers. Run from the repository root after adding a family: ``python tests/models/make_defaults.py``.
Only keys that can shape a model are kept; class defaults before ``__post_init__`` derives others from them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

TOWERS = ("clip_vision_model", "siglip_vision_model", "pixtral")  # parts of the language and vision models
OUT = Path(__file__).parents[2] / "src" / "memfit" / "models" / "defaults.json"
DROPPED = re.compile(
    r"token|_ids?$|^(id2label|label2id|problem_type|transformers_version|architectures|dtype|_.*|name_or_path)$"
    r"|initializer|_eps$|epsilon|^use_cache$|^output_(hidden|att|router)|^return_|rope_theta|rope_local|rope_scaling|"
    r"rope_parameters|_std$|gradient_checkpointing|pretraining_tp|slow_but_exact|aux_loss|jitter|chunk_size_feed|"
    r"_multiplier|(logit|attn)_scale$|_scaling$|base_model|is_encoder_decoder|init_|time_step_(min|max|limit|floor)|summary_|"
    r"keys_to_ignore|theta$|loss"
)


def plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 8 and all(isinstance(v, int | float | str) for v in value)
    return isinstance(value, bool | int | float | str)


def defaults(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if not DROPPED.search(field.name) and plain(default):
            found[field.name] = default
    aliases = {k: v for k, v in getattr(cls, "attribute_map", {}).items() if not DROPPED.search(k)}
    return {**dict(sorted(found.items())), **({"aliases": dict(sorted(aliases.items()))} if aliases else {})}


def main() -> None:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from memfit.models.families import FAMILIES

    table: dict[str, dict[str, Any]] = {}
    pending = [(name, CONFIG_MAPPING[name]) for name in (*FAMILIES, *TOWERS) if name in CONFIG_MAPPING]
    while pending:
        name, cls = pending.pop()
        if not name or name in table or not dataclasses.is_dataclass(cls):
            continue
        table[name] = defaults(cls)
        subs = getattr(cls, "sub_configs", {}).values()
        pending.extend((sub.model_type, sub) for sub in subs if dataclasses.is_dataclass(sub))
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(table.items()))
    source = f"class defaults of transformers {transformers.__version__}"
    OUT.write_text(f'{{\n"source": {json.dumps(source)},\n"model_types": {{\n{lines}\n}}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
