"""The commands in this process: what they print, what they exit with."""

import io
import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from memfit import __version__
from memfit.cli.app import COMMANDS, app
from memfit.job import FIELDS, load

HERE = Path(__file__).parent
PLAIN = {"COLUMNS": "80", "NO_COLOR": None, "FORCE_COLOR": None, "TERM": "xterm", "MEMFIT_DEBUG": None}
FITS = ["llama-3.1-8b", "--gpu", "8xh100", "--zero", "3", "--ckpt", "full", "--seq", "4k"]
TOO_LARGE = ["llama-3.1-70b", "--gpu", "rtx-4090"]


def run(*words, stdin=None, **env):
    return CliRunner().invoke(app, list(words), input=stdin, env={**PLAIN, **env})


def ok(*words, code=0, **more):
    result = run(*words, **more)
    assert (result.exit_code, result.stderr) == (code, ""), result.output
    return result.stdout


def refused(*words, code=2, **more):
    """The text on standard error of a call that fails with nothing on standard output."""
    result = run(*words, **more)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    return result.stderr


def commands():
    ctx = click.Context(app)
    return {name: app.get_command(ctx, name) for name in app.list_commands(ctx)}


# ---- the surface -----------------------------------------------------------------------------------------------------


def test_commands_and_flags_are_frozen():
    """Scripts rest on these: a flag may come, none may go or change its meaning."""
    found = {
        name: sorted(
            "/".join([*param.opts, *param.secondary_opts])
            if isinstance(param, click.Option)
            else param.human_readable_name
            for param in command.params
        )
        for name, command in commands().items()
    }
    assert found == json.loads((HERE / "flags.json").read_text(encoding="utf-8"))


def test_every_field_of_a_job_has_its_flags():
    for name in ("estimate", "diff", "job"):
        opts = {opt for param in commands()[name].params for opt in (*param.opts, *param.secondary_opts)}
        for spec in FIELDS:
            assert set(spec.flags) <= opts
            assert spec.flags, spec.path


def test_every_command_writes_json_and_can_be_quiet():
    for command in commands().values():
        opts = {opt for param in command.params for opt in param.opts}
        assert {"--json", "--quiet", "-q", "--verbose", "-v", "--no-color"} <= opts


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_each_command(name):
    text = ok(name, "--help")
    assert text.startswith((f"Usage: memfit {name} ", f"Usage: app {name} "))
    assert COMMANDS[name].help.rstrip(".").split(",")[0].split(":")[0] in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_help_and_version():
    assert ok() == ok("--help")
    assert all(name in ok("--help") for name in COMMANDS)
    assert ok("--version") == f"memfit {__version__}\n"


def test_help_groups_the_flags_by_section():
    text = ok("estimate", "--help")
    titles = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Output:", "Model:", "Task:", "Strategy:", "Hardware:"]
    assert text.index("Strategy:") < text.index("--zero N") < text.index("Hardware:") < text.index("-g, --gpu")


# ---- estimate --------------------------------------------------------------------------------------------------------


def test_the_order_of_the_answer():
    text = ok("estimate", *FITS)
    parts = ["fits: needs ", "8 x NVIDIA H100", "parameters", "capacity", "peak: ", "assumed ", "would save", "next: "]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert places[0] == 0
    assert (
        text.rstrip()
        .splitlines()[-1]
        .startswith("next: memfit estimate llama-3.1-8b --gpu 8xh100 --zero 3 --ckpt full")
    )


def test_exit_codes_say_whether_it_fits():
    assert ok("estimate", *FITS).startswith("fits")
    assert ok("estimate", *TOO_LARGE, code=1).startswith("does not fit")
    assert ok("estimate", "llama-3.1-8b").startswith("unknown")


