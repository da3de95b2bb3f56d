"""What one block keeps, against the tensors that its transformers module keeps (counted by hand from the module)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memfit.formula.blocks import program
from memfit.formula.dims import Dims, block_atoms, evaluate, reduction
from memfit.formula.style import Style
from memfit.models import architecture
from memfit.models.architecture import Architecture

SIZES = {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 512, "vocab_size": 1000}
T, D, F, H, N = 2 * 128, 256, 512, 8, 32
"""B = 2, S = 128."""


def arch(model_type: str, **fields: object) -> Architecture:
    return architecture({"model_type": model_type, "num_hidden_layers": 4, **SIZES, **fields})


def kept(model: Architecture, style: Style | None = None, *, seq: int = 128, index: int = 0) -> int:
    """Bytes that layer ``index`` keeps in bf16."""
    d = Dims(micro_batch=T // seq, seq_len=seq)
    block = model.decoder.blocks[model.decoder.layout[index]]
    atoms = block_atoms(block, model.decoder, d, T, T)
    return int(evaluate(program(block, style or Style(masks=True)).kept, atoms))


NORM = T * D * (4 + 2 + 2) + T * 4
"""Llama's RMSNorm: fp32 copy, normalised and weighted copies, one statistic."""
ATTENTION = T * D * 2 + T * H * 4
"""Output of the flash kernel and its log-sum-exp."""


def test_llama_keeps_what_its_module_keeps() -> None:
    qkv = T * (D + 2 * 2 * N) * 2
    mlp = 4 * T * F * 2
    assert kept(arch("llama", num_key_value_heads=2)) == 2 * NORM + qkv + ATTENTION + mlp


def test_gemma_norm_keeps_the_normalised_input_in_fp32() -> None:
    llama = arch("llama", num_key_value_heads=2, head_dim=32)
    gemma = arch("gemma", num_key_value_heads=2, head_dim=32)
    assert kept(gemma) - kept(llama) == 2 * T * D * 2


def test_partial_rotary_makes_the_merged_heads_a_copy() -> None:
    whole = arch("stablelm", partial_rotary_factor=1.0)
    part = arch("stablelm", partial_rotary_factor=0.25)
    assert kept(part) - kept(whole) == T * D * 2


def test_a_window_shorter_than_the_sequence_costs_a_mask_and_repeated_heads() -> None:
    mistral = arch("mistral", num_key_value_heads=2, sliding_window=64)
    free = arch("mistral", num_key_value_heads=2, sliding_window=4096)
    repeated = 2 * T * (D - 2 * N) * 2
    assert kept(mistral) - kept(free) == 128 * 128 * 2 + repeated
    package = Style(masks=False)
    assert kept(mistral, package) == kept(free, package)


def test_written_out_attention_grows_with_the_square_of_the_sequence() -> None:
    bloom = arch("bloom", n_head=8)
    short, long = kept(bloom, seq=64), kept(bloom, seq=128)
    scores = T * H * 64
    assert long - short == scores * (4 + 2)


def test_a_bias_gradient_is_staged() -> None:
    with_bias = arch("llama", mlp_bias=True)
    without = arch("llama", mlp_bias=False)

    def backward(model: Architecture) -> set[str]:
        forms = program(model.decoder.blocks[0], Style()).backward
        return {atom for form in forms for atom in form if atom == "R.f"}

    assert backward(with_bias) == {"R.f"}
    assert not backward(without)


@pytest.mark.parametrize(
    ("rows", "columns", "staged"),
    [(4096, 4096, 134_217_728), (2048, 4096, 67_108_864), (512, 4096, 0)],
)
def test_reductions_stage_what_was_measured(rows: int, columns: int, staged: int) -> None:
    assert reduction(rows, columns) == staged


def test_frozen_blocks_keep_less() -> None:
    model = arch("llama")
    assert kept(model, Style(trained=False)) < kept(model)


def test_encoder_output_is_not_kept_by_each_decoder_layer() -> None:
    t5 = architecture(
        {
            "model_type": "t5",
            "d_model": 256,
            "d_ff": 512,
            "num_layers": 2,
            "num_heads": 8,
            "d_kv": 32,
            "vocab_size": 100,
        }
    )
    forms = [program(b, Style(masks=True)).kept for b in t5.decoder.blocks]
    assert all("enc" not in form for form in forms)


def test_code_only_changes_how_a_block_is_computed() -> None:
    model = arch("gemma")
    block = model.decoder.blocks[0]
    plain = replace(block, code=type(block.code)())
    assert plain.num_params == block.num_params
    assert program(plain, Style()).kept != program(block, Style()).kept
