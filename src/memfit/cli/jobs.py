"""The job on the command line: a model or a job file, and a flag for every field of the job's table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from memfit.cli.output import hinted, input_bytes, output_options
from memfit.errors import InputFileError, JobErrors, nearest
from memfit.job import BY_NAME, BY_PATH, FIELDS, Field, Job, load
from memfit.job.fields import FOREIGN, SECTIONS
from memfit.readers import decode_text, parse_text, read_tree

_Command = TypeVar("_Command", bound=Callable[..., Any])

SOURCE = "MODEL|JOB"
_JOB_ENDINGS = (".toml", ".yaml", ".yml")
_MODEL_ENDINGS = (".gguf", ".safetensors")
_MAX_JOB_BYTES = 4 << 20
_UNITS = {"tokens": "TOKENS", "GPUs": "N", "GiB": "GIB", "sequences": "N", "layers": "N"}
_METAVARS = {"mapping": "JSON", "names": "A,B", "targets": "A,B", "choices": "A,B", "counts": "N,N", "gpu": "[Nx]GPU"}
_TITLES = {"model": "Model", "task": "Task", "strategy": "Strategy", "hardware": "Hardware", "": "Output"}
_MOST_CHOICES = 250  # characters of choices that a line of help lists


class JobCommand(click.Command):
    """A command whose help groups its options by the job's sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options under the titles Output, Model, Task, Strategy, Hardware."""
        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in _TITLES.values()}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                path = _path_of(param)
                groups[_TITLES[path.partition(".")[0] if path else ""]].append(record)
        for title in ("Output", *(t for t in groups if t != "Output")):
            if groups[title]:
                with formatter.section(title):
                    formatter.write_dl(groups[title])


def job_command(name: str, source: str | None = f"[{SOURCE}]") -> Callable[[Callable[..., Any]], click.Command]:
    """What every command that takes a job begins with: its ``source``, the options of output, a flag for every field.

    Args:
        name: the command's name.
        source: how help writes the argument that ``given`` reads; None for a command with arguments of its own.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        whole = output_options(job_options(click.pass_context(function)))
        if source is not None:
            whole = click.argument("source", metavar=source, required=False)(whole)
        return click.command(name, cls=JobCommand)(whole)

    return decorate


def _path_of(param: click.Parameter) -> str:
    if param.name == "as_family":
        return "model.as"
    spec = BY_NAME.get((param.name or "").removeprefix("job_")) if (param.name or "").startswith("job_") else None
    return spec.path if spec is not None else ""


def job_options(command: _Command) -> _Command:
    """A flag for every field, and ``--as``; values arrive as typed, under ``job_<field>``."""
    options = [_option(spec) for spec in FIELDS if spec.flags]
    options.append(
        click.option("--as", "as_family", metavar="FAMILY", help="read the model's configuration as this model_type")
    )
    for option in reversed(options):
        command = option(command)
    return command


def _option(spec: Field) -> Callable[[_Command], _Command]:
    names = [f"job_{spec.name}", *spec.flags]
    if spec.type == "bool":
        names = [names[0], *(f"{f}/{f.replace('--', '--no-', 1)}" for f in spec.flags)]
        return click.option(*names, default=None, help=_help(spec))
    return click.option(*names, default=None, type=str, metavar=_metavar(spec), help=_help(spec))


def _metavar(spec: Field) -> str:
    if spec.type == "int":
        return _UNITS.get(spec.unit, "N")
    if spec.type == "number":
        return _UNITS.get(spec.unit, "X")
    return _METAVARS.get(spec.type, "WORD")


def _help(spec: Field) -> str:
    listed = ", ".join(spec.choices)
    text = f"{spec.doc} [{listed}]" if listed and len(listed) <= _MOST_CHOICES else spec.doc
    return f"({spec.kind}) {text}" if spec.kind else text


def flag_hint(typed: str, possibilities: Iterable[str]) -> str | None:
    """What an unknown flag was probably meant to be: another tool's name for a field, or a near spelling."""
    name = typed.lstrip("-").replace("-", "_").lower()
    spec = FOREIGN.get(name) or BY_NAME.get(name)
    if spec is not None and spec.flags:
        return f"memfit calls it `{spec.flags[0]}`: {spec.doc}"
    near = nearest(typed, possibilities, limit=1)
    return f"did you mean `{near[0]}`?" if near else None


class ForeignFileError(InputFileError):
    """A configuration of another tool where a job is expected.

    Attributes:
        tool: what `memfit import` calls it.
    """

    def __init__(self, source: str, tool: str) -> None:
        self.tool = tool
        name = source[:200]
        hint = f"`memfit import {name}` makes a job of it; `memfit estimate {name} --from {tool}` takes it as it is"
        if source == "-":
            name, hint = "standard input", "`memfit import FILE` makes a job of a file"
        super().__init__(f"`{name}` is a configuration of {tool}, not a job", hint=hint)