def test_flags_win_over_the_file(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text('[model]\nname = "llama-3.1-8b"\n[task]\nseq_len = 1024\n[hardware]\ngpu = "h100"\n')
    one = json.loads(ok("estimate", str(path), "--json", code=1))
    other = json.loads(ok("estimate", str(path), "--gpu", "8xh100", "--zero", "3", "--model", "qwen3-0.6b", "--json"))
    assert (one["model"]["source"], other["model"]["source"]) == ("catalog llama-3.1-8b", "catalog qwen3-0.6b")


@pytest.mark.parametrize("fmt", ["toml", "yaml", "json"])
def test_job_files_of_each_format(tmp_path, fmt):
    path = tmp_path / f"job.{fmt}"
    path.write_text(ok("job", *FITS, f"--{fmt}", "--stated"))
    assert json.loads(ok("estimate", str(path), "--json")) == json.loads(ok("estimate", *FITS, "--json"))


def test_a_config_is_a_model(tmp_path):
    config = {
        "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 512, "vocab_size": 1000,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    for source in (tmp_path / "config.json", tmp_path):
        document = json.loads(ok("estimate", str(source), "--gpu", "h100", "--json"))
        assert document["model"]["source"] == f"file {source}"
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "strange"}))
    assert "no family reads" in refused("estimate", str(tmp_path))
    assert json.loads(ok("estimate", str(tmp_path), "--as", "llama", "--json"))["model"] == document["model"]


