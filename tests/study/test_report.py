"""The report: one file that says everything and asks nothing of anyone."""

import html
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dropkit import study
from dropkit.errors import ArgumentError
from dropkit.study import Budget, Dataset
from dropkit.study.findings import Findings
from dropkit.study.methods import METHODS
from dropkit.study.pictures import PICTURES, Picture, svg
from dropkit.study.pictures.picture import colour
from dropkit.study.plan import Plan
from dropkit.study.report import report_html
from dropkit.study.result import Result
from dropkit.study.stability import stability
from dropkit.study.statements import statement_on_test_rows, statements
from dropkit.study.statistics import Interval
from dropkit.study.summary import Summary
from dropkit.study.table import headings, notes, table_rows, table_text
from dropkit.study.test_rows import OnTestRows


class Page(HTMLParser):
    """Collects what a browser would fetch, the ids, and whether every tag is closed."""

    VOID = frozenset({"meta", "path", "use", "rect", "circle", "line", "br", "image"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "action", "data", "srcset") and not str(value).startswith("#"):
                self.fetched.append(str(value))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


MEASURED = {"accuracy": 0.9, "auc": math.nan, "calibration_error": 0.02}


@pytest.fixture(scope="module")
def result(toy: Dataset, tiny: Budget, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return study.run(toy, budget=tiny, directory=tmp_path_factory.mktemp("runs") / "report")


def test_nothing_is_fetched_and_no_script_runs(result: Result) -> None:
    text = result.report.read_text(encoding="utf-8")
    page = Page(text)
    assert page.fetched == []
    assert page.open == []
    assert page.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "img", "base"})
    assert not re.search(r"@import|url\((?!#)|\son\w+=", text)
    assert len(page.ids) == len(set(page.ids))


def test_it_says_everything(result: Result) -> None:
    text = result.report.read_text(encoding="utf-8")
    assert result.verdict.sentence in text.replace("&gt;", ">").replace("&lt;", "<")
    assert text.index("advice") < text.index("<table")
    for part in (
        *headings(result.findings),
        "Nadeau and Bengio",
        "learning rate 0.001",
        "6-16-8-3",
        "Holm",
        *(p.title for p in PICTURES),
    ):
        assert part in text, part
    assert text.count("<svg") == len(PICTURES)


def test_pictures_are_the_same_every_time(result: Result) -> None:
    for picture in PICTURES:
        assert svg(picture, result.findings) == svg(picture, result.findings)


def test_text_from_data_is_escaped(toy: Dataset, tiny: Budget, tmp_path: Path) -> None:
    nasty = Dataset("toy", "<script>alert(1)</script>", toy.inputs, toy.targets, note="<img src=http://x>")
    found = study.run(nasty, budget=tiny, methods=["dropout"], rates=[0.5], directory=tmp_path / "nasty")
    page = Page(found.report.read_text(encoding="utf-8"))
    assert page.tags.isdisjoint({"script", "img"})


def test_a_notebook_shows_the_advice_and_a_row_a_method(result: Result) -> None:
    shown = result._repr_html_()
    page = Page(shown)
    assert page.open == []
    assert page.fetched == []
    assert "script" not in page.tags
    assert result.verdict.sentence in html.unescape(shown)
    assert shown.count("<tr") == 1 + len(result.findings.summary.plan.strengths)
    assert [cell for row in table_rows(result.findings) for cell in row] == [
        html.unescape(cell) for cell in re.findall("<td>(.*?)</td>", shown)
    ]
    assert all(caution in html.unescape(shown) for caution in result.cautions)
    assert str(result.report) in shown


def test_a_notebook_runs_nothing_from_data(made_up: Callable[..., Summary], plan: Plan) -> None:
    hostile = "<script>alert(1)</script>"
    same = dict.fromkeys(("none", "dropout", "weight_decay"), lambda strength, seed: 0.3 + 0.001 * seed)
    summary = made_up(same, plan=replace(plan, data={**plan.data, "title": hostile}))
    shown = Result(Path("<b>"), Findings(summary, stability(summary), ("<img src=x>",), (), {}))._repr_html_()
    page = Page(shown)
    assert page.tags.isdisjoint({"script", "img", "b"})
    for text in (hostile, "<img src=x>", "<b>/report.html"):
        assert text in html.unescape(shown)


