"""Libraries whose control flow depends on values on the GPU, answered as a real run would."""

from __future__ import annotations

import sys
from typing import Any

from . import when
from .settings import SETTINGS, note


def install() -> None:
    """Wait for the libraries."""
    when.imported("transformers.masking_utils", _packed_sequences)
    when.imported("transformers.generation.stopping_criteria", _lengths)
    when.imported("transformers.generation.utils", _generation)
    when.imported("torch", _experts)


def _packed_sequences(module: Any) -> None:
    """transformers asks on the GPU whether rows hold several sequences; without packing the answer is no."""
    original = getattr(module, "find_packed_sequence_indices", None)
    if original is None:
        return

    def find_packed_sequence_indices(position_ids: Any) -> Any:
        found = original(position_ids)
        if sys.modules["torch"].compiler.is_compiling():  # it does not look then, on a GPU neither
            return found
        if found is not None:
            note("transformers: each row holds one sequence (packed rows would add a mask to the attention)")
        return None

    module.find_packed_sequence_indices = find_packed_sequence_indices


_FULL: list[bool] = [False]
"""Whether the sequences that are being generated have reached their greatest length."""


def _lengths(module: Any) -> None:
    original = module.MaxLengthCriteria.__call__

    def call(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        _FULL[0] = input_ids.shape[1] >= self.max_length
        return original(self, input_ids, *args, **kwargs)

    module.MaxLengthCriteria.__call__ = call


def _generation(module: Any) -> None:
    """transformers reads on the GPU whether all sequences are done; here they are when they are full."""
    original = module.GenerationMixin._has_unfinished_sequences

    def has_unfinished_sequences(self: Any, *args: Any, **kwargs: Any) -> Any:
        unfinished = original(self, *args, **kwargs)
        if _FULL[0]:
            _FULL[0] = False
            note("transformers: every sequence is generated to its greatest length")
            return False
        return unfinished

    module.GenerationMixin._has_unfinished_sequences = has_unfinished_sequences


# ---- mixtures of experts ----


def _experts(torch: Any) -> None:
    """Loops over experts ask which tokens went where: every expert gets its share.

    transformers' loop (``*Experts.forward``) asks a mask of experts by ``nonzero`` and a mask of tokens by ``where``;
    both allocate what the real answers do.
    """
    nonzero, where, compiling = torch.Tensor.nonzero, torch.where, torch.compiler.is_compiling

    def tensor_nonzero(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if compiling() or not tensor.is_cuda or args or kwargs or not _in_experts():
            return nonzero(tensor, *args, **kwargs)
        _told()
        return torch.zeros(tensor.numel(), tensor.dim(), dtype=torch.int64, device=tensor.device)

    def torch_where(condition: Any, *args: Any, **kwargs: Any) -> Any:
        if compiling() or args or kwargs or not getattr(condition, "is_cuda", False) or not _in_experts():
            return where(condition, *args, **kwargs)
        _told()
        found = torch.zeros(share_of(_loop(), condition.numel()), condition.dim(), dtype=torch.int64,
                            device=condition.device)  # fmt: skip
        return found.unbind(1)

    torch.Tensor.nonzero, torch.where = tensor_nonzero, torch_where


def _told() -> None:
    note(f"experts get equal shares of the tokens, the fullest {SETTINGS.moe_imbalance:g} times the mean")


class _Loop:
    """The experts of one call, as they are asked one after another."""

    def __init__(self, frame_id: int, experts: int) -> None:
        self.frame_id, self.experts, self.asked = frame_id, max(experts, 1), 0


_LOOPS: list[_Loop] = []


def share_of(loop: _Loop, slots: int) -> int:
    """Tokens of the next expert: the first gets the imbalance times the mean, the others share the rest.

    Args:
        loop: the loop over experts.
        slots: choices of an expert by a token, over all experts that a mask of one expert covers.
    """
    loop.asked += 1
    mean = slots / loop.experts
    fullest = min(slots, round(mean * SETTINGS.moe_imbalance))
    if loop.asked == 1 or loop.experts == 1:
        return fullest
    return max((slots - fullest) // (loop.experts - 1), 0)


def _experts_frame() -> Any:
    frame = sys._getframe(3)
    code = frame.f_code
    inside = code.co_name == "forward" and "/transformers/" in code.co_filename.replace("\\", "/")
    return frame if inside and "expert_mask" in frame.f_locals else None


def _in_experts() -> bool:
    return _experts_frame() is not None


def _loop() -> _Loop:
    frame = _experts_frame()
    mask = frame.f_locals["expert_mask"]
    if not _LOOPS or _LOOPS[0].frame_id != id(mask):
        _LOOPS[:] = [_Loop(id(mask), mask.shape[0])]
    return _LOOPS[0]