def test_as_keeps_the_other_extras(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text('[model]\nname = "llama-3.1-8b"\nextra = { note = 1 }\n')
    written = ok("job", str(path), "--as", "llama", "--json", "--stated")
    assert json.loads(written)["model"]["extra"] == {"note": 1, "as": "llama"}


def test_quiet_is_one_line():
    assert ok("estimate", *FITS, "-q") == ok("estimate", *FITS, COLUMNS="140").splitlines()[0] + "\n"


def test_verbose_says_more():
    assert "hardware 20" in ok("estimate", *FITS, "-v")
    assert "(all: -v)" not in ok("estimate", *FITS, "-v")


def test_timeline():
    text = ok("estimate", *FITS, "--timeline")
    assert text.startswith("fits: ")
    assert sum(" * " in line for line in text.splitlines() if line[:4] in ("loss", "back", "opti", "forw")) == 1
    document = json.loads(ok("estimate", *FITS, "--timeline", "--json"))
    assert max(m["bytes"] for m in document["timeline"]) == document["peak_bytes"]["allocated"]
    assert "no step" in ok("estimate", "qwen3-8b", "--kind", "serve", "--gpu", "h100", "--timeline")


def test_single_dash_flags():
    short = ["-m", "llama-3.1-8b", "-g", "h100", "-n", "8", "-s", "2k", "-b", "2", "-f", "torch"]
    assert json.loads(ok("job", *short, "--json", "--stated")) == {
        "schema": 1,
        "model": {"name": "llama-3.1-8b"},
        "task": {"seq_len": 2048},
        "strategy": {"framework": "torch", "micro_batch": 2},
        "hardware": {"gpu": "h100", "gpus": 8},
    }
    serve = json.loads(ok("job", "qwen3-8b", "-ub", "512", "-c", "8k", "-f", "vllm", "--json", "--stated"))
    assert serve["task"] == {"context": 8192, "batch_tokens": 512}


@pytest.mark.parametrize(("flag", "value"), [("--compile", True), ("--no-compile", False), ("--no-reshard", False)])
def test_switches(flag, value):
    written = json.loads(ok("job", "qwen3-8b", flag, "--json", "--stated"))
    assert list(written["strategy"].values()) == [value]


# ---- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", ["60", "80", "120"])
def test_columns_are_kept(width):
    lines = ok("estimate", *FITS, COLUMNS=width).splitlines()
    assert max(len(line) for line in lines if not line.startswith("next: ")) <= int(width)


def test_colours_only_where_they_belong():
    assert "\x1b[" not in ok("estimate", *FITS)  # a pipe
    assert "\x1b[" in ok("estimate", *FITS, FORCE_COLOR="1")
    assert "\x1b[" not in ok("estimate", *FITS, "--no-color", FORCE_COLOR="1")
    assert "\x1b[" not in ok("estimate", *FITS, FORCE_COLOR="1", NO_COLOR="1")


def test_ascii_for_terminals_without_unicode(tmp_path):
    class Narrow(CliRunner):
        charset = "ascii"

    result = Narrow(charset="ascii").invoke(app, ["estimate", *FITS], env=PLAIN)
    assert result.exit_code == 0
    assert result.stdout_bytes.isascii()
    assert b"##" in result.stdout_bytes
    folder = tmp_path / "模型"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    result = Narrow(charset="ascii").invoke(app, ["estimate", str(folder)], env=PLAIN)
    assert (result.exit_code, rb"\u6a21" in result.stdout_bytes) == (0, True)


# ---- sweeps ----------------------------------------------------------------------------------------------------------


def test_sweep_and_its_frontier():
    text = ok("estimate", *FITS, "--sweep", "seq=2k..128k")
    document = json.loads(ok("estimate", *FITS, "--sweep", "seq=2k..128k", "--json"))
    lengths = document["axes"][0]["values"]
    assert lengths == [2048 << i for i in range(7)]
    fits = document["frontier"][0]["fits"]
    assert 0 < len(fits) < 7
    assert text.splitlines()[-1] == f"fits up to seq_len {fits[-1]}"
    sizes = [cell["peak_bytes"]["reserved"] for cell in document["cells"]]
    assert sizes == sorted(sizes)
    for length, cell in zip(lengths, document["cells"], strict=True):
        assert cell["values"] == {"seq_len": length}
        assert (length in fits) == (cell["verdict"] in ("fits", "tight"))


def test_a_sweep_gives_what_single_estimates_give():
    document = json.loads(ok("estimate", *FITS, "--sweep", "zero=2,3", "--sweep", "b=1,2", "--json", "--full"))
    assert [cell["values"] for cell in document["cells"]] == [
        {"zero": z, "micro_batch": b} for z in (2, 3) for b in (1, 2)
    ]
    for cell in document["cells"]:
        words = [w for n, v in cell["values"].items() for w in (f"--{n.replace('_', '-')}", str(v))]
        result = run("estimate", *FITS, *words, "--json")
        assert json.loads(result.stdout) == cell["result"]


def test_sweeps_of_words_and_cells_without_an_answer():
    text = ok("estimate", *FITS, "--sweep", "model=qwen3-0.6b,no-such-model")
    assert "no answer: unknown model `no-such-model`" in text
    assert "fits at model qwen3-0.6b" in text
    document = json.loads(ok("estimate", *FITS, "--sweep", "gpu=8xh100,8xnone", "--json"))
    assert [sorted(cell) for cell in document["cells"]][1] == ["error", "values"]


def test_sweep_exits_1_when_it_fits_nowhere():
    assert "does not fit at any" in ok("estimate", *TOO_LARGE, "--sweep", "seq=1k,2k", code=1)


def test_sweep_relaxes_what_follows(tmp_path):
    """A batch that is swept does not contradict the accumulation that the file derives from it."""
    path = tmp_path / "job.toml"
    path.write_text(
        '[model]\nname = "qwen3-0.6b"\n[task]\nglobal_batch = 64\n'
        "[strategy]\nmicro_batch = 1\ngrad_accum = 8\n[hardware]\ngpu = '8xh100'\n"
    )
    document = json.loads(ok("estimate", str(path), "--sweep", "micro_batch=1..8", "--json"))
    assert not any("error" in cell for cell in document["cells"])


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("seq=2k..16k", [2048, 4096, 8192, 16384]),
        ("seq_len=3..20", [3, 6, 12, 20]),
        ("task.seq_len=1k..4k:1k", [1024, 2048, 3072, 4096]),
        ("--seq-len=5,3,5", [5, 3]),
        ("max_seq_length=7", [7]),
        ("zero=0..3:1", [0, 1, 2, 3]),
        ("seq=8..8", [8]),
        ("checkpointing=2..8", [2, 4, 8]),
        ("optimizer=adamw,sgd", ["adamw", "sgd"]),
        ("compile=true,false", ["true", "false"]),
    ],
)
def test_axes(axis, values):
    from memfit.cli.axes import parse_axis

    assert list(parse_axis(axis).values) == values


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        (["seq"], "is not a sweep"),
        (["seq="], "is not a sweep"),
        (["nothing=1"], "unknown field to sweep"),
        (["sequ=1..2"], "unknown field to sweep"),
        (["q=1"], "unknown field to sweep"),
        (["seq=8..2"], "runs backwards"),
        (["seq=0..8"], "does not get anywhere"),
        (["seq=1..8:0"], "does not get anywhere"),
        (["seq=a..b"], "is not a count"),
        (["seq=1,,2"], "empty value"),
        (["seq=1..4000:1"], "more than 1000 values"),
        (["seq=1..999:1", "b=1..99:1"], "more than 5000 cells"),
        (["optimizer=a..b"], "has no range"),
        (["seq=1", "seq=2"], "two different ones"),
        (["seq=1", "b=2", "zero=3"], "two different ones"),
        (["zero=7,8"], "out of bounds"),
    ],
)
def test_axes_that_are_none(axes, says):
    words = [word for axis in axes for word in ("--sweep", axis)]
    assert says in refused("estimate", "qwen3-0.6b", *words)