@pytest.mark.parametrize("diverged", [("none",), ("dropout",), ("dropout", "weight_decay")])
def test_it_is_written_when_runs_diverged(made_up: Callable[..., Summary], diverged: tuple[str, ...]) -> None:
    early = dict.fromkeys(("none", "dropout", "weight_decay"), lambda strength, seed: 0.3 + 0.001 * seed)
    summary = made_up(early, diverged=lambda trial: trial.method in diverged)
    findings = Findings(summary, stability(summary), (), (), {})
    Page(report_html(findings))
    assert [cells[0] for cells in table_rows(findings)] == ["none", "dropout", "weight decay"]
    assert "diverged" in table_text(findings)


def test_numbers_to_predict_are_spoken_of_as_such(tiny: Budget, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(500, 4))
    data = Dataset("line", "Line", inputs, inputs[:, 0] + rng.normal(size=500), task="regression")
    found = study.run(data, budget=tiny, methods=["dropout"], rates=[0.2], directory=tmp_path / "line")
    text = found.report.read_text(encoding="utf-8")
    for part in ("squared error of the standardised target", "R\N{SUPERSCRIPT TWO}", "a number to predict", "4-16-8-1"):
        assert part in text, part
    assert "log loss" not in text
    assert "accuracy" not in text.lower()
    assert "at most the first 1,000 of its training rows" in text
    assert "squared error" in json.loads((found.directory / "plan.json").read_text())["primary"]
    heading = (found.directory / "results.csv").read_text().splitlines()[0]
    assert heading.endswith("last_training_loss,last_validation_loss,last_gap,last_rmse,last_r_squared")
    method = json.loads((found.directory / "results.json").read_text())["methods"]["dropout"]
    assert list(method["last"]) == ["training_loss", "validation_loss", "gap", "rmse", "r_squared"]


