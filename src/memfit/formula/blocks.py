"""The layer program of each kind of block, recorded on a tape.

Atoms (element counts, evaluated in ``dims.py``): T tokens on the rank, B sequences, S length, D hidden, H heads,
K key/value heads, N head dim, F feed-forward width, E experts, k experts per token; ``/t`` divided by tp.

    x  T*D residual stream (/t with sequence parallelism)      X  T*D whole
    t  T statistics of a norm (/t with sequence parallelism)   T  T
    q  T*H*N/t   k  T*K*N/t   v  T*K*Nv/t   o  T*H*Nv/t   qkv  q+k+v
    h  T*H/t     s  B*H*S*S/t scores        K  T*H*N/t keys repeated to all heads
    f  T*F/t     g  T*shared F/t            e  T*E        T*k: tk
    p  routed tokens * D    r  routed tokens * expert F    pl, px, pg, ps, py, pk, es, ts: see ``dims.routed_atoms``
    m1..m6  sizes of latent attention       i, c, z, y...  sizes of recurrent mixers
    w.<part>.<slot>  weight elements on the rank (``roles.py``)   c.<part>.<slot>  autocast's copies of them
    Wi, Wo  weights of all experts on the rank          Ei, Eo  their inputs and outputs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from memfit.formula.roles import weight_atom
from memfit.formula.style import Style
from memfit.formula.tape import Form, Program, Tape, Value
from memfit.models.architecture import Attention, Block, Code, Mlp, Moe, Recurrent

PLAIN = Code()

ACTIVATIONS: dict[str, tuple[int, bool]] = {
    "silu": (1, False),
    "swish": (1, False),
    "gelu": (1, False),
    "gelu_pytorch_tanh": (1, False),
    "gelu_fast": (4, False),
    "gelu_new": (4, False),
    "quick_gelu": (2, False),
    "relu": (0, True),
    "xielu": (4, False),
}
"""Activation -> (copies of its input's size kept for the backward pass, its output is kept too).

From the eager modules of transformers: one-kernel activations keep their input; ``gelu_new`` and its kin are written
out in tensor operations and keep every factor.
"""


POWERS = frozenset({"gelu_new"})
"""Activations whose formula has a power."""


class Recorder:
    """Records one block's operations in the given style."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self.tape = Tape(compiled=style.compiled)
        self.lora = dict(style.lora)
        self._gathered: dict[int, Value] = {}
        self._copied: set[str] = set()

    # -- pieces ---------------------------------------------------------------------------------------------------

    def norm(self, x: Value, kind: str, stat: str = "t", code: Code = PLAIN, *, weight: bool = True) -> Value:
        """RMSNorm or LayerNorm over the last dim; statistics are fp32 per row.

        Args:
            x: what is normalised.
            kind: ``rms``, ``layer`` or ``none``.
            stat: atom of the rows.
            code: how the class computes it.
            weight: the norm has one.
        """
        if kind == "none":
            return x
        style, op = self.style, self.tape.op
        stats = {stat: 8 if kind == "layer" else 4}
        native = kind == "layer" and code.norm != "written"
        if native and code.norm_casts:
            x = self.cast(x)
            return op("norm", [x], x.atom, x.width, saved=[x], extra_saved=stats, cheap=True)
        if style.norm == "fused" or (native and code.norm == "low"):
            width = 4 if style.autocast else x.width
            return op("norm", [x], x.atom, width, saved=[x], extra_saved=stats, cheap=True)
        up = x if x.width == 4 else op("norm.float", [x], x.atom, 4, cheap=True)
        if native:
            y = op("norm", [up], x.atom, 4, saved=[up], extra_saved=stats, cheap=True)
            return y if x.width == 4 else op("norm.cast", [y], x.atom, x.width, cheap=True)
        centred = kind == "layer"  # two differences from the mean are kept instead of the copy
        scaled = op(
            "norm.scale",
            [up],
            x.atom,
            4,
            saved=[] if centred else [up, x] if code.norm == "mixed" else [up],
            extra_saved={**stats, x.atom: 8} if centred else stats,
            cheap=True,
            forward_temp={x.atom: 4},
            backward_temp={x.atom: 8 if centred else 12},
        )
        low = scaled
        if code.norm in ("low", "mixed") and x.width < 4:
            low = op("norm.cast", [scaled], x.atom, x.width, cheap=True)
        if weight:
            trained = style.trained
            temp: Form = {x.atom: low.width, f"{'RH' if stat == 'h' else 'R'}.{x.atom}": 1} if trained else {}
            saved = [low] if trained else []
            low = op("norm.weight", [low], x.atom, low.width, saved=saved, cheap=True, after_temp=temp, packs=True)
        return low if low.width == x.width else op("norm.cast", [low], x.atom, x.width, cheap=True)

    def cast(self, x: Value) -> Value:
        """Autocast's copy in the compute dtype."""
        if x.width <= self.style.width or not self.style.autocast:
            return x
        return self.tape.op("cast", [x], x.atom, self.style.width, cheap=True)

    def gather(self, x: Value) -> Value:
        """The whole sequence before a column-parallel product."""
        if not self.style.sequence_parallel or x.atom != "x":
            return x
        if id(x) not in self._gathered:
            self._gathered[id(x)] = self.tape.op("all-gather", [x], "X", x.width, cheap=not self.style.gather_inputs)
        return self._gathered[id(x)]

    def linear(
        self,
        x: Value,
        out: str,
        role: str,
        part: str,
        *,
        column: bool = True,
        bias: bool = False,
        keep: bool = True,
    ) -> Value:
        """A Linear layer with its adapter, if any; ``role`` and ``part`` name its weight atom.

        ``keep``: it keeps its input; not where a kernel around it makes the input again.
        """
        style, tape = self.style, self.tape
        # grouped products are no autocast operation: experts run in the dtype of their weights
        plain = part == "expert" and style.autocast
        width = x.width if plain else style.width
        source = x
        if column:
            x = self.gather(x)
        low = x if plain else self.cast(x)
        rank = self.lora.get(role if part in ("attention", "mlp", "head") else f"{part}.{role}")
        trained = style.trained or rank == 0
        weight = weight_atom(role, part, column=column)
        unpacks = style.dequantize and not trained
        pinned = [low] if unpacks and style.kbit_inputs else []
        saved = [low] if trained and keep else pinned
        if trained and column and style.sequence_parallel and not style.gather_inputs and x is not source:
            saved = [source]
        temp: Form = {f"{weight}.max": style.kbit_bytes or style.width} if unpacks else {}
        grads = {weight: style.weight_grads} if trained else {}
        copy = [] if plain or not trained else self.weight_copy(weight)
        y = tape.op(
            role,
            [low, *copy],
            out,
            width,
            saved=saved + copy,
            grad=low.grad or trained or bool(rank),
            matmul=True,
            forward_temp=temp,
            backward_temp=temp,
            after_temp={f"R.{out}": 1} if bias and trained else {},
            weight_grad={} if copy else grads,
            packs=low.grad,
            pinned=pinned,
        )
        if rank:
            y = self._adapter(x, y, role, rank)
        tape.hold(source)  # the arguments of a call live as long as the call
        return y

    def weight_copy(self, weight: str) -> list[Value]:
        """Autocast's copy of a weight in the compute dtype: made once, kept for the backward, with its own gradient."""
        style = self.style
        if not style.autocast or weight in self._copied:
            return []
        self._copied.add(weight)
        grads = {weight: style.weight_grads}
        return [
            self.tape.op("weight.cast", [], f"c{weight[1:]}", style.width, grad=True, weight_grad=grads, cheap=True)
        ]

    def _adapter(self, x: Value, y: Value, role: str, rank: int) -> Value:
        style, tape = self.style, self.tape
        h = x
        if style.lora_cast and x.width < 4:
            h = tape.op("lora.float", [h], h.atom, 4, cheap=True)
        if style.lora_dropout:
            h = tape.op("lora.dropout", [h], h.atom, h.width, extra_saved={h.atom: 1}, cheap=True)
        if style.lora_cast and h.width != style.lora_width:
            h = tape.op("lora.cast", [h], h.atom, style.lora_width, cheap=True)
        a = tape.op("lora_A", [h], "T", rank * style.lora_width, saved=[h], grad=True, matmul=True)
        b = tape.op("lora_B", [a], y.atom, style.lora_width, saved=[a], matmul=True, packs=True)
        # index_copy into zeros of the whole width keeps what it copies
        parts: Form = dict.fromkeys(style.padded, style.lora_width) if role == "qkv_proj" else {}
        scaled = tape.op("lora.scale", [b], y.atom, style.lora_width, extra_saved=parts, cheap=True)
        if style.dora:
            scaled = tape.op(
                "dora",
                [scaled, y],
                y.atom,
                style.width,
                saved=[scaled, y],
                cheap=True,
                forward_temp={"w.max": 4},
                backward_temp={y.atom: 4},
            )
        out = tape.op("lora.add", [y, scaled], y.atom, max(y.width, scaled.width), cheap=True, alias_grad=True)
        return out if out.width == y.width else tape.op("lora.low", [out], y.atom, y.width, cheap=True)

    def dropout(self, x: Value, probability: float) -> Value:
        """Dropout keeps a byte mask."""
        if not probability:
            return x
        return self.tape.op("dropout", [x], x.atom, x.width, extra_saved={x.atom: 1}, cheap=True)

    def residual(self, x: Value, y: Value) -> Value:
        """x + y; the gradient of the sum is the gradient of both."""
        return self.tape.op("residual", [x, y], x.atom, max(x.width, y.width), cheap=True, alias_grad=True)

    # -- attention ------------------------------------------------------------------------------------------------

    def rope(self, x: Value, att: Attention) -> Value:
        """Rotary embedding of q or k: a new tensor, with the temporaries of the written-out formula."""
        if not att.rotary_dim:
            return x
        width = 4 if self.style.autocast else x.width  # the angles are fp32
        temp = {x.atom: 3 * width} if self.style.rope == "composite" else {}
        turned = self.tape.op("rope", [x], x.atom, width, cheap=True, forward_temp=temp, backward_temp=temp)
        return self.cast(turned)

    def core_attention(
        self, q: Value, k: Value, v: Value, att: Attention, code: Code, *, joined: bool = False
    ) -> Value:
        """softmax(q k^T) v, heads merged.

        ``joined``: q was joined from parts, so heads lie before tokens in memory; the flash kernel then gives its
        output in that order, and merging the heads is a copy.
        """
        style, w = self.style, self.style.width
        op = self.tape.op
        grouped = att.kind == "gqa" and att.num_heads != att.num_kv_heads and k.atom == "k"
        repeats = grouped and att.num_kv_heads > 1  # one head is expanded, not copied
        if style.attention == "eager" or att.softcap or code.kernel == "eager":
            return self.eager_attention(q, k, v, att, code, grouped=grouped)
        always = style.masks and code.kernel == "masked"
        uneven = style.masks and att.head_dim != att.v_head_dim  # no flash kernel for unlike head dims
        efficient = style.attention == "efficient" or always or uneven
        if style.masks and (code.kernel == "math" or (grouped and efficient and not always)):
            return self.math_attention(q, k, v, att, code, grouped=grouped)
        windowed = style.masks and att.window is not None and not efficient
        saved: Form = {"h": 4}
        staging: Form = {"q": 4, "h": 4}  # dQ is accumulated in fp32
        if repeats and (efficient or windowed):
            k = op("repeat_k", [k], "kr" if windowed else "q", w, cheap=True)
            v = op("repeat_v", [v], "vr" if windowed else "o", w, cheap=True)
        if (
            windowed or always or (style.masks and att.window is not None)
        ):  # SDPA makes an additive mask of its own at each call
            saved["P" if code.position_bias else "SS" if always else "M"] = w
        if grouped and not efficient:
            staging["qs" if windowed else "q"] = (
                staging.get("qs" if windowed else "q", 0) + 2 * w
            )  # dK, dV per query head
        if code.position_bias:
            staging["s"] = w
        merged = joined and not efficient
        if merged and windowed:
            saved["om"] = w
        out = op(
            "attention",
            [q, k, v],
            "o",
            w,
            saved=[q, k, v],
            saves_output=True,
            extra_saved=saved,
            core=True,
            backward_temp=staging,
        )
        return op("merge", [out], "o", w, cheap=True) if merged and not windowed else out

    def eager_attention(self, q: Value, k: Value, v: Value, att: Attention, code: Code, *, grouped: bool) -> Value:
        """Attention written out with its matrix of scores; the softmax runs in fp32."""
        op, w = self.tape.op, self.style.width
        lone = grouped and att.num_kv_heads == 1
        if grouped:
            k = op("repeat_k", [k], "q", w, cheap=True, view=lone)
            v = op("repeat_v", [v], "o", w, cheap=True, view=lone)
        wide = 4 if code.float_scores else w
        if wide > w:
            q, k = op("q.float", [q], "q", wide), op("k.float", [k], "q", wide)
        temp = {"s": wide}
        copied: Form = {"q1": wide} if lone else {}
        product = op(
            "scores",
            [q, k],
            "s",
            wide,
            saved=[q, k],
            extra_saved=copied,
            core=True,
            forward_temp=temp,
            backward_temp=temp,
        )
        if att.softcap:
            product = op("softcap", [product], "s", w, saves_output=True, core=True, backward_temp=temp)
        soft_width = w if (att.sinks or code.low_softmax) and not self.style.autocast else 4
        if product.width < soft_width:
            product = op("scores.float", [product], "s", 4, core=True)
        soft = op(
            "softmax",
            [product],
            "s",
            soft_width,
            saves_output=True,
            core=True,
            forward_temp={"s": 2 * w} if att.sinks else {},
            backward_temp={"s": soft_width},
            extra_saved={"h": w + 8} if att.sinks else {},
        )
        low = soft if soft_width == w else op("softmax.cast", [soft], "s", w, core=True)
        if att.dropout:
            low = op("attention.dropout", [low], "s", w, extra_saved={"s": 1}, core=True)
        copied = {"o1": w} if lone else {}
        out = op("context", [low, v], "o", w, saved=[low, v], extra_saved=copied, core=True)
        return op("merge", [out], "o", w, cheap=True)

    def math_attention(self, q: Value, k: Value, v: Value, att: Attention, code: Code, *, grouped: bool) -> Value:
        """SDPA without a fused kernel: everything in fp32, queries and keys scaled before the product."""
        op, w = self.tape.op, self.style.width
        k_atom, v_atom = k.atom, v.atom
        lone = grouped and att.num_kv_heads == 1
        if grouped and w == 4 and not code.broadcast_kv:
            k, v = op("repeat_k", [k], "q", w, view=lone), op("repeat_v", [v], "o", w, view=lone)
            k_atom, v_atom = "q", "o"
        q = op("q.scale", [q], "q", 4, forward_temp={"q": 4} if w < 4 else {})
        k = op("k.scale", [k], k_atom, 4, forward_temp={k_atom: 4} if w < 4 else {})
        v = v if w == 4 else op("v.float", [v], v_atom, 4)
        s = "sm" if att.window else "s"  # under a mask heads are copied and the efficient kernel runs
        temp = {s: 4}
        product = op("scores", [q, k], s, 4, saved=[q, k], core=True, forward_temp=temp)
        soft = op("softmax", [product], s, 4, saves_output=True, core=True, forward_temp=temp, backward_temp=temp)
        if att.window:
            self.tape.keep("M", w)
        if att.dropout:
            soft = op("attention.dropout", [soft], s, 4, extra_saved=temp, core=True)
        out = op("context", [soft, v], "o", 4, saved=[soft, v], core=True)
        return op("merge", [out], "o", w)

    def attention(self, h: Value, att: Attention, code: Code = PLAIN, context: Value | None = None) -> Value:
        """Projections, rotary embedding, core attention and output projection."""
        if att.kind == "mla":
            return self.latent_attention(h, att, code)
        tape, w = self.tape, self.style.width
        source = context or h
        bias = att.qkv_bias
        if att.fused_qkv and context is None:
            qkv = self.linear(h, "qkv", "qkv_proj", "attention", bias=bias)
            copied = self.style.copy_q and att.num_heads != att.num_kv_heads
            q = tape.op("q", [qkv], "q", w, view=not copied)
            k = tape.op("k", [qkv], "k", w, view=True)
            v = tape.op("v", [qkv], "v", w, view=True)
            if code.expand_kv and att.num_heads != att.num_kv_heads:
                k = tape.op("expand_k", [k], "q", w)
                v = tape.op("expand_v", [v], "o", w)
        else:
            q = self.linear(h, "q", "q_proj", "attention", bias=bias)
            k = self.linear(source, "k", "k_proj", "attention", bias=bias)
            v = self.linear(source, "v", "v_proj", "attention", bias=bias)
        if att.qk_norm != "none":
            rows = "h" if att.qk_norm == "head" else "T"
            q, k = self.norm(q, "rms", rows, code), self.norm(k, "rms", rows, code)
            q, k = self.cast(q), self.cast(k)
        q, k = self.rope(q, att), self.rope(k, att)
        if code.expand_kv and k.atom == "k" and att.num_heads != att.num_kv_heads:
            k = tape.op("expand_k", [k], "q", w, cheap=True)
            v = tape.op("expand_v", [v], "o", w, cheap=True)
        joined = bool(att.rotary_dim) and (code.rope_cat or att.rotary_dim < att.head_dim) and not code.token_major
        out = self.core_attention(q, k, v, att, code, joined=joined)
        if att.output_gate:
            gate = self.linear(h, "o", "q_proj", "attention")
            out = tape.op("output_gate", [out, gate], "o", w, saved=[out, gate], cheap=True, forward_temp={"o": w})
        return self.linear(out, "x", "o_proj", "attention", column=False, bias=att.out_bias)

    def latent_attention(self, h: Value, att: Attention, code: Code) -> Value:
        """DeepSeek's MLA in its training form: latents are expanded to full keys and values.

        Atoms: m1 T*q_lora, m2 T*(kv_lora+rope), m3 T*kv_lora, m4 T*H*(nope+v)/t.
        """
        tape, w = self.tape, self.style.width
        if att.q_lora_rank:
            down = self.linear(h, "m1", "q_a_proj", "attention")
            q = self.linear(self.norm(down, "rms", "T"), "q", "q_b_proj", "attention")
        else:
            q = self.linear(h, "q", "q_proj", "attention")
        latent = self.linear(h, "m2", "kv_a_proj_with_mqa", "attention")
        compressed = self.norm(tape.op("split", [latent], "m3", w, view=True), "rms", "T")
        kv = self.linear(compressed, "m4", "kv_b_proj", "attention")
        # q and k are assembled from their rotated and unrotated parts: new tensors of full head width
        q = tape.op("q.cat", [q], "q", w, cheap=True, forward_temp={"q": w})
        k = tape.op("k.cat", [kv, latent], "q", w, cheap=True)
        v = tape.op("v", [kv], "o", w, view=True)
        out = self.core_attention(q, k, v, att, code, joined=True)
        return self.linear(out, "x", "o_proj", "attention", column=False, bias=att.out_bias)

    # -- feed-forward ---------------------------------------------------------------------------------------------

    def activation(self, x: Value, act: str) -> Value:
        """The non-linearity, with what its backward keeps."""
        if act in POWERS and self.style.autocast and x.width < 4:
            # autocast raises powers to fp32: an fp32 copy, tanh and its sum are kept beside half the input
            more: Form = {x.atom: 12 + x.width}
            return self.tape.op(act, [x], x.atom, 4, extra_saved=more, cheap=True, backward_temp={x.atom: 8})
        if act == "relu2":  # relu keeps its result, the square keeps it too: in fp32 under autocast
            wide = self.style.autocast and x.width < 4
            more = {x.atom: x.width + 4 * wide}
            temp = {x.atom: 10 if wide else 2 * x.width}
            width = 4 if wide else x.width
            return self.tape.op(act, [x], x.atom, width, extra_saved=more, cheap=True, backward_temp=temp)
        copies, keeps_output = ACTIVATIONS.get(act, (1, False))
        saved = [x] if copies else []
        extra = {x.atom: (copies - 1) * x.width} if copies > 1 else {}
        # a formula written out begins its backward with the gradients of two factors
        temp = {x.atom: x.width} if copies and (keeps_output or copies > 1) else {}
        return self.tape.op(
            act,
            [x],
            x.atom,
            x.width,
            saved=saved,
            saves_output=keeps_output,
            extra_saved=extra,
            cheap=True,
            backward_temp=temp,
        )

    def mlp(self, h: Value, mlp: Mlp, atom: str = "f", part: str = "mlp") -> Value:
        """Gated or plain feed-forward layer."""
        if not mlp.gated:
            inner = self.activation(self.linear(h, atom, "up_proj", part, bias=mlp.bias), mlp.act)
        else:
            inner = self.glu(h, mlp.act, atom, part, fused=mlp.fused_gate_up, bias=mlp.bias)
        inner = self.dropout(inner, mlp.dropout)
        return self.linear(inner, "x", "down_proj", part, column=False, bias=mlp.bias)

    def glu(
        self,
        h: Value,
        act: str,
        atom: str,
        part: str,
        *,
        fused: bool,
        bias: bool = False,
        clamped: bool = False,
        weights: Value | None = None,
    ) -> Value:
        """act(gate) * up: two products, the gate's activation before the second one runs, or halves of one product.

        ``weights``: one for each row, multiplied in the same kernel.
        """
        w, op = self.style.width, self.tape.op
        if not fused:
            gate = self.linear(h, atom, "gate_proj", part, bias=bias)
            active = gate if clamped or self.style.mlp == "fused" else self.activation(gate, act)
            up = self.linear(h, atom, "up_proj", part, bias=bias)
        else:
            both = self.linear(h, atom + atom[-1], "gate_up_proj", part, bias=bias)
            w = both.width
            gate, up = op("gate", [both], atom, w, view=True), op("up", [both], atom, w, view=True)
            active = gate if clamped or self.style.mlp == "fused" else self.activation(gate, act)
        more: Form = {atom: 4 * w} if clamped else {}
        parts = [active, up, *([weights] if weights else [])]
        return op("glu", parts, atom, max(active.width, up.width), saved=parts, extra_saved=more, cheap=True)

    def moe(self, h: Value, moe: Moe, code: Code = PLAIN) -> Value:
        """Router, dispatch, experts and combination."""
        if self.style.experts != "local":
            return self.sent_moe(h, moe, code)
        tape, w = self.tape, self.style.width
        h = self.gather(h)
        source = h
        if self.style.autocast:
            source = self.cast(h)
        elif code.router_float and w < 4:
            source = tape.op("router.float", [h], h.atom, 4)
        folded = code.expert_adapters == "folded" and any(role.startswith("expert.") for role in self.lora)
        saved = [source] if self.style.trained or folded else []
        router = tape.op("router", [source], "e", source.width, saved=saved, matmul=True)
        soft = tape.op("router.softmax", [router], "e", 4, saves_output=True, forward_temp={"e": 4})
        weights = tape.op("topk", [soft], "tk", w, extra_saved={"tk": 8 + 4})
        # order of the tokens by expert, its inverse, and the token of each row
        e = h.width if self.style.autocast else w
        routed = tape.op("dispatch", [h], "p", e, extra_saved={"tk": 16}, backward_temp={"p": e})
        out = self.experts(routed, moe, code)
        scaled = tape.op(
            "combine.scale", [out, weights], "p", e, saved=[out, weights], cheap=True, backward_temp={"p": e}
        )
        inverse = tape.op("combine.inverse", [], "tk", 8, grad=False)
        ordered = tape.op("combine.order", [scaled, inverse], "p", e, saved=[inverse], cheap=True)
        atom = "X" if h.atom == "X" else "x"
        y = tape.op("combine", [ordered], atom, e, cheap=True)
        tape.hold(routed, out)
        if atom == "X":
            y = tape.op("reduce-scatter", [y], "x", e, cheap=True)
        for other in self.beside_experts(h, moe):
            y = self.residual(y, other)
        return y

    def sent_moe(self, h: Value, moe: Moe, code: Code) -> Value:
        """A layer whose rows travel to the ranks of their experts and back (Megatron-Core's all-to-all dispatcher).

        The router and the permutation work on the rank's own part of the sequence. The variables of the layer's forward
        name the permuted rows, those that arrive and those that are sent home until it ends.
        """
        tape, op, w = self.tape, self.tape.op, self.style.width
        inside = self.style.experts == "weighted"
        beside = self.beside_experts(h, moe)
        router = op("router", [h], "es", w, saved=[h] if self.style.trained else [], matmul=True)
        # of the loss that balances the load: scores in fp32; which experts were chosen, twice
        soft = op("router.softmax", [router], "ts", 4, saves_output=True, extra_saved={"es": 4 + 2, "ts": 8})
        weights = op("topk", [soft], "ts", w)
        order = op("order", [], "ts", 8, grad=False)
        permuted = op("permute", [h, order], "pl", w, saved=[order], cheap=True)
        arrived = op("all-to-all", [permuted], "px", w)
        gathered = op("all-gather", [arrived], "pg", w)
        routed = op("sort", [gathered], "p", w, cheap=True)
        out = self.experts(routed, moe, code, weights if inside else None)
        unsorted = op("unsort", [out], "p", w, cheap=True)
        tape.hold(routed)
        scattered = op("reduce-scatter", [unsorted], "ps", w)
        back = op("all-to-all", [scattered], "py", w)
        if not inside:  # a product with the weights in between; without a journey it is the unsorted rows that are kept
            back = op(
                "combine.scale", [back, weights], "pl", w, saved=[back, weights], extra_saved={"pk": w}, cheap=True
            )
        y = op("combine", [back, order], "x", w, saved=[order], cheap=True)
        tape.hold(permuted, arrived, unsorted)
        for other in beside:
            y = self.residual(y, other)
        return y

    def beside_experts(self, h: Value, moe: Moe) -> list[Value]:
        """What runs beside the routed experts: shared ones, a dense layer."""
        out = []
        w = self.style.width
        if moe.shared_intermediate:
            shared = self.mlp(h, Mlp(intermediate=moe.shared_intermediate, gated=moe.gated, act=moe.act), "g", "mlp")
            if moe.shared_gate:
                gate = self.linear(h, "T", "shared_expert_gate", "router")
                shared = self.tape.op(
                    "shared_gate", [shared, gate], "x", w, saved=[shared], cheap=True, backward_temp={"x": w}
                )
            out.append(shared)
        if moe.dense:
            out.append(self.mlp(h, moe.dense, "f", "mlp"))
        return out

    def experts(self, routed: Value, moe: Moe, code: Code, weights: Value | None = None) -> Value:
        """The experts' layers over the tokens sorted by expert; ``weights`` of the router multiply their activation.

        Atoms: Wi, Wo elements of all experts' input and output projections on the rank; Ei, Eo their ins and outs.
        """
        tape, w, part = self.tape, self.style.width, "expert"
        folds = (
            {role for role in self.lora if role.startswith("expert.")} if code.expert_adapters == "folded" else set()
        )
        if not folds:
            if moe.gated:
                fused = self.style.mlp != "fused"
                inner = self.glu(routed, moe.act, "r", part, fused=fused, clamped=code.clamped_glu, weights=weights)
            else:
                inner = self.activation(self.linear(routed, "r", "up_proj", part), moe.act)
                if weights:
                    inner = tape.op("weighted", [inner, weights], "r", inner.width, saved=[inner, weights], cheap=True)
            return self.linear(inner, "p", "down_proj", part, column=False)
        # adapters of stacked weights are added to a copy of them, which the products keep and have a gradient for
        ways_in = [routed]
        if folds - {"expert.down_proj"}:
            ways_in.append(self.fold("Wi", "Ei", 2 if moe.gated else 1))
        both = tape.op("experts.in", ways_in, "rr" if moe.gated else "r", w, saved=ways_in[::-1], matmul=True)
        if moe.gated:
            gate, up = tape.op("gate", [both], "r", w, view=True), tape.op("up", [both], "r", w, view=True)
            active = self.activation(gate, moe.act)
            inner = tape.op("glu", [active, up], "r", w, saved=[active, up], cheap=True)
        else:
            inner = self.activation(both, moe.act)
        ways_out = [inner]
        if "expert.down_proj" in folds:
            ways_out.append(self.fold("Wo", "Eo", 1))
        out = tape.op("experts.out", ways_out, "p", w, saved=ways_out[::-1], matmul=True)
        tape.hold(*ways_in[1:], *ways_out[1:])
        return out

    def fold(self, weights: str, factors: str, branches: int) -> Value:
        """A copy of stacked expert weights with the adapters added; the low factors are kept in the compute dtype."""
        w = self.style.width
        rank = max(rank for role, rank in self.lora.items() if role.startswith("expert."))
        return self.tape.op("fold", [], weights, w, grad=True, extra_saved={factors: branches * rank * w})

    # -- recurrent mixers -----------------------------------------------------------------------------------------

    def recurrent(self, h: Value, rec: Recurrent) -> Value:
        """A mixer with a state, run by its fused kernels (mamba-ssm, causal-conv1d, flash-linear-attention).

        Without these packages transformers runs reference code that keeps many times more; that is not modelled.
        Atoms: i T*inner, c T*conv channels, z T*(projection width), y inner*state/chunk states, b T*heads,
        d T*(step rank and states), qr queries and keys repeated to the value heads.
        """
        op, w = self.tape.op, self.style.width
        z = self.linear(h, "z", "in_proj", "mixer")
        if rec.kind == "conv":
            gated = op("gate", [z], "i", w, saved=[z], cheap=True)
            c = op("conv", [gated], "c", w, saved=[gated])
            out = op("gate2", [c, z], "i", w, saved=[c, z], cheap=True)
        elif rec.kind in ("mamba1", "mamba2"):
            # one autograd function from the projection to the output: keeps its input and the scan's output, runs the
            # convolution again (mamba-ssm MambaInnerFn with checkpoint_lvl 1, MambaSplitConv1dScanCombinedFn)
            more: Form = {"d": w, "y": 4} if rec.kind == "mamba1" else {"b": 4}
            temp: Form = {"z": w, "c": w, "i": 2 * w, "y": 4}
            out = op("scan", [z], "i", w, saved=[z], saves_output=True, extra_saved=more, core=True, backward_temp=temp)
            return self.linear(out, "x", "out_proj", "mixer", column=False, keep=False)
        else:
            # chunk_gated_delta_rule keeps q, k, v, cumulated decays and the chunks' triangular matrices
            gate = op("z", [z], "i", w)
            conv = op("conv", [op("qkv", [z], "c", w)], "c", w)
            self.tape.keep("c", w)
            q, k = op("q.repeat", [conv], "qr", w), op("k.repeat", [conv], "qr", w)
            chunks: Form = {"b": 8 + w + rec.chunk * w}
            core = op(
                "delta",
                [q, k, conv],
                "i",
                w,
                saved=[q, k, conv],
                extra_saved=chunks,
                core=True,
                backward_temp={"y": 4, "i": 3 * w, "qr": 2 * w},
            )
            out = op("norm.gated", [core, gate], "i", w, saved=[core, gate], extra_saved={"b": 4}, cheap=True)
        return self.linear(out, "x", "out_proj", "mixer", column=False)

    # -- whole blocks ---------------------------------------------------------------------------------------------

    def mix(self, h: Value, block: Block) -> Value:
        """The block's mixer: attention, recurrence, or both in parallel."""
        parts: list[Value] = []
        if block.attention:
            parts.append(self.attention(h, block.attention, block.code))
        if block.recurrent:
            parts.append(self.recurrent(h, block.recurrent))
        y = parts[0]
        for other in parts[1:]:
            y = self.residual(y, other)
        return y

    def feed(self, h: Value, block: Block) -> Value:
        """The block's feed-forward layer."""
        assert block.ffn is not None
        return self.moe(h, block.ffn, block.code) if isinstance(block.ffn, Moe) else self.mlp(h, block.ffn)

    def block(self, block: Block, *, grad: bool = True) -> Program:
        """The whole block, compiled; ``grad``: its input carries a gradient."""
        style, code = self.style, block.code
        x = self.tape.input("x", style.residual, grad=grad)
        weight = any(t.part == "norm" and not t.name.startswith(("self_attn", "attn")) for t in block.tensors)

        def norm(y: Value) -> Value:
            return self.norm(y, block.norm, "t", code, weight=weight)

        def sublayer(x: Value, run: Callable[[Value], Value]) -> Value:
            h = norm(x) if code.norm_at == "input" else x
            y = run(h)
            self.tape.hold(h)
            if code.norm_at == "output" or block.num_norms >= 4:
                y = norm(y)
            y = self.residual(x, self.dropout(y, block.dropout))
            return norm(y) if code.norm_at == "sum" else y

        has_mixer = block.attention is not None or block.recurrent is not None
        if block.parallel and has_mixer and block.ffn:
            h = norm(x)
            h2 = norm(x) if block.num_norms >= 2 else h
            y = self.dropout(self.mix(h, block), block.dropout)
            self.tape.hold(h)
            f = self.feed(h2, block)
            self.tape.hold(h2, *([h] if code.keeps_normed else []))
            out = self.residual(x, self.residual(y, self.dropout(f, block.dropout)))
            return self.tape.compile(out, policy=style.checkpoint)
        out = x
        variables: list[Value] = []
        looks_up = any("relative_attention_bias" in t.name for t in block.tensors)

        def mixer(h: Value) -> Value:
            y = self.mix(h, block)
            if looks_up:  # which bias each pair of positions takes
                self.tape.keep("SS", 8)
            variables.extend([y] * code.keeps_mixed + [h] * code.keeps_normed)
            return y

        if has_mixer:
            out = sublayer(out, mixer)
        if block.cross:
            memory = self.tape.input("enc", style.residual, grad=True, shared=True)
            cross = block.cross
            alone = replace(code, position_bias=False, kernel="sdpa")

            def read(h: Value) -> Value:
                y = self.attention(h, cross, alone, memory)
                if looks_up:  # the first layer makes the zeros that all layers add in place of a bias
                    self.tape.keep("P", style.width)
                return y

            out = sublayer(out, read)
        if block.ffn:
            out = sublayer(out, lambda h: self.feed(h, block))
        self.tape.hold(*variables)
        return self.tape.compile(out, policy=style.checkpoint)


@lru_cache(maxsize=1024)
def program(block: Block, style: Style, *, grad: bool = True) -> Program:
    """The compiled layer program of one kind of block; ``grad``: its input carries a gradient."""
    return Recorder(style).block(block, grad=grad)
