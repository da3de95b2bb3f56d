"""Small programs that the engines are tested with."""

import pytest

LLAMA = {
    "model_type": "llama", "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
MIXTRAL = {
    **LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "vocab_size": 1024, "n_embd": 128, "n_head": 4, "n_layer": 2, "n_positions": 512,
}  # fmt: skip


def traced(engine=None, config=None, hidden=True, **fields):
    """The trace of a training run on the engine it needs, or on the one that is named."""
    pytest.importorskip("transformers")
    from memfit.trace.program import run_training
    from memfit.trace.training import Training

    return run_training(
        Training(config=config or LLAMA, **{"batch": 2, "seq": 256, **fields}), engine=engine, hidden=hidden
    )
