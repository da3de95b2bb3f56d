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
LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192},
}  # fmt: skip
"""Shapes of meta-llama/Llama-3.1-8B: public config.json of that repository."""


def traced(engine=None, config=None, **fields):
    """The trace of a training run on the engine it needs, or on the one that is named."""
    pytest.importorskip("transformers")
    from memfit.trace import run, sharded
    from memfit.trace.engine import DEVICE
    from memfit.trace.program import program
    from memfit.trace.training import Training

    training = Training(config=config or LLAMA, **{"batch": 2, "seq": 256, **fields})
    engine = engine or training.engine
    made = program(training, DEVICE[engine])
    try:
        return run(made.build, made.step, engine=engine, values=made.values, before=made.before)
    finally:
        sharded.close()
