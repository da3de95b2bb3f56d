"""GPUs in nodes: known machine shapes, a default shape for every card, and the cluster a job runs on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from memfit.errors import JobError, UnknownNameError
from memfit.hardware.data import read
from memfit.hardware.gpu import Gpu, gpus


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One machine shape: how many GPUs share the fast link, and what leaves the machine.

    Attributes:
        name: e.g. ``dgx-h100`` or a cloud's instance type; aliases are other names.
        title: the full name.
        gpu: name of the card in it.
        num_gpus: GPUs that reach each other at ``intra_bytes_per_s``: those of one machine, or of one NVLink
            domain (72 in a GB200 NVL72).
        fabric: ``link`` (NVLink, Infinity Fabric), ``bridge`` (cards in pairs) or ``pcie``.
        intra_bytes_per_s: between two GPUs of the node, per GPU and direction.
        inter_bytes_per_s: out of the node, per GPU and direction, when all GPUs send.
        network: what the network is.
        shared_network: the machine has one network for all its GPUs, not a port for each.
        host_memory_bytes: host memory of the machine, None when it varies.
        source, date: where the shape comes from.
    """

    name: str
    title: str
    gpu: str
    num_gpus: int
    fabric: Literal["link", "bridge", "pcie"]
    intra_bytes_per_s: int
    inter_bytes_per_s: int
    network: str
    shared_network: bool
    host_memory_bytes: int | None
    source: str
    date: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The GPUs of a job.

    Attributes:
        gpu: the card.
        num_gpus: in all.
        gpus_per_node: that share the fast link.
        intra_bytes_per_s, inter_bytes_per_s: per GPU and direction, inside a node and between nodes.
        host_memory_bytes: of one node, None when unknown.
        node: the name of the machine shape behind these figures.
    """

    gpu: Gpu
    num_gpus: int
    gpus_per_node: int
    intra_bytes_per_s: int
    inter_bytes_per_s: int
    host_memory_bytes: int | None
    node: str

    @property
    def num_nodes(self) -> int:
        """Nodes that hold the GPUs, the last one possibly part-filled."""
        return -(-self.num_gpus // self.gpus_per_node)

    def group_bytes_per_s(self, num_ranks: int) -> int:
        """The slowest link in a group of ``num_ranks`` neighbouring ranks, per GPU and direction."""
        return self.intra_bytes_per_s if num_ranks <= self.gpus_per_node else self.inter_bytes_per_s


def _intra(gpu: Gpu, fabric: str) -> int:
    if fabric == "link" and gpu.link_bytes_per_s:
        return gpu.link_bytes_per_s
    if fabric == "bridge" and gpu.bridge_bytes_per_s:
        return gpu.bridge_bytes_per_s
    # Without peer-to-peer every byte crosses the host twice: half the rate is the most that is left.
    return gpu.pcie_bytes_per_s if gpu.p2p else gpu.pcie_bytes_per_s // 2


@cache
def _table() -> tuple[tuple[Node, ...], dict[str, Node], dict[str, dict[str, Any]]]:
    """(all nodes, default node by GPU name, generic shape by kind of GPU)."""
    content = read("nodes")
    cards = {gpu.name: gpu for gpu in gpus()}
    all_nodes, defaults = [], {}
    for row in content["nodes"]:
        default = row.pop("default")
        row["aliases"] = tuple(row["aliases"])
        if row["intra_bytes_per_s"] is None:
            row["intra_bytes_per_s"] = _intra(cards[row["gpu"]], row["fabric"])
        node = Node(**row)
        all_nodes.append(node)
        if default:
            defaults[node.gpu] = node
    return tuple(all_nodes), defaults, {row["kind"]: row for row in content["generic"]}


def nodes() -> tuple[Node, ...]:
    """All machine shapes that memfit knows by name."""
    return _table()[0]


def lookup_node(name: str) -> Node:
    """The machine shape called ``name``, e.g. ``p5.48xlarge``, ``p5`` or ``dgx-h100``.

    Raises:
        UnknownNameError: no machine shape has that name.
    """
    table = {n: node for node in nodes() for n in (node.name, *node.aliases)}
    found = table.get(name.strip().lower().replace("_", "-"))
    if found is None:
        raise UnknownNameError("node", name[:60], table)
    return found


@cache
def default_node(gpu: Gpu) -> Node:
    """The usual machine for a card: the vendor's 8-GPU system, or a PCIe box with an assumed network."""
    _, defaults, generic = _table()
    if gpu.name in defaults:
        return defaults[gpu.name]
    shape = generic[gpu.kind]
    count = shape["max_gpus"]
    return Node(
        name=f"{count}x-{gpu.name}",
        title=f"{shape['title']}, {count} x {gpu.title}",
        gpu=gpu.name,
        num_gpus=count,
        fabric="pcie",
        intra_bytes_per_s=_intra(gpu, "pcie"),
        inter_bytes_per_s=shape["node_bytes_per_s"] // count,
        network=shape["network"],
        shared_network=True,
        host_memory_bytes=None,
        source=shape["source"],
        date=shape["date"],
    )


def make_cluster(gpu: Gpu, num_gpus: int = 1, *, gpus_per_node: int | None = None, node: Node | None = None) -> Cluster:
    """A cluster of one kind of card.

    Args:
        gpu: the card; a changed ``total_bytes`` is kept.
        num_gpus: in all, at least 1.
        gpus_per_node: GPUs that share the fast link; default: the node's, or fewer when there are fewer in all.
        node: the machine shape; default: :func:`default_node`.

    Raises:
        JobError: a count is below 1, or the node holds another card.
    """
    shape = node or default_node(gpu)
    if num_gpus < 1:
        raise JobError("hardware.gpus", "there must be at least one GPU", value=num_gpus, bound=">= 1")
    if gpus_per_node is not None and gpus_per_node < 1:
        raise JobError("hardware.gpus_per_node", "must be at least 1", value=gpus_per_node, bound=">= 1")
    if shape.gpu != gpu.name:
        raise JobError("hardware.node", f"`{shape.name}` holds {shape.gpu}, not {gpu.name}", value=shape.name)
    per_node = min(gpus_per_node or shape.num_gpus, num_gpus)
    inter = shape.inter_bytes_per_s
    if shape.shared_network:  # fewer GPUs divide the same network
        inter = inter * shape.num_gpus // per_node
    return Cluster(
        gpu=gpu,
        num_gpus=num_gpus,
        gpus_per_node=per_node,
        intra_bytes_per_s=shape.intra_bytes_per_s,
        inter_bytes_per_s=inter,
        host_memory_bytes=shape.host_memory_bytes,
        node=shape.name,
    )
