"""What do the other tools say, how long do they take and how much memory do they need?

``python benchmarks/peers.py [--install DIR] [--torch PYTHON] [--only NAMES] [--fresh] [--markdown]`` asks every peer
that can be installed here the same questions beside memfit and prints one table. Each peer runs in its own environment
below DIR (default ``build/peers``, kept between runs) and in its own process for each question, so wall time and peak
resident memory are those of a person who types the command, start-up included. What a peer of the same version
answered before is taken from DIR unless ``--fresh`` is given; memfit is asked every time. A peer that cannot be
installed or has no answer has a dash in its cell and its reason below the table.

``--torch PYTHON`` is an interpreter that has torch, transformers and accelerate; the peers that need torch share its
packages instead of installing their own copy. Without it they are installed from the package index.

No hub is contacted: where a peer wants one, a server on the loopback interface gives it ``config.json`` and a
safetensors file that is only its header.

``python benchmarks/peers.py --question`` prints memfit's part of docs/peers.md: one question that the peers answer
between 17.3 and 36.7 GiB, memfit's ledger for it, and what each term that peers leave out or add is worth.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _shared import machine, markdown_table, text_table

HERE = Path(__file__).parent
TIMEOUT_S = 900


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A tool: ``requires`` is installed into its environment, ``torch`` says that it needs the torch stack too."""

    name: str
    requires: tuple[str, ...]
    torch: bool = False
    build_isolation: bool = True


PEERS = (
    Peer(name="hf-mem", requires=("hf-mem",)),
    Peer(name="vramcalc", requires=("vramcalc",)),
    Peer(name="llm-analysis", requires=("llm-analysis",)),
    Peer(name="deepspeed", requires=("setuptools<81", "wheel", "deepspeed"), torch=True, build_isolation=False),
    Peer(name="accelerate", requires=("accelerate", "transformers"), torch=True),
    Peer(name="torch", requires=("transformers",), torch=True),
)