# ---- batches ---------------------------------------------------------------------------------------------------------

GOOD = {"model": {"name": "qwen3-0.6b"}, "hardware": {"gpu": "h100"}}


def lines(*items):
    return "".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items)


def test_batch_keeps_order_and_goes_on_after_bad_lines(tmp_path):
    path = tmp_path / "jobs.jsonl"
    bad = [
        "not json",
        "[]",
        "3",
        '{"id": "x", "job": 3}',
        '{"id": "y", "job": {"model": {"name": "no-such"}}}',
        '{"task": {"seq_len": -1}}',
        '{"id": 7, "job": {"task": {"seq_len": ' + "9" * 30 + "}}}",
        "{" * 5000,
        '{"model": {"name": "qwen3-0.6b\ud800"}}'.encode("utf-8", "surrogatepass").decode("latin-1"),
    ]
    good = [{"id": f"g{i}", "job": {**GOOD, "task": {"seq_len": 512 * i}}} for i in range(1, 10)]
    mixed = [item for pair in zip(good, bad, strict=True) for item in pair]
    path.write_text(lines(*mixed, "", "   ", GOOD))
    out = ok("estimate", "--batch", str(path)).splitlines()
    answers = [json.loads(line) for line in out]
    assert len(answers) == 19
    assert [a["id"] for a in answers[0:18:2]] == [f"g{i}" for i in range(1, 10)]
    assert [a["line"] for a in answers[1:18:2]] == list(range(2, 19, 2))
    assert all(a["error"]["message"].isprintable() for a in answers[1:18:2])
    assert [a["id"] for a in answers[1:18:2]] == [None, None, None, "x", "y", None, 7, None, None]
    assert answers[-1]["verdict"] == "fits"
    peaks = [a["peak_bytes"]["reserved"] for a in answers[0:18:2]]
    assert peaks == sorted(peaks)


def test_batch_from_standard_input_equals_single_estimates():
    given = [{**GOOD, "task": {"seq_len": n}} for n in (512, 1024, 4096)] + [{**GOOD, "task": {"kind": "serve"}}]
    answers = [json.loads(line) for line in ok("estimate", "--batch", "-", "--full", stdin=lines(*given)).splitlines()]
    short = [json.loads(line) for line in ok("estimate", "--batch", "-", stdin=lines(*given)).splitlines()]
    for job, full, brief in zip(given, answers, short, strict=True):
        from memfit import estimate
        from memfit.report.json import dumps, result

        assert full == json.loads(dumps(result(estimate(job))))
        assert brief == {**full, "assumptions": [], "changes": []}


def test_a_line_without_end_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "jobs.jsonl"
    with path.open("wb") as file:
        file.write(b'{"x": "' + b"a" * (9 << 20) + b'"}\n')
        file.write(json.dumps({"id": "after", "job": GOOD}).encode())
    first, second = (json.loads(line) for line in ok("estimate", "--batch", str(path)).splitlines())
    assert "error" in first
    assert second["id"] == "after"


def test_batch_of_nothing():
    assert ok("estimate", "--batch", "-", stdin="\n\n") == ""


