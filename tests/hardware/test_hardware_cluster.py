"""Nodes, links and clusters."""

import re
from itertools import pairwise

import pytest

from memfit.errors import JobError, UnknownNameError
from memfit.hardware import (
    default_node,
    gpus,
    link_bytes_per_s,
    links,
    lookup_gpu,
    lookup_node,
    make_cluster,
    nodes,
)
from memfit.units import GIB

DATE = re.compile(r"20\d\d(-\d\d(-\d\d)?)?$")


def each_gpu(test):
    """Run a test on every card; a failure names the card."""

    def run():
        for gpu in gpus():
            try:
                test(gpu)
            except Exception as error:
                error.add_note(f"card: {gpu.name}")
                raise

    return run


def card(name):
    return lookup_gpu(name)[0]


@pytest.mark.parametrize("node", nodes(), ids=lambda n: n.name)
def test_every_node_is_whole(node):
    gpu = card(node.gpu)
    assert gpu.name == node.gpu
    assert node.source
    assert DATE.match(node.date)
    assert node.num_gpus >= 1
    assert node.inter_bytes_per_s > 0
    if node.num_gpus > 1:
        assert node.intra_bytes_per_s > node.inter_bytes_per_s
    if node.host_memory_bytes is not None:
        assert node.host_memory_bytes >= 0.75 * gpu.nominal_gb * GIB * node.num_gpus
    if node.fabric == "link" and gpu.link_bytes_per_s:
        assert node.intra_bytes_per_s == gpu.link_bytes_per_s
    for name in (node.name, *node.aliases):
        assert lookup_node(name) is node


def test_node_names():
    assert lookup_node("P5").gpu == "h100-sxm-80gb"
    assert lookup_node("gb200-nvl72").num_gpus == 72
    with pytest.raises(UnknownNameError, match="dgx-h100"):
        lookup_node("dgx-h10")


@each_gpu
def test_every_card_has_a_default_node(gpu):
    node = default_node(gpu)
    assert node.gpu == gpu.name
    assert node.source
    assert node.inter_bytes_per_s > 0
    if gpu.link and gpu.kind == "datacenter" and gpu.vendor == "nvidia" and gpu.name != "p100-sxm-16gb":
        assert node in nodes()
    if gpu.kind in {"laptop", "unified", "embedded"}:
        assert node.num_gpus == 1


@each_gpu
def test_clusters_hold_their_gpus(gpu):
    for count in (1, 2, 8, 9, 64):
        cluster = make_cluster(gpu, count)
        assert cluster.num_gpus == count
        assert 1 <= cluster.gpus_per_node <= count
        assert (cluster.num_nodes - 1) * cluster.gpus_per_node < count <= cluster.num_nodes * cluster.gpus_per_node
        assert cluster.group_bytes_per_s(1) == cluster.intra_bytes_per_s
        whole = cluster.intra_bytes_per_s if cluster.num_nodes == 1 else cluster.inter_bytes_per_s
        assert cluster.group_bytes_per_s(count) == whole


def test_a_cluster_of_h100():
    cluster = make_cluster(card("h100"), 16)
    assert (cluster.num_nodes, cluster.gpus_per_node, cluster.node) == (2, 8, "dgx-h100")
    assert (cluster.intra_bytes_per_s, cluster.inter_bytes_per_s) == (450 * 10**9, 50 * 10**9)


def test_gpus_of_one_node_share_its_network():
    few = make_cluster(card("rtx-4090"), 4, gpus_per_node=1)
    many = make_cluster(card("rtx-4090"), 16, gpus_per_node=8)
    assert few.inter_bytes_per_s == 8 * many.inter_bytes_per_s == 1_250_000_000
    # a port per GPU is not shared
    assert make_cluster(card("h100"), 4, gpus_per_node=1).inter_bytes_per_s == 50 * 10**9


def test_without_peer_to_peer_the_host_is_in_the_way():
    assert make_cluster(card("rtx-4090"), 2).intra_bytes_per_s == card("rtx-4090").pcie_bytes_per_s // 2
    assert make_cluster(card("rtx-6000-ada"), 2).intra_bytes_per_s == card("rtx-6000-ada").pcie_bytes_per_s


def test_a_node_can_be_chosen():
    cluster = make_cluster(card("a100-40gb"), 16, node=lookup_node("p4d"))
    assert cluster.inter_bytes_per_s == 6_250_000_000
    with pytest.raises(JobError, match="holds h100"):
        make_cluster(card("a100"), 8, node=lookup_node("p5"))


def test_a_changed_total_goes_into_the_cluster():
    gpu = card("h100").with_total_bytes(79 * GIB)
    cluster = make_cluster(gpu, 8)
    assert cluster.gpu.total_bytes == 79 * GIB
    assert cluster.node == "dgx-h100"


@pytest.mark.parametrize("bad", [{"num_gpus": 0}, {"num_gpus": -1}, {"num_gpus": 8, "gpus_per_node": 0}])
def test_counts_below_one_are_errors(bad):
    with pytest.raises(JobError) as caught:
        make_cluster(card("h100"), **bad)
    assert caught.value.path.startswith("hardware.")


def test_links():
    assert link_bytes_per_s("infiniband-ndr") == link_bytes_per_s("IB-NDR") == 50 * 10**9
    assert link_bytes_per_s("pcie-gen5-x16") == card("h100").pcie_bytes_per_s
    assert link_bytes_per_s("nvlink-4") == card("h100").link_bytes_per_s
    assert link_bytes_per_s("nvlink-3") == card("a100").link_bytes_per_s
    gens = [link_bytes_per_s(f"pcie-gen{g}-x16") for g in range(1, 7)]
    for before, after in pairwise(gens):
        assert after == pytest.approx(2 * before, rel=0.05)
    for link in links():
        assert link.source
        assert DATE.match(link.date)
    with pytest.raises(UnknownNameError, match="infiniband-ndr"):
        link_bytes_per_s("infiniband-ndx")
