"""`dropkit sites`: the table of a model that a factory makes, and every mistake in one line."""

import itertools
import re
import sys
from pathlib import Path

import pytest

from tests.helpers.command import call

_NAMES = (f"models_of_command_{number}" for number in itertools.count())
MODELS = """
import torch
from torch import nn


def network():
    return nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, 16)

    def forward(self, ids, mask=None, scale=1.0):
        assert ids.dtype == torch.int64 and 50 < ids.max() < 100
        assert mask is None or mask.dtype == torch.bool and mask.any() and not mask.all()
        return nn.functional.dropout(self.table(ids), 0.5) * scale


class Made:
    @staticmethod
    def one():
        return network()


def raises():
    raise ValueError("no such width")


def leaves():
    raise SystemExit(7)


def needs(width):
    return network()


ready = network()
number = 3
nothing = nn.Linear(16, 2)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory."""
    name = next(_NAMES)
    (tmp_path / f"{name}.py").write_text(MODELS)
    (tmp_path / f"{name}_broken.py").write_text("import no_such_package_at_all\n")
    (tmp_path / f"{name}_wrong.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def lines(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    assert call("sites", *arguments) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


@pytest.mark.parametrize("name", ["network", "Made.one", "ready"])
def test_the_table(models: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    head, row = lines(capsys, f"{models}:{name}", "--input", "4x16")
    assert head.split() == ["site", "kind", "p", "train", "eval", "calls", "shape", "shared", "where"]
    assert row.split()[:8] == ["1", "dropout", "0.3", "on", "off", "1", "4x16", "-"]
    assert lines(capsys, f"{models}:{name}", "--input", "4x16", "--eval") == ["none of 1 drops in evaluation mode"]


def test_a_model_without_dropout(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--eval"]):
        found = lines(capsys, f"{models}:nothing", "--input", "4x16", *more)
        assert found == ["no site: nothing in this model draws dropout"]


def test_what_drops_in_evaluation_is_told_of(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (f"{models}:Words", "--input", "8x32:int64:100", "--input", "mask=8x32:bool", "--input", "scale=scalar")
    plain = lines(capsys, *arguments)
    assert plain[1].split()[:5] == ["#0", "dropout", "0.5", "on", "ON"]
    where = plain[1].split()[-1]
    assert plain[2:] == ["", f"1 of 1 drops in evaluation mode too: #0 ({where}). Predictions are random then."]
    assert lines(capsys, *arguments, "--eval", code=1) == plain


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        ("{}:network", ["4x15"], r".* raised RuntimeError: .* It was given \(4, 15\) of torch\.float32: --input .*"),
        ("{}:network", [], r"The model's forward raised TypeError: .*'input'\. It was given no input: --input says .*"),
        ("{}:Words", ["8x32:int64:40"], r"The model's forward raised AssertionError \({}\.py:16\)\. It was given .*"),
        ("{}:raises", [], r"{}:raises\(\) raised ValueError \({}\.py:28\): no such width\."),
        ("{}:leaves", [], r"{}:leaves\(\) raised SystemExit \({}\.py:32\): 7\."),
        ("{}:needs", [], r"{}:needs needs arguments: width\. Give a function that makes the model without arguments\."),
        ("{}:number", [], r"{}:number must make a torch\.nn\.Module, got int\."),
        ("{}:networks", [], r"{} has no 'networks'\. Did you mean network\?"),
        ("{}:Made.two", [], r"{} has no 'Made\.two'\."),
        ("{}_broken:network", [], r"Importing {}_broken raised ModuleNotFoundError \({}_broken\.py:1\): No module .*"),
        ("{}_wrong:network", [], r"Importing {}_wrong raised ZeroDivisionError \({}_wrong\.py:1\): division by zero\."),
        ("no_such_module:network", [], r"There is no module 'no_such_module'\. Run this in the directory .*"),
        ("{}.part:network", [], r"(There is no module|Importing) .*{}.*"),
        ("{}", [], r"MODEL must be package\.module:factory, got '{}'\."),
        (":network", [], r"MODEL must be package\.module:factory, got ':network'\."),
        ("{}:network", ["4xx"], r"--input must be \[NAME=\]SHAPE.*, got '4xx'\."),
        ("{}:network", ["-4x3"], r"--input must be .*, got '-4x3'\."),
        ("{}:network", ["4x3:"], r"--input must be .*, got '4x3:'\."),
        ("{}:network", ["4:int65"], r"--input 4:int65: no type 'int65' is known\. Did you mean int64.*"),
        ("{}:network", ["4:zzz"], r"--input 4:zzz: no type 'zzz' is known\. Types are float32, .*bool\."),
        ("{}:network", ["4:float32:3"], r"--input 4:float32:3: only integers have a bound, and float32 are none\."),
        ("{}:network", ["4:uint8:257"], r"--input 4:uint8:257: BELOW must be in \[1, 256\] for uint8, got 257\."),
        ("{}:network", ["4:bool:0"], r"--input 4:bool:0: BELOW must be in \[1, 2\] for bool, got 0\."),
        ("{}:network", ["99999x99999x99"], r"--input 99999x99999x99: a tensor of at most 2\*\*32 elements, got .*"),
        ("{}:network", ["x=4", "x=5"], r"--input: each name is given once, got x, x\."),
    ],
)  # fmt: skip
def test_every_mistake_is_one_line(
    models: str, model: str, inputs: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [part for text in inputs for part in ("--input", text)]
    assert call("sites", model.replace("{}", models), *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"dropkit: {message}\n".replace("{}", models), err), err


def test_the_output_is_the_same_at_every_call(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (f"{models}:network", "--input", "4x16")
    assert lines(capsys, *arguments) == lines(capsys, *arguments)
