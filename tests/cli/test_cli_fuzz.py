"""Whatever is typed, the program answers or says what is wrong: it never breaks."""

import json

from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memfit.cli.app import COMMANDS, app
from memfit.job import FIELDS

PLAIN = {"COLUMNS": "80", "NO_COLOR": "1", "FORCE_COLOR": None, "MEMFIT_DEBUG": None}
WORDS = st.sampled_from(
    [
        "estimate", "job", "model", "models", "gpus", "diff", "llama-3.2-1b", "qwen3-0.6b", "mamba-130m",
        "bert-base", "--json", "-q", "-v", "--timeline", "--sweep", "seq=1k..4k", "zero=0,3", "--full", "--as",
        "llama", "--gpu",
        "h100", "8xh100", "rtx-4090", "--zero", "3", "0", "-1", "1e9", "--seq", "8k", "1m", "--method", "lora", "qlora",
        "freeze", "--kind", "serve", "--context", "-b", "2", "--tp", "--pp", "4", "--compile", "--offload", "optimizer",
        "--weights", "nf4", "--memory-gib", "24", "--toml", "--", "-", "", "=", "..", "\x1b[31m", "模型", "--lora",
        "16", "--config", "{}", '{"model_type": "llama"}', "--checkpointing", "full",
    ]
)  # fmt: skip
ODD = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


def check(words, stdin=None):
    result = CliRunner().invoke(app, words, env=PLAIN, input=stdin)
    assert result.exit_code in (0, 1, 2, 3), (words, result.output)
    assert "Traceback" not in result.output
    if result.exit_code >= 2:
        assert result.stderr.startswith("error: ")
    return result


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(COMMANDS)), st.lists(st.one_of(WORDS, WORDS, WORDS, ODD), max_size=8))
def test_any_words(command, words):
    result = check([command, *words], stdin="")
    if "--json" in words and "--" not in words and "--help" not in words and result.stdout:
        json.loads(result.stdout)


NUMBERS = st.sampled_from(["1", "2", "4", "8", "512", "4k"])


def typed(spec):
    """The flag of a field with a value that it may take."""
    if spec.type == "bool":
        return st.sampled_from([[spec.flags[0]], [spec.flags[0].replace("--", "--no-", 1)]])
    values = st.sampled_from(spec.choices) if spec.choices else NUMBERS
    return values.map(lambda value: [spec.flags[0], value])


SETTINGS = st.one_of([typed(spec) for spec in FIELDS if spec.section in ("task", "strategy", "hardware", "task.lora")])
MODELS = st.sampled_from(["llama-3.2-1b", "qwen3-30b-a3b", "deepseek-v3", "mamba2-2.7b", "t5-small", "gemma-3-4b"])


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(MODELS, st.lists(SETTINGS, max_size=8), st.sampled_from([[], ["--json"], ["--timeline"], ["-v"]]))
def test_any_settings(model, settings_, output):
    words = [word for words in settings_ for word in words]
    check(["estimate", model, "--memory-gib", "80", *words, *output])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.binary(max_size=40), st.recursive(st.none() | st.booleans() | st.integers() | ODD,
       lambda inner: st.dictionaries(st.sampled_from(["job", "id", "model", "task", "name", "seq_len", "gpu"]), inner)
       | st.lists(inner, max_size=3), max_leaves=6).map(lambda v: json.dumps(v).encode())), max_size=4))  # fmt: skip
def test_any_lines(lines):
    stdin = b"".join(line.replace(b"\n", b" ") + b"\n" for line in lines)
    result = check(["estimate", "--batch", "-"], stdin=stdin)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == sum(1 for line in stdin.split(b"\n") if line.strip())
    assert all("error" in a or "verdict" in a for a in answers)