@pytest.mark.parametrize("width", [80, 92, 100, 114])
def test_the_table_fits_the_terminal(result: Result, width: int) -> None:
    text = table_text(result.findings, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "weight decay" in text


def test_the_test_rows_have_their_say(result: Result, made_up: Callable[..., Summary]) -> None:
    text = statement_on_test_rows(result.findings)
    for test in result.findings.test_rows:
        assert f"loss {test.loss:.3f} with" in text
        assert f"against {test.none_loss:.3f} without regularisation" in text
    assert text in result.report.read_text(encoding="utf-8")
    same = dict.fromkeys(("none", "dropout", "weight_decay"), lambda strength, seed: 0.3 + 0.001 * seed)
    summary = made_up(same)
    row = OnTestRows("dropout", 8, 0.3, 0.31, MEASURED, MEASURED, Interval(-0.01, -0.03, 0.01))
    text = statement_on_test_rows(Findings(summary, stability(summary), (), (row,), {}))
    assert "\N{MINUS SIGN}0.030 to +0.010, which includes no difference" in text
    assert statement_on_test_rows(Findings(summary, stability(summary), (), (), {})) == ""


def test_the_interval_on_test_rows_says_what_was_drawn(
    tiny: Budget, made_up: Callable[..., Summary], tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    data = Dataset("grouped", "Grouped", rng.normal(size=(500, 3)), rng.integers(0, 2, 500), groups=np.arange(500) // 5)
    found = study.run(data, budget=tiny, methods=["dropout"], rates=[0.5], directory=tmp_path / "grouped")
    (row,) = found.findings.test_rows
    assert 20 <= row.groups < 100
    assert f"95 % bootstrap interval over {row.groups} whole groups " in statement_on_test_rows(found.findings)
    assert row.difference.low <= row.difference.mean <= row.difference.high


def test_the_statements_name_every_comparison(made_up: Callable[..., Summary]) -> None:
    summary = made_up(
        {
            "none": lambda strength, seed: 0.3,
            "dropout": lambda strength, seed: 0.25 + 0.0001 * (-1) ** seed + 0.1 * (strength != 0.5),
            "weight_decay": lambda strength, seed: 0.35 + 0.0001 * (-1) ** seed + 0.1 * (strength != 1),
        }
    )
    _, stopping, dropout, decay, _, pace = statements(Findings(summary, stability(summary), (), (), {}))
    assert stopping.endswith(": early stopping alone lowers the loss by 0.080.")
    assert dropout.startswith("Dropout at p = 0.5, early-stopped, is better than early stopping alone: ")
    assert "(17 % lower)" in dropout
    assert "\N{MINUS SIGN}0.050 from no regularisation at the last epoch, and by +0.030 from no" in dropout
    assert decay.startswith("Weight decay at λ = 1, early-stopped, is worse than early stopping alone: +0.050")
    assert "dropout at p = 0.5 needed 1.0 times the epochs, and 8 of 8 seeds got there; weight decay" in pace


def test_of_many_methods_the_statements_list_those_that_matter(made_up: Callable[..., Summary], plan: Plan) -> None:
    names = [name for name, method in METHODS.items() if method.compared or name == "none"][:11]
    many = replace(plan, strengths={name: (METHODS[name].strengths[0],) for name in names})
    losses = dict.fromkeys(names, 0.3) | {"l1": 0.25}
    early = {name: lambda strength, seed, loss=loss: loss + 0.0001 * (-1) ** seed for name, loss in losses.items()}
    summary = made_up(early, plan=many)
    *_, pace, others = statements(Findings(summary, stability(summary), (), (), {}))
    assert pace.count("needed") == 2
    assert "dropout at p" in pace
    assert "L1 penalty at" in pace
    assert others.endswith("the pictures and results.json tell.")


@pytest.mark.parametrize(("last", "words"), [(0.0001, "changes next to nothing"), (-0.02, "raises the loss by 0.020")])
def test_what_early_stopping_is_worth_is_said_in_words(
    made_up: Callable[..., Summary], last: float, words: str
) -> None:
    early = dict.fromkeys(("none", "dropout", "weight_decay"), lambda strength, seed: 0.3)
    summary = made_up(early, last=last)
    assert f"early stopping alone {words}." in statements(Findings(summary, stability(summary), (), (), {}))[1]


def test_the_notes_fit_the_table_above_them(result: Result) -> None:
    assert "standard deviation" in notes(result.findings)[0]
    assert "standard deviation" not in notes(result.findings, 80)[0]
    assert "deviations and gaps: see the report" in notes(result.findings, 80)[0]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_can_be_plotted_by_name(result: Result, picture: Picture) -> None:
    plotted, drawn = result.plot(picture.name), picture.draw(result.findings)
    assert [panel.get_title("left") for panel in plotted.axes] == [panel.get_title() for panel in drawn.axes]
    assert not plotted.axes[0].spines["top"].get_visible()  # the report's look, which Matplotlib's own has not
    assert drawn.axes[0].spines["top"].get_visible()


@pytest.mark.parametrize("name", ["loss_against_rate", "gap_against_rate"])
def test_a_baseline_has_a_scale_of_its_own(
    made_up: Callable[..., Summary], plan: Plan, tmp_path: Path, name: str
) -> None:
    early = {
        "none": lambda strength, seed: 0.3,
        "dropout": lambda strength, seed: 0.3 + strength / 100,
        "linear": lambda strength, seed: 0.3 + 10 * strength,
    }
    grids = {"none": (0.0,), "dropout": (0.2, 0.5), "linear": (0.001, 0.1)}
    summary = made_up(early, plan=replace(plan, strengths=grids))
    drawn = Result(tmp_path, Findings(summary, stability(summary), (), (), {})).plot(name)
    dropout, linear = drawn.axes
    assert linear.get_title("left") == "linear model\n(own vertical scale)"
    assert dropout.get_ylim()[1] < 0.5 < 1 < linear.get_ylim()[1]


def test_methods_share_a_scale(result: Result) -> None:
    dropout, decay = result.plot("loss_against_rate").axes
    assert dropout.get_ylim() == decay.get_ylim()
    assert dropout.get_shared_y_axes().joined(dropout, decay)


def test_the_first_picture_is_plotted_by_default(result: Result) -> None:
    default, first = result.plot(), result.plot(PICTURES[0].name)
    assert [panel.get_xlabel() for panel in default.axes] == [panel.get_xlabel() for panel in first.axes]


@pytest.mark.parametrize("name", ["loss", "", 3, ["differences"]])
def test_an_unknown_picture_lists_the_known_ones(result: Result, name: object) -> None:
    with pytest.raises(ArgumentError, match=r"name.* one of 'differences', 'loss_against_rate'"):
        result.plot(name)


def test_nothing_is_plotted_where_nothing_was_confirmed(made_up: Callable[..., Summary], tmp_path: Path) -> None:
    early = dict.fromkeys(("none", "dropout", "weight_decay"), lambda strength, seed: 0.3)
    summary = made_up(early, diverged=lambda trial: trial.method == "none")
    with pytest.raises(ArgumentError, match="nothing to draw"):
        Result(tmp_path, Findings(summary, stability(summary), (), (), {})).plot()


def test_every_method_has_a_colour_of_its_own() -> None:
    assert len({colour(name) for name in METHODS}) == len(METHODS)