def test_batch_that_cannot_be_read(tmp_path):
    assert "cannot read" in refused("estimate", "--batch", str(tmp_path / "none"))
    assert "cannot read" in refused("estimate", "--batch", str(tmp_path))
    assert "cannot read" in refused("estimate", "--batch", "a\0b")


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["estimate"], "no model is given"),
        (["estimate", "llama-9-xyz"], "unknown model"),
        (["estimate", "llama-3.1-8bb"], "did you mean `llama-3.1-8b`"),
        (["estimate", "missing.toml"], "no such file"),
        (["estimate", "./missing"], "No such file"),
        (["estimate", "a\0b"], "error"),
        (["estimate", "x" * 5000], "error"),
        (["estimate", ""], "is empty"),
        (["estimat"], "did you mean `memfit estimate`"),
        (["xyz"], "commands: estimate"),
        (["--nope"], "unknown option `--nope`"),
        (["estimate", "x", "--zerro", "3"], "did you mean `--zero`"),
        (["estimate", "x", "--gradient-checkpointing", "full"], "memfit calls it `--checkpointing`"),
        (["estimate", "x", "--per_device_train_batch_size", "3"], "memfit calls it `--micro-batch`"),
        (["estimate", "--gpu"], "requires an argument"),
        (["estimate", "a", "b"], "unexpected extra argument"),
        (["estimate", "qwen3-8b", "--model", "qwen3-4b"], "given twice"),
        (["estimate", "qwen3-8b", "--gpu", "h1000000"], "unknown GPU"),
        (["estimate", "qwen3-8b", "--as", "none-such"], "unknown model family"),
        (["estimate", "qwen3-8b", "--config", "config.json"], "is not a table"),
        (["estimate", "qwen3-8b", "--batch", "x"], "from the file alone"),
        (["estimate", "--gpu", "h100", "--batch", "x"], "from the file alone"),
        (["estimate", "qwen3-8b", "--timeline", "--sweep", "seq=1"], "cannot be combined"),
        (["estimate", "qwen3-8b", "--full"], "--full goes with"),
        (["job", "--toml", "--yaml"], "one format"),
        (["job", "--stated"], "--stated goes with"),
        (["model"], "NAME|PATH is missing"),
        (["model", "none-such-xyz"], "unknown model"),
        (["models", "zzz"], "unknown model"),
        (["gpus", "zzz"], "unknown GPU"),
        (["diff", "qwen3-8b"], "is missing"),
        (["diff", "qwen3-8b", "none.toml"], "no such file"),
    ],
)
def test_refusals(words, says):
    text = " ".join(refused(*words, COLUMNS="140").split())
    assert says in text
    assert "\x1b" not in text
    assert "\0" not in text


def test_all_faults_at_once_under_the_flags_that_were_typed():
    text = refused("estimate", "qwen3-8b", "--zero", "7", "--seq", "8q", "--optim", "adamww", COLUMNS="140")
    assert [line.split(":")[1] for line in text.splitlines() if line.startswith("error")] == [
        " `--seq-len`", " `--zero`", " `--optimizer`",
    ]  # fmt: skip
    assert "  hint: did you mean `adamw`?" in text


