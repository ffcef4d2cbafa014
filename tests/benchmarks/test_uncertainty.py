"""The scripts that measure Monte Carlo dropout say what they cannot measure, and what they do not take."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        yield


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("milliseconds", [None, 2900.0, 3100.0])
def test_the_fastest_peer_is_compared_with_where_one_is_installed(
    milliseconds: float | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours takes 200 ms, and the bar is 15."""
    module = script("uncertainty")
    others: dict[str, Any] = {} if milliseconds is None else {"baal, repeated": None, "baal, loop": None}
    times = {"baal, repeated": 9000.0, "baal, loop": milliseconds}
    monkeypatch.setattr(module, "peers", lambda _: others)
    ours = {"one forward": 150.0, "dropkit": 200.0}
    monkeypatch.setattr(
        module, "timed", lambda sides, *_: {name: [ours.get(name) or times.get(name, 1.0)] * 3 for name in sides}
    )
    module.cnn(1)
    [line] = [line for line in capsys.readouterr().out.splitlines() if "fastest peer" in line]
    assert (
        line.split("peer", 1)[1].split()
        == {
            None: ["not", "measured:", "neither", "baal", "nor", "torch-uncertainty", "is", "installed"],
            2900.0: ["14.50", "bar", ">=", "15", "MISSED"],
            3100.0: ["15.50", "bar", ">=", "15", "met"],
        }[milliseconds]
    )


def test_a_ratio_is_of_sides_that_were_timed_together() -> None:
    """The second round was twice as slow for both, and the third met a pause."""
    times = {"ours": [1.0, 2.0, 1.0], "theirs": [3.0, 6.0, 9.0]}
    assert script("uncertainty").ratio(times, "theirs", "ours") == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("uncertainty", ["--rounds", "0"], "--rounds must be 1 or more, got 0"),
        ("uncertainty", ["--rounds", "-1"], "--rounds must be 1 or more, got -1"),
        ("uncertainty", ["--threads", "0"], "--threads must be 1 or more, got 0"),
        ("uncertainty", ["bret"], "unknown rows bret; known are cnn"),
        ("moments", ["--sets", "bostn"], "invalid choice: 'bostn' (choose from"),
    ],
)
def test_what_is_not_taken_is_an_error_of_the_command_line(
    name: str,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", [f"{name}.py", *options])
    with pytest.raises(SystemExit) as ended:
        script(name).main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
