"""Builders that encoder-only models share: heads by the class that ``architectures`` names, and the whole model.

Dimension legend: D hidden, V vocabulary.
"""

from __future__ import annotations

from memfit.models.architecture import Architecture, Block, Stack, Tensor
from memfit.models.config import Config
from memfit.models.families._common import Tensors, embedding, linear, norm, num_labels

TASKS = (
    "ForMaskedLM",
    "ForPreTraining",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForCausalLM",
)


def task(c: Config) -> str:
    """What the named class does: one of ``TASKS``, or "" for the bare encoder (also when no class is named)."""
    name = c.architecture_name().replace("LMHeadModel", "ForCausalLM")
    found = next((t for t in TASKS if name.endswith(t)), "")
    if not name:
        c.note("`architectures` is not stated: read as the bare encoder, without a head")
    elif not found and not name.endswith("Model"):
        c.note(f"the head of `{name}` is not known and not counted")
    return found


def labels_of(c: Config, what: str) -> int:
    """Width of the classification head of a task, 0 where the head is a vocabulary."""
    if what == "ForMultipleChoice":
        return 1
    if what == "ForNextSentencePrediction":
        return 2
    return (
        num_labels(c) if what in ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering") else 0
    )


def classifier(what: str, hidden: int, labels: int) -> Tensors:
    """The last layer of a classification or question-answering head, as BERT names it."""
    name = {"ForQuestionAnswering": "qa_outputs", "ForNextSentencePrediction": "cls.seq_relationship"}
    return linear(name.get(what, "classifier"), hidden, labels, "head", bias=True)


def vocabulary(c: Config, name: str, width: int, vocab: int, *, bias: str = "") -> tuple[Tensors, bool]:
    """The vocabulary projection: its weight unless tied to the embedding, and its bias under the name given."""
    tied = c.flag("tie_word_embeddings", default=True)
    # BERT's and RoBERTa's bias stands beside the projection, which has a second one unless the two are tied
    weight = () if tied else linear(name, width, vocab, "head", bias=bool(bias) and bias != f"{name}.bias", tp="column")
    extra = (Tensor(name=bias, shape=(vocab,), part="head", tp_dim=0),) if bias else ()
    return (*weight, *extra), tied


def transform(dense: str, after: str, width_in: int, width_out: int, *, bias: bool = True) -> Tensors:
    """Dense layer and norm before a vocabulary projection."""
    return (*linear(dense, width_in, width_out, "head", bias=True), *norm(after, width_out, bias=bias))


def assemble_encoder(
    c: Config,
    *,
    hidden: int,
    blocks: tuple[Block, ...],
    layers: tuple[int, ...],
    prefix: str,
    words: str,
    width: int,
    embeddings: Tensors,
    extra: Tensors = (),
    after: Tensors = (),
    head: Tensors = (),
    tied: bool = False,
    labels: int = 0,
    embed_dropout: float = 0.0,
    max_positions: int = 0,
) -> Architecture:
    """An encoder-only model from its blocks.

    Args:
        c: the configuration.
        hidden: D.
        blocks: the distinct kinds.
        layers: for each layer the index into blocks.
        prefix: of layer i.
        words: name of the token embedding.
        width: of the token embedding (narrower than D in small ELECTRA models).
        embeddings: further embedding tensors.
        extra: tensors of the encoder outside its layers.
        after: tensors between the last block and the head (final norm, pooler, transform).
        head: the last projection.
        tied: the head reads the token embedding.
        labels: width of a classification head.
        embed_dropout: dropout after the embedding.
        max_positions: context length.
    """
    vocab = c.size("vocab_size")
    return Architecture(
        model_type=c.model_type,
        hidden_size=hidden,
        vocab_size=vocab,
        decoder=Stack(name="encoder", hidden_size=hidden, blocks=blocks, layout=layers, prefix=prefix, extra=extra),
        embeddings=(*embedding(words, vocab, width), *embeddings),
        final_norm=after,
        head=head,
        tied=tied,
        max_positions=max_positions,
        dtype=c.dtype(),
        quantization=c.quantization(),
        embed_dropout=embed_dropout,
        causal=c.flag("is_decoder"),
        labels=labels,
        unknowns=tuple(c.notes),
    )
