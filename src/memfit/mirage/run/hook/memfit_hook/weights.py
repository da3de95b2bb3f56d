"""Checkpoints by their size only: weights are neither read nor initialised, and none need to be there.

A model that the script takes from a hub is answered from a private cache folder: repositories of the user's own cache
are linked there, others are made up from the configuration in memfit's catalog. Weight files are sparse files of the
right names, shapes and types: the real loader maps them into memory, and nobody reads what it copies to the GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path
from typing import Any

from . import when
from .settings import SETTINGS, note, warn

_LARGE = 1 << 20
_COMMIT = "0" * 40
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_FILLS = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_",
          "xavier_normal_", "orthogonal_", "zeros_", "ones_", "constant_")  # fmt: skip
_ADDED = ("<unk>", "<s>", "</s>", "<pad>")


def install(torch: Any) -> None:
    """Leave large tensors of the host as they are: what they hold does not matter, writing it takes time and memory."""
    if not SETTINGS.fake_weights:
        return
    init = torch.nn.init
    for name in _FILLS:
        setattr(init, name, _unless_large(getattr(init, name)))
    for name in ("normal_", "uniform_", "zero_", "fill_", "random_"):
        setattr(torch.Tensor, name, _unless_large(getattr(torch.Tensor, name)))
    load = torch.load

    def mapped(f: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(f, (str, os.PathLike)):
            kwargs.setdefault("mmap", True)
        try:
            return load(f, *args, **kwargs)
        except RuntimeError:
            kwargs.pop("mmap", None)  # the old format cannot be mapped
            return load(f, *args, **kwargs)

    torch.load = mapped
    note("weights are neither read nor initialised")


def _unless_large(original: Any) -> Any:
    def fill(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(tensor, "is_cpu", False) and tensor.numel() >= _LARGE:
            return tensor
        return original(tensor, *args, **kwargs)

    return fill


def install_checkpoints() -> None:
    """Answer for the hub, and for folders that hold a configuration only."""
    own = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub")
    private = SETTINGS.folder / "hub"
    private.mkdir(exist_ok=True)
    with contextlib.suppress(OSError):
        for repository in own.expanduser().iterdir():
            with contextlib.suppress(OSError):
                (private / repository.name).symlink_to(repository)
    os.environ["HF_HUB_CACHE"] = str(private)
    when.imported("huggingface_hub.file_download", _downloads)
    when.imported("huggingface_hub._snapshot_download", _snapshots)
    when.imported("transformers.modeling_utils", _models)


def _downloads(module: Any) -> None:
    one, cached = module.hf_hub_download, module.try_to_load_from_cache

    def hf_hub_download(repo_id: str, filename: str, *args: Any, **kwargs: Any) -> Any:
        _repository(repo_id, filename, kwargs)
        return one(repo_id, filename, *args, **kwargs)

    def try_to_load_from_cache(repo_id: str, filename: str, *args: Any, **kwargs: Any) -> Any:
        _repository(repo_id, filename, kwargs)
        return cached(repo_id, filename, *args, **kwargs)

    module.hf_hub_download, module.try_to_load_from_cache = hf_hub_download, try_to_load_from_cache


def _snapshots(module: Any) -> None:
    original = module.snapshot_download

    def snapshot_download(repo_id: str, *args: Any, **kwargs: Any) -> Any:
        _repository(repo_id, _WEIGHTS[0] if not kwargs.get("allow_patterns") else "", kwargs)
        return original(repo_id, *args, **kwargs)

    module.snapshot_download = snapshot_download


def _repository(repo_id: str, filename: str, options: Any) -> None:
    """Make the repository up unless the user's cache has it; its weights when a weight file is asked for."""
    if options.get("repo_type") not in (None, "model"):
        return
    root = SETTINGS.folder / "hub" / ("models--" + repo_id.replace("/", "--"))
    if not root.exists():
        known, name = _catalog(), repo_id.lower()
        config = known.get(name) or known.get(name.rpartition("/")[2])
        if config is None:
            return
        snapshot = root / "snapshots" / _COMMIT
        snapshot.mkdir(parents=True)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(_COMMIT, encoding="ascii")
        write_repository(snapshot, config)
        note(f"`{repo_id}` is made up from its configuration in memfit's catalog, with a tokenizer of words")
    snapshot = root / "snapshots" / _COMMIT
    if filename.rpartition("/")[2] == _WEIGHTS[0] and snapshot.is_dir() and not (snapshot / filename).exists():
        write_weights(snapshot)


def _catalog() -> dict[str, Any]:
    path = SETTINGS.folder / "catalog.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def write_repository(folder: Path, config: dict[str, Any]) -> None:
    """Configuration and tokenizer of a model that is not there."""
    config = dict(config)
    config.setdefault("dtype", config.pop("torch_dtype", "bfloat16"))
    for name, number in (("bos_token_id", 1), ("eos_token_id", 2)):
        config.setdefault(name, number)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = [*_ADDED, *(f"w{i}" for i in range(1000))]
    added = [
        {"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i, word in enumerate(_ADDED)
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": "<unk>"},
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
        "pad_token": "<pad>", "model_max_length": 1 << 20,
        "chat_template": "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _models(module: Any) -> None:
    """A folder with a configuration and no weights is completed, beside it."""
    original = module.PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
        folder = Path(str(name))
        if folder.is_dir() and (folder / "config.json").is_file() and not any(_has_weights(folder)):
            name = str(_completed(folder))
        return original(cls, name, *args, **kwargs)

    module.PreTrainedModel.from_pretrained = classmethod(from_pretrained)


def _has_weights(folder: Path) -> Any:
    return (p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") or p.name.endswith(".index.json"))


def _completed(folder: Path) -> Path:
    twin = SETTINGS.folder / f"weights-{abs(hash(str(folder.resolve())))}"
    if not twin.exists():
        twin.mkdir()
        for path in folder.iterdir():
            (twin / path.name).symlink_to(path.resolve())
        write_weights(twin)
        note(f"weights of `{folder.name}` are made up from its configuration")
    return twin


def write_weights(folder: Path) -> None:
    """A sparse weight file for the configuration in a folder, as large as the real one."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(folder))
    names = getattr(config, "architectures", None) or []
    kind: Any = getattr(transformers, names[0], None) if names else None
    make: Any = kind if kind is not None else transformers.AutoModelForCausalLM.from_config
    dtype = getattr(config, "dtype", None) or torch.bfloat16
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = make(config)
    finally:
        torch.set_default_dtype(before)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    tensors = {name: (str(t.dtype)[6:], tuple(t.shape)) for name, t in model.state_dict().items() if name not in tied}
    write_sparse(folder / _WEIGHTS[0], tensors)


def write_sparse(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """A safetensors file whose data takes no room on the disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        if dtype not in _DTYPES:
            warn(f"`{name}` has a type that checkpoints do not have ({dtype})")
            continue
        size = 8 if dtype.endswith("64") else 4 if dtype.endswith("32") else 2 if dtype.endswith("16") else 1
        for extent in shape:
            size *= extent
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        file.truncate(8 + len(text) + at)
