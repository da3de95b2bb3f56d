"""What families call their projections, what the layer programs call them, and which weight atom each has.

Weight atoms are ``w.<part>.<slot>``: attention has the slots q, k, v, in (fused or latent projections) and out, a
feed-forward part gate, up, in (both in one) and out. ``qkv`` and ``both`` stand for all that goes in.
"""

from __future__ import annotations

from memfit.models.architecture import Tensor

_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "attention": {
        "o_proj": ("Wo", "dense", "o", "out_lin", "out_proj", "proj", "projection_layer", "wo", "c_proj", "o_proj"),
        "q_proj": ("q", "q_lin", "query", "q_proj"),
        "k_proj": ("k", "k_lin", "key", "k_proj"),
        "v_proj": ("v", "v_lin", "value", "v_proj"),
    },
    "mlp": {
        "down_proj": ("Wo", "c_proj", "fc2", "fc_out", "lin2", "linear_fc2", "w2", "wo", "dense_4h_to_h", "down_proj"),
        "gate_proj": ("w1", "wi_0", "gate_proj"),
        "up_proj": ("w3", "wi_1", "c_fc", "fc1", "fc_in", "lin1", "linear_fc1", "wi", "dense_h_to_4h", "up_proj"),
    },
    "expert": {
        "gate_proj": ("w1", "gate_proj"),
        "up_proj": ("w3", "v1", "up_proj"),
        "down_proj": ("w2", "output_linear", "down_proj"),
    },
    "mixer": {
        "out_proj": ("o_proj", "out_proj"),
        "in_proj": ("in_proj_qkvz", "in_proj_qkv", "q_proj", "qkv_proj", "in_proj"),
    },
}
"""Part of a block -> role in the layer program -> what families call it."""
_ROLES = {(part, name): role for part, table in _NAMES.items() for role, names in table.items() for name in names}
_SLOTS = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "qkv_proj": "qkv",
    "gate_proj": "gate",
    "up_proj": "up",
    "gate_up_proj": "both",
    "o_proj": "out",
    "down_proj": "out",
    "out_proj": "out",
}
SUMS = {
    "w.attention.qkv": ("w.attention.in", "w.attention.q", "w.attention.k", "w.attention.v"),
    "w.mlp.both": ("w.mlp.in", "w.mlp.gate", "w.mlp.up"),
    "w.expert.both": ("w.expert.in", "w.expert.gate", "w.expert.up"),
}
"""Atom of a fused projection -> the atoms of what it holds."""


def role_of(name: str, tensor: Tensor) -> str:
    """The role of one projection of ``tensor`` in the layer program."""
    if tensor.part == "mlp" and name == "dense":  # BERT: intermediate.dense, output.dense
        return "up_proj" if "intermediate" in tensor.name else "down_proj"
    return _ROLES.get((tensor.part, name), name)


def adapter_role(name: str, tensor: Tensor) -> str:
    """``role_of``; roles outside attention and feed-forward layers begin with their part."""
    role = role_of(name, tensor)
    return role if tensor.part in ("attention", "mlp") else f"{tensor.part}.{role}"


def tensor_atom(tensor: Tensor) -> str:
    """The weight atom of a tensor."""
    part = tensor.part if tensor.part in ("attention", "mlp", "expert", "mixer") else "rest"
    return f"w.{part}.{'in' if tensor.splits else _slot(role_of(tensor.role, tensor), part, 'in')}"


def weight_atom(role: str, part: str, *, column: bool) -> str:
    """The weight atom of a projection of the layer program."""
    return f"w.{part}.{_slot(role, part, 'in' if column else 'out')}"


def _slot(role: str, part: str, otherwise: str) -> str:
    slot = _SLOTS.get(role, otherwise)
    if part == "mixer":  # the projections of a recurrent mixer are one, or act as one
        return "out" if slot == "out" else "in"
    return slot
