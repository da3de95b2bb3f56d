"""What people type for a GPU: ``8xh100``, ``RTX 4090``, ``NVIDIA A100-SXM4-80GB``, ``m3-max-64gb``.

A name is read as a set of words, so order and separators do not matter. A card is meant when one of its names is
contained in what was typed and every word left over is true of it (its memory size, form factor, memory type or
architecture). The longest name wins; which card a bare ``h100`` means is an alias in the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache

from memfit.errors import MemfitError, UnknownNameError
from memfit.hardware.gpu import Gpu, gpus

MAX_COUNT = 1_000_000
_MAX_LENGTH = 100
_HINT = "write a card like h100-sxm-80gb or rtx-4090, with a count like 8xh100"

# Words that carry no information about which card is meant.
_NOISE = frozenset(
    (
        "nvidia",
        "amd",
        "ati",
        "intel",
        "apple",
        "geforce",
        "radeon",
        "instinct",
        "tesla",
        "arc",
        "rtx",
        "gtx",
        "rx",
        "gpu",
        "gpus",
        "graphics",
        "generation",
        "edition",
        "workstation",
        "card",
        "corporation",
        "inc",
    )
)
_SIZE = re.compile(r"^(\d{1,4})(?:gb|gib|g)$")
_UNIT = frozenset(("gb", "gib", "g"))
_PREFIX = re.compile(r"^(rtx|gtx|rx|arc|quadro|titan|jetson|radeon|geforce|tesla)(?=[a-z]?\d|rtx)")
_MODEL = re.compile(r"^(\d{4})([a-z]+)$")
_APPLE = re.compile(r"^(m[1-9])(pro|max|ultra)$")
_FORM = re.compile(r"^([a-z]{1,2}\d{2,3})(sxm\d?|pcie|nvl)$")
_SUFFIXES = {
    "tisuper": ("ti", "super"),
    "tis": ("ti", "super"),
    "s": ("super",),
    "m": ("laptop",),
    "mobile": ("laptop",),
    "superti": ("ti", "super"),
}
_SYNONYMS = {"m": "laptop", "mobile": "laptop", "notebook": "laptop", "pci": "pcie"}


@lru_cache(maxsize=4096)
def _words(text: str) -> frozenset[str]:
    """The words of a name, normalised: ``RTX4070TiSuper 16 GB`` gives {4070, ti, super, 16gb}."""
    raw = re.findall(r"[a-z0-9]+", re.sub(r"\((?:tm|r|c)\)", " ", re.sub(r"max[-_ ]q\b", "maxq", text.lower())))
    words: list[str] = []
    for token in raw:
        if token in _UNIT and words and words[-1].isdigit():
            words[-1] += "gb"
        else:
            words.extend(_split(token))
    return frozenset(w for w in words if w not in _NOISE)


def _split(token: str) -> Iterator[str]:
    if match := _SIZE.match(token):
        yield match.group(1) + "gb"
    elif match := _PREFIX.match(token):
        yield match.group(1)
        yield from _split(token[match.end() :])
    elif (match := _APPLE.match(token)) or (match := _FORM.match(token)):
        yield match.group(1)
        yield from _split(match.group(2))
    elif match := _MODEL.match(token):
        yield match.group(1)
        yield from _SUFFIXES.get(match.group(2), (match.group(2),))
    elif re.fullmatch(r"sxm\d", token):
        yield "sxm"
    elif re.fullmatch(r"pcie\d", token):
        yield "pcie"
    else:
        yield _SYNONYMS.get(token, token)


@cache
def _index() -> tuple[tuple[frozenset[str], frozenset[str], Gpu], ...]:
    """(words of one name, words that may stand beside it, card) for every name of every card."""
    rows = []
    for gpu in gpus():
        beside = frozenset(
            (
                f"{gpu.nominal_gb}gb",
                gpu.form,
                gpu.memory_type,
                gpu.architecture,
                "quadro" if gpu.kind == "workstation" else "",
            )
        )
        names = {_words(text) for text in (gpu.name, gpu.title, *gpu.aliases)}
        rows += [(words, beside, gpu) for words in names]
    return tuple(rows)


def _find(text: str) -> Gpu | None:
    wanted = _words(text)
    best: Gpu | None = None
    size = 0
    for words, beside, gpu in _index():
        if len(words) > size and words <= wanted and (wanted - words) <= beside:
            best, size = gpu, len(words)
    return best


# A count in front ("8xh100", "8 h100", "8*h100") or behind ("h100x8", "h100:8"). The whole text is tried as a name
# first, so that the x in "rtx4090" and the digits of "4090 laptop" are not taken for a count.
_COUNTED = (
    re.compile(r"^(?P<count>\d{1,9})\s*[x×*]\s*(?P<name>.+)$"),
    # behind a name without digits the x stands apart: "titan-rtx x 1", but "rtx 4090" is no count
    re.compile(r"^(?P<name>.*\d.*?)\s*[x×*:]\s*(?P<count>\d{1,9})$"),
    re.compile(r"^(?P<name>.+?)(?:\s+x|\s*[×*:])\s*(?P<count>\d{1,9})$"),
    re.compile(r"^(?P<count>\d{1,9})\s+(?P<name>.+)$"),
)


@lru_cache(maxsize=1024)
def lookup_gpu(text: str) -> tuple[Gpu, int | None]:
    """The card that ``text`` names, and how many of it when the text says so.

    Args:
        text: e.g. ``h100``, ``8xh100``, ``H100 x 8``, ``rtx-4090``, ``NVIDIA A100-SXM4-80GB``.

    Returns:
        The card and the count; the count is None when the text states none.

    Raises:
        UnknownNameError: no card has that name; the message carries the nearest ones.
        MemfitError: the count is not between 1 and a million.
    """
    plain = " ".join(text.lower().split())
    if len(plain) > _MAX_LENGTH or not plain:
        shown = plain[:40] + "..." if plain else text
        raise UnknownNameError("GPU", shown, (), hint=_HINT)
    if (gpu := _find(plain)) is not None:
        return gpu, None
    for pattern in _COUNTED:
        if (match := pattern.match(plain)) and (gpu := _find(match["name"])) is not None:
            count = int(match["count"])
            if not 1 <= count <= MAX_COUNT:
                msg = f"the count in `{plain}` must be between 1 and {MAX_COUNT}"
                raise MemfitError(msg, hint=_HINT)
            return gpu, count
    raise _unknown(plain)


def _unknown(text: str) -> UnknownNameError:
    """The error for a name that is not a card's: sizes to choose from, or the nearest names."""
    name = next((m["name"] for p in _COUNTED if (m := p.match(text)) and any(c.isalpha() for c in m["name"])), text)
    words = _words(name)
    longer = [gpu.name for gpu in gpus() if words and words < _words(gpu.name)]
    if longer:
        return UnknownNameError("GPU", name, longer, hint=f"say which one: {', '.join(longer[:6])}")
    known = dict.fromkeys(n for gpu in gpus() for n in (gpu.name, *gpu.aliases, gpu.name.removeprefix("rtx-")))
    return UnknownNameError("GPU", name, known, hint=_HINT)
