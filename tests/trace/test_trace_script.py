"""A user's script under the tracer is the same program as its step traced from Python."""

import pytest

from memfit.errors import MemfitError

pytestmark = pytest.mark.slow
pytest.importorskip("torch")

MODEL = """
import argparse, torch
parser = argparse.ArgumentParser()
parser.add_argument("--rows", type=int, default=64)
rows = parser.parse_args().rows
model = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256)).cuda()
optimizer = torch.optim.AdamW(model.parameters())
"""
LOOP = (
    MODEL
    + """
for index in range(1000):
    x = torch.zeros(rows, 256, device="cuda")
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    del x
    print(index, loss.item())
"""
)
LOADER = (
    MODEL
    + """
data = torch.utils.data.TensorDataset(torch.randint(0, 9, (4096, 256)))
for (x,) in torch.utils.data.DataLoader(data, batch_size=rows, shuffle=True):
    model(x.cuda().float()).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
)


def traced(tmp_path, text, *arguments, **options):
    from memfit.trace.script import trace_script

    path = tmp_path / "train.py"
    path.write_text(text)
    return trace_script(path, arguments, **options)


def test_a_script_peaks_where_its_step_does(tmp_path, capsys):
    import torch

    from memfit.trace import trace

    found = traced(tmp_path, LOOP, "--rows", "512", steps=3)
    assert found.steps == 3
    assert {e.step for e in found.events} == {-1, 0, 1, 2}
    assert not capsys.readouterr().out
    model = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256))
    optimizer = torch.optim.AdamW(model.parameters())

    def step(model, optimizer):
        x = torch.zeros(512, 256, device="cuda")
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    alone = trace(step, model, optimizer, engine="fake-cuda")
    assert found.steady_peak == pytest.approx(alone.steady_peak, rel=0.001)


def test_more_rows_take_more(tmp_path):
    few, many = (traced(tmp_path, LOOP, "--rows", str(n)).steady_peak for n in (512, 1024))
    activations = 512 * 4 * (256 + 2 * 1024 + 256)
    assert many - few >= activations


def test_a_loader_of_integers_has_its_values(tmp_path):
    assert traced(tmp_path, LOADER).steps == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MODEL, "no optimizer step"),
        ("raise ValueError('no data')", "ValueError: no data"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import torch; torch.zeros(3).numpy()", "stops with RuntimeError"),
    ],
)
def test_what_does_not_run_is_said_in_one_sentence(tmp_path, text, said):
    with pytest.raises(MemfitError, match=said):
        traced(tmp_path, text)


def test_a_missing_script_is_an_error(tmp_path):
    from memfit.trace.script import trace_script

    with pytest.raises(MemfitError, match="no script"):
        trace_script(tmp_path / "none.py")
