"""The two ends of a stack as layer programs: norm and dropout of the embedding; final norm, output head and loss.

Atoms: x, X, t, T as in ``blocks.py``; V logits on the rank (T * vocabulary, divided by tp when the head is split);
Vs one slice, chunk or tile of them; Ws the head's weight for a tile; w.head and w.head.max elements of the weight.
"""

from __future__ import annotations

from functools import lru_cache

from memfit.formula.blocks import PLAIN, Recorder
from memfit.formula.profile import Loss
from memfit.formula.style import Style
from memfit.formula.tape import Form, Program, Tape, Value
from memfit.models.architecture import Code


@lru_cache(maxsize=1024)
def tail(
    style: Style,
    loss: Loss | None,
    *,
    norm: str,
    code: Code = PLAIN,
    weight: bool = True,
    transform: bool = False,
    dropout: bool = False,
    softcap: bool = False,
    float_output: bool = False,
    quantised: bool = False,
    head_trained: bool,
    hidden_grad: bool = True,
) -> Program:
    """The layer program of norm, head and loss.

    Args:
        style: the decoder's style; the tail is run eagerly even when the blocks are compiled.
        loss: which copies of the logits the loss makes; None ends with the logits.
        norm: kind of the final norm.
        code: how the class computes it; ``weight`` whether it has one.
        transform: a linear layer and an activation stand before the norm (BERT's head).
        dropout: a dropout stands behind the norm (T5).
        softcap: the logits are soft-capped.
        float_output: the logits are handed out as an fp32 copy.
        quantised: the head's weight is quantised and unpacked around its products.
        head_trained: the head's weight gets a gradient.
        hidden_grad: the hidden states carry a gradient (something below trains).
    """
    rec = Recorder(style)
    tape, w = rec.tape, style.width
    x = tape.input("x", style.residual, grad=hidden_grad)
    h = x
    if transform:
        h = rec.activation(rec.linear(h, "x", "transform", "head", bias=True), "gelu")
    h = rec.dropout(rec.norm(h, norm, "t", code, weight=weight), float(dropout))
    h = rec.gather(h)
    if not (loss and loss.packed):
        h = rec.cast(h)
    fresh = {"w.head": max(style.weight_grads, w)} if head_trained else {}
    saved = [h] if head_trained or (quantised and style.kbit_inputs) else []
    unpacked: Form = {"w.head.max": style.kbit_bytes or w} if quantised and not head_trained else {}
    atom = h.atom
    if loss and loss.fused:
        made = {atom: w, **fresh}
        out = tape.op("fused_loss", [h], "T", 4, extra_saved=made, forward_temp={atom: 2 * w})
        return tape.compile(out)
    if loss and loss.packed:
        return tape.compile(_packed(tape, h, loss, style, fresh.get("w.head", 0)))
    if loss and loss.recompute:
        temp: Form = {"Vs": w + 8}
        out = tape.op(
            "chunked_loss" if loss.at_once else "sliced_loss",
            [h],
            "T",
            4,
            saved=[h],
            forward_temp=temp,
            backward_temp={"Vs": 12},
            weight_grad=fresh,
        )
        return tape.compile(out)
    copy = rec.weight_copy("w.head") if head_trained else []
    logits = tape.op(
        "lm_head",
        [h, *copy],
        "V",
        w,
        saved=saved + copy,
        grad=True,
        matmul=True,
        forward_temp=unpacked,
        # each product of a list gives a gradient of the whole weight, which is added out of place to the others'
        backward_temp={"w.head.max": 2 * fresh["w.head"]} if fresh and loss and loss.list else unpacked,
        weight_grad={} if copy else fresh,
    )
    if softcap:
        logits = tape.op("softcap", [logits], "V", w, saves_output=True, forward_temp={"V": w}, backward_temp={"V": w})

    if float_output and w < 4:
        logits = tape.op("output.float", [logits], "V", 4)
        w = 4
    if loss is None:
        return tape.compile(logits)

    def copies(pair: tuple[int, int]) -> int:
        low, full = pair
        # logits that are fp32 already are not copied: one fp32 copy less wherever one is counted with a low one
        return low * w + full * 4 - (4 if w == 4 and low and full else 0)

    kept_low, kept_full = loss.kept
    forward = max(0, copies(loss.forward) - w - 4 * kept_full)
    backward = max(0, copies(loss.backward) - w - (0 if loss.swap else 4 * kept_full + (w if kept_low else 0)))
    out = tape.op(
        "loss",
        [logits],
        "T",
        4,
        saved=[logits] if kept_low else [],
        extra_saved={"V": 4 * kept_full} if kept_full else {},
        forward_temp={a: n for a, n in (("V", forward), ("Vs", copies(loss.part_forward))) if n},
        backward_temp={a: n for a, n in (("V", backward), ("Vs", copies(loss.part_backward))) if n},
        swap=loss.swap,
    )
    return tape.compile(out)


