"""The layer program of each kind of block, recorded on a tape.

Atoms (element counts, evaluated in ``dims.py``): T tokens on the rank, B sequences, S length, D hidden, H heads,
K key/value heads, N head dim, F feed-forward width, E experts, k experts per token; ``/t`` divided by tp.

    x  T*D residual stream (/t with sequence parallelism)      X  T*D whole
    t  T statistics of a norm (/t with sequence parallelism)   T  T
    q  T*H*N/t   k  T*K*N/t   v  T*K*Nv/t   o  T*H*Nv/t   qkv  q+k+v
    h  T*H/t     s  B*H*S*S/t scores        K  T*H*N/t keys repeated to all heads
    f  T*F/t     g  T*shared F/t            e  T*E        T*k: tk
    p  routed tokens * D    r  routed tokens * expert F
    m1..m6  sizes of latent attention       i, c, z, y...  sizes of recurrent mixers
    w.<part>.<in|out>  weight elements of the block on the rank
"""

from __future__ import annotations

from collections.abc import Callable

from memfit.formula.style import Style
from memfit.formula.tape import Form, Program, Tape, Value
from memfit.models.architecture import Attention, Block, Mlp, Moe, Recurrent

ACTIVATIONS: dict[str, tuple[int, bool]] = {
    "silu": (1, False),
    "swish": (1, False),
    "gelu": (1, False),
    "gelu_pytorch_tanh": (1, False),
    "gelu_fast": (4, False),
    "gelu_new": (4, False),
    "quick_gelu": (3, False),
    "relu": (0, True),
    "relu2": (1, True),
    "xielu": (4, False),
}
"""Activation -> (copies of its input's size kept for the backward pass, its output is kept too).

From the eager modules of transformers: one-kernel activations keep their input; ``gelu_new`` and its kin are written
out in tensor operations and keep every factor.
"""


