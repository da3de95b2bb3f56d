"""Accelerators, nodes, links and prices: facts as data, each with a source and a date.

``lookup_gpu("8xh100")`` finds a card by what people type, ``gpus()`` lists all, ``make_cluster`` puts cards into
nodes. The data lives in ``data/*.json``; ``data_version()`` names its state in every result.
"""

from __future__ import annotations

from memfit.hardware.cluster import Cluster, Node, default_node, lookup_node, make_cluster, nodes
from memfit.hardware.data import data_version
from memfit.hardware.gpu import Gpu, gpus
from memfit.hardware.links import Link, link_bytes_per_s, links
from memfit.hardware.names import lookup_gpu
from memfit.hardware.price_list import read_prices
from memfit.hardware.prices import OLD_MONTHS, Price, cheapest, price, prices

__all__ = [
    "OLD_MONTHS",
    "Cluster",
    "Gpu",
    "Link",
    "Node",
    "Price",
    "cheapest",
    "data_version",
    "default_node",
    "gpus",
    "link_bytes_per_s",
    "links",
    "lookup_gpu",
    "lookup_node",
    "make_cluster",
    "nodes",
    "price",
    "prices",
    "read_prices",
]