def _packed(tape: Tape, h: Value, loss: Loss, style: Style, grad: int) -> Value:
    """A loss over copied hidden states, a part of the logits at a time, each made again in the backward pass.

    Args:
        tape: what is recorded.
        h: the hidden states, in the dtype of the residual stream.
        loss: which copies a part makes.
        style: dtypes.
        grad: bytes of an element of the gradient of the head's weight; 0 for a frozen head.
    """
    w, low = style.width, style.width < 4
    forward, backward = (pair[0] * w + pair[1] * 4 for pair in (loss.part_forward, loss.part_backward))
    first: dict[str, int] = {"Vs": forward}
    again: dict[str, int] = {"Vs": backward}
    if low and grad == 4:  # an fp32 weight is cast for each part
        first["Ws"] = again["Ws"] = w
    elif low and loss.head_parts:  # a 16-bit weight is raised, and cast back by autocast
        first["Ws"] = again["Ws"] = 4 + (w if style.autocast or style.lora else 0)
    if loss.float_grads:  # sums in fp32, then their casts
        again |= {atom: 4 for atom, width in ((h.atom, h.width), ("w.head.max", grad)) if width == 2}
    if loss.head_parts and grad:
        # The sum so far, a part's gradient and the new sum; or the sum, the raised weight and its gradient. Either is
        # more than the logits of the part.
        again = {"w.head.max": 8} | ({"Vs": 4} if grad == 2 else {})
    return tape.op(
        "sliced_loss", [h], "T", 4, extra_saved={h.atom: h.width}, forward_temp=first, backward_temp=again,
        weight_grad={"w.head": grad} if grad else {},
    )  # fmt: skip


@lru_cache(maxsize=1024)
def entry(style: Style, *, norm: str, dropout: bool, moved: bool = False, leaf: bool = False) -> Program:
    """The layer program between the embedding and the first block.

    Args:
        style: the decoder's style.
        norm, dropout: what follows the embedding.
        moved: positions are added to it, or it is scaled, before the first block.
        leaf: its output is made to require a gradient, although no weight of it trains, so that checkpoints of frozen
            layers below adapters work (``enable_input_require_grads``); the graph then holds it.
    """
    rec = Recorder(style)
    grad = style.trained or leaf
    x = rec.tape.op("embedding", [rec.tape.input("T", 8, grad=False)], "x", style.residual, grad=grad)
    if moved:
        x = rec.tape.op("moved", [x], "x", style.residual, saved=[x] if leaf else [])
    elif leaf and (norm != "none" or dropout):
        rec.tape.keep("x", style.residual)
    x = rec.dropout(rec.norm(x, norm), float(dropout))
    return rec.tape.compile(x)


@lru_cache(maxsize=1024)
def exit_of(style: Style, *, norm: str, code: Code, dropout: bool) -> Program:
    """The layer program from an encoder's last block to what the decoder reads: final norm and dropout."""
    rec = Recorder(style)
    x = rec.tape.input("x", style.residual)
    x = rec.dropout(rec.norm(x, norm, "t", code), float(dropout))
    kept = rec.tape.op("read", [x], "x", x.width, saved=[x])
    return rec.tape.compile(kept)
