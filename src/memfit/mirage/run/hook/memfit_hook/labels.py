"""What the allocator's blocks hold: found by the addresses of the tensors that the script keeps."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from .place import clean_path

_DEEP = 4


class Label(NamedTuple):
    """At ``time_us`` the block at ``address`` of GPU ``device`` held this."""

    time_us: int
    device: int
    address: int
    component: str
    name: str
    shape: tuple[int, ...]
    dtype: str


class Labels:
    """Collects labels; the first one of a block counts.

    Args:
        torch: the module.
    """

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.found: list[Label] = []
        self.vocabulary: set[int] = set()
        self._names: dict[int, str] = {}

    def module(self, root: Any) -> None:
        """Parameters and buffers of a module, and the size of its vocabulary."""
        for path, part in root.named_modules():
            for name, tensor in (*part._parameters.items(), *part._buffers.items()):
                if tensor is not None:
                    full = clean_path(f"{path}.{name}" if path else name)
                    self._names.setdefault(id(tensor), full)
                    self.tensors(tensor, "parameters", full)
        config: Any = getattr(root, "config", None)
        if hasattr(config, "get_text_config"):
            config = config.get_text_config()
        size = getattr(config, "vocab_size", None)
        for part in () if isinstance(size, int) else root.modules():
            if isinstance(part, self.torch.nn.Embedding):
                size = max(size or 0, part.num_embeddings)
        if isinstance(size, int) and size > 1:
            self.vocabulary.add(size)

    def gradients(self, optimizer: Any) -> None:
        """Gradients of the parameters of an optimizer, and the parameters themselves."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(id(parameter), "")
                self.tensors(parameter, "parameters", name)
                gradient = getattr(parameter, "grad", None)
                if gradient is not None:
                    self.tensors(gradient, "gradients", name)

    def states(self, optimizer: Any) -> None:
        """States of an optimizer."""
        for parameter, state in list(optimizer.state.items()):
            self.tensors(state, "optimizer", self._names.get(id(parameter), ""))

    def tensors(self, value: Any, component: str, name: str) -> None:
        """Every CUDA tensor inside a value: wrappers are opened, containers and plain objects looked into."""
        now = time.time_ns() // 1000
        for tensor in self._plain(value, _DEEP):
            if tensor.device.type == "cuda":
                address = tensor.untyped_storage().data_ptr()
                if address:
                    shape, dtype = tuple(tensor.shape), str(tensor.dtype)[6:]
                    self.found.append(Label(now, tensor.device.index or 0, address, component, name, shape, dtype))

    def _plain(self, value: Any, depth: int) -> list[Any]:
        if depth < 0:
            return []
        inner: list[Any] = []
        if isinstance(value, self.torch.Tensor):
            found = [value]
            if hasattr(type(value), "__tensor_flatten__"):
                found = []
                inner = [getattr(value, name, None) for name in value.__tensor_flatten__()[0]]
            # what libraries hang on a parameter: scales of quantised weights, shards of a flat parameter
            inner += [v for k, v in getattr(value, "__dict__", {}).items() if k not in ("_grad", "grad")]
        elif isinstance(value, dict):
            found, inner = [], list(value.values())
        elif isinstance(value, (list, tuple)):
            found, inner = [], list(value)
        elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
            if isinstance(value, self.torch.nn.Module):
                return []
            found, inner = [], list(vars(value).values())
        else:
            return []
        for item in inner[:1000]:
            found += self._plain(item, depth - 1)
        return found
