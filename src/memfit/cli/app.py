"""The group of commands: loads a command when it is called, and turns every fault into one message and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import click

from memfit._version import __version__
from memfit.cli.output import UsageFaultError, emit, emit_error, hinted
from memfit.errors import MemfitError, nearest


class _Entry(NamedTuple):
    """Where a command stands (its object is called ``command``), and its line of help."""

    module: str
    help: str


COMMANDS: Mapping[str, _Entry] = {
    "estimate": _Entry("memfit.cli.estimate", "Where the GPU memory of a job goes, and whether it fits."),
    "plan": _Entry("memfit.cli.plan", "The best configuration that fits, and why it is the best."),
    "trace": _Entry("memfit.cli.trace", "The allocations of the real module, without a GPU."),
    "dryrun": _Entry("memfit.cli.dryrun", "Run the real script, as it is, on a GPU that is not there."),
    "diff": _Entry("memfit.cli.diff", "Two jobs side by side: bytes, time, cost, and what each lever does."),
    "export": _Entry("memfit.cli.export", "A job as complete files of the tool that will run it."),
    "import": _Entry("memfit.cli.importing", "Other tools' configurations as a job."),
    "calibrate": _Entry("memfit.cli.calibrate", "The figures of the time model refined by measured runs."),
    "job": _Entry("memfit.cli.job", "A job with every value filled in, and where each comes from."),
    "models": _Entry("memfit.cli.models", "The models that are known by name."),
    "model": _Entry("memfit.cli.model", "One model: exact parameters, cache per token, layers by kind."),
    "gpus": _Entry("memfit.cli.gpus", "The GPUs that are known by name."),
}

_EPILOG = """\b
Examples:
  memfit estimate llama-3.1-8b --gpu 8xh100 --zero 3 --seq 8k
  memfit estimate llama-3.1-8b --gpu rtx-4090 --method qlora
  memfit estimate job.toml --sweep seq=2k..128k

Exit codes: 0 done and it fits, 1 it does not fit, 2 bad input, 3 something is missing, 70 a bug in memfit."""


class _Group(click.Group):
    """Commands by name from the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = importlib.import_module(entry.module).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = nearest(args[0], COMMANDS)
            hint = f"did you mean `memfit {near[0]}`?" if near else f"commands: {', '.join(COMMANDS)}"
            raise hinted(f"unknown command `{args[0][:60]}`", hint, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Runs and exits; see ``memfit.cli.main``."""
        words = list(sys.argv[1:] if args is None else args)
        sys.exit(self._guarded(words, prog_name or "memfit", extra))

    def _guarded(self, words: list[str], prog_name: str, extra: dict[str, Any]) -> int:
        extra.pop("standalone_mode", None)
        extra["obj"] = words
        try:
            code = super().main(words, prog_name, standalone_mode=False, **extra)
        except click.UsageError as error:
            return emit_error(_usage(error, words), words)
        except click.ClickException as error:
            return emit_error(MemfitError(error.format_message()), words)
        except MemfitError as error:
            return emit_error(error, words)
        except (KeyboardInterrupt, click.Abort):
            return 130
        except Exception as error:
            if os.environ.get("MEMFIT_DEBUG"):
                raise
            return emit_error(_BugError(error), words)
        return code if isinstance(code, int) else 0


def _usage(error: click.UsageError, words: Sequence[str]) -> MemfitError:
    """What click found, in memfit's words."""
    hint: str | None = getattr(error, "memfit_hint", None)
    text = error.format_message().rstrip(".")
    known = [word for word in words[:1] if word in COMMANDS]
    path = " ".join(["memfit", *known])
    if isinstance(error, click.NoSuchOption):
        from memfit.cli.jobs import flag_hint

        text = f"unknown option `{error.option_name[:60]}`"
        hint = flag_hint(error.option_name, error.possibilities or ())
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        text = f"{error.param.make_metavar(error.ctx or click.Context(app))} is missing"
    if text[1:2].islower():
        text = text[:1].lower() + text[1:]
    return UsageFaultError(text, hint=hint or f"see `{path} --help`")


class _BugError(MemfitError):
    """Something that must not happen: not the user's fault."""

    code = "internal"
    exit_code = 70

    def __init__(self, error: Exception) -> None:
        trace = error.__traceback__
        where = ""
        while trace is not None:
            where = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"  # noqa: PTH119
            trace = trace.tb_next
        super().__init__(
            f"a bug in memfit {__version__}: {type(error).__name__} at {where}: {str(error)[:200]}",
            hint="please report this line with the command; MEMFIT_DEBUG=1 shows the traceback",
        )


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        emit(f"memfit {__version__}\n")
        ctx.exit()


@click.group(
    cls=_Group,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
    invoke_without_command=True,
)
@click.option("--version", is_flag=True, callback=_version, expose_value=False, is_eager=True, help="Show the version.")
@click.pass_context
def app(ctx: click.Context) -> None:
    """Makes large models fit: where GPU memory goes, before anything runs and without a GPU."""
    if ctx.invoked_subcommand is None:
        emit(ctx.get_help() + "\n")
