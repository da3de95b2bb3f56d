"""What a decoder must remember of a sequence: keys and values by token, and states that do not grow.

Dimension legend: K key/value heads, N head dim. Grouped-query attention caches K * (N + N_v) elements a token and
layer. Latent attention caches the compressed vector and one rotary key: kv_lora_rank + qk_rope_head_dim, whatever the
heads. A sliding layer needs no more than its window. Counts are elements; engines choose the dtype (and page size).
"""

from __future__ import annotations

from dataclasses import dataclass

from memfit.models.architecture import Architecture, Attention, Block


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockCache:
    """The cache of one kind of layer.

    Attributes:
        kind: of the block.
        layers: how many such layers the decoder has.
        per_token: elements that one layer adds for each token (0 for recurrent and cache-sharing layers).
        window: tokens after which a layer stops growing, None without a limit.
        per_source_token: elements for each token of another stream (cross-attention), kept once a sequence.
        state: elements of the recurrent state of one layer and sequence.
        conv_state: elements of the convolution's tail (width - 1 inputs) of one layer and sequence.
    """

    kind: str
    layers: int
    per_token: int = 0
    window: int | None = None
    per_source_token: int = 0
    state: int = 0
    conv_state: int = 0

    def tokens_kept(self, tokens: int) -> int:
        """Tokens that a layer still holds of a sequence of ``tokens``."""
        return tokens if self.window is None else min(tokens, self.window)


def attention_elements(a: Attention) -> int:
    """Elements that one layer of this attention caches for a token."""
    if a.kv_shared:
        return 0
    if a.kind == "mla":
        return a.kv_lora_rank + a.qk_rope_head_dim
    return a.num_kv_heads * (a.head_dim + a.v_head_dim)


def _block(block: Block, layers: int) -> BlockCache:
    a, r = block.attention, block.recurrent
    own = a if a is not None and not a.cross and a.causal else None
    crosses = [x for x in (a, block.cross) if x is not None and (x.cross or x is block.cross)]
    return BlockCache(
        kind=block.kind,
        layers=layers,
        per_token=attention_elements(own) if own is not None else 0,
        window=own.window if own is not None else None,
        per_source_token=sum(attention_elements(x) for x in crosses),
        state=r.state_elements if r is not None else 0,
        conv_state=r.conv_dim * max(r.conv_kernel - 1, 0) if r is not None else 0,
    )


def kv_elements_per_token(arch: Architecture) -> tuple[BlockCache, ...]:
    """The cache of each kind of decoder layer, in the order of ``arch.decoder.blocks``; empty for encoders."""
    if not arch.causal:
        return ()
    stack = arch.decoder
    return tuple(_block(block, count) for block, count in zip(stack.blocks, stack.counts(), strict=True) if count)


def kv_bytes_per_token(arch: Architecture, bytes_per_element: float = 2) -> int:
    """Bytes that one more token costs while no window is full, over all layers.

    Args:
        arch: the model.
        bytes_per_element: 2 for 16-bit caches, 1 for 8-bit ones.
    """
    return int(sum(b.layers * b.per_token for b in kv_elements_per_token(arch)) * bytes_per_element)


def kv_bytes(arch: Architecture, tokens: int, bytes_per_element: float = 2, *, source_tokens: int = 0) -> int:
    """Bytes of keys and values of one sequence of ``tokens``, windows respected; recurrent states left out.

    Args:
        arch: the model.
        tokens: length of the sequence.
        bytes_per_element: 2 for 16-bit caches, 1 for 8-bit ones.
        source_tokens: length of the stream that cross-attention reads.
    """
    total = 0
    for b in kv_elements_per_token(arch):
        total += b.layers * (b.per_token * b.tokens_kept(tokens) + b.per_source_token * source_tokens)
    return int(total * bytes_per_element)


def state_elements(arch: Architecture) -> tuple[int, int]:
    """Elements of all recurrent states and of all convolution states of one sequence."""
    blocks = kv_elements_per_token(arch)
    return sum(b.layers * b.state for b in blocks), sum(b.layers * b.conv_state for b in blocks)
