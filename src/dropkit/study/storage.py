"""The run directory: the frozen plan, a journal of finished trials, and the models of the confirmation.

Trials live in an Optuna study with journal storage. A trial is added when it is complete, so a kill leaves none half
done; a pack counts as trained when the mark behind its last trial is there. The pack in training has a checkpoint, so a
kill loses one epoch at most.
"""

import io
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from dropkit.errors import RunError
from dropkit.study._atomic import write_atomic
from dropkit.study.checkpoint import Checkpoint
from dropkit.study.methods import METHODS
from dropkit.study.packed import Training
from dropkit.study.plan import Pack, Plan, plan_from_json
from dropkit.study.records import CONFIRMATION, Record, Trial, curves

__all__ = ["RunFolder", "check_new", "described_methods", "method_path", "read_models", "read_plan"]

_PLAN, _JOURNAL, _MODELS = "plan.json", "journal.log", "models"
_CHECKPOINT = "checkpoint.safetensors"


def read_plan(path: Path) -> Plan:
    """Read the plan of a run.

    Raises:
        RunError: If the directory is no run, or its plan is damaged.
    """
    try:
        text = (path / _PLAN).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise RunError(
            f"{path} is no run of a study: {path / _PLAN} cannot be read. Name a directory in runs/."
        ) from None
    return plan_from_json(text, str(path / _PLAN))


def check_new(path: Path) -> None:
    """Check that nothing is at the path of a new run.

    Raises:
        RunError: If something is there, or nothing can be.
    """
    try:
        is_there = path.exists()
    except OSError as error:
        raise _cannot_be_made(path, error) from None
    if is_there:
        raise RunError(f"{path} is already there. Choose another name, or go on with it: --resume {path}")


def _cannot_be_made(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} cannot be made: {error.strerror or error}. Choose another place.")


