"""`dropkit variants`: all rows of the registry, one in full, and the nearest name for a wrong one."""

import subprocess
import sys

import pytest

from dropkit.cli.formulas import plain
from dropkit.nn.variants import VARIANTS
from tests.helpers.command import call

# By family, each by name.
IN_ORDER = [
    name
    for family in ("activations", "sequences", "weights", "paths", "attention", "learned")
    for name in sorted(name for name, row in VARIANTS.items() if row.family == family)
]
NAMES = [*VARIANTS, *(alias for row in VARIANTS.values() for alias in row.aliases)]


def joined(text: str) -> str:
    return " ".join(text.split())


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert call("variants", *arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_table_has_every_row_and_fits_120_columns(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys)
    assert max(map(len, out.splitlines())) <= 120
    names = [line.split()[0] for line in out.splitlines()[3:] if line[:2].strip()]
    assert names == IN_ORDER
    for row in VARIANTS.values():
        assert all(
            word in out for word in (*row.use.split(), *row.citation.split(), row.facts.get("typical rates", "-")[:4])
        )


@pytest.mark.parametrize("columns", [30, 80, 99])
def test_a_narrow_terminal_gets_a_list(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": str(columns)}.items():
        monkeypatch.setenv(name, value)
    lines = printed(capsys).replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert max(map(len, lines)) <= columns
    assert [line for line in lines if not line.startswith(" ")] == IN_ORDER
    for row in VARIANTS.values():
        assert joined(row.use) in joined(" ".join(lines))
        assert row.citation in joined(" ".join(lines))


@pytest.mark.parametrize("name", NAMES)
def test_one_is_printed_in_full(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = next(row for row in VARIANTS.values() if name in (row.name, *row.aliases))
    out = printed(capsys, name)
    assert out.startswith(f"dropkit.nn.{row.name}")
    assert all(f"dropkit.nn.{alias}" in out for alias in row.aliases)
    assert joined(row.summary) in joined(out)
    assert joined(plain(row.formula)) in joined(out)
    assert not set("\\{}$&") & set(out)
    words = set(out.split())
    for heading, text in row.facts.items():
        assert heading in out
        assert set(text.split()) <= words
    assert printed(capsys, name.upper()) == out


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"y = \frac{z \odot x}{1 - p}, \quad z \sim \mathrm{U}(0)", "y = z * x / (1 - p), z ~ U(0)"),
        (r"A = \mathrm{softmax}\left(\frac{Q K^T}{\sqrt{d}}\right)", "A = softmax(Q K^T / sqrt(d))"),
        (r"y_n = x_n + \frac{z_n}{1 - p} f(x_n)", "y_n = x_n + (z_n / (1 - p)) f(x_n)"),
        (r"\ln \frac{u - 1}{v}^{-1/2}, \alpha_{ij}", "ln ((u - 1) / v)^(-1/2), alpha_ij"),
        (
            "\\begin{aligned}\n\\tilde c_t &= h_{t-1} \\\\\nz &= \\text{ if } 1\n\\end{aligned}",
            "c'_t = h_(t-1)\nz = if 1",
        ),
    ],
)
def test_formulas_are_written_in_plain_text(latex: str, text: str) -> None:
    assert plain(latex) == text


def test_what_a_row_of_the_command_says_of_dropout(capsys: pytest.CaptureFixture[str]) -> None:
    out = joined(printed(capsys, "Dropout"))
    assert VARIANTS["Dropout"].citation == "Srivastava et al. (2014)"
    assert "what is dropped becomes 0 at p = 1 zeros in evaluation identity" in out
    assert "call Dropout(p=0.5, inplace=False, *, broadcast_dims=(), generator=None, scale_at='train')" in out
    assert out.endswith("function dropkit.functional.dropout")


@pytest.mark.parametrize(
    ("name", "advice"),
    [("Droput", "Did you mean Dropout"), ("zzzz", "`dropkit variants` lists them."), ("", "`dropkit variants` lists")],
)
def test_a_wrong_name_is_answered_with_the_nearest(name: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("variants", name) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"dropkit: There is no variant {name!r}. {advice}")


@pytest.mark.slow
def test_the_command_starts_apart_from_the_study_and_is_plain_in_a_pipe() -> None:
    """It loads no package of the extra beside those that the command line itself has."""
    code = (
        "import sys\nfrom dropkit.cli import main\nsys.argv = ['dropkit', 'variants']\n"
        "try:\n    main()\nfinally:\n    print(*sorted({'optuna', 'sklearn', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert b"\x1b" not in done.stdout
    assert done.stdout.decode().splitlines()[-1] == ""