def test_errors_as_json():
    result = run("estimate", "qwen3-8b", "--zero", "7", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 2
    assert document["schema_version"] == 1
    assert [e["path"] for e in document["error"]["errors"]] == ["strategy.zero"]
    assert result.stderr.startswith("error: `--zero`")
    assert json.loads(run("estimate", "--zerro", "--json").stdout)["error"]["code"] == "usage"


def test_a_bug_is_one_line_with_a_way_to_report_it(monkeypatch):
    def broken(*_args, **_fields):
        raise KeyError("kaputt")

    monkeypatch.setattr("memfit.formula.estimate.estimate", broken)
    text = refused("estimate", *FITS, code=70, COLUMNS="140")
    assert text.startswith(f"error: a bug in memfit {__version__}: KeyError at test_cli_commands.py:")
    assert "MEMFIT_DEBUG=1 shows the traceback" in text
    assert json.loads(run("estimate", *FITS, "--json").stdout)["error"]["code"] == "internal"
    result = run("estimate", *FITS, MEMFIT_DEBUG="1")
    assert isinstance(result.exception, KeyError)


def test_what_is_missing_exits_3(monkeypatch):
    from memfit.errors import MissingError

    def missing(*_args, **_fields):
        raise MissingError("torch is not installed", hint="pip install memfit[torch]")

    monkeypatch.setattr("memfit.formula.estimate.estimate", missing)
    assert "torch is not installed" in refused("estimate", *FITS, code=3)


def test_an_interrupt_is_quiet(monkeypatch):
    def interrupted(*_args, **_fields):
        raise KeyboardInterrupt

    monkeypatch.setattr("memfit.formula.estimate.estimate", interrupted)
    result = run("estimate", *FITS)
    assert (result.exit_code, result.stdout) == (130, "")


def test_a_full_disk_is_an_error(monkeypatch):
    class Full(io.StringIO):
        encoding = "utf-8"

        def write(self, _text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(SystemExit) as caught:
        app.main(["--version"])
    assert caught.value.code == 2


# ---- the other commands ----------------------------------------------------------------------------------------------


def test_job_tells_origins():
    rows = {row[0]: row[-1] for line in ok("job", *FITS).splitlines() if len(row := line.split()) > 1}
    assert (rows["zero"], rows["dp"], rows["tp"], rows["name"]) == ("stated", "derived", "default", "stated")
    assert "stated" in ok("job", *FITS, "-q")
    assert "default" not in ok("job", *FITS, "-q")
    assert "GPUs that one sharded copy spans" in " ".join(ok("job", *FITS, "-v", COLUMNS="140").split())


@pytest.mark.parametrize(
    "words",
    [
        FITS,
        ["llama-3.1-8b", "--method", "qlora", "--gpu", "rtx-4090", "--lora-targets", "q_proj,v_proj"],
        [
            "llama-3.1-70b",
            "--gpu",
            "64xh100",
            "--tp",
            "4",
            "--pp",
            "4",
            "--pp-schedule",
            "interleaved",
            "-f",
            "megatron",
        ],
        ["qwen3-8b", "-f", "vllm", "--gpu", "2xh100", "--context", "16k"],
        ["qwen3-8b", "-f", "deepspeed", "--gpu", "8xa100-80gb"],
        ["qwen3-8b", "--method", "freeze", "--gpu", "h100"],
        ["qwen3-8b"],
    ],
)
@pytest.mark.parametrize("fmt", ["toml", "yaml", "json"])
def test_a_written_job_is_the_job(tmp_path, words, fmt):
    """The document with every value stated means the same, and stating a default warns of nothing."""
    path = tmp_path / f"job.{fmt}"
    path.write_text(ok("job", *words, f"--{fmt}"))
    load(path)
    one, other = (json.loads(run("estimate", *source, "--json").stdout) for source in (words, [str(path)]))
    same = ("verdict", "peak_bytes", "band_bytes", "stages", "host_bytes")
    assert {k: one[k] for k in same} == {k: other[k] for k in same}
    assert set(other["warnings"]) <= set(one["warnings"])


def test_job_schema():
    document = json.loads(ok("job", "--schema"))
    assert document["title"] == "memfit job"


def test_models():
    assert "qwen3-30b-a3b" in ok("models", "qwen3")
    assert "llama" not in ok("models", "qwen3", "-q")
    document = json.loads(ok("models", "--json"))
    assert len(document["models"]) >= 120
    assert ok("models", "-q").split() == [row["name"] for row in document["models"]]


def test_model():
    text = ok("model", "deepseek-v3")
    assert "671,026,404,352" in text
    assert "70,272 bytes" in text
    document = json.loads(ok("model", "deepseek-v3", "--json"))
    assert document["kv_bytes_per_token"] == 61 * (512 + 64) * 2
    assert [kind["layers"] for kind in document["stacks"][0]["kinds"]] == [3, 58]
    assert ok("model", "deepseek-v3", "-q") == "671026404352\n"


def test_every_catalog_model_can_be_shown():
    from memfit.models import catalog, resolve
    from memfit.report.models import model_document, model_text
    from memfit.report.page import Page

    for name in catalog.names():
        arch, origin = resolve(name)
        text = model_text(Page(width=60), name, arch, origin, catalog.lookup(name))
        assert f"{arch.num_params:,}" in text
        json.dumps(model_document(name, arch, origin, catalog.lookup(name)))


def test_gpus():
    assert "h100-sxm-80gb" in ok("gpus", "h100")
    assert "rtx-4090" not in ok("gpus", "h100")
    document = json.loads(ok("gpus", "--json"))
    assert len(document["gpus"]) >= 60
    assert ok("gpus", "-q").split() == [row["name"] for row in document["gpus"]]
    assert "measured" in ok("gpus", "h100", "-v") or "nvidia" in ok("gpus", "h100", "-v").lower()


def test_diff():
    text = ok("diff", "qwen3-4b", "qwen3-8b", "--gpu", "h100", "--method", "lora")
    document = json.loads(ok("diff", "qwen3-4b", "qwen3-8b", "--gpu", "h100", "--method", "lora", "--json"))
    totals = [document[side]["peak_bytes"]["device"] for side in ("left", "right")]
    assert sum(d["delta_bytes"] for d in document["differences"]) == totals[1] - totals[0]
    assert f"{(totals[1] - totals[0]) / 2**30:+.2f}" in text
    assert text.startswith("A ")
    assert sum(c["delta_bytes"] for c in document["levers"]) == totals[1] - totals[0]
    assert [c["lever"] for c in document["levers"]] == ["model"]
    assert document["time"]["right"]["seconds"] > document["time"]["left"]["seconds"]
    assert ok("diff", "qwen3-4b", "qwen3-4b", "-q").startswith("0.00 GiB")
