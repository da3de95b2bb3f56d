"""What the forward pass leaves for the backward pass: bytes that layers, towers and the ends of a stage hold."""

from __future__ import annotations

from collections.abc import Sequence

from memfit.formula.dims import Int, cdiv, evaluate, maximum
from memfit.formula.setup import Tower, split_form
from memfit.formula.stage import StageModel


def layer_kept(m: StageModel, tower: Tower, layer: int, tokens: Int, stream: Int) -> tuple[Int, Int]:
    """(bytes, autocast's copies of weights) that one layer holds between its forward and its backward."""
    kind = tower.kinds[tower.stack.layout[layer]]
    if layer < tower.first_trained or not kind.trains or "activations" in m.c.offload:
        return 0, 0
    checkpointed = m.is_checkpointed(layer)
    form = kind.program.checkpoint if checkpointed else kind.program.kept
    if layer == 0 and kind.entered is not None:
        form = kind.entered
    atoms = m.atoms(tower, kind, tokens, stream)
    kept, _, copies = split_form(form)
    # the hooks of a non-reentrant checkpoint do not see what a node's attributes name
    pinned = evaluate(kind.program.pinned, atoms) if checkpointed and m.s.profile.loop_graph else 0
    return evaluate(kept, atoms) + pinned, evaluate(copies, atoms)


def kept_upto(
    m: StageModel, tower: Tower, layers: Sequence[int], tokens: Int, stream: Int
) -> tuple[list[Int], list[Int]]:
    """Running sums of ``layer_kept``: item i is what the layers before position i hold."""
    known: dict[tuple[int, bool, bool], tuple[Int, Int]] = {}
    kept: list[Int] = [0]
    copies: list[Int] = [0]
    for layer in layers:
        mine: Int = 0
        copied: Int = 0
        if layer >= tower.first_trained:
            key = (tower.stack.layout[layer], m.is_checkpointed(layer), layer == 0)
            if key not in known:
                known[key] = layer_kept(m, tower, layer, tokens, stream)
            mine, copied = known[key]
        kept.append(kept[-1] + mine)
        copies.append(copies[-1] + copied)
    return kept, copies


def pinned_upto(m: StageModel) -> list[Int]:
    """Running sums of what the decoder layers' graphs hold after their backward."""
    tower = m.s.decoder
    if not m.s.profile.loop_graph:
        return [0] * (len(m.indices) + 1)
    sums: list[Int] = [0]
    for layer, index in zip(m.indices, m.layout, strict=True):
        kind = tower.kinds[index]
        form = kind.program.pinned if kind.trains and layer >= tower.first_trained else {}
        sums.append(sums[-1] + evaluate(form, m.decoder_atoms(kind)) if form else sums[-1])
    return sums


def kept_beside(m: StageModel) -> tuple[Int, Int]:
    """(bytes, autocast's copies of weights) that one micro-batch holds beside its decoder layers.

    Those of the towers, of what stands before the first layer and behind a tower, and of the arguments of the layers.
    """
    s, checkpoints = m.s, m.c.checkpointing != "none"
    kept: Int = 0
    copies: Int = 0
    ends = [s.entry] if m.stage.first else []
    for tower, leave in zip(m.towers, s.exits, strict=False):
        tokens = tower_tokens(m, tower)
        layers = range(tower.stack.num_layers - tower.stack.unread)
        sums, copied = kept_upto(m, tower, layers, tokens, tokens)
        kept, copies = kept + sums[-1], copies + copied[-1]
        if leave:
            ends += [leave, s.entry]
    if s.style.masks and checkpoints:  # the mask of the windows is an argument of each layer
        kept = kept + window_masks(m)
    if s.decoder.kinds[-1].block.code.position_bias and checkpoints:
        # arguments of each layer: the bias of each stack with its lookup, zeros for the cross attention
        bias = m.decoder_atoms(s.decoder.kinds[-1])
        kept = kept + bias["P"] * 4 * s.width + bias["SS"] * 8
    for end in ends:
        kept = kept + evaluate(end.kept, m.tail_atoms())
    return kept, copies


def kept_earlier(m: StageModel, layers: Int, beside: Int) -> Int:
    """Bytes that the micro-batches in flight hold when the layers of the last of them hold nothing yet.

    Args:
        m: the stage.
        layers: bytes that all decoder layers hold for one micro-batch.
        beside: bytes that it holds beside them, see ``kept_beside``.
    """
    flights, per = m.stage.in_flight, m.stage.per
    return cdiv(layers * maximum(flights - per, 0), per) + beside * maximum(cdiv(flights, per), 1)


def tower_tokens(m: StageModel, tower: Tower) -> Int:
    """Tokens of one micro-batch in a tower: of its images where it reads images."""
    d = m.d
    return d.micro_batch * (d.images * tower.stack.tokens if tower.stack.tokens else d.seq_len)


def window_masks(m: StageModel) -> Int:
    """Bytes of the mask that blocks with a window are given."""
    return maximum(0, *(m.decoder_atoms(kind).get("M", 0) for kind in m.s.decoder.kinds))


def cached_copies(m: StageModel) -> Int:
    """Copies of the weights of all blocks, which autocast's cache holds until the forward ends."""
    total: Int = 0
    for index in set(m.layout):
        kind = m.s.decoder.kinds[index]
        copies = split_form(kind.program.kept)[2]
        total = total + evaluate(copies, m.decoder_atoms(kind)) * m.layout.count(index)
    return total
