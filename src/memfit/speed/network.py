"""Seconds of collectives: algorithm, message size, and the links that a group of ranks crosses.

Ranks are laid out with tensor parallelism innermost, then context, data (expert groups inside it), pipeline: a mesh
axis is a group of ``size`` ranks ``stride`` apart. A node's ranks share its links; what leaves the node goes through
the ports of all the group's ranks in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from memfit.hardware import Cluster, Gpu, default_node, make_cluster
from memfit.speed.calibration import Calibration
from memfit.speed.numbers import Real, choose, doublings, least, most

LL_SHARE = 0.4
"""Rate of NCCL's low-latency protocols against Simple: every line carries flags, and nothing is pipelined in chunks."""

LL_HOP = 0.3
"""Their seconds per step against Simple's: 0.2 for LL, 0.3 to 0.55 for LL128 in NCCL's tuning table."""

TREE_SHARE = 0.85
"""Rate of a tree against a ring: inner ranks receive from two and send to two (NCCL's own tuning tables)."""

START_S = 8e-6
"""Seconds of any collective: the kernel's start on all ranks and the first handshake."""

NO_P2P = 0.25
"""Share of the host interface that collectives reach where cards cannot reach each other: every byte goes through host
memory twice, and all cards share its controller (AIConfigurator's table: 8 x L40S without P2P at 1 to 2 GB/s)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The ranks of one mesh axis.

    Attributes:
        size: ranks.
        inside: ranks of it in one node.
        bytes_per_s: the slowest link of a ring through the group, per rank and direction.
        nodes: nodes it touches.
    """

    size: Real
    inside: Real
    bytes_per_s: Real
    nodes: Real


@dataclass(frozen=True, slots=True)
class Fabric:
    """The links of a cluster as a job's collectives see them."""

    cluster: Cluster
    c: Calibration

    def group(self, size: Real, stride: Real) -> Group:
        """The group of ``size`` ranks, ``stride`` apart."""
        per_node = self.cluster.gpus_per_node
        inside = least(most(per_node // stride, 1), size)
        nodes = -(-size // inside)
        local = self.local * 1.0
        wide = least(inside * (self.cluster.inter_bytes_per_s * self.c.network), local)
        return Group(size=size, inside=inside, bytes_per_s=choose(nodes > 1, wide, local), nodes=nodes)

    @property
    def local(self) -> float:
        """Bytes per second between two cards of a node."""
        gpu = self.cluster.gpu
        direct = gpu.link_bytes_per_s or gpu.bridge_bytes_per_s
        share = self.c.link if direct or gpu.p2p else NO_P2P * self.c.link
        # a machine with a single device reaches others over its network alone
        return self.cluster.intra_bytes_per_s * share or self.cluster.inter_bytes_per_s * self.c.network

    def _time(self, g: Group, sent: Real, steps: Real, far: Real) -> Real:
        """``steps`` in a row of which ``far`` leave the node, ``sent`` bytes through each rank's slowest link."""
        hops = (steps - far) * self.c.hop_s + far * self.c.network_hop_s
        simple = hops + sent / g.bytes_per_s
        quick = hops * LL_HOP + sent / (g.bytes_per_s * LL_SHARE)
        seconds = (least(simple, quick) + START_S) * self.c.contention
        return choose(g.size > 1, seconds, 0.0)

    def gather(self, g: Group, whole: Real) -> Real:
        """All-gather to, or reduce-scatter of, ``whole`` bytes on each rank (a ring)."""
        steps = g.size - 1.0
        return self._time(g, whole * steps / g.size, steps, choose(g.nodes > 1, 1.0 * g.nodes, 0.0))

    def all_reduce(self, g: Group, whole: Real) -> Real:
        """All-reduce of ``whole`` bytes: a ring, or a tree over nodes where the ring has too many steps."""
        steps = 2.0 * (g.size - 1.0)
        sent = 2.0 * whole * (g.size - 1.0) / g.size
        ring = self._time(g, sent, steps, choose(g.nodes > 1, 2.0 * g.nodes, 0.0))
        far = 2.0 * doublings(g.nodes)
        tree = self._time(g, 2.0 * whole / TREE_SHARE, 2.0 * (g.inside - 1.0) + far, far)
        return least(ring, tree)

    def one_shot(self, g: Group, whole: Real) -> Real:
        """All-reduce inside a node, every rank reading all others' ``whole`` bytes (kernels of inference engines)."""
        seconds = (START_S + 2.0 * self.c.hop_s * LL_HOP + whole * (g.size - 1.0) / self.local) * self.c.contention
        return choose(g.nodes > 1, self.all_reduce(g, whole), choose(g.size > 1, seconds, 0.0))

    def all_to_all(self, g: Group, local: Real) -> Real:
        """Every rank sends ``local`` bytes, an equal part to each rank of the group."""
        outside = local * (g.size - g.inside) / g.size
        near = local * (g.inside - 1.0) / g.size / self.local
        far = outside / (self.cluster.inter_bytes_per_s * self.c.network)
        seconds = (most(near, far) + START_S + g.size * self.c.hop_s * 0.25) * self.c.contention
        return choose(g.size > 1, seconds, 0.0)

    def send(self, stride: Real, num_bytes: Real) -> Real:
        """One message to the rank ``stride`` away."""
        leaves = stride >= self.cluster.gpus_per_node
        rate = choose(leaves, self.cluster.inter_bytes_per_s * self.c.network, self.local)
        hop = choose(leaves, self.c.network_hop_s, self.c.hop_s)
        return (num_bytes / rate + hop + START_S) * self.c.contention


def fabric(gpu: Gpu, gpus_per_node: int | None, calibration: Calibration) -> Fabric:
    """The fabric of a large enough cluster of the card's usual nodes."""
    node = default_node(gpu)
    per_node = gpus_per_node or node.num_gpus
    return Fabric(make_cluster(gpu, 1 << 20, gpus_per_node=per_node), calibration)
