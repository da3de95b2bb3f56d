"""What the checks by other tools' own code share: exports in folders, a tiny model with a tokenizer, processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export_jobs import PROGRAMS, TINY, base, changes, job

from memfit.errors import JobErrors
from memfit.export import Export, export
from memfit.export.folder import write_files

__all__ = [
    "LAUNCHED", "PROGRAMS", "TINY", "accepted", "base", "export", "job", "losses", "run", "tiny", "tokens", "torchrun",
]  # fmt: skip
BIN = Path(sys.executable).parent
LAUNCHED = Path(__file__).with_name("launched.py")
"""Stands before a script that runs on several processes."""


def accepted(name: str) -> Iterator[tuple[str, Export]]:
    """(what was changed, export) for every job of ``export_jobs`` that the target takes; equal files once."""
    seen = set()
    for lever, around, value in [("", {}, None), *changes()]:
        try:
            answer = export(job(**{**base(name, **around), **({lever: value} if lever else {})}), name)
        except JobErrors:
            continue
        text = "".join(file.text for file in answer.files)
        if text not in seen:
            seen.add(text)
            yield f"{lever}={value} {around}", answer


def tiny(name: str, folder: Path, **fields: Any) -> Path:
    """An export of the tiny model in a folder, with random weights and a tokenizer beside."""
    settings = {"config": TINY, "gpus": 2, "seq_len": 64, "micro_batch": 2, "grad_accum": 2, "attention": "sdpa"}
    answer = export(job(**{**settings, **fields}), name)
    write_files(answer.files, folder, force=True)
    make_model(folder / "model")
    return folder


def make_model(folder: Path) -> None:
    """Random weights of the folder's configuration, and a tokenizer of 512 words."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=TINY["vocab_size"], special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    words.train_from_iterator(["the memory of a card holds what a step needs and no more"], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)


def tokens(path: Path) -> Path:
    """Tokens that every layout trains on."""
    import torch

    torch.save(torch.randint(TINY["vocab_size"], (4096,), generator=torch.Generator().manual_seed(1)), path)
    return path


def run(words: Sequence[Any], folder: Path, **env: str) -> str:
    """What a program prints; its own complaint when it fails."""
    import tempfile

    home = tempfile.mkdtemp()
    settings = {
        **os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "HF_HOME": home, "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore", **env,
    }  # fmt: skip
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=settings,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


def losses(text: str) -> list[float]:
    """The losses that a script printed, step by step."""
    return [float(found) for found in re.findall(r"step \d+ loss ([0-9.]+)", text)]


def torchrun(*words: Any) -> list[Any]:
    """A script (or ``-m`` and a module) on two processes of this machine."""
    return ["torchrun", "--standalone", "--nproc-per-node", "2", LAUNCHED, *words]