class RunFolder:
    """A run directory, held by one process at a time.

    Use `RunFolder.create` or `RunFolder.open` as a context manager; leaving it lets the directory go.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        from filelock import FileLock, Timeout

        self.path, self.plan = path, plan
        self._lock = FileLock(path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"{path} is in use: another process is running this study. Wait for it, or stop it."
            ) from None
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error}.") from None
        try:
            self._study = _open_journal(path / _JOURNAL, plan)
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def create(cls, path: Path, plan: Plan) -> "RunFolder":
        """Make the directory with the plan in it, in one step.

        Raises:
            RunError: If the directory is already there or cannot be made.
        """
        check_new(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.mkdir(parents=True)
            (temporary / _MODELS).mkdir()
            write_atomic(temporary / _PLAN, plan.to_json())
            temporary.rename(path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise _cannot_be_made(path, error) from None
        return cls(path, plan)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open a run to go on with it.

        Raises:
            RunError: If the directory is no run, is damaged, or in use.
        """
        return cls(path, read_plan(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def records(self) -> dict[str, Record]:
        """Return the finished trials by name.

        Raises:
            RunError: If the journal does not fit the plan.
        """
        try:
            found = [_to_record(trial.user_attrs) for trial in self._study.get_trials(deepcopy=False)]
        except (KeyError, TypeError, ValueError):
            raise RunError(f"{self.path / _JOURNAL} is damaged: a trial cannot be read. Start a new run.") from None
        return {record.trial.name: record for record in found}

    def seconds(self) -> dict[str, float]:
        """Return how long each finished pack trained."""
        marks = self._study.user_attrs
        return {name.removeprefix("pack "): mark for name, mark in marks.items() if name.startswith("pack ")}

    def is_finished(self, pack: Pack) -> bool:
        """Return whether a pack needs no more training."""
        return pack.name in self.seconds() and (pack.phase != CONFIRMATION or self._models_path(pack).is_file())

    def save_pack(self, pack: Pack, trials: Sequence[Trial], trainings: Sequence[Training], seconds: float) -> None:
        """Record a pack that has trained: models first, then its trials, then the mark that it is whole."""
        if pack.phase == CONFIRMATION:
            self._save_models(pack, trials, trainings)
        known = self.records()
        for trial, training in zip(trials, trainings, strict=True):
            if trial.name not in known:
                record = Record(trial, training.curves, training.diverged_at, training.learned_rates)
                self._study.add_trial(_to_optuna(record, pack))
        with _quiet_optuna():
            self._study.set_user_attr(f"pack {pack.name}", seconds)
        self.checkpoint(pack).delete()

    def checkpoint(self, pack: Pack) -> Checkpoint:
        """Return where the pack in training is kept after every epoch."""
        return Checkpoint(self.path / _CHECKPOINT, f"{self.plan.checksum} {pack.name}")

    def _models_path(self, pack: Pack) -> Path:
        return _models_path(self.path, pack.name)

    def _save_models(self, pack: Pack, trials: Sequence[Trial], trainings: Sequence[Training]) -> None:
        content = io.BytesIO()
        named = {
            f"{trial.name}/{part}": array
            for trial, training in zip(trials, trainings, strict=True)
            for part, array in enumerate(training.parameters)
        }
        np.savez(content, **named)  # type: ignore[arg-type]  # the stub takes the arrays for its own option
        write_atomic(self._models_path(pack), content.getvalue())

    def parameters(self, pack: Pack) -> dict[str, list[npt.NDArray[np.float32]]]:
        """Return the parameters of every model of a confirmation pack at its early-stopping epoch, by trial name.

        Raises:
            RunError: If the file is damaged.
        """
        return read_models(self.path, pack.name)


def method_path(path: Path, method: str) -> Path:
    """Return where a run describes the confirmed models of a method."""
    return path / _MODELS / f"{method}.json"


def described_methods(path: Path) -> list[str]:
    """Return the methods whose confirmed models a run describes, but the advised one."""
    return sorted(file.stem for file in (path / _MODELS).glob("*.json"))


def read_models(path: Path, pack: str) -> dict[str, list[npt.NDArray[np.float32]]]:
    """Return the parameters of every model of a confirmation pack of a run, by trial name.

    Raises:
        RunError: If the file is missing or damaged.
    """
    found: dict[str, list[npt.NDArray[np.float32]]] = {}
    file_path = _models_path(path, pack)
    try:
        with file_path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for name in sorted(arrays.files, key=lambda name: int(name.rpartition("/")[2])):
                found.setdefault(name.rpartition("/")[0], []).append(arrays[name])
    except FileNotFoundError:
        raise RunError(f"{file_path} is missing. Train its models again: dropkit study --resume {path}") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        raise RunError(f"{file_path} is damaged. Delete it and resume: its models train again.") from None
    return found


def _models_path(path: Path, pack: str) -> Path:
    return path / _MODELS / f"{pack}.npz"


def _open_journal(path: Path, plan: Plan) -> Any:
    """Open or begin the study in the journal; the caller holds the directory."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.with_name(path.name + ".lock").unlink(missing_ok=True)  # left by a kill: the directory's own lock is ours
    try:
        _drop_partial_line(path)
        with _quiet_optuna():
            storage = JournalStorage(JournalFileBackend(str(path)))
            study = optuna.create_study(
                storage=storage, study_name="dropkit", direction="minimize", load_if_exists=True
            )
            if study.user_attrs.setdefault("plan", plan.checksum) != plan.checksum:
                raise RunError(f"{path} belongs to another plan. Start a new run.")
            study.set_user_attr("plan", plan.checksum)
    except RunError:
        raise
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}.") from None
    except Exception as error:  # noqa: BLE001  # a damaged log fails in whatever part of Optuna reads it first
        raise RunError(f"{path} is damaged: {error}. Start a new run.") from None
    return study


def _drop_partial_line(path: Path) -> None:
    """Cut off a last line that a kill has left half written."""
    with suppress(FileNotFoundError), path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _to_optuna(record: Record, pack: Pack) -> Any:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    trial, found = record.trial, record.curves
    attributes = {
        "phase": trial.phase,
        "seed": trial.seed,
        "slot": trial.slot,
        "pack": pack.name,
        "method": trial.method,
        "strength": record.strength,
        "diverged_at": record.diverged_at,
        "training_loss": found.training_loss,
        "inner_loss": found.inner_loss,
        "validation_loss": found.validation_loss,
        "metrics": found.metrics,
        "learned_rates": record.learned_rates,
        "recorded": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    state = optuna.trial.TrialState.FAIL if record.diverged else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(
        state=state,
        value=None if record.diverged else record.early.validation_loss,
        params={"method": trial.method, "strength": record.strength},
        distributions={
            "method": CategoricalDistribution(list(METHODS)),
            "strength": FloatDistribution(0.0, 1e300),
        },
        user_attrs=attributes,
        intermediate_values=dict(enumerate(found.validation_loss, start=1)),
    )


def _to_record(attributes: dict[str, Any]) -> Record:
    strength = float(attributes["strength"])
    trial = Trial(attributes["phase"], attributes["method"], strength, attributes["seed"], attributes["slot"])
    columns = {name: attributes[name] for name in ("training_loss", "inner_loss", "validation_loss")}
    rates = tuple(attributes.get("learned_rates", ()))  # an older run has none
    return Record(trial, curves(**columns, **attributes["metrics"]), attributes["diverged_at"], rates)
