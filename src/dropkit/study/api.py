"""The two doors of a study: `run` begins one, `resume` goes on with one."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from time import strftime
from typing import TYPE_CHECKING

from dropkit._checks import Choice, Integer, argument_type_error, require
from dropkit.errors import DataError, RunError
from dropkit.study.budgets import BUDGETS, Budget
from dropkit.study.dataset import Dataset
from dropkit.study.grids import check_methods, that_fit
from dropkit.study.loading import TableOptions, load, load_again
from dropkit.study.plan import make_plan
from dropkit.study.progress import Progress, ProgressCallback, Reporter
from dropkit.study.sizes import fitted, with_network
from dropkit.study.sources import SOURCES
from dropkit.study.splits import check_splits

if TYPE_CHECKING:
    from dropkit.study.own import Factory, OwnNetwork
    from dropkit.study.result import Result
    from dropkit.study.storage import RunFolder

__all__ = ["resume", "run", "run_directory"]

_SEED = Integer(0, 2**64 - 1, "[0, 2**64)")
_SEEDS = Integer(2, 1000, remedy="One seed shows no spread.")
_PACKAGES = (
    *("optuna", "sklearn", "scipy", "threadpoolctl", "polars", "safetensors", "matplotlib", "jinja2", "rich"),
    "filelock",
)


def run(
    data: str | Dataset = "mnist",
    *,
    budget: str | Budget = "quick",
    seed: int = 0,
    target: str | None = None,
    task: str | None = None,
    test_size: float | None = None,
    group: str | None = None,
    time: str | None = None,
    network: "Sequence[int] | Factory | None" = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    methods: Sequence[str] | None = None,
    rates: Sequence[float] | None = None,
    seeds: int | None = None,
    directory: str | PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
) -> "Result":
    """Ask of data whether dropout helps, at which rate, and against which alternative.

    The test rows are set aside first. Every method's strength is chosen on selection seeds; the winners are frozen and
    compared with no regularisation on fresh seeds, everything early-stopped on rows of its own.

    Args:
        data: ``"mnist"`` (5,000 images) or ``"churn"`` (7,043 customers), which come with dropkit; the path of a CSV or
            Parquet file; or a `Dataset` of your own. Default: ``"mnist"``.
        budget: ``"quick"`` (minutes), ``"standard"``, ``"thorough"`` (hours), or a `Budget` of your own. Default:
            ``"quick"``.
        seed: Of every split, first weight, shuffle and mask, in [0, 2**64). Default: 0.
        target: The column of a file to predict; a file needs it.
        task: ``"classification"`` or ``"regression"``, for a file. Default: what the target looks like.
        test_size: Share below 1, or number, of a file's rows to set aside first. Default: a fifth.
        group: A column of a file whose equal values stay on one side of every split. Default: none.
        time: A column of a file; later rows are predicted from earlier ones. Default: none.
        network: Widths of the hidden layers; or of all layers, if the first is the number of inputs or of a table's
            columns and the last that of outputs. Or a function of p that builds an untrained `torch.nn.Module` with
            dropout of probability p: inputs of shape (rows, 1, height, width) for images, else (rows, columns), or what
            `Dataset.from_loader`'s function gives; outputs (rows, classes), or (rows, 1) for numbers. Default: the
            widths of the budget or the data.
        epochs: The last epoch. Default: that of the budget or the data.
        batch_size: Rows a step. Default: that of the budget or the data.
        methods: Names of the methods to compare, of `METHODS`; none is always among them. Default: those of the budget.
        rates: The probabilities of dropping to try, each in (0, 1); every other method gets as many strengths, and no
            grid is widened. Default: those of the method.
        seeds: Fresh seeds that compare the frozen winners with none, from 2 to 1,000. Default: those of the budget.
        directory: The run directory to make. Default: ``runs/`` with the data's name and the time.
        progress: Called with a `Progress` after every epoch and every step that follows. Default: nothing is said.

    Returns:
        A `Result` with the verdict, the table, all trials and the path of the report.

    Raises:
        ArgumentError: If an argument has a value that is not accepted.
        ArgumentTypeError: If an argument has a type that is not accepted.
        DataError: If the data are unfit.
        RunError: If the directory is already there or cannot be made.
        MissingDependencyError: If a package of the extra ``study`` is not installed.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> from dropkit import study
        >>> noise = np.random.default_rng(0).normal(size=(400, 5))
        >>> toy = study.Dataset("toy", "Points", noise, (noise[:, 0] > 0).astype(int))
        >>> tiny = study.Budget("tiny", hidden=(8,), epochs=3, test_rows=100, train_rows=150, inner_rows=50,
        ...                     validation_rows=100, confirmation_seeds=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = study.run(toy, budget=tiny, methods=["dropout"], rates=[0.2, 0.5], directory=f"{folder}/toy")
        >>> len(result.trials), result.verdict.kind in ("helps", "tie", "nothing", "cannot tell")
        (12, True)

    References:
        Nadeau and Bengio (2003), "Inference for the generalization error".
    """
    size = _check_budget("run", budget)
    checked_seed = _SEED.check("run", "seed", seed)
    grids = check_methods("run", size, methods, rates)
    if rates is not None:
        size = replace(size, widens=False)  # the rates to try are settled, and no method gets more than another
    if seeds is not None:
        size = replace(size, confirmation_seeds=_SEEDS.check("run", "seeds", seeds))
    path = None if directory is None else _check_directory("run", directory)
    report_to = _check_progress("run", progress)
    _check_packages()
    loaded = load("run", data, TableOptions(target, task, test_size, group, time))
    if isinstance(budget, str):
        size = fitted(size, loaded)

    from dropkit.study.own import check_network, that_fit_network, widths_or_factory
    from dropkit.study.storage import RunFolder, check_new
    from dropkit.study.timing import fit_to_time

    widths, factory = widths_or_factory("run", network, loaded)
    size = with_network(size, loaded, widths, epochs, batch_size)
    if size.rows > loaded.rows:
        raise DataError(
            f"The budget {size.name!r} needs {size.rows} rows, the data set {loaded.name!r} has {loaded.rows}."
        )

    path = path or run_directory(loaded.name)
    check_new(path)  # before anything is measured
    grids = that_fit("run", grids, loaded, methods)
    check_splits(loaded, size, checked_seed)
    own = None
    if factory is not None:
        grids = that_fit_network("run", grids, methods)
        own = check_network("run", factory, loaded, size, grids)
        size = replace(size, pack_size=1)
    if own is not None or not (isinstance(data, str) and data in SOURCES):
        size, grids = fit_to_time(
            loaded, size, checked_seed, grids, own, keep_epochs=epochs is not None, keep_methods=methods is not None
        )
    plan = make_plan(loaded, size, checked_seed, grids, own.described() if own else None)
    with RunFolder.create(path, plan) as folder:
        for column, words in loaded.description:
            report_to(Progress("data", 0, 1, f"{column}: {words}"))
        report_to(Progress("data", 0, 1, f"network: {plan.architecture}"))
        if plan.budget.fitted:
            report_to(Progress("data", 0, 1, f"time: {plan.budget.fitted}"))
        return _finish(folder, loaded, report_to, own)


def resume(
    directory: str | PathLike[str],
    *,
    data: Dataset | None = None,
    network: "Factory | None" = None,
    progress: ProgressCallback | None = None,
) -> "Result":
    """Go on with a study that was stopped; the results are those of an undisturbed run.

    Packs of models that have trained are not trained again. Everything else is in the run's plan.

    Args:
        directory: The run directory.
        data: The same `Dataset` as at the start, if it was one of your own. Default: the plan's source by its name.
        network: The same function as at the start, if the network was one of your own. Default: the study's network.
        progress: Called with a `Progress` after every epoch and every step that follows. Default: nothing is said.

    Returns:
        A `Result`, as `run` gives it.

    Raises:
        ArgumentError: If the network is not the one of the plan.
        ArgumentTypeError: If an argument has a type that is not accepted.
        DataError: If the data are not those of the plan.
        RunError: If the directory is no run, is damaged, or another process is at it.

    Examples:
        >>> from dropkit import study
        >>> study.resume("runs/forgotten")
        Traceback (most recent call last):
            ...
        dropkit.errors.RunError: runs/forgotten is no run of a study: runs/forgotten/plan.json cannot be read. ...
    """
    path = _check_directory("resume", directory)
    report_to = _check_progress("resume", progress)
    if data is not None and not isinstance(data, Dataset):
        raise argument_type_error("resume", "data", "a Dataset, or None for an embedded source", data)
    _check_packages()

    from dropkit.study.own import same_network
    from dropkit.study.storage import RunFolder, read_plan

    loaded = data if data is not None else load_again(read_plan(path), path)
    with RunFolder.open(path) as folder:
        if loaded.digest() != folder.plan.data["sha256"]:
            raise DataError(f"The data set {loaded.name!r} differs from the one that {path} began with. Give that one.")
        return _finish(folder, loaded, report_to, same_network("resume", network, folder.plan, loaded, path))


def run_directory(data_name: str, parent: Path = Path("runs")) -> Path:
    """Return a directory that is not there yet, named after the data and the time."""
    stem = f"{data_name[:50]}-{strftime('%Y%m%d-%H%M%S')}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 1000)))
    return next(parent / name for name in names if not (parent / name).exists())


def _finish(folder: "RunFolder", data: Dataset, progress: ProgressCallback, network: "OwnNetwork | None") -> "Result":
    from dropkit.study.engine import train_all
    from dropkit.study.findings import find
    from dropkit.study.output import write_files
    from dropkit.study.report import write_report
    from dropkit.study.result import Result
    from dropkit.study.saving import save_models

    reporter = Reporter(folder.plan, progress)
    try:
        train_all(folder, data, reporter, network)
        reporter.enter("measuring")
        findings = find(folder, data, network, reporter.step)
        reporter.enter("writing")
        save_models(folder, data, findings, network)
        write_files(folder.path, findings)
        write_report(folder.path / "report.html", findings)
        reporter.step()
    except DataError as error:  # of a function that loads the rows: all else was checked before
        remedy = f"Nothing that has trained is lost: correct it, then call study.resume({str(folder.path)!r}, ...)."
        raise DataError(f"{error} {remedy}") from error.__cause__
    except OSError as error:
        remedy = f"Nothing that has trained is lost: make room, then go on with --resume {folder.path}"
        raise RunError(f"{folder.path} cannot be written: {error.strerror or error}. {remedy}") from None
    return Result(folder.path, findings)


def _check_packages() -> None:
    for package in _PACKAGES:
        require(package, "study", "A study")


def _check_budget(where: str, budget: object) -> Budget:
    return budget if isinstance(budget, Budget) else BUDGETS[Choice(tuple(BUDGETS)).check(where, "budget", budget)]


def _check_directory(where: str, directory: object) -> Path:
    if not isinstance(directory, str | PathLike) or not str(directory):
        raise argument_type_error(where, "directory", "a path", directory)
    return Path(directory)


def _check_progress(where: str, progress: object) -> ProgressCallback:
    if progress is None:
        return _say_nothing
    if not callable(progress):
        raise argument_type_error(where, "progress", "a function of one Progress", progress)
    return progress


def _say_nothing(_: Progress) -> None:
    pass