class Recorder:
    """Records one block's operations in the given style."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self.tape = Tape(compiled=style.compiled)
        self.lora = dict(style.lora)
        self._cast: dict[int, Value] = {}
        self._gathered: dict[int, Value] = {}

    # -- pieces ---------------------------------------------------------------------------------------------------

    def norm(self, x: Value, kind: str, stat: str = "t") -> Value:
        """RMSNorm or LayerNorm over the last dim; statistics are fp32 per row."""
        if kind == "none":
            return x
        style = self.style
        stats = {stat: 8 if kind == "layer" else 4}
        if kind == "layer" or style.norm == "fused":
            width = 4 if style.autocast else x.width
            return self.tape.op("norm", [x], x.atom, width, saved=[x], extra_saved=stats, cheap=True)
        up = x if x.width == 4 else self.tape.op("norm.float", [x], x.atom, 4, cheap=True)
        scaled = self.tape.op(
            "norm.scale",
            [up],
            x.atom,
            4,
            saved=[up],
            extra_saved=stats,
            cheap=True,
            forward_temp={x.atom: 4},
            backward_temp={x.atom: 8},
        )
        low = scaled if x.width == 4 else self.tape.op("norm.cast", [scaled], x.atom, x.width, cheap=True)
        saved = [low] if style.trained else []
        return self.tape.op("norm.weight", [low], x.atom, low.width, saved=saved, cheap=True)

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
        self, x: Value, out: str, role: str, part: str, *, column: bool = True, width: int | None = None
    ) -> Value:
        """A Linear layer with its adapter, if any; ``part`` names its weight atom."""
        style, tape = self.style, self.tape
        width = width or style.width
        source = x
        if column:
            x = self.gather(x)
        low = self.cast(x)
        rank = self.lora.get(role)
        trained = style.trained or rank == 0
        side = "in" if column else "out"
        weight = f"w.{part}.{side}"
        saved = [low] if trained else []
        if trained and column and style.sequence_parallel and not style.gather_inputs and x is not source:
            saved = [source]
        temp: Form = {f"{weight}.max": style.width} if style.dequantize and not trained else {}
        grads = {weight: style.weight_grads} if trained else {}
        y = tape.op(
            role,
            [low],
            out,
            width,
            saved=saved,
            grad=low.grad or trained or bool(rank),
            matmul=True,
            forward_temp=temp,
            backward_temp=temp,
            weight_grad=grads,
        )
        if rank:
            y = self._adapter(x, y, role, rank)
        return y

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
        b = tape.op("lora_B", [a], y.atom, style.lora_width, saved=[a], matmul=True)
        scaled = tape.op("lora.scale", [b], y.atom, style.lora_width, cheap=True)
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
        return tape.op("lora.add", [y, scaled], y.atom, y.width, cheap=True, alias_grad=True)

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
        temp = {x.atom: 3 * x.width} if self.style.rope == "composite" else {}
        return self.tape.op("rope", [x], x.atom, x.width, cheap=True, forward_temp=temp, backward_temp=temp)

    def core_attention(self, q: Value, k: Value, v: Value, att: Attention, scores: str = "s") -> Value:
        """softmax(q k^T) v."""
        tape, style = self.tape, self.style
        eager = style.attention == "eager" or att.softcap
        w = style.width
        grouped = att.kind == "gqa" and att.num_heads != att.num_kv_heads
        if grouped and (eager or style.attention == "efficient"):
            k = tape.op("repeat_k", [k], "q", w, cheap=True)
            v = tape.op("repeat_v", [v], "o", w, cheap=True)
        if not eager:
            # dQ is accumulated in fp32; with grouped heads dK and dV are staged per query head (flash-attn 2 backward)
            staging = {"q": 4 + (2 * w if grouped and style.attention == "flash" else 0), "h": 4}
            return tape.op(
                "attention",
                [q, k, v],
                "o",
                w,
                saved=[q, k, v],
                saves_output=True,
                extra_saved={"h": 4},
                core=True,
                backward_temp=staging,
            )
        product = tape.op("scores", [q, k], scores, w, saved=[q, k], core=True, forward_temp={scores: w})
        if att.softcap:
            product = tape.op("softcap", [product], scores, w, saves_output=True, core=True)
        soft = tape.op("softmax", [product], scores, 4, saves_output=True, core=True, backward_temp={scores: w})
        low = soft if w == 4 else tape.op("softmax.cast", [soft], scores, w, core=True)
        if att.dropout:
            low = tape.op("attention.dropout", [low], scores, w, extra_saved={scores: 1}, core=True)
        return tape.op("context", [low, v], "o", w, saved=[low, v], core=True)

    def attention(self, h: Value, att: Attention, context: Value | None = None) -> Value:
        """Projections, rotary embedding, core attention and output projection."""
        if att.kind == "mla":
            return self.latent_attention(h, att)
        tape, w = self.tape, self.style.width
        source = context or h
        if att.fused_qkv and context is None:
            qkv = self.linear(h, "qkv", "qkv_proj", "attention")
            q = tape.op("q", [qkv], "q", w, view=True)
            k = tape.op("k", [qkv], "k", w, view=True)
            v = tape.op("v", [qkv], "v", w, view=True)
        else:
            q = self.linear(h, "q", "q_proj", "attention")
            k = self.linear(source, "k", "k_proj", "attention")
            v = self.linear(source, "v", "v_proj", "attention")
        if att.qk_norm != "none":
            q, k = self.norm(q, "rms", "h"), self.norm(k, "rms", "h")
            q, k = self.cast(q), self.cast(k)
        q, k = self.rope(q, att), self.rope(k, att)
        out = self.core_attention(q, k, v, att)
        if att.output_gate:
            gate = self.linear(h, "o", "q_proj", "attention")
            out = tape.op("output_gate", [out, gate], "o", w, saved=[out, gate], cheap=True, forward_temp={"o": w})
        return self.linear(out, "x", "o_proj", "attention", column=False)

    def latent_attention(self, h: Value, att: Attention) -> Value:
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
        out = self.core_attention(q, k, v, att)
        return self.linear(out, "x", "o_proj", "attention", column=False)

    # -- feed-forward ---------------------------------------------------------------------------------------------

    def activation(self, x: Value, act: str) -> Value:
        """The non-linearity, with what its backward keeps."""
        copies, keeps_output = ACTIVATIONS.get(act, (1, False))
        saved = [x] if copies else []
        extra = {x.atom: (copies - 1) * x.width} if copies > 1 else {}
        return self.tape.op(
            act, [x], x.atom, x.width, saved=saved, saves_output=keeps_output, extra_saved=extra, cheap=True
        )

    def mlp(self, h: Value, mlp: Mlp, atom: str = "f", part: str = "mlp") -> Value:
        """Gated or plain feed-forward layer."""
        tape, w = self.tape, self.style.width
        names = ("gate_proj", "up_proj", "down_proj") if mlp.gated else ("", "fc1", "fc2")
        if not mlp.gated:
            inner = self.activation(self.linear(h, atom, names[1], part), mlp.act)
        else:
            gate = self.linear(h, atom, names[0], part)
            up = self.linear(h, atom, names[1], part)
            inner = self.gated(gate, up, mlp.act, atom)
        inner = self.dropout(inner, 0.0)
        del tape, w
        return self.dropout(self.linear(inner, "x", names[2], part, column=False), mlp.dropout)

    def gated(self, gate: Value, up: Value, act: str, atom: str) -> Value:
        """act(gate) * up."""
        if self.style.mlp == "fused":
            return self.tape.op("glu", [gate, up], atom, gate.width, saved=[gate, up], cheap=True)
        active = self.activation(gate, act)
        return self.tape.op("glu", [active, up], atom, gate.width, saved=[active, up], cheap=True)

    def moe(self, h: Value, moe: Moe) -> Value:
        """Router, dispatch, experts and combination."""
        tape, w = self.tape, self.style.width
        h = self.gather(h)
        router = tape.op("router", [h], "e", w, saved=[h] if self.style.trained else [], matmul=True)
        soft = tape.op("router.softmax", [router], "e", 4, saves_output=True, forward_temp={"e": 4})
        weights = tape.op("topk", [soft], "tk", 4, extra_saved={"tk": 8})
        routed = tape.op("dispatch", [h], "p", w, extra_saved={"tk": 8})
        part = "expert"
        names = ("gate_proj", "up_proj", "down_proj") if moe.gated else ("", "up_proj", "down_proj")
        if moe.gated:
            gate = self.linear(routed, "r", names[0], part)
            inner = self.gated(gate, self.linear(routed, "r", names[1], part), moe.act, "r")
        else:
            inner = self.activation(self.linear(routed, "r", names[1], part), moe.act)
        out = self.linear(inner, "p", names[2], part, column=False)
        scaled = tape.op("combine.scale", [out, weights], "p", w, saved=[out, weights], cheap=True)
        atom = "X" if h.atom == "X" else "x"
        y = tape.op("combine", [scaled], atom, w, cheap=True)
        if atom == "X":
            y = tape.op("reduce-scatter", [y], "x", w, cheap=True)
        if moe.shared_intermediate:
            shared = self.mlp(h, Mlp(intermediate=moe.shared_intermediate, gated=moe.gated, act=moe.act), "g", "mlp")
            if moe.shared_gate:
                shared = tape.op("shared_gate", [shared], "x", w, saved=[shared], cheap=True)
            y = self.residual(y, shared)
        if moe.dense:
            y = self.residual(y, self.mlp(h, moe.dense, "f", "mlp"))
        return y

    # -- recurrent mixers -----------------------------------------------------------------------------------------

    def recurrent(self, h: Value, rec: Recurrent) -> Value:
        """A mixer with a state.

        Atoms: i T*inner, c T*conv channels, z T*(projection width), y T*inner*state/chunk states, b T*heads.
        """
        tape, w = self.tape, self.style.width
        if rec.kind == "conv":
            z = self.linear(h, "z", "in_proj", "mixer")
            gated = tape.op("gate", [z], "i", w, saved=[z], cheap=True)
            c = tape.op("conv", [gated], "c", w, saved=[gated])
            out = tape.op("gate2", [c, z], "i", w, saved=[c, z], cheap=True)
            return self.linear(out, "x", "out_proj", "mixer", column=False)
        z = self.linear(h, "z", "in_proj", "mixer")
        stream = tape.op("split", [z], "c", w, view=True)
        if rec.conv_kernel:
            conv = tape.op("conv", [stream], "c", w, saved=[stream])
            stream = tape.op("conv.act", [conv], "c", w, saved=[conv], cheap=True)
        states = {"y": 4, "b": 8}
        core = tape.op(
            "scan", [stream], "i", w, saved=[stream], extra_saved=states, core=True, backward_temp={"i": 8, "y": 4}
        )
        normed = tape.op(
            "norm.gated", [core, z], "i", w, saved=[core, z], extra_saved={"b": 4}, cheap=True, forward_temp={"i": 8}
        )
        return self.linear(normed, "x", "out_proj", "mixer", column=False)

    # -- whole blocks ---------------------------------------------------------------------------------------------

    def mix(self, h: Value, block: Block) -> Value:
        """The block's mixer: attention, recurrence, or both in parallel."""
        parts: list[Value] = []
        if block.attention:
            parts.append(self.attention(h, block.attention))
        if block.recurrent:
            parts.append(self.recurrent(h, block.recurrent))
        y = parts[0]
        for other in parts[1:]:
            y = self.residual(y, other)
        return y

    def feed(self, h: Value, ffn: Mlp | Moe) -> Value:
        """The block's feed-forward layer."""
        return self.moe(h, ffn) if isinstance(ffn, Moe) else self.mlp(h, ffn)

    def block(self, block: Block) -> Program:
        """The whole block, compiled."""
        style = self.style
        x = self.tape.input("x", style.residual)
        post: Callable[[Value], Value] = (lambda y: self.norm(y, block.norm)) if block.num_norms >= 4 else (lambda y: y)
        has_mixer = block.attention is not None or block.recurrent is not None
        if block.parallel and has_mixer and block.ffn:
            h = self.norm(x, block.norm)
            h2 = self.norm(x, block.norm) if block.num_norms >= 2 else h
            y = self.dropout(self.mix(h, block), block.dropout)
            f = self.feed(h2, block.ffn)
            out = self.residual(x, self.residual(y, f))
            return self.tape.compile(out, policy=style.checkpoint)
        out = x
        if has_mixer:
            y = post(self.mix(self.norm(out, block.norm), block))
            out = self.residual(out, self.dropout(y, block.dropout))
        if block.cross:
            memory = self.tape.input("enc", style.width, grad=True)
            y = self.attention(self.norm(out, block.norm), block.cross, memory)
            out = self.residual(out, self.dropout(y, block.dropout))
        if block.ffn:
            y = post(self.feed(self.norm(out, block.norm), block.ffn))
            out = self.residual(out, self.dropout(y, block.dropout))
        return self.tape.compile(out, policy=style.checkpoint)


def program(block: Block, style: Style) -> Program:
    """The compiled layer program of one kind of block."""
    return Recorder(style).block(block)