MODELS = {
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question."""

    title: str
    model: str
    kind: str = "train"
    context: int = 8192
    seq_len: int = 4096
    micro_batch: int = 1
    precision: str = "bf16"
    checkpointing: str = "full"
    zero: int = 0
    gpus: int = 1
    lora_rank: int = 0


CASES = (
    Case(title="serve Llama-3.1-8B, 8192 tokens", model="llama-3.1-8b", kind="serve"),
    Case(title="serve Qwen2.5-7B, 8192 tokens", model="qwen2.5-7b", kind="serve"),
    Case(title="serve Mixtral-8x7B, 8192 tokens", model="mixtral-8x7b", kind="serve"),
    Case(title="train Llama, bf16, 1 GPU, full ckpt", model="llama-3.1-8b"),
    Case(title="train Llama, bf16, 1 GPU, no ckpt", model="llama-3.1-8b", checkpointing="none"),
    Case(title="train Qwen, bf16, 1 GPU, full ckpt", model="qwen2.5-7b"),
    Case(
        title="train Llama, mixed, 1 GPU, no ckpt", model="llama-3.1-8b", precision="bf16-mixed", checkpointing="none"
    ),
    Case(
        title="train Llama, mixed, ZeRO-3 x8, full ckpt", model="llama-3.1-8b", precision="bf16-mixed", zero=3, gpus=8
    ),
    Case(
        title="train Llama, mixed, ZeRO-3 x8, no ckpt",
        model="llama-3.1-8b",
        precision="bf16-mixed",
        checkpointing="none",
        zero=3,
        gpus=8,
    ),
    Case(title="LoRA r16 Llama, bf16, 1 GPU, full ckpt", model="llama-3.1-8b", lora_rank=16),
)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back: ``gib`` or the reason why not; wall seconds and peak resident MiB of the process."""

    gib: float | None = None
    reason: str = ""
    wall_s: float = 0.0
    rss_mib: float = 0.0
    parts: Mapping[str, float] | None = None


def prepare(folder: Path) -> dict[str, dict[str, Any]]:
    """Writes ``config.json`` and a header-only ``model.safetensors`` of every model; returns the facts of each.

    memfit runs in a process of its own here, so that this one stays small and starts the others quickly.
    """
    program = """
import json, math, struct, sys
from pathlib import Path
from memfit.models import architecture
from memfit.models.catalog import lookup
facts = {}
for name in sys.argv[2:]:
    config = {**lookup(name).config, "torch_dtype": "bfloat16"}
    arch = architecture(config)
    place = Path(sys.argv[1], name)
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for t in arch.tensors():
        if t.buffer:
            continue
        for i in range(t.count):
            end = at + 2 * math.prod(t.shape)
            header[t.name.replace("*", str(i))] = {"dtype": "BF16", "shape": t.shape, "data_offsets": [at, end]}
            at = end
    text = json.dumps(header).encode()
    (place / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    largest = max(t.numel for t in arch.tensors())
    facts[name] = {"params": arch.num_params, "largest_layer_params": largest, "config": config}
print(json.dumps(facts))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), *MODELS], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


@contextmanager
def loopback_hub(folder: Path) -> Iterator[str]:
    """A hub on 127.0.0.1 that has the prepared models and nothing else; yields its address."""
    folders = {repo: folder / name for name, repo in MODELS.items()}
    revision = "0" * 40

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _send(self, body: bytes, kind: str = "application/json", status: int = 200, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            for repo, place in folders.items():
                names = sorted(p.name for p in place.iterdir() if p.name in ("config.json", "model.safetensors"))
                if path == f"/api/models/{repo}/tree/main":
                    listed = [{"type": "file", "path": n, "size": (place / n).stat().st_size} for n in names]
                    return self._send(json.dumps(listed).encode())
                if path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/main"):
                    config = json.loads((place / "config.json").read_text())
                    info = {"_id": "0", "id": repo, "modelId": repo, "sha": revision, "private": False, "gated": False}
                    info |= {"library_name": "transformers", "config": config, "tags": [], "downloads": 0, "likes": 0}
                    return self._send(json.dumps({**info, "siblings": [{"rfilename": n} for n in names]}).encode())
                for name in names:
                    if path in (f"/{repo}/resolve/{r}/{name}" for r in ("main", revision)):
                        return self._file(place / name)
            return self._send(b"{}", status=404, X_Error_Code="EntryNotFound")

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

        def _file(self, file: Path) -> None:
            body, kind = file.read_bytes(), "application/octet-stream"
            marks = {"ETag": f'"{file.parent.name}-{file.name}"', "X_Repo_Commit": revision, "Accept_Ranges": "bytes"}
            wanted = self.headers.get("Range", "")
            if wanted.startswith("bytes="):
                first, _, last = wanted[6:].partition("-")
                start, stop = int(first or 0), min(int(last or len(body) - 1), len(body) - 1)
                marks["Content_Range"] = f"bytes {start}-{stop}/{len(body)}"
                return self._send(body[start : stop + 1], kind, 206, **marks)
            return self._send(body, kind, **marks)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def install(peer: Peer, folder: Path, torch_python: Path | None) -> tuple[Path | None, str]:
    """The interpreter of a peer's environment, made if needed, and the reason when there is none."""
    place = folder / peer.name
    python = place / "bin" / "python"
    done = place / ".installed"
    if done.exists():
        return python, ""
    base = str(torch_python) if peer.torch and torch_python else sys.executable
    try:
        _run([base, "-m", "venv", "--clear", str(place)])
        requires = list(peer.requires)
        if peer.torch and torch_python:
            # A .pth file makes the shared packages importable; only what they lack is installed on top.
            shared = _run([str(torch_python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
            own = _run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
            (Path(own) / "shared-torch.pth").write_text(shared + "\n")
        elif peer.torch:
            requires.insert(0, "torch")
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        if peer.build_isolation:
            _run([*pip, *requires])
        else:  # its build script imports torch
            *tools, last = requires
            _run([*pip, *tools])
            _run([*pip, "--no-build-isolation", last], {"DS_BUILD_OPS": "0"})
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or "").splitlines() if line.strip() and "WARNING" not in line]
        return None, f"cannot be installed: {lines[-1][:100] if lines else 'pip failed'}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"cannot be installed: {error}"
    done.write_text(json.dumps(asdict(peer)))
    return python, ""


def _run(command: Sequence[str], more: Mapping[str, str] | None = None) -> str:
    environment = {**os.environ, **(more or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S, env=environment)
    return done.stdout


def version(peer: Peer, python: Path) -> str:
    """The installed version of the package that a peer is."""
    program = f"from importlib.metadata import version; print(version({peer.name!r}))"
    try:
        return _run([str(python), "-c", program]).strip()
    except subprocess.CalledProcessError:
        return "?"


def ask(name: str, python: Path, case: Mapping[str, Any], scratch: Path) -> Reply:
    """One question to one peer, in a process of its own."""
    file = scratch / "case.json"
    file.write_text(json.dumps(case))
    # The tools run offline: what asks for a hub regardless gets the loopback one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(scratch / "hf"), "DS_ACCELERATOR": "cpu"}
    environment |= {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    if name == "memfit":
        environment["PYTHONPATH"] = str(HERE.parent / "src")
    with (scratch / "out").open("w+") as out, (scratch / "err").open("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(python), str(HERE / "_peer_programs.py"), name, str(file)], stdout=out, stderr=err, env=environment
        )
        stopper = threading.Timer(TIMEOUT_S, process.kill)
        stopper.start()
        _, status, usage = os.wait4(process.pid, 0)
        stopper.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        measured = {"wall_s": time.perf_counter() - start, "rss_mib": usage.ru_maxrss / 1024}
        out.seek(0)
        err.seek(0)
        lines = out.read().splitlines()
        errors = [line for line in err.read().splitlines() if line.strip()]
    if process.returncode or not lines:
        why = f"stopped after {TIMEOUT_S} s" if process.returncode == -9 else (errors[-1][:100] if errors else "failed")
        return Reply(reason=f"failed: {why}", **measured)
    answer = json.loads(lines[-1])
    measured["rss_mib"] = answer["rss_mib"] or measured["rss_mib"]
    if "refused" in answer:
        return Reply(reason=answer["refused"], **measured)
    return Reply(gib=answer["gib"], parts=answer["parts"], **measured)


def run(options: argparse.Namespace) -> None:
    """Asks everyone everything and prints the table."""
    folder = options.install.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [p for p in PEERS if not options.only or p.name in options.only]
    columns: list[tuple[str, Path | None, str]] = [("memfit", Path(sys.executable), "")]
    versions = []
    for peer in chosen:
        print(f"preparing {peer.name}", file=sys.stderr)
        python, reason = install(peer, folder, options.torch)
        columns.append((peer.name, python, reason))
        versions.append(f"{peer.name} {version(peer, python)}" if python else f"{peer.name} ({reason})")
    replies: dict[tuple[str, str], Reply] = {}
    # What a version of a peer said to a question stays true: only memfit is asked every time.
    store = folder / "replies.json"
    kept: dict[str, dict[str, Any]] = json.loads(store.read_text()) if store.exists() and not options.fresh else {}
    stamps = {name: stamp for (name, _, _), stamp in zip(columns[1:], versions, strict=True)}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        facts = prepare(scratch)
        with loopback_hub(scratch) as hub:
            for case in CASES:
                question = {**asdict(case), **facts[case.model], "hub": hub}
                question |= {"folder": str(scratch / case.model), "model_id": MODELS[case.model]}
                for peer_name, python, reason in columns:
                    key = json.dumps([stamps.get(peer_name), asdict(case)])
                    if peer_name != "memfit" and key in kept:
                        reply = Reply(**kept[key])
                    else:
                        reply = ask(peer_name, python, question, scratch) if python else Reply(reason=reason)
                    if peer_name != "memfit" and python:
                        kept[key] = asdict(reply)
                        store.write_text(json.dumps(kept, indent=1))
                    replies[case.title, peer_name] = reply
                    said = reply.reason or f"{reply.gib:.2f} GiB"
                    print(f"{case.title} | {peer_name}: {said} ({reply.wall_s:.1f} s)", file=sys.stderr)
    table = markdown_table if options.markdown else text_table
    header = ["question (GiB per GPU)", *(c[0] for c in columns)]
    rows = [[c.title, *(_cell(replies[c.title, n]) for n, _, _ in columns)] for c in CASES]
    for label, unit in (("wall", "s"), ("peak RSS", "MiB")):
        rows.append([f"{label}, {unit}", *(_span(replies, n, unit) for n, _, _ in columns)])
    print(f"Machine: {machine()}.  \nVersions: {', '.join(versions)}.\n")
    print(table(header, rows))
    _print_reasons(replies)


def _cell(reply: Reply) -> str:
    return "–" if reply.gib is None else f"{reply.gib:.2f}"


def _span(replies: Mapping[tuple[str, str], Reply], name: str, unit: str) -> str:
    """Smallest and largest over the questions that were answered."""
    answered = [r for (_, n), r in replies.items() if n == name and r.gib is not None]
    values = [r.wall_s if unit == "s" else r.rss_mib for r in answered]
    if not values:
        return "–"
    low, high = (f"{v:.2f}" if v < 10 and unit == "s" else f"{v:.0f}" for v in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def _print_reasons(replies: Mapping[tuple[str, str], Reply]) -> None:
    reasons: dict[str, dict[str, int]] = {}
    for (_, name), reply in replies.items():
        if reply.gib is None:
            counts = reasons.setdefault(name, {})
            counts[reply.reason] = counts.get(reply.reason, 0) + 1
    print("\nNo answer (–):\n")
    for name, counts in reasons.items():
        print(f"- {name}: {'; '.join(f'{reason} ({count})' for reason, count in counts.items())}")


# --- The question -----------------------------------------------------------------------------------------------------

QUESTION = {
    "model": "llama-3.1-8b",
    "gpu": "8xh100-sxm-80gb",
    "kind": "train",
    "method": "full",
    "precision": "bf16-mixed",
    "optimizer": "adamw",
    "zero": 3,
    "checkpointing": "full",
    "seq_len": 4096,
    "micro_batch": 1,
    "grad_accum": 1,
    "loss": "eager",
}
TERMS = {
    "weights": "own shard of the weights",
    "gathered": "weights gathered or cast for use",
    "gradients": "gradients",
    "optimizer": "optimizer states and master weights",
    "activations": "activations kept and temporary",
    "logits": "logits and loss",
    "other": "buffers, communication, overhead",
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a peer answers to the question: its terms in GiB and why each differs from memfit's.

    ``against`` is the memfit ledger whose storage of parameters the peer assumes: ``torch`` (FSDP2: fp32 shards) or
    ``deepspeed`` (16-bit shards and an fp32 master). Terms that the peer does not print separately stand in ``lump``;
    ``fields`` are then the assumptions of the peer that memfit can make too, compared first.
    """

    peer: str
    against: str
    source: str
    terms: Mapping[str, float]
    why: Mapping[str, str]
    lump: float = 0.0
    lump_what: str = ""
    fields: Mapping[str, Any] | None = None

    @property
    def total(self) -> float:
        """The answer."""
        return sum(self.terms.values()) + self.lump


PARAMS = 8_030_261_248
_PER_PARAM = PARAMS / 8 / (1 << 30)  # GiB of one byte per parameter, split over 8 GPUs

_NO_LOGITS = "not counted"
_ALL_GRADIENTS = "all at once, beside everything else"
ANSWERS = (
    Answer(
        peer="xtuner `llm_calculator`",
        against="deepspeed",
        source="Repository of 2026-02, run 2026-11-20; it prints instants, not terms",
        terms={},
        lump=17.31,
        lump_what="not broken down: the end of the backward pass; it says 14.21 for the end of the forward pass",
        fields={"loss": "chunked"},
        why={"fields": "it prices a chunked cross entropy: the full logits never exist"},
    ),
    Answer(
        peer="DeepSpeed `estimate_zero3_model_states_mem_needs`",
        against="deepspeed",
        source="Version 0.19.8, run for the table above",
        terms={
            "weights": 2 * _PER_PARAM,
            "gathered": 4 * 525_336_576 / (1 << 30),
            "gradients": 4 * _PER_PARAM,
            "optimizer": 12 * _PER_PARAM,
        },
        why={
            "gathered": "4 bytes a parameter of one layer only, the largest: the embedding",
            "gradients": f"fp32, {_ALL_GRADIENTS}",
            "activations": "not counted: it speaks of model states",
            "logits": _NO_LOGITS,
        },
    ),
    Answer(
        peer="llm-analysis, repository",
        against="deepspeed",
        source="Repository of 2024-11, run 2026-11-20",
        terms={
            "weights": 1.75,
            "gathered": 1.38,
            "gradients": 3.49,
            "optimizer": 10.48,
            "activations": 1.0,
            "logits": 1.07,
        },
        why={
            "weights": "7.5 G parameters: the output head is left out",
            "gathered": "prefetched layers, without embedding and head",
            "gradients": f"fp32, without the head's, {_ALL_GRADIENTS}",
            "optimizer": "without the head's states",
            "logits": "what it adds to the layer inputs, about one 16-bit copy; no fp32 copies, no gradient",
        },
    ),
    Answer(
        peer="llm-analysis, package",
        against="deepspeed",
        source="Version 0.2.2, run for the table above",
        terms={"weights": 1.3099, "gradients": 2.6198, "optimizer": 7.8593, "activations": 1.0, "logits": 1.9570},
        why={
            "weights": "5.6 G parameters: two matrices instead of three in the gated MLP, no output head",
            "gathered": "not counted",
            "gradients": f"fp32, of the parameters it knows, {_ALL_GRADIENTS}",
            "optimizer": "of the parameters it knows",
            "logits": "the 16-bit logits, added twice; no fp32 copies, no gradient",
        },
    ),
    Answer(
        peer="PyTorch `FSDPMemTracker`, with exact optimizer states added",
        against="torch",
        source="torch 2.13.0 over fake CPU tensors, run for the table above",
        terms={
            "weights": 3.7394,
            "gathered": 1.9570 + 0.4063,
            "optimizer": 8 * _PER_PARAM,
            "activations": 1.0,
            "logits": 3.0997 - 1.0 + 3.9141,
        },
        why={
            "gathered": "embedding and head in 16 bit, and one layer's all-gather; memfit has the layers in it that "
            "were prefetched or are not yet freed",
            "logits": "the traced program lets go of the model's output before the backward pass, so the 16-bit logits "
            "(0.98) are gone; a loop that keeps `outputs` keeps them",
        },
    ),
    Answer(
        peer="George614 `gpu-mem-calculator`",
        against="deepspeed",
        source="Repository of 2026-01, run 2026-11-20 (its API, checkpointing level 4)",
        terms={"weights": 2 * _PER_PARAM, "gradients": 2 * _PER_PARAM, "optimizer": 16 * _PER_PARAM},
        lump=22.79 - 20 * _PER_PARAM,
        lump_what="activations, and a flat overhead of about a fifth on the sum in place of logits and buffers",
        why={
            "gathered": "not counted",
            "gradients": f"16 bit, {_ALL_GRADIENTS}",
            "optimizer": "16 bytes a parameter under ZeRO-3 where its own rule without ZeRO has 12",
        },
    ),
    Answer(
        peer="EleutherAI `calc_transformer_mem`",
        against="deepspeed",
        source="Repository of 2026-03, run 2026-11-20",
        terms={"weights": 1.87, "gradients": 3.75, "optimizer": 11.24, "activations": 17.00, "other": 2.79},
        why={
            "gathered": "not counted",
            "gradients": f"fp32, {_ALL_GRADIENTS}",
            "activations": "its checkpointing keeps 34 x sequence x hidden bytes of every layer, where full "
            "recomputation keeps 2 x sequence x hidden: 17 GiB instead of 1",
            "logits": _NO_LOGITS,
            "other": "a constant for communication",
        },
    ),
)


def _terms(ledger: Any) -> dict[str, float]:
    """A memfit ledger's allocated bytes by the terms of the comparison, in GiB."""
    book = dict.fromkeys(TERMS, 0.0)
    names = {"gradients": "gradients", "optimizer": "optimizer", "activations": "activations", "logits": "logits"}
    for entry in ledger.entries:
        if entry.component in ("slack", "runtime", "others"):
            continue
        if entry.component == "parameters":
            term = "weights" if entry.name == "weights" else "gathered"
        else:
            term = names.get(entry.component, "other")
        book[term] += entry.bytes / (1 << 30)
    return book


def question() -> str:
    """The generated part of docs/peers.md."""
    from memfit.formula.estimate import estimate

    found = {name: estimate(**QUESTION, framework=name) for name in ("torch", "deepspeed")}
    lines = ["### memfit's ledger", ""]
    titles = {"torch": 'FSDP2 (`framework = "torch"`)', "deepspeed": 'DeepSpeed (`framework = "deepspeed"`)'}
    books: dict[str, dict[str, int]] = {}
    for name, e in found.items():
        for entry in e.ledger.entries:
            books.setdefault(f"{entry.component}: {entry.name}", {})[name] = entry.bytes
    rows = [[what, *(_gib(book.get(n, 0)) for n in found)] for what, book in books.items()]
    rows += [
        [f"**{kind} peak**", *(f"**{_gib(getattr(e, f'{kind}_bytes'))}**" for e in found.values())]
        for kind in ("allocated", "reserved", "device")
    ]
    lines += [markdown_table(["GiB per GPU, at the fullest moment", *(titles[n] for n in found)], rows), ""]
    moments = "; ".join(f"{titles[n]}: {e.peak_phase}, {e.ledger.moment}" for n, e in found.items())
    lines += [f"The fullest moment: {moments}.", "", "### How it moves through a step", ""]
    phases: dict[str, dict[str, int]] = {}
    for name, e in found.items():
        for phase, what, parts in e.phases:
            row = phases.setdefault(f"{phase}: {what}", {})
            row[name] = max(row.get(name, 0), sum(parts.values()))
    rows = [[what, *(_gib(row[n]) if n in row else "–" for n in found)] for what, row in phases.items()]
    lines += [
        markdown_table(["allocated, GiB", *(titles[n] for n in found)], rows),
        "",
        "### Each peer, term by term",
        "",
    ]
    for answer in ANSWERS:
        mine = _terms(found[answer.against].ledger)
        total = found[answer.against].allocated_bytes / (1 << 30)
        lines += [
            f"#### {answer.peer}: {answer.total:.2f} GiB",
            "",
            f"{answer.source}. Beside {titles[answer.against]}.",
            "",
        ]
        rows = []
        lumped = [t for t in TERMS if t not in answer.terms and t not in answer.why] if answer.lump else []
        for term, what in TERMS.items():
            theirs = answer.terms.get(term, 0.0)
            if term in lumped or (not theirs and mine[term] < 0.005):
                continue
            rows.append(
                [what, f"{mine[term]:.2f}", f"{theirs:.2f}", f"{theirs - mine[term]:+.2f}", answer.why.get(term, "")]
            )
        if answer.lump:
            here = sum(mine[t] for t in lumped)
            if answer.fields:
                alike = estimate(**{**QUESTION, **answer.fields}, framework=answer.against).allocated_bytes / (1 << 30)
                stated = ", ".join(f'`{k} = "{v}"`' for k, v in answer.fields.items())
                saved = here - alike
                rows.append([stated, f"{saved:.2f}", "0.00", f"{-saved:+.2f}", answer.why["fields"]])
                here = alike
            rows.append(
                ["the rest", f"{here:.2f}", f"{answer.lump:.2f}", f"{answer.lump - here:+.2f}", answer.lump_what]
            )
        rows.append(["**sum**", f"**{total:.2f}**", f"**{answer.total:.2f}**", f"**{answer.total - total:+.2f}**", ""])
        lines += [_why_table(rows), ""]
    return "\n".join(lines).strip()


def _why_table(rows: Sequence[Sequence[str]]) -> str:
    rule = "| --- | ---: | ---: | ---: | --- |"
    body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["| term | memfit | peer | peer − memfit | why |", rule, *body])


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f}"


BEGIN, END = (
    "<!-- generated: python benchmarks/peers.py --question --write docs/peers.md -->",
    "<!-- end of generated -->",
)


def generated_part(text: str) -> str:
    """What stands between the marks of a page.

    Raises:
        ValueError: the page has no marks.
    """
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def write_page(page: Path) -> None:
    """Renews the generated part of a page."""
    text = page.read_text(encoding="utf-8")
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    page.write_text(f"{head}\n\n{question()}\n\n{tail}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Other estimators beside memfit.")
    parser.add_argument(
        "--install", type=Path, default=Path("build/peers"), metavar="DIR", help="where environments are kept"
    )
    parser.add_argument("--torch", type=Path, metavar="PYTHON", help="interpreter whose torch packages are shared")
    parser.add_argument(
        "--only", type=lambda t: t.split(","), default=[], metavar="NAMES", help="comma-separated peers"
    )
    parser.add_argument("--fresh", action="store_true", help="ask again what was asked before")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("--question", action="store_true", help="memfit's part of docs/peers.md, without running peers")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="with --question: renew the page's generated part")
    options = parser.parse_args(arguments)
    unknown = [n for n in options.only if n not in {p.name for p in PEERS}]
    if unknown:
        parser.error(f"--only: {', '.join(unknown)} is not of {', '.join(p.name for p in PEERS)}")
    if not options.question:
        run(options)
    elif options.write:
        write_page(options.write)
    else:
        print(question())
    return 0


if __name__ == "__main__":
    sys.exit(main())