@dataclass(frozen=True, slots=True)
class Given:
    """A job as the command line gives it.

    Attributes:
        document: the job file's content, None without one.
        overrides: dotted path -> value as typed.
        family: the value of ``--as``.
        flags: dotted path -> the flag that was typed.
    """

    document: Mapping[str, Any] | None
    overrides: Mapping[str, Any]
    family: str | None = None
    flags: Mapping[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Nothing was given at all."""
        return self.document is None and not self.overrides and self.family is None

    def job(self, more: Mapping[str, Any] | None = None) -> Job:
        """The job, with further overrides on top.

        Raises:
            JobErrors: every fault of the job.
        """
        try:
            job = load(self.document, {**self.overrides, **(more or {})})
        except JobErrors as error:
            error.flags = self.flags  # type: ignore[attr-defined]
            raise
        if self.family is None:
            return job
        return replace(job, model=replace(job.model, extra={**(job.model.extra or {}), "as": self.family}))


def given(ctx: click.Context, source: str | None) -> Given:
    """What was given: the positional argument and the flags of ``ctx``.

    Raises:
        InputFileError: the job file is missing or is not one; a ForeignFileError when another tool's is.
        click.UsageError: the model is given twice.
    """
    overrides, flags = {}, {}
    for param in ctx.command.params:
        name = param.name or ""
        value = ctx.params.get(name)
        if name.startswith("job_") and value is not None:
            spec = BY_NAME[name.removeprefix("job_")]
            overrides[spec.path] = value
            flags[spec.path] = spec.flags[0]
    document = None
    if source is not None:
        document = _document(source)
        if document is None:
            if "model.name" in overrides:
                text = f"the model is given twice: `{source[:60]}` and --model"
                raise hinted(text, "leave one of them out", ctx)
            overrides = {"model.name": source, **overrides}
            flags["model.name"] = source[:60] if source.isprintable() else "MODEL"
        elif tool := _tool_of(document):
            raise ForeignFileError(source, tool)
    return Given(document, overrides, ctx.params.get("as_family"), flags)


def imported(ctx: click.Context, source: str, of: str) -> Given:
    """What another tool's configuration says, with the flags of ``ctx`` on top; what it leaves open goes to stderr.

    Args:
        ctx: the command.
        source: the configuration.
        of: name of the tool, ``auto`` to find it by the keys of the file.

    Raises:
        InputFileError: the file is missing or of no known tool.
        JobErrors: what it says contradicts itself.
    """
    from memfit.export.importing import import_files
    from memfit.job import to_dict

    flags = given(ctx, None)
    found = import_files([source], of=None if of == "auto" else of, overrides=flags.overrides)
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    return replace(flags, document=to_dict(found.job), overrides={})


def _tool_of(document: Mapping[str, Any]) -> str | None:
    """The tool that a document is a configuration of, None when its keys do not tell."""
    ours = document.keys() & {*SECTIONS, "schema"}
    if len(ours) == len(document):
        return None
    from memfit.export.importing import recognise

    try:
        tool = recognise(document, "it").name
    except InputFileError:
        return None
    return tool if not ours or tool == "torchtitan" else None  # torchtitan's tables have a [model] too


def _document(source: str) -> Mapping[str, Any] | None:
    """The content of a job file, of standard input for ``-``; None when the text names a model."""
    if source == "-":
        return _standard_input()
    lower = source.lower()
    if lower.endswith(_JOB_ENDINGS):
        return _job(source)
    try:
        regular = Path(source).is_file()
    except (OSError, ValueError):
        return None
    if not regular or lower.endswith(_MODEL_ENDINGS):
        return None
    tree = _job(source)
    # A config.json is a model; what has neither a model_type nor a job's sections is taken for a job and explained.
    is_model = "model_type" in tree or "architectures" in tree
    return None if is_model and not any(section in tree for section in SECTIONS) else tree


def _standard_input() -> Mapping[str, Any]:
    """A job document from standard input: JSON when it begins with a brace, else TOML, else YAML."""
    data = input_bytes().read(_MAX_JOB_BYTES + 1)
    if len(data) > _MAX_JOB_BYTES:
        raise InputFileError(
            f"standard input is larger than {_MAX_JOB_BYTES >> 10} KiB, the most that is read of a job"
        )
    text = decode_text(data, "standard input")
    if text.lstrip().startswith("{"):
        return _table(parse_text(text, "json", "standard input"), "standard input")
    try:
        return _table(parse_text(text, "toml", "standard input"), "standard input")
    except InputFileError as toml:
        try:
            return _table(parse_text(text, "yaml", "standard input"), "standard input")
        except InputFileError:
            raise toml from None


def _job(source: str) -> Mapping[str, Any]:
    return _table(read_tree(source, limit=_MAX_JOB_BYTES), f"`{source[:200]}`")


def _table(tree: Any, name: str) -> Mapping[str, Any]:
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise InputFileError(f"{name} does not hold a job or a model configuration: it is not a table")
    return tree


def field_of(name: str) -> Field | None:
    """The field that a flag name, a field name or a dotted path means: ``seq``, ``seq_len``, ``task.seq_len``."""
    plain = name.strip().lstrip("-").replace("-", "_").lower()
    if plain == "model":
        return BY_PATH["model.name"]
    by_flag = {flag.lstrip("-").replace("-", "_"): spec for spec in FIELDS for flag in spec.flags}
    return BY_PATH.get(plain) or BY_NAME.get(plain) or by_flag.get(plain) or FOREIGN.get(plain)
