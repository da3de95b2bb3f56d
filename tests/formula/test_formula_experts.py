"""Experts whose rows travel (Megatron-Core): what is kept, how they are split over ranks, what adapters weigh."""

from __future__ import annotations

import pytest
from formula_jobs import kept_of_layers, models_of, stage_peaks, trained_elements

from memfit.formula.weights import local

MODEL = "qwen3-30b-a3b"
CORE = {"model": MODEL, "framework": "megatron", "seq_len": 1024, "attention": "flash"}
EXPERTS = 128 * 3 * 2048 * 768
ROWS = 1024 * 8


def experts_of(**fields) -> int:
    """Expert elements of one layer on a rank."""
    m = models_of(**CORE, **fields)[0]
    kind = m.s.decoder.kinds[0]
    return int(local(kind.held.all, m.d, expert=True))


def test_router_weights_inside_the_experts_spare_their_output():
    after = kept_of_layers(**CORE, framework_version="Megatron-Core 0.11")[0]
    inside = kept_of_layers(**CORE, framework_version="Megatron-Core 0.13")[0]
    assert after - inside == ROWS * 2048 * 2


@pytest.mark.parametrize(("dp", "tp", "ep", "ways"), [(8, 1, 8, 8), (4, 2, 4, 8), (2, 4, 8, 8), (1, 4, 4, 4)])
def test_experts_are_split_over_no_more_ranks_than_there_are(dp, tp, ep, ways):
    assert experts_of(dp=dp, tp=tp, ep=ep) == EXPERTS // ways


def test_megatron_swift_splits_no_expert():
    assert experts_of(dp=4, tp=2, ep=4, framework_version="Megatron-SWIFT") == EXPERTS // 4


@pytest.mark.parametrize(("dp", "tp", "ep"), [(8, 1, 8), (4, 2, 4), (2, 4, 8), (4, 2, 2)])
def test_all_ranks_together_keep_the_states_of_each_expert_once(dp, tp, ep):
    m = models_of(**CORE, dp=dp, tp=tp, ep=ep, zero=1)[0]
    _, _, mine = m.weights_bytes()
    assert m.shard(0, mine, True) == 48 * EXPERTS // (dp * tp)


def test_forward_with_travelling_rows_is_a_moment():
    moments = [m.phase for m in stage_peaks(**CORE)[0].moments]
    assert "forward" in moments
    local_moments = stage_peaks(**{**CORE, "framework": "nanotron"})[0].moments
    assert "forward" not in [m.phase for m in local_moments]


def test_a_fused_projection_has_one_adapter():
    attention = (2048 + 4096 + 2 * 512) + (4096 + 2048)
    expert = (2048 + 2 * 768) + (768 + 2048)
    found = trained_elements(**CORE, method="lora", lora={"rank": 8, "targets": "all-linear"})
    assert found == 48 * 8 * (attention + 128 * expert)
