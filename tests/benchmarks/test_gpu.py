"""The benchmark of GPUs runs to its end without one, on tiny tensors, and says what it cannot do."""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("triton")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TABLES = {  # of each row, in what order they are printed
    "masks": [
        "torch.bfloat16: GPU = CPU = NumPy",
        "torch.float32: GPU",
        "torch.float16: GPU = CPU = NumPy, eager, bit",
        "forward and backward",
    ],
    "copy": ["torch.bfloat16", "share of a copy's bandwidth", "torch.float32", "share of a copy's bandwidth"],
    "backward": [
        *("torch.bfloat16", "x faster than eager", "x faster than compiled", "bytes an element kept"),
        *("torch.float32", "x faster than eager", "x faster than compiled", "bytes an element kept"),
    ],
    "norm": [
        *("results and masks", "dropout + residual + LayerNorm", "x faster than eager", "x faster than compiled"),
        *("bytes an element kept", "the same, with the sum", "RMSNorm", "bias + GELU + dropout"),
        *("bytes an element kept", "dropout + residual,", "dropout + residual + LayerNorm", "bytes an element kept"),
        *("dropout + residual + LayerNorm", "bytes an element kept"),
    ],
    "small": ["in a CUDA graph", "dropkit: x as fast as eager", "dropkit, a key given: x as fast as eager"],
    "attention": [
        "attention masks",
        *[
            line
            for tokens, causal in (("2 x 16", ""), ("2 x 16", ", causal"), ("1 x 48", ""), ("1 x 48", ", causal"))
            for width in (64, 128)
            for line in (
                f"{tokens} tokens, 1 heads {width} wide, p = 0.1{causal}",
                *(f"{form}: x the speed" for form in ("regenerating", "regenerating", "bits", "bits")),
                *(f"{form}: bytes a row of" for form in ("regenerating", "bits")),
            )
        ],
    ],
    "fusion": ["compiled GELU", "x faster than PyTorch compiled", "x faster by bits", "bytes an element", "bytes an"],
    "memory": ["a training step of 2 blocks", "MiB at most", "MiB at most", "of PyTorch's peak memory"],
}


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "DROPKIT_KERNEL"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *sys.path])}
    return subprocess.run([sys.executable, *arguments], check=False, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [("copy", "small", "memory"), pytest.param((), marks=pytest.mark.exhaustive)],
    ids=["quick rows", "all rows"],
)
def test_every_row_runs_to_its_end_without_a_gpu(rows: tuple[str, ...]) -> None:
    result = start(str(BENCHMARKS / "gpu.py"), "--rehearse", *rows)
    assert result.returncode == 0, result.stdout + result.stderr
    said = result.stdout
    assert said.splitlines()[0].startswith("A REHEARSAL on the CPU")
    assert "not judged" in said
    assert not {"met", "MISSED", "FAILED"} & set(said.split())
    assert said.splitlines()[-1].endswith("rows that failed: none")
    at = 0
    for name in rows or TABLES:
        for line in (*TABLES[name], f"  ({name}: "):
            assert line in said[at:], f"{name}: {line!r} is missing after\n{said[:at]}"
            at = said.index(line, at) + len(line)


def test_rows_are_those_of_the_table() -> None:
    assert list(script("gpu").ROWS) == list(TABLES)


@pytest.mark.slow
def test_a_row_that_fails_or_hangs_is_ended() -> None:
    program = "import gpu; print(gpu.ran('no row', 1, 300)); print(gpu.ran('copy', 1, 0.01))"
    result = start("-c", program, "--rehearse")
    assert result.stdout.splitlines() == ["exit status 1", "it took longer than 0.01 s"]
    assert "KeyError: 'no row'" in result.stderr


@pytest.mark.slow
def test_an_interrupt_ends_it_with_a_line_and_the_row_that_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse", "copy"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *sys.path])}
    with (
        (tmp_path / "errors").open("w+") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("torch.bfloat16"):  # the row runs
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        errors.seek(0)
        assert errors.read().splitlines()[-1:] == ["interrupted"]


def test_other_rows_run_after_one_that_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, asked = script("gpu"), []

    def ran(name: str, rounds: int, limit: float) -> str:
        asked.append((name, rounds))
        assert limit == 0.4 * 3000
        return "exit status 1" if name == "norm" else ""

    monkeypatch.setattr(module, "ran", ran)
    monkeypatch.setattr(module, "HERE", script("gpu_rehearsal").Rehearsal())
    monkeypatch.setattr("sys.argv", ["gpu.py", "norm", "copy", "norm", "--rounds", "3"])
    assert module.main() == 1
    assert asked == [("norm", 3), ("copy", 3)]
    said = capsys.readouterr().out
    assert "FAILED: exit status 1" in said
    assert "not run" not in said
    assert said.splitlines()[-1].endswith("rows that failed: norm")


def test_rows_that_the_budget_leaves_no_time_for_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, limits, now = script("gpu"), [], [1000.0]

    def ran(name: str, rounds: int, limit: float) -> str:
        limits.append(limit)
        now[0] += limit
        return ""

    monkeypatch.setattr(module, "ran", ran)
    monkeypatch.setattr(module, "HERE", script("gpu_rehearsal").Rehearsal())
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("sys.argv", ["gpu.py", "masks", "copy", "norm", "small", "memory", "--budget", "100"])
    assert module.main() == 1
    assert limits == [40, 40, 20]
    *_, missing, last = capsys.readouterr().out.splitlines()
    assert missing == "rows that were not run, for 100 s had passed (--budget): small, memory"
    assert last == "100 s in all; rows that failed: none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["copy", "bakward", "norms"], "unknown rows bakward, norms; known are masks, copy, backward"),
        (["--rounds", "0"], "--rounds must be 1 or more, got 0"),
        (["--rounds", "-3"], "--rounds must be 1 or more, got -3"),
        (["--budget", "0"], "--budget must be 1 or more, got 0"),
        (["--rounds", "1.5"], "invalid int value: '1.5'"),
        (["--reh"], "unrecognized arguments: --reh"),
        ([], "it needs a CUDA device, and there is none (--rehearse runs every row on the CPU"),
    ],
)
def test_what_is_not_taken_is_an_error_of_the_command_line(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py", *options])
    with pytest.raises(SystemExit) as ended:
        script("gpu").main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_without_triton_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(script("gpu_machine"), "find_spec", lambda _: None)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(SystemExit):
        script("gpu").main()
    assert "it needs Triton (pip install triton)" in capsys.readouterr().err


def test_a_bar_is_judged_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = script("gpu_timing")
    for machine in (script("gpu_machine").Machine(), script("gpu_rehearsal").Rehearsal()):
        monkeypatch.setattr(module, "HERE", machine)
        for value, rule in ((1.1, ">="), (0.9, ">="), (1.1, "<="), (float("nan"), "<=")):
            module.verdict("row", value, rule, 1.0)
        module.verdict("no bar", 1.1, ">=", None)
    *judged, no_bar = [line.split("1.0")[-1].split() for line in capsys.readouterr().out.splitlines()][:5]
    assert judged == [["met"], ["MISSED"], ["MISSED"], ["MISSED"]]
    assert no_bar == ["no", "bar", "1.100"]
