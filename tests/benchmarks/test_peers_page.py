"""The page about other tools says what memfit says today, and the peers' sums are the peers' answers."""

import re
from pathlib import Path

import pytest

import peers

PAGE = Path(__file__).parents[2] / "docs" / "peers.md"
NUMBER = re.compile(r"[-+]?\d+\.\d\d")


def test_the_generated_part_is_current_within_the_printed_precision():
    written, now = peers.generated_part(PAGE.read_text(encoding="utf-8")), peers.question()
    again = "renew it: python benchmarks/peers.py --question --write docs/peers.md"
    assert NUMBER.sub("#", written) == NUMBER.sub("#", now), again
    pairs = zip(NUMBER.findall(written), NUMBER.findall(now), strict=True)
    assert all(abs(float(a) - float(b)) < 0.0101 for a, b in pairs), again


@pytest.mark.parametrize(
    ("peer", "printed"),
    [
        ("xtuner", 17.31),
        ("DeepSpeed", 18.78),
        ("llm-analysis, repository", 19.17),
        ("llm-analysis, package", 14.75),
        ("PyTorch", 20.60),
        ("George614", 22.79),
        ("EleutherAI", 36.65),
    ],
)
def test_the_terms_of_a_peer_add_up_to_what_it_printed(peer, printed):
    (answer,) = (a for a in peers.ANSWERS if a.peer.startswith(peer))
    assert answer.total == pytest.approx(printed, abs=0.006)


def test_the_differences_of_each_peer_add_up():
    tables = peers.question().split("#### ")[1:]
    assert len(tables) == len(peers.ANSWERS)
    for table in tables:
        rows = [line.split(" | ") for line in table.splitlines() if NUMBER.search(line) and line.startswith("|")]
        figures = [[float(cell.strip("*")) for cell in row[1:4]] for row in rows]
        for column in range(3):
            assert sum(f[column] for f in figures[:-1]) == pytest.approx(figures[-1][column], abs=0.05)


def test_the_loopback_hub_serves_headers_whose_sizes_are_the_models(tmp_path):
    import json
    import struct
    import urllib.request

    facts = peers.prepare(tmp_path)
    assert facts["mixtral-8x7b"]["params"] == 46_702_792_704
    with peers.loopback_hub(tmp_path) as hub:
        address = f"{hub}/{peers.MODELS['mixtral-8x7b']}/resolve/main/model.safetensors"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(address, headers={"Range": "bytes=0-7"})) as reply:
            assert reply.status == 206
            (length,) = struct.unpack("<Q", reply.read())
        with opener.open(address) as reply:
            header = json.loads(reply.read()[8 : 8 + length])
    last = max(t["data_offsets"][1] for t in header.values() if "data_offsets" in t)
    assert last == 2 * 46_702_792_704
    assert "model.layers.31.block_sparse_moe.experts.7.w2.weight" in header
