"""``memfit dryrun``: the user's own script on an imaginary GPU."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memfit.cli.output import emit, hinted, make_page, output_options
from memfit.errors import MemfitError, MissingError

if TYPE_CHECKING:
    from memfit.mirage.run import DryRun

_DATA = ("text", "chat", "prompt", "tokens")


@click.command("dryrun", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("words", metavar="[--] COMMAND...", nargs=-1, type=click.UNPROCESSED)
@output_options
@click.option("--gpu", "-g", metavar="[Nx]GPU", help="The imaginary card, and how many of it the script sees.")
@click.option("--memory", metavar="SIZE", help="Its memory as CUDA reports it, instead of the card's own.")
@click.option("--python", metavar="FILE", help="The script's interpreter; that of `memfit dryrun setup` if not given.")
@click.option("--steps", type=click.IntRange(0), default=3, help="Optimizer steps to run; 0 runs to the script's end.")
@click.option("--ranks", type=click.IntRange(1, 1 << 20), metavar="N", help="Processes of the whole job; one is run.")
@click.option("--rank", type=click.IntRange(0), default=0, metavar="N", help="Which of them.")
@click.option("--stages", type=click.IntRange(1), metavar="N", help="Pipeline stages; the first rank of each is run.")
@click.option("--fake-weights", is_flag=True, help="Checkpoints are answered by size; nothing is read or initialised.")
@click.option("--fake-data", type=click.Choice(_DATA), help="Datasets are answered with made-up rows of this kind.")
@click.option(
    "--moe-imbalance", type=click.FloatRange(1), default=1.0, help="The fullest expert's tokens over the mean."
)
@click.option("--online", is_flag=True, help="The script may contact model hubs.")
@click.option("--timeout", type=click.FloatRange(1), default=1800.0, metavar="SECONDS", help="Limit of the run.")
@click.option("--host-memory", metavar="SIZE", help="Limit of this machine's memory; 90 % of the free if not given.")
@click.option(
    "--what-if", "what_ifs", multiple=True, metavar="SETTINGS",
    help="Compare these allocator settings (text of PYTORCH_ALLOC_CONF); may be given several times, `all` for a list.",
)  # fmt: skip
@click.option("--events", metavar="FILE", help="Write the events to a file that `memfit trace` reads.")
@click.option("--snapshot", metavar="FILE", help="Write PyTorch's own memory snapshot, for its memory_viz page.")
@click.option("--svg", metavar="FILE", help="Write the timeline as a picture.")
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@click.option("--ignore-gpu", is_flag=True, help="Go on beside a real GPU, which is not touched.")
@click.option("--torch", metavar="VERSION", help="With `setup`: the release of PyTorch.")
@click.option("--yes", is_flag=True, help="With `setup`: do not ask.")
@click.pass_context
def command(ctx: click.Context, /, *, words: tuple[str, ...], **given: Any) -> int:
    """Run the real script, as it is, on a GPU that is not there: PyTorch's own CUDA build, its choice of kernels,
    its allocator and its errors, on libraries that only keep accounts. Needs Linux, and no GPU.

    `memfit dryrun setup [--torch VERSION] [--triton] [--yes]` makes an environment with PyTorch's CUDA build; --python
    takes your own.

    Exit codes: 0 it fits, 1 it does not, 2 the script failed by itself, 3 something is missing.

    \b
    Examples:
      memfit dryrun --gpu h100-sxm-80gb -- python train.py --batch 8
      memfit dryrun --gpu 8xl40s --ranks 64 -- torchrun --nproc-per-node 8 t.py
      memfit dryrun --gpu rtx-4090 --fake-weights --fake-data text -- python ft.py
    """
    if words[:1] == ("setup",):
        return _setup(ctx, words[1:], torch=given["torch"], yes=given["yes"])
    if not words:
        raise hinted("no command is given", "memfit dryrun --gpu h100-sxm-80gb -- python train.py", ctx)
    if words[0].startswith("-"):
        raise hinted(f"unknown option `{words[0][:60]}`", "the script's command follows `--`", ctx)
    if given["gpu"] is None:
        raise hinted("no card is given", "for example `--gpu h100-sxm-80gb`; `memfit gpus` lists them", ctx)
    wanted = {name: given[name] for name in ("events", "snapshot", "svg")}
    from memfit.cli.trace import check_paths

    check_paths(ctx, wanted, force=given["force"])
    runs = _runs(words, given)
    _write(max(runs, key=lambda run: run.answer.needed[1]), wanted)
    _show(runs, given)
    return 0 if all(run.fits for run in runs) else 1


def _runs(words: tuple[str, ...], given: dict[str, Any]) -> list[DryRun]:
    from memfit.cli.trace import allocator_settings
    from memfit.hardware import lookup_gpu
    from memfit.mirage import check_machine, prepare
    from memfit.mirage.run import RunOptions, dryrun, dryrun_stages
    from memfit.mirage.run.extensions import extensions

    gpu, count = lookup_gpu(given["gpu"])
    if gpu.vendor != "nvidia" or gpu.compute_capability is None:
        raise MemfitError(f"{gpu.title} runs no CUDA, so it cannot be imagined", hint="`memfit gpus` lists NVIDIA's")
    check_machine(ignore_gpu=given["ignore_gpu"])
    python = interpreter(given["python"], words)
    options = RunOptions(
        command=words,
        python=python,
        steps=given["steps"],
        ranks=given["ranks"],
        rank=given["rank"],
        gpus_per_node=count,
        fake_weights=given["fake_weights"],
        fake_data=given["fake_data"] or "",
        moe_imbalance=given["moe_imbalance"],
        timeout_s=given["timeout"],
        host_memory_bytes=_host_memory(given["host_memory"]),
        online=given["online"],
    )

    total = _size("--memory", given["memory"])
    libraries = extensions(python)

    def environment(total_bytes: int | None) -> dict[str, str]:
        return prepare(
            python,
            gpu,
            count=options.num_devices,
            total_bytes=total_bytes,
            libraries=libraries,
            ignore_gpu=given["ignore_gpu"],
        )

    more: dict[str, Any] = {
        "base": dict(os.environ),
        "total_bytes": total,
        "settings": () if given["quiet"] else allocator_settings(given["what_ifs"]),
        "echo": _echo if given["verbose"] else None,
        "say": _say if not given["quiet"] else (lambda _text: None),
    }
    if given["stages"] is not None:
        return dryrun_stages(options, given["stages"], gpu, environment, **more)
    return [dryrun(options, gpu, environment, **more)]


def interpreter(stated: str | None, words: tuple[str, ...]) -> Path:
    """The Python that runs the script: stated, the command's own when it is a path, else the one that setup made.

    Raises:
        MissingError: there is none.
    """
    own = words[0] if "/" in words[0] and Path(words[0]).name.startswith("python") else None
    if stated or own:
        path = Path(os.path.abspath(stated or own or ""))  # noqa: PTH100 - resolving links would leave the environment
        if not path.is_file():
            raise MissingError(f"there is no interpreter `{str(path)[:200]}`")
        return path
    from memfit.mirage.environments import find_environment

    found = find_environment()
    if found is None:
        raise MissingError(
            "no environment with PyTorch's CUDA build is known",
            hint="`memfit dryrun setup` makes one; --python takes the interpreter of your own",
        )
    return found


def _setup(ctx: click.Context, rest: tuple[str, ...], *, torch: str | None, yes: bool) -> int:
    """Make an environment with PyTorch's CUDA build, without NVIDIA's libraries; its size is told first."""
    words, triton = list(rest), False
    while words:
        word = words.pop(0)
        if word == "--yes":
            yes = True
        elif word == "--triton":
            triton = True
        elif word == "--torch" and words:
            torch = words.pop(0)
        elif word.startswith("--torch="):
            torch = word.partition("=")[2]
        else:
            raise hinted(f"unknown word `{word[:60]}`", "memfit dryrun setup [--torch VERSION] [--triton] [--yes]", ctx)
    from memfit.mirage import check_machine
    from memfit.mirage.environments import DEFAULT_TORCH, make_environment, plan_environment

    check_machine(ignore_gpu=True)
    plan = plan_environment(torch or DEFAULT_TORCH, triton=triton)
    _say(plan.describe())
    if not plan.exists and not yes and not click.confirm("go on?", err=True):
        return 2
    emit(f"{make_environment(plan, echo=_say)}\n")
    return 0


def _size(flag: str, text: str | None) -> int | None:
    if text is None:
        return None
    from memfit.units import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise MemfitError(f"{flag}: {error}") from error


def _host_memory(text: str | None) -> int | None:
    """The limit that is stated, or nine tenths of what the machine has free."""
    if text is not None:
        return _size("--host-memory", text)
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 * 9 // 10
    return None


def _echo(part: bytes) -> None:
    """What the script writes goes to standard error: standard output holds the result only."""
    with suppress(OSError, ValueError):
        sys.stderr.write(part.decode("utf-8", "replace"))
        sys.stderr.flush()


def _say(text: str) -> None:
    click.echo(text, err=True)


def _write(run: DryRun, wanted: dict[str, str | None]) -> None:
    try:
        if wanted["events"] is not None:
            from memfit.trace.files import save

            save(run.answer.trace, wanted["events"])
        if wanted["snapshot"] is not None:
            Path(wanted["snapshot"]).write_bytes(run.snapshot)
        if wanted["svg"] is not None:
            from memfit.report.svg import timeline_svg

            Path(wanted["svg"]).write_text(timeline_svg(run.answer), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise MemfitError(f"a file cannot be written: {error}") from error


def _show(runs: list[DryRun], given: dict[str, Any]) -> None:
    from memfit.report import dryrun as report

    if given["as_json"]:
        from memfit.report.json import dumps

        emit(dumps(report.dryrun_document(runs[0]) if len(runs) == 1 else report.stages_document(runs)))
    elif given["quiet"]:
        emit("".join(report.headline(run) + "\n" for run in runs))
    else:
        page = make_page(verbose=given["verbose"], no_color=given["no_color"])
        emit(report.dryrun_text(page, runs[0]) if len(runs) == 1 else report.stages_text(page, runs))
