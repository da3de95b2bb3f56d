"""The generated tables of the documentation, one function each; ``docs/generate.py`` puts them into the pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memfit.export import target, targets
from memfit.export.importing import READABLE
from memfit.export.levers import LEVERS, Rule
from memfit.formula import profile as profiles
from memfit.hardware import Gpu, data_version, gpus, nodes, prices
from memfit.job import FIELDS, Field
from memfit.job.fields import SECTIONS, default_of
from memfit.ledger import COMPONENTS, PROVENANCES
from memfit.mirage import needs
from memfit.mirage.settings import PREFIX, VARIABLES
from memfit.models import architecture, catalog
from memfit.models.families import FAMILIES
from memfit.units import GIB, format_count

_SECTION_TITLES = {
    "model": "what model",
    "task": "what is done with it",
    "task.lora": "adapters",
    "strategy": "how it is run",
    "hardware": "on what",
}


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(header), ["---"] * len(header), *lines])


def code(text: Any) -> str:
    """Inline code; nothing for nothing."""
    return f"`{text}`" if text not in ("", None) else ""


# ---- the job ---------------------------------------------------------------------------------------------------------


def job_fields() -> str:
    """Every field of the job document, by section."""
    sections = [*SECTIONS]
    sections.insert(sections.index("task") + 1, "task.lora")
    parts = []
    for section in sections:
        parts += [f"## `[{section}]`: {_SECTION_TITLES[section]}", ""]
        rows = [_field(spec) for spec in FIELDS if spec.section == section]
        parts += [table(("field", "flags", "values", "default", "meaning"), rows), ""]
    return "\n".join(parts)


def _field(spec: Field) -> tuple[str, ...]:
    only = f" ({spec.kind} only)" if spec.kind else ""
    doc = spec.doc.replace("<", "&lt;")
    return (code(spec.name), ", ".join(map(code, spec.flags)), _values(spec), _default(spec), doc + only)


def _values(spec: Field) -> str:
    words = ", ".join(map(code, spec.choices))
    match spec.type:
        case "int" | "number":
            above = "above" if spec.above else "from"
            return f"{above} {spec.low:,g}{' ' + spec.unit if spec.unit else ''}"
        case "bool":
            return "true, false"
        case "checkpointing":
            return f"{words}, or n"
        case "choices":
            return f"any of {words}"
        case "weights":
            return f"{words}, or bits per weight"
        case "mapping" | "lora":
            return "a table"
        case "counts":
            return "numbers"
        case "names" | "targets":
            return "names"
        case "trainable":
            return "a number, a fraction or names"
        case _:
            return words or "text"


def _default(spec: Field) -> str:
    default = default_of(spec, spec.kind or "train")
    serve = default_of(spec, "serve")
    if spec.derived:
        return "from the others"
    if default is None:
        return ""
    shown = code(_word(default))
    return shown if spec.kind or serve == default else f"{shown}; serve: {code(_word(serve))}"


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "[]" if value == () else f"{value:g}" if isinstance(value, float) else str(value)


# ---- models and hardware ---------------------------------------------------------------------------------------------


def model_counts() -> str:
    """How many models and families there are."""
    return (
        f"{len(catalog.names())} models by name (data of {catalog.version()}), {len(FAMILIES)} values of `model_type`."
    )


def models() -> str:
    """The catalog, by publisher."""
    by_vendor: dict[str, list[tuple[str, ...]]] = {}
    for name in catalog.names():
        entry = catalog.lookup(name)
        assert entry is not None
        arch = architecture(entry.config)
        active = format_count(arch.active_params) if arch.active_params != arch.num_params else ""
        row = (code(name), format_count(arch.num_params), active, code(arch.model_type), entry.repo)
        by_vendor.setdefault(entry.vendor, []).append(row)
    parts = []
    for vendor in sorted(by_vendor, key=str.lower):
        parts += [
            f"## {vendor}",
            "",
            table(("name", "parameters", "active", "family", "hub id"), by_vendor[vendor]),
            "",
        ]
    return "\n".join(parts)


def families() -> str:
    """Every ``model_type`` that is read."""
    return ", ".join(map(code, sorted(FAMILIES)))


def gpu_counts() -> str:
    """How many accelerators there are."""
    return f"{len(gpus())} accelerators, {len(nodes())} machine shapes; data version `{data_version()}`."


def gpu_table() -> str:
    """The accelerators, by vendor and kind."""
    groups: dict[tuple[str, str], list[Gpu]] = {}
    for gpu in gpus():
        groups.setdefault((gpu.vendor, gpu.kind), []).append(gpu)
    parts = []
    for (vendor, kind), members in groups.items():
        parts += [f"### {_VENDORS[vendor]}, {kind}", ""]
        header = (
            "name",
            "total [GiB]",
            "origin",
            "context [MiB]",
            "memory [GB/s]",
            "16 bit [TFLOP/s]",
            "link [GB/s]",
            "year",
        )
        parts += [table(header, map(_gpu, members)), ""]
    return "\n".join(parts)


_VENDORS = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel", "apple": "Apple"}


def _gpu(gpu: Gpu) -> tuple[str, ...]:
    link = f"{gpu.link_bytes_per_s / 1e9:.0f}" if gpu.link_bytes_per_s else ""
    return (
        code(gpu.name),
        f"{gpu.total_bytes / GIB:.2f}",
        gpu.total_origin,
        f"{gpu.context_bytes / (1 << 20):.0f}",
        f"{gpu.memory_bytes_per_s / 1e9:.0f}",
        f"{max(gpu.peak_flops('bf16'), gpu.peak_flops('fp16')) / 1e12:.0f}",
        link,
        str(gpu.year),
    )


def node_table() -> str:
    """Machine shapes."""
    rows = (
        (code(n.name), n.title, code(n.gpu), n.num_gpus, n.fabric, f"{n.intra_bytes_per_s / 1e9:.0f}",
         f"{n.inter_bytes_per_s / 1e9:.1f}", f"{n.source} ({n.date})")
        for n in nodes()
    )  # fmt: skip
    header = ("name", "machine", "card", "GPUs", "fabric", "inside [GB/s]", "between [GB/s]", "source")
    return table(header, rows)


def price_table() -> str:
    """Dated price snapshot, per GPU, and where it is from."""
    rows = (
        (code(p.gpu), p.provider, f"{p.machine} ({p.machine_gpus})" if p.machine else "", f"{p.usd_per_hour:.2f}",
         "" if p.spot_usd_per_hour is None else f"{p.spot_usd_per_hour:.2f}", p.date + (", old" if p.is_old else ""))
        for p in prices()
    )  # fmt: skip
    header = ("card", "provider", "machine (its GPUs)", "USD per GPU-hour", "spot", "date")
    origins = dict.fromkeys(f"- {p.provider}, {p.date}: {p.source}" for p in prices())
    return table(header, rows) + "\n" + "\n".join(origins) + "\n"


def coverage_line() -> str:
    """What is known by name, in one line."""
    known = f"It knows {len(catalog.names())} models by name and reads {len(FAMILIES)} values of `model_type`"
    cards = f"it knows {len(gpus())} accelerators and {len(nodes())} machines"
    return f"{known}; {cards}. Framework profiles: {', '.join(profiles.names())}."


def coverage_line_zh() -> str:
    """The same in Chinese."""
    known = f"内置 {len(catalog.names())} 个模型，可读取 {len(FAMILIES)} 种 `model_type`"
    cards = f"内置 {len(gpus())} 款加速卡和 {len(nodes())} 种机型"
    return f"{known}；{cards}。框架 profile：{'、'.join(profiles.names())}。"


# ---- profiles --------------------------------------------------------------------------------------------------------

_ROWS = {
    "norm": "norm kernel",
    "mlp": "MLP kernel",
    "rope": "rotary embedding",
    "sharding": "ZeRO/FSDP mechanism",
    "sharding_adapters": "ZeRO/FSDP mechanism with adapters",
    "optimizer_impl": "optimizer temporaries",
    "vocab_parallel": "head and logits are split over tp",
    "gather_inputs": "sequence parallelism keeps gathered inputs",
    "grouped_experts": "experts run as one grouped product",
    "norm_code": "RMSNorm multiplies its weight in",
    "rope_cat": "rotated heads are joined from parts",
    "pad_qkv": "adapters on a part of a fused projection are padded to its width",
    "dropouts": "the model's own dropouts are run",
    "hold_logits": "the caller keeps the logits through the backward pass",
    "loop_logits": "... and through the next forward pass",
    "loop_graph": "the loop keeps the autograd graph until the next loss",
    "float_output": "the module's output is handed out as an fp32 copy",
    "kbit_inputs": "products with quantised weights keep their input",
    "kbit_bytes": "bytes of an element of a quantised weight while it is unpacked",
    "kbit_embedding": "with quantised weights the embedding is replaced and its gradient never freed",
    "adapter_fp32": "adapters are fp32 and cast their input",
    "adapter_dropout": "dropout of adapters",
    "kbit_fp32": "weights that are not quantised are raised to fp32",
    "quantize_head": "the output head is quantised too",
    "inputs_grad": "with frozen weights the embedding output requires a gradient",
    "reference": "DPO keeps a second, frozen model",
    "balance_cost": "pipeline stages have equal cost, not equal numbers of layers",
    "pipeline_ends": "layers that embedding and head count as where layers are spread over pipeline stages",
    "bucket": "bytes per parameter of a resident gradient bucket",
}


def profile_list() -> str:
    """What each framework is assumed to do."""
    parts = []
    for name in profiles.names():
        prof = profiles.profile(name)
        parts += [f"### {name}", "", f"Source: {prof.source}.", ""]
        rows = [(_ROWS.get(key, key.replace("_", " ")), code(_word(value))) for key, value in _plain(prof).items()]
        rows += [(f"default of `{key}`", code(_word(value))) for key, value in prof.defaults.items()]
        rows += [(f"default of `{key}` in a pipeline", code(_word(value))) for key, value in prof.pipeline.items()]
        rows += [(f"precision `{key}`", f"[`{value}`](#scheme-{value})") for key, value in prof.schemes.items()]
        rows += [
            (f"precision `{key}`, sharded", f"[`{value}`](#scheme-{value})") for key, value in prof.sharded.items()
        ]
        for said, losses_of in (
            ("", prof.loss),
            (" with tp", prof.loss_tp),
            (" with adapters", prof.loss_adapters),
            (" compiled", prof.loss_compiled),
        ):
            rows += [(f"loss `{key}`{said}", f"[`{value}`](#loss-{value})") for key, value in losses_of.items()]
        parts += [table(("what", "how"), rows), ""]
    return "\n".join(parts)


def _plain(prof: profiles.Profile) -> dict[str, Any]:
    left_out = {"name", "source", *profiles.TABLES}
    if prof.modules == "transformers":  # rows of own modules say nothing here
        left_out |= {"norm_code", "rope_cat", "pad_qkv", "dropouts"}
    fields = {f: getattr(prof, f) for f in prof.__slots__ if f not in left_out}
    return {k: v for k, v in fields.items() if v not in (False, 0, 0.0, "", (0, 0))}


def _rows_of(kind: str, find: Any) -> str:
    parts = []
    for name in profiles._profiles()[kind]:
        row = find(name)
        fields = {f: getattr(row, f) for f in row.__slots__ if f not in ("source", "name")}
        shown = {k: v for k, v in fields.items() if v not in (False, 0, (), "")}
        said = ", ".join(f"{k} {code(_pair(v))}" for k, v in shown.items()) or "nothing beside the compute dtype"
        parts += [f"({kind}-{name})=", f"### {name}", "", f"{said}.", "", f"Source: {row.source}.", ""]
    return "\n".join(parts)


def _pair(value: Any) -> str:
    return " + ".join(map(str, value)) if isinstance(value, tuple) else _word(value)


def schemes() -> str:
    """Precision schemes."""
    return _rows_of("scheme", profiles.scheme)


def shardings() -> str:
    """Sharding mechanisms."""
    return _rows_of("sharding", profiles.sharding)


def losses() -> str:
    """Loss kernels."""
    return _rows_of("loss", profiles.loss)


def optimizer_table() -> str:
    """Optimizers with their states."""
    rows = []
    for name in next(spec for spec in FIELDS if spec.path == "strategy.optimizer").choices:
        o = profiles.optimizer(name)
        width = f"{o.bits} bit in blocks of {o.block}" if o.bits else "as the precision scheme says"
        rows.append((code(name), o.slots, width if o.slots else "", o.source))
    return table(("optimizer", "states per parameter", "width", "source"), rows)


def dtype_table() -> str:
    """Storage dtypes of frozen and served weights."""
    rows = ((code(d.name), f"{d.num / d.den:.4g}", d.source) for d in profiles.dtypes().values())
    return table(("weights", "bits per element", "source"), rows)


def data_date() -> str:
    """Date of the profile data."""
    return f"Data of {profiles.data_version()}."


# ---- words -----------------------------------------------------------------------------------------------------------


def mirage_variables() -> str:
    """The environment variables that the null libraries read."""
    return table(("variable", "meaning"), [(code(PREFIX + name), meaning) for name, meaning in VARIABLES.items()])


def mirage_libraries() -> str:
    """The CUDA libraries that are generated, and which of them have functions written by hand."""
    rows = [
        (code(family.stem), ", ".join(code(source) for source in family.sources) or "generated only")
        for family in needs.families()
    ]
    return table(("library", "written by hand"), rows)


def _words(mapping: Mapping[str, str], header: tuple[str, str]) -> str:
    return table(header, ((code(k), v) for k, v in mapping.items()))


def components() -> str:
    """The names under which memory is booked."""
    return _words(COMPONENTS, ("component", "what it holds"))


def provenances() -> str:
    """Where a number can come from."""
    return _words(PROVENANCES, ("provenance", "meaning"))


if __name__ == "__main__":
    print(job_fields(), model_counts(), models(), families(), gpu_counts(), gpu_table(), node_table(), price_table())
    print(
        profile_list(), schemes(), shardings(), losses(), optimizer_table(), dtype_table(), components(), provenances()
    )


# ---- time ------------------------------------------------------------------------------------------------------------


def time_parts() -> str:
    """The parts of a training step and of a decode step."""
    from memfit.speed import PARTS
    from memfit.speed.serving import PARTS as SERVING

    words = {**{k: [v, ""] for k, v in PARTS.items()}}
    for name, what in SERVING.items():
        words.setdefault(name, ["", ""])[1] = what
    return table(["part", "of a training step", "of a decode step"], [[code(n), *w] for n, w in words.items()])


def time_constants() -> str:
    """The figures that measurement refines."""
    from memfit.speed.calibration import NAMES, constant

    rows = []
    for name in NAMES:
        row = constant(name)
        rows.append([code(name), f"{row['value']:g}", f"{row['low']:g} to {row['high']:g}", row["doc"], row["source"]])
    return table(["figure", "value", "bounds", "what it is", "source"], rows)


def time_frameworks() -> str:
    """What each framework does that changes time."""
    from memfit.speed.data import read

    rows = []
    for name, row in read("frameworks").items():
        if name == "meta":
            continue
        facts = ", ".join(f"{code(k)} {v}" for k, v in row.items() if k != "source")
        rows.append([name, facts or "-", row["source"]])
    return table(["framework", "rows", "source"], rows)


KERNELS = ("stream", "flash2", "flash3")


def time_rates() -> str:
    """What each architecture sustains."""
    from memfit.speed.data import read

    rows = []
    for name, row in read("rates")["architecture"].items():
        figures = [row["matmul"], row["training"], row.get("low", row["matmul"]), *(row[k] for k in KERNELS)]
        rows.append([name, *(f"{value:g}" for value in figures), row["source"]])
    head = ["architecture", "products", "in training", "8 and 4 bit", "streaming", "FlashAttention 2", "own kernel"]
    return table([*head, "source"], rows)


# ---- exports ---------------------------------------------------------------------------------------------------------


def export_targets() -> str:
    """The targets: tool, version, what is written."""
    rows = [(code(t.name), t.title, t.version, t.about + (f". {t.note}" if t.note else "")) for t in targets()]
    return table(("target", "tool", "version", "what is written"), rows)


def export_checks() -> str:
    """How each target is checked by its own code."""
    return table(("target", "version", "held against"), [(code(t.name), t.version, t.checked) for t in targets()])


def export_levers() -> str:
    """Lever by target: which values can be written."""
    shown = [t for t in targets() if not t.launcher]
    rows = []
    for spec in LEVERS:
        cells = [_written(t.levers.get(spec.path), spec) for t in shown]
        if any(cell != "-" for cell in cells):
            rows.append((code(spec.path.removeprefix("strategy.").removeprefix("task.")), *cells))
    return table(("field", *(t.name for t in shown)), rows)


def _written(rule: Rule | None, spec: Field) -> str:
    if rule is None:
        return "-"
    if rule.values is None or set(spec.choices) <= set(rule.values):
        return "all"
    return ", ".join("n" if value is int else str(value) for value in rule.values)


def export_readable() -> str:
    """The tools whose configurations are read."""
    return ", ".join(target(name).title for name in READABLE)
