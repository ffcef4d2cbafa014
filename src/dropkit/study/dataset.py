"""A data set as a study sees it: rows of numbers, each with a class or a number to predict."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from dropkit._checks import Choice, argument_error, argument_type_error
from dropkit.errors import DataError
from dropkit.study.preparation import Column, Prepared, fit

__all__ = ["CLASSIFICATION", "IMAGE_CHANGES", "REGRESSION", "Dataset", "Loader"]

CLASSIFICATION = "classification"
REGRESSION = "regression"
IMAGE_CHANGES = ("shift", "rotation", "crop", "flip", "brightness")
Loader = Callable[[list[list[int]], bool], Iterable[Any]]
_CHANGE = Choice(IMAGE_CHANGES)
_TASK = Choice((CLASSIFICATION, REGRESSION))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows of numbers, and the class or the number of each row.

    Args:
        name: Short name, used for the run directory.
        title: What the report calls it, such as ``"MNIST, 5,000 images"``.
        inputs: Array of shape (rows, columns); converted to float32. No NaN, no infinity. With `schema`: float64,
            a category as its place in the list, NaN where a number is missing.
        targets: Of shape (rows,). Classification: the class of each row, integers 0 .. classes - 1. Regression: finite
            numbers.
        note: Where the data come from, printed in the report. Default: nothing.
        task: ``"classification"`` or ``"regression"``. Default: ``"classification"``.
        schema: What each column holds, for tables that are prepared on the training rows of each split: numbers
            filled and standardised, categories spread over one input each. Default: nothing, inputs stay as they are.
        class_names: The name of each class. Default: its number.
        target_name: What is predicted. Default: ``"target"``.
        groups: A number a row; rows of one number never stand on two sides of a split. Default: every row alone.
        times: A number a row; later rows are predicted from earlier ones. Default: rows have no order.
        sizes: Fields of `Budget` that suit these data, which named budgets take over. Default: scaled to the rows.
        description: Pairs of a column and how it is used or why it is left out, for the report. Default: nothing.
        warnings: What looks wrong with the data, for the report. Default: nothing.
        origin: The file and options that `resume` reads the data from again. Default: nothing.
        image_shape: Height and width where a row is an image of one channel. Default: rows are no images.
        label_survives: Small changes of an image that leave its label true, among ``"shift"``, ``"rotation"``,
            ``"crop"``, ``"flip"`` (left to right) and ``"brightness"``; only these are tried. Default: all but flips,
            which make other signs of digits and letters.
        load: A function that loads rows; see `from_loader`. Default: the rows are `inputs`.

    Raises:
        ArgumentError: If the task is unknown.
        DataError: If the shapes do not fit, a number is not finite, there are fewer than two classes, or the numbers
            to predict are all the same.

    Examples:
        >>> import numpy as np
        >>> Dataset("toy", "Two points", np.array([[0.0], [1.0]]), np.array([0, 1]))
        Dataset('toy', 2 rows, 1 columns, 2 classes)
        >>> Dataset("line", "Two points", np.array([[0.0], [1.0]]), np.array([0.5, 2.5]), task="regression")
        Dataset('line', 2 rows, 1 columns, regression)
    """

    name: str
    title: str
    inputs: npt.NDArray[np.floating[Any]]
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    note: str = ""
    task: str = CLASSIFICATION
    schema: tuple[Column, ...] = ()
    class_names: tuple[str, ...] = ()
    target_name: str = "target"
    groups: npt.NDArray[np.int64] | None = None
    times: npt.NDArray[np.float64] | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)
    description: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    image_shape: tuple[int, int] | None = None
    label_survives: tuple[str, ...] = tuple(change for change in IMAGE_CHANGES if change != "flip")
    load: Loader | None = None

    @classmethod
    def from_loader(cls, name: str, title: str, *, load: Loader, targets: npt.ArrayLike, **others: Any) -> Self:
        """Describe rows that a function of your own loads, such as images in files.

        A study of them needs a network of your own. It draws its own splits and shuffles, and asks for rows by number.
        Methods that would change inputs or network are left out, and so is the linear baseline.

        Args:
            name: Short name, used for the run directory.
            title: What the report calls it.
            load: Called as ``load(batches, training)``, with a list of batches, each a list of row numbers, which is
                what ``DataLoader(batch_sampler=batches)`` takes; and whether augmentation may act. It returns an
                iterable of one pair (inputs, targets) for each batch, in order. Inputs are what the network takes as
                its one argument: a tensor, or tensors in a tuple, list or dictionary, whose first axis is the rows.
                Chance comes from the global generators of PyTorch, NumPy or Python, which the study seeds; workers of a
                DataLoader follow them. Where `training` is False nothing is left to chance.
            targets: One class or number a row, as in `Dataset`; what `load` gives is compared with it.
            **others: Any of ``note``, ``task``, ``class_names``, ``target_name``, ``groups``, ``times``, ``sizes`` and
                ``warnings``, as in `Dataset`.

        Returns:
            A data set without inputs of its own.

        Raises:
            ArgumentTypeError: If `load` is no function.
            DataError: If the targets are unfit. What `load` gives is checked when a study begins, and in every batch.

        Examples:
            >>> import torch
            >>> from torch.utils.data import DataLoader, TensorDataset
            >>> points = torch.randn(400, 5)
            >>> labels = (points[:, 0] > 0).long()
            >>> rows = TensorDataset(points, labels)
            >>> def load(batches, training):
            ...     return DataLoader(rows, batch_sampler=batches)
            >>> Dataset.from_loader("points", "Points", load=load, targets=labels)
            Dataset('points', 400 rows, loaded by a function, 2 classes)
            >>> def load(batches, training):  # without a DataLoader, and with noise in training
            ...     for batch in batches:
            ...         inputs = points[batch]
            ...         yield inputs + 0.1 * torch.randn(inputs.shape) if training else inputs, labels[batch]
            >>> Dataset.from_loader("noisy", "Noisy points", load=load, targets=labels, class_names=("low", "high"))
            Dataset('noisy', 400 rows, loaded by a function, 2 classes)
        """
        from dropkit.study.methods import METHODS

        if not callable(load):
            remedy = "Such as lambda batches, training: DataLoader(rows, batch_sampler=batches)."
            raise argument_type_error("Dataset.from_loader", "load", "a function of batches and training", load, remedy)
        try:
            checked = np.asarray(targets)
        except (TypeError, ValueError):
            raise DataError(f"Data set {name!r}: targets must be one class or number a row.") from None
        inputs = np.empty((*checked.shape[:1], 0), np.float32)
        unfit = [method for method in METHODS.values() if not method.is_independent and not method.on_request]
        left_out = ", ".join(method.title for method in unfit)
        words = f"loaded by your own function; left out, as they would change inputs or network: {left_out}"
        found = cls(name, title, inputs, checked, load=load, **others)
        return replace(found, description=(("inputs", words), *found.description))

    def __post_init__(self) -> None:
        _TASK.check("Dataset", "task", self.task)
        for word in ("name", "title", "note"):
            if not isinstance(getattr(self, word), str):
                raise argument_type_error("Dataset", word, "a string", getattr(self, word))
        if self.name in ("", ".", "..") or any(sign in self.name for sign in "/\\\0"):
            remedy = "It names the run's directory."
            raise argument_error("Dataset", "name", "a word without slashes", self.name, remedy)
        inputs, targets = np.asarray(self.inputs), np.asarray(self.targets)
        if self.load is not None:
            self._check_loader(inputs, targets)
        elif inputs.ndim != 2 or targets.shape != inputs.shape[:1] or inputs.size == 0:
            raise self._error(
                f"inputs must be of shape (rows, columns) and targets (rows,), got {inputs.shape} and {targets.shape}"
            )
        object.__setattr__(self, "inputs", self._checked_inputs(inputs))
        self._check_images(inputs.shape[1])
        check = self._checked_classes if self.is_classification else self._checked_numbers
        object.__setattr__(self, "targets", check(targets))
        if self.class_names and len(self.class_names) != self.classes:
            raise self._error(f"class_names must name {self.classes} classes, got {len(self.class_names)}")
        for name, kind in (("groups", np.int64), ("times", np.float64)):
            values = getattr(self, name)
            if values is not None:
                if np.shape(values) != targets.shape or not np.isfinite(values).all():
                    raise self._error(f"{name} must be one finite number a row, got shape {np.shape(values)}")
                object.__setattr__(self, name, np.ascontiguousarray(values, kind))

    def _check_loader(self, inputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> None:
        if targets.ndim != 1 or not len(targets):
            raise self._error(f"targets must be of shape (rows,), one class or number a row, got {targets.shape}")
        if inputs.shape != (len(targets), 0) or self.schema or self.image_shape is not None:
            raise self._error("rows that a function loads have no inputs, schema or image_shape; see from_loader")

    def _check_images(self, pixels: int) -> None:
        if self.image_shape is not None and math.prod(self.image_shape) != pixels:
            raise self._error(f"image_shape must hold {pixels} pixels, got {self.image_shape}")
        if isinstance(self.label_survives, str) or not isinstance(self.label_survives, tuple | list):
            raise argument_type_error("Dataset", "label_survives", "a sequence of changes", self.label_survives)
        survives = tuple(_CHANGE.check("Dataset", "label_survives", change) for change in self.label_survives)
        object.__setattr__(self, "label_survives", survives)

    def _checked_inputs(self, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if np.iscomplexobj(inputs):
            raise self._error(f"inputs must be real numbers, got {inputs.dtype}")
        try:
            inputs = np.ascontiguousarray(inputs, np.float64 if self.schema else np.float32)
        except (TypeError, ValueError):
            raise self._error(f"inputs must be numbers, got {inputs.dtype}") from None
        if self.schema:
            if len(self.schema) != inputs.shape[1]:
                raise self._error(f"schema must describe {inputs.shape[1]} columns, got {len(self.schema)}")
            if np.isinf(inputs).any():
                raise self._error("inputs hold infinity; leave out these rows first")
        elif not np.isfinite(inputs).all():
            raise self._error("inputs hold NaN or infinity; fill or leave out these rows first")
        return inputs

    def _checked_classes(self, targets: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        if not np.issubdtype(targets.dtype, np.integer):
            raise self._error(f"targets must be integers from 0, got {targets.dtype}; number the classes first")
        if targets.min() < 0:
            raise self._error(f"targets must be integers from 0, got {targets.dtype} from {targets.min()}")
        if np.count_nonzero(np.bincount(targets)) != targets.max() + 1 or targets.max() < 1:
            raise self._error(
                f"targets must use every class from 0 and at least two, got {np.unique(targets).tolist()}"
            )
        return np.ascontiguousarray(targets, np.int64)

    def _checked_numbers(self, targets: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        try:
            targets = np.ascontiguousarray(targets, np.float32)
        except (TypeError, ValueError):
            raise self._error(f"targets must be numbers, got {targets.dtype}") from None
        if not np.isfinite(targets).all():
            raise self._error("targets hold NaN or infinity; leave out these rows first")
        if targets.min() == targets.max():
            raise self._error(f"targets must differ from row to row, all are {targets[0]:g}")
        return targets

    def _error(self, what: str) -> DataError:
        return DataError(f"Data set {self.name!r}: {what}.")

    @property
    def is_classification(self) -> bool:
        """Whether classes are predicted, not numbers."""
        return self.task == CLASSIFICATION

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.targets)

    @property
    def columns(self) -> int:
        """Number of inputs that a network gets: those of `prepared`; 0 where a function loads the rows."""
        return sum(column.width for column in self.schema) if self.schema else self.inputs.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes; 0 for regression."""
        return int(self.targets.max()) + 1 if self.is_classification else 0

    @property
    def outputs(self) -> int:
        """Number of outputs that a network has: one a class, or one."""
        return self.classes or 1

    def prepared(self, train: npt.NDArray[np.int64]) -> Prepared:
        """Return all rows as a network sees them, prepared by what the training rows hold and nothing else.

        Args:
            train: Indices of the training rows.

        Returns:
            Inputs of shape (rows, `columns`), float32, and targets: classes, int64; or numbers, float32, standardised
            on the training rows.
        """
        return fit(self.schema, self.inputs, None if self.is_classification else self.targets, train).apply_all(
            self.inputs, self.targets
        )

    def digest(self) -> str:
        """Return the SHA-256 of inputs and targets, which a run's plan records.

        Of rows that a function loads, it covers all targets, groups and times, and the inputs of 32 rows spread over
        all: to read every row would take as long as an epoch.
        """
        found = hashlib.sha256(repr(self.inputs.shape).encode())
        for array in (self.inputs, self.targets, self.groups, self.times):
            if array is not None:
                found.update(array.tobytes())
        if self.load is not None:
            found.update(self._digest_of_loaded)
        return found.hexdigest()

    @cached_property
    def _digest_of_loaded(self) -> bytes:
        from dropkit.study.own.loading import digest_of_rows  # with torch, which rows in arrays do not need

        return digest_of_rows(self)

    def __repr__(self) -> str:
        kind = f"{self.classes} classes" if self.is_classification else self.task
        held = "loaded by a function" if self.load is not None else f"{self.inputs.shape[1]} columns"
        return f"Dataset({self.name!r}, {self.rows} rows, {held}, {kind})"
