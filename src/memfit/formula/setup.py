"""The static part of a training job: everything that is decided before numbers are put in.

Two jobs that differ only in numeric axes (batch, length, degrees) share one ``Setup``; it is compiled once and cached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from memfit.formula import profile as profiles
from memfit.formula.blocks import program
from memfit.formula.profile import Dtype, Loss, Optimizer, Profile, Scheme, Sharding
from memfit.formula.roles import adapter_role
from memfit.formula.style import Style
from memfit.formula.tail import entry, exit_of, tail
from memfit.formula.tape import Form, Program
from memfit.formula.weights import FOLDED, LINEAR_ALL, Held, Training, held, matrix_share, projected_elements
from memfit.models.architecture import Architecture, Block, Code, Mlp, Moe, Stack, Tensor
from memfit.units import MIB

LOW = frozenset({"bf16", "fp16", "bf16-mixed", "fp16-mixed", "fp8", "mxfp8", "nvfp4"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """The discrete fields of a completed training job; hashable, the key of the cache."""

    framework: str
    method: str
    precision: str
    optimizer: str
    in_backward: bool
    keep_grads: bool
    accumulates: bool
    zero: int
    reshard: bool
    tensor_parallel: bool
    sequence_parallel: bool
    pp: int
    schedule: str
    virtual_pp: int
    pp_layers: tuple[int, ...]
    checkpointing: str | int
    compile: bool
    attention: str
    loss: str
    offload: tuple[str, ...]
    weights: str
    bpw: float
    training: Training
    adapter_dropout: bool
    flash: bool
    cublas: int
    rocm: bool = False
    optimizer_impl: str | None = None


Split = tuple[tuple[Form, Form, Form], ...]
"""Linear forms, each as (the rest, weight gradients, autocast's copies of weights)."""


def split_form(form: Form) -> tuple[Form, Form, Form]:
    """Separate weight gradients (``w.*``) and copies of weights (``c.*``) from the rest of a form."""
    out: tuple[Form, Form, Form] = {}, {}, {}
    for atom, width in form.items():
        which = 2 if atom.startswith("c.") else 1 if atom.startswith("w.") and not atom.endswith("max") else 0
        out[which][atom] = width
    return out


def split_forms(forms: tuple[Form, ...]) -> Split:
    """``split_form`` of each."""
    return tuple(map(split_form, forms))


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of block in one stack: programs and weights.

    ``idle`` are the weights of a layer that is not trained; ``adapted``: it has adapters; ``sends``: rows travel to its
    experts; ``entered`` is what a first layer keeps when nothing below it trains, None where something does.
    """

    block: Block
    program: Program
    held: Held
    idle: Held
    trains: bool
    adapted: bool
    sends: bool
    entered: Form | None
    backward: Split
    recompute: Split
    adding: Split
    recompute_adding: Split


@dataclass(frozen=True, slots=True)
class Tower:
    """A stack with its kinds; ``first_trained`` is the first layer that keeps anything for the backward pass."""

    stack: Stack
    kinds: tuple[Kind, ...]
    extra: Held
    first_trained: int


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A training job without its numbers, compiled."""

    arch: Architecture
    choices: Choices
    profile: Profile
    scheme: Scheme
    sharding: Sharding
    loss: Loss
    optimizer: Optimizer
    rest: Optimizer
    frozen: Dtype
    style: Style
    decoder: Tower
    towers: tuple[Tower, ...]
    embedding: Held
    final_norm: Held
    head: Held
    tail: Program
    head_made: tuple[Form, ...]
    tail_forward: Split
    tail_backward: Split
    entry: Program
    exits: tuple[Program | None, ...]
    matrix: tuple[int, int]
    projected: int
    reference: bool
    outer_width: int

    @property
    def width(self) -> int:
        """Bytes of the compute dtype."""
        return self.style.width

    @property
    def logits_width(self) -> int:
        """Bytes of an element of the logits that the caller gets."""
        return 4 if self.profile.float_output else self.width


def _scheme(prof: Profile, c: Choices) -> Scheme:
    table = {**prof.schemes, **prof.sharded} if c.zero >= 3 else dict(prof.schemes)
    if c.zero in (1, 2) and prof.sharding == "deepspeed":
        table |= dict.fromkeys(prof.sharded, "master")
    return profiles.scheme(table.get(c.precision, "pure"))


def _style(prof: Profile, c: Choices, scheme: Scheme) -> Style:
    low = c.precision in LOW
    adapters = c.training.rank > 0
    width = 2 if low else 4
    autocast = scheme.autocast and not adapters
    targets = c.training.targets
    residual = 4 if autocast or (adapters and prof.kbit_fp32 and c.method == "qlora" and low) else width
    # FSDP's mixed precision gathers adapters in the compute dtype like everything else
    fp32_adapters = prof.adapter_fp32 and low and not (c.zero >= 3 and scheme.gathered)
    attention = "eager" if c.attention == "eager" else ("flash" if c.flash and low else "efficient")
    checkpoint = c.checkpointing if c.checkpointing in ("selective", "attention") else "full"
    fresh = scheme.fresh or (0 if scheme.fused_accumulation else width)
    return Style(
        width=width,
        residual=residual,
        autocast=autocast or (adapters and residual > width),
        norm="fused" if prof.norm == "fused" else "composite",
        mlp="fused" if prof.mlp == "fused" else "eager",
        rope="fused" if prof.rope == "fused" else "composite",
        copy_q=prof.copy_q,
        experts=prof.experts,  # type: ignore[arg-type]
        attention=attention,  # type: ignore[arg-type]
        masks=c.attention == "sdpa",
        compiled=c.compile,
        checkpoint=checkpoint,  # type: ignore[arg-type]
        gather_inputs=prof.gather_inputs,
        sequence_parallel=c.sequence_parallel,
        trained=c.training.full or bool(c.training.last_layers),
        lora=tuple((t, c.training.rank) for t in targets) if adapters else (),
        lora_width=4 if fp32_adapters and not scheme.autocast else width,
        lora_cast=fp32_adapters,
        lora_dropout=c.adapter_dropout or prof.adapter_dropout > 0,
        pad_qkv=prof.pad_qkv,
        dora=c.training.dora,
        dequantize=adapters and c.weights not in ("fp32", "bf16", "fp16"),
        kbit_inputs=prof.kbit_inputs,
        kbit_bytes=prof.kbit_bytes,
        weight_grads=fresh,
    )


def _block_style(style: Style, block: Block, how: Training) -> Style:
    """The style for one kind of block: LoRA targets become the roles that the block program uses."""
    roles: dict[str, int] = {}
    for t in block.tensors:
        if not t.linear:
            continue
        names = [n for n, _ in t.splits] or [t.role]
        for name in names:
            role = adapter_role(name, t)
            reach = block.code.expert_adapters
            if (t.expert and reach == "none") or (t.part == "mlp" and reach == "folded" and t.role in FOLDED):
                continue
            if how.rank and how.adapts(name, t):
                roles[role] = how.rank
            elif how.also and not how.full and how.trains(t):
                roles[role] = 0
    att = block.attention
    padded: tuple[str, ...] = ()
    if att and att.fused_qkv:
        merged = {r: roles.pop(r) for r in ("q_proj", "k_proj", "v_proj") if r in roles}
        if merged:
            roles["qkv_proj"] = max(merged.values())
        if len(merged) < 3 and style.pad_qkv:
            padded = tuple(r[0] for r in merged)
    if isinstance(block.ffn, Mlp) and block.ffn.gated and block.ffn.fused_gate_up:
        both = [roles.pop(r) for r in ("gate_proj", "up_proj") if r in roles]
        if both:
            roles["gate_up_proj"] = max(both)
    return replace(style, lora=tuple(sorted(roles.items())), padded=padded)


def _quantise(prof: Profile, frozen: Dtype) -> Any:
    if frozen.keep16 == "none":
        return lambda t: frozen.name not in ("bf16", "fp16", "fp32")

    def choose(t: Tensor) -> bool:
        return t.linear and (prof.quantize_head or t.part not in ("head", "embedding"))

    return choose


def _own_module(block: Block, prof: Profile) -> Block:
    """The block as a framework with modules of its own computes it: plain code, its way with norms, q, k and v."""
    att = block.attention
    code = Code(
        norm="float" if block.norm == "rms" and prof.norm_code == "float" else "low",
        norm_at=block.code.norm_at,
        position_bias=block.code.position_bias,
        expand_kv=prof.expand_kv,
        rope_cat=prof.rope_cat,
        expert_adapters="linear",
    )
    ffn = block.ffn
    if isinstance(ffn, Mlp) and ffn.act.startswith("gelu"):
        ffn = replace(ffn, act="gelu")  # torch's one kernel, whichever approximation
    if att is not None and att.kind != "mla":
        att = replace(att, fused_qkv=att.fused_qkv or prof.fused_qkv)
    if not prof.dropouts:
        att = replace(att, dropout=0.0) if att else None
        ffn = replace(ffn, dropout=0.0) if isinstance(ffn, Mlp) else ffn
    return replace(block, code=code, ffn=ffn, attention=att, dropout=block.dropout if prof.dropouts else 0.0)


def _leaf(prof: Profile, c: Choices) -> bool:
    """Whether the embedding's output is made to require a gradient, for the checkpoints of frozen layers."""
    return (prof.modules == "transformers" or prof.leaf) and c.checkpointing != "none" and not c.training.full


def _tower(stack: Stack, style: Style, c: Choices, prof: Profile, frozen: Dtype) -> Tower:
    first = 0
    if c.training.last_layers:
        first = stack.num_layers - min(c.training.last_layers, stack.num_layers) if stack.name == "decoder" else 1 << 30
    kinds = _kinds(stack, style, c.training, prof, frozen, _leaf(prof, c))
    return Tower(stack, kinds, held(stack.extra, c.training, quantise=_quantise(prof, frozen)), first)


@lru_cache(maxsize=1024)
def _kinds(
    stack: Stack, style: Style, training: Training, prof: Profile, frozen: Dtype, leaf: bool
) -> tuple[Kind, ...]:
    """The kinds of blocks of a stack; setups that differ elsewhere share them."""
    quantise = _quantise(prof, frozen)
    how = replace(training, full=True) if training.last_layers else training
    kinds = []
    for hf_block in stack.blocks:
        block = hf_block if prof.modules == "transformers" else _own_module(hf_block, prof)
        st = _block_style(style, block, how)
        played = program(block, st)
        kinds.append(
            Kind(
                block,
                played,
                held(
                    block.tensors,
                    how,
                    quantise=quantise,
                    experts=block.code.expert_adapters,
                    joined=prof.joined,
                ),
                held(block.tensors, training, quantise=quantise, train=False),
                st.trained or bool(st.lora),
                any(rank for _, rank in st.lora),
                st.experts != "local" and isinstance(block.ffn, Moe),
                program(block, st, grad=False).kept if st.lora and not st.trained and not leaf else None,
                split_forms(played.backward),
                split_forms(played.recompute),
                split_forms(played.adding),
                split_forms(played.recompute_adding),
            )
        )
    return tuple(kinds)


@lru_cache(maxsize=4096)
def setup(arch: Architecture, c: Choices) -> Setup:
    """Compile the static part of a training job.

    Raises:
        UnknownNameError: the framework, optimizer or weights dtype has no row.
    """
    prof = profiles.profile(c.framework)
    if prof.untied and arch.tied:
        shape = (arch.vocab_size, arch.hidden_size)
        head_weight = Tensor(name="lm_head.weight", shape=shape, part="head", linear=True, tp_dim=0)
        arch = replace(arch, head=(head_weight,), tied=False)
    scheme = _scheme(prof, c)
    frozen = profiles.dtype({"bpw": c.bpw} if c.bpw else c.weights)
    style = _style(prof, c, scheme)
    quantise = _quantise(prof, frozen)
    optimizer = profiles.optimizer(c.optimizer)
    decoder = _tower(arch.decoder, style, c, prof, frozen)
    head = held(arch.head, c.training, quantise=quantise)
    embedding = held(arch.embeddings, c.training, quantise=quantise)
    losses = {**prof.loss, **(prof.loss_tp if c.tensor_parallel else {})}
    if c.training.rank:
        losses |= prof.loss_adapters
    if c.compile:
        losses |= prof.loss_compiled
    code = decoder.kinds[-1].block.code
    row = losses.get(c.loss, "float")
    loss = profiles.loss("native" if code.native_loss and row == "float" else row)
    head_trained = bool(head.trained) or (arch.tied and bool(embedding.trained))
    below = c.training.full or any(k.trains for k in decoder.kinds)
    final = decoder.kinds[-1].block.norm
    kbit = style.residual > 2 and c.precision in LOW and bool(c.training.rank)
    low = 2 if c.precision in LOW else 4
    plain = replace(style, compiled=False, lora=(), width=low)  # logits come in the compute dtype whatever the stream
    encoder = any(s.name == "encoder" for s in arch.towers)
    mechanism = (prof.sharding_adapters if c.training.rank else "") or prof.sharding
    ends = partial(
        tail,
        plain,
        norm="none" if code.norm_at == "sum" and not arch.final_norm else final,
        code=code,
        weight=bool(arch.final_norm),
        transform=code.norm_at == "sum" and any(t.linear for t in arch.final_norm),
        dropout=encoder and arch.embed_dropout > 0,
        softcap=arch.logit_softcap,
        float_output=prof.float_output,
        quantised=style.dequantize and prof.quantize_head,
        head_trained=head_trained,
        hidden_grad=below,
    )
    end = ends(loss=loss)
    embedded = "layer" if any(t.part == "norm" for t in arch.embeddings) else "none"
    return Setup(
        arch=arch,
        choices=c,
        profile=prof,
        scheme=scheme,
        sharding=profiles.sharding(mechanism if c.zero else "none"),
        loss=loss,
        optimizer=optimizer,
        rest=profiles.optimizer(optimizer.rest) if optimizer.rest else optimizer,
        frozen=frozen,
        style=style,
        decoder=decoder,
        towers=tuple(_tower(s, replace(style, sequence_parallel=False), c, prof, frozen) for s in arch.towers),
        embedding=embedding,
        final_norm=held(arch.final_norm, c.training, quantise=quantise),
        head=head,
        tail=end,
        head_made=ends(loss=None).forward if prof.loop_logits or (prof.hold_logits and c.accumulates) else (),
        tail_forward=split_forms(end.forward),
        tail_backward=split_forms(end.backward),
        entry=entry(
            plain,
            norm=embedded,
            dropout=arch.embed_dropout > 0,
            moved=code.scaled_embedding or sum(len(t.shape) == 2 for t in arch.embeddings) > 1,
            leaf=_leaf(prof, c),
        ),
        exits=tuple(
            exit_of(plain, norm=final, code=code, dropout=arch.embed_dropout > 0) if s.name == "encoder" else None
            for s in arch.towers
        ),
        matrix=matrix_share(arch),
        projected=projected_elements(arch, optimizer.rank) if optimizer.rank else 0,
        reference=c.method == "dpo" and prof.reference and not c.training.rank,
        outer_width=4 if kbit else (2 if c.precision in LOW else 4),
    )


def choices(
    values: Mapping[str, Any],
    *,
    num_layers: int,
    capability: tuple[int, int] | None = None,
    rocm: bool = False,
) -> Choices:
    """The discrete fields from a completed job's flat values.

    Args:
        values: field name -> value of task and strategy, complete.
        num_layers: layers of the decoder, for a trained fraction of them.
        capability: compute capability of the card; None is taken as a current one. SDPA runs its flash backend from
            8.0 on; a cuBLAS handle takes 32 MiB from 9.0 on, 8.125 MiB before (PyTorch's default workspace).
        rocm: the card is AMD's.
    """
    method = values["method"]
    lora = values.get("lora")
    adapters = method in ("lora", "qlora", "dora") or (method in ("dpo", "grpo") and lora is not None)
    if adapters and lora is not None:
        targets = lora.targets
        names = (targets or LINEAR_ALL,) if targets is None or isinstance(targets, str) else tuple(targets)
        how = Training(
            full=False,
            rank=lora.rank or 8,
            targets=(LINEAR_ALL,) if LINEAR_ALL in names else names,
            also=tuple(lora.train_also or ()),
            dora=method == "dora",
        )
        dropout = bool(lora.dropout)
    elif method == "freeze":
        trainable = values.get("trainable")
        if isinstance(trainable, tuple):
            how = Training(full=False, also=trainable)
        elif isinstance(trainable, float):
            how = Training(full=False, last_layers=max(1, round(trainable * num_layers)))
        else:
            how = Training(full=False, last_layers=int(trainable or 1))
        dropout = False
    else:
        how = Training()
        dropout = False
    weights = values.get("weights") or "bf16"
    bpw = float(weights["bpw"]) if isinstance(weights, Mapping) else 0.0
    return Choices(
        framework=profiles.select(values["framework"], values["framework_version"]),
        method=method,
        precision=values["precision"],
        optimizer=values["optimizer"],
        in_backward=bool(values["optimizer_in_backward"]),
        keep_grads=not values["set_to_none"] or values["grad_accum"] > 1,
        accumulates=values["grad_accum"] > 1,
        zero=values["zero"],
        reshard=bool(values["reshard"]),
        tensor_parallel=values["tp"] > 1,
        sequence_parallel=bool(values["sequence_parallel"]) and values["tp"] > 1,
        pp=values["pp"],
        schedule=values["pp_schedule"],
        virtual_pp=values["virtual_pp"],
        pp_layers=tuple(values["pp_layers"] or ()) if values["pp"] > 1 else (),
        checkpointing=values["checkpointing"],
        compile=bool(values["compile"]),
        attention=values["attention"],
        loss=values["loss"],
        offload=tuple(values["offload"] or ()),
        weights="bpw" if bpw else str(weights),
        bpw=bpw,
        training=how,
        adapter_dropout=dropout,
        flash=capability is None or capability >= (8, 0),
        rocm=rocm,
        cublas=32 * MIB if capability is None or capability >= (9, 0) else 8_519_680,
    )
