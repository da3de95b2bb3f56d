"""The hooks without torch: they load before the script, leave the user's own customisation alone, and do no harm."""

import json
import os
import struct
import subprocess
import sys

from memfit.mirage.run.hook.memfit_hook import data, libraries, place, weights
from memfit.mirage.run.hook.memfit_hook.settings import SETTINGS
from memfit.mirage.run.options import HOOK


def python(code, *paths, **more):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HOOK, *paths))), **more}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)


def test_the_users_own_sitecustomize_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('mine')\n")
    for folder in ("", str(tmp_path)):
        done = python("print('script')", tmp_path, MEMFIT_DRYRUN_FOLDER=folder)
        assert done.stdout.split() == ["mine", "script"]


def test_a_script_without_torch_leaves_nothing(tmp_path):
    done = python("import json, decimal", MEMFIT_DRYRUN_FOLDER=str(tmp_path))
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == ("", "", [])


def test_imports_are_told_once_and_modules_stay_as_they_are(tmp_path):
    (tmp_path / "thing.py").write_text("value = 1\n")
    code = """
from memfit_hook import when
when.imported("thing", lambda module: print("told", module.value))
import thing, importlib
assert thing.__spec__.loader is thing.__loader__ and type(thing.__loader__).__name__ == "SourceFileLoader"
importlib.reload(thing)
"""
    assert python(code, tmp_path, MEMFIT_DRYRUN_FOLDER=str(tmp_path)).stdout == "told 1\n"


def test_a_torch_that_cannot_be_used_is_refused(tmp_path):
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text(
        "class cuda:\n    class memory: pass\n__version__ = '2.5.0'\n"
        "isfinite = where = 0\nclass Tensor: nonzero = 0\nclass compiler: is_compiling = 0\n"
    )
    python("import torch", tmp_path, MEMFIT_DRYRUN_FOLDER=str(tmp_path))
    (left,) = tmp_path.glob("*.run.json")
    assert "torch 2.5.0 cannot say" in json.loads(left.read_text())["refused"]


def test_paths_are_told_without_wrappers():
    assert place.clean_path("module._fsdp_wrapped_module.model.layers.0") == "model.layers.0"
    assert place.clean_path("base_model.model.model.layers.0.q_proj") == "model.layers.0.q_proj"
    assert place.clean_path("_orig_mod") == ""


def test_experts_share_the_tokens(monkeypatch):
    loop = libraries._Loop(1, 8)
    assert [libraries.share_of(loop, 800) for _ in range(8)] == [100] * 8
    monkeypatch.setattr(SETTINGS, "moe_imbalance", 1.5)
    loop = libraries._Loop(1, 8)
    assert [libraries.share_of(loop, 800) for _ in range(3)] == [150, 92, 92]


def test_sparse_weights_are_a_safetensors_file_without_data(tmp_path):
    path = tmp_path / "model.safetensors"
    weights.write_sparse(path, {"a": ("bfloat16", (1 << 15, 1 << 15)), "b": ("float32", ())})
    assert path.stat().st_blocks * 512 < 1 << 20
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    assert header["a"] == {"dtype": "BF16", "shape": [1 << 15, 1 << 15], "data_offsets": [0, 2 << 30]}
    assert header["b"]["data_offsets"] == [2 << 30, (2 << 30) + 4]
    assert path.stat().st_size % 8 == 4


def test_a_made_up_repository_has_configuration_and_tokenizer(tmp_path):
    weights.write_repository(tmp_path, {"model_type": "llama", "torch_dtype": "float16"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["dtype"], config["eos_token_id"]) == ("float16", 2)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert all(word in vocabulary for word in data.row("text")["text"].split()[:2000])


def test_made_up_rows_are_of_the_kind_asked_for():
    assert set(data.row("text")) == {"text"}
    assert data.row("chat")["messages"][1]["role"] == "assistant"
    assert set(data.row("prompt")) == {"prompt", "completion"}
    assert len(data.row("tokens")["input_ids"]) == data.WORDS
