"""Budgets: how large a study is. A budget is fixed before the first trial and written into the plan."""

from dataclasses import dataclass, fields

from dropkit._checks import Choice, Integer, Number, argument_error, argument_type_error
from dropkit.study.methods import METHODS, METHODS_WITH_A_FILE

__all__ = ["BUDGETS", "QUICK", "STANDARD", "THOROUGH", "Budget"]

_WHOLE = Integer(1, 10**9, "[1, 10**9]")
_SEVERAL = Integer(2, 1000, remedy="One seed shows no spread.")
_RATE = Number(0.0, 1.0, open_low=True)
_MINUTES = Number(0.0, 1e6, open_low=True)


def _check_method(name: object) -> str:
    if isinstance(name, str) and name in METHODS and name != "none":
        return name
    return Choice(tuple(known for known in METHODS if known != "none")).check("Budget", "methods", name)


@dataclass(frozen=True)
class Budget:
    """The size of a study: network, training, rows and seeds.

    Args:
        name: Its name in the plan and the report.
        hidden: Widths of the hidden layers. Default: (256, 256).
        epochs: The last epoch, common to all runs. Default: 30.
        batch_size: Rows a step. Default: 64.
        learning_rate: Of Adam, in (0, 1]. Default: 0.001.
        test_rows: Set aside first, used once at the end. Default: 1,000.
        train_rows: Rows that train a model. Default: 2,550.
        inner_rows: Rows of a run's own share that choose its epoch and are never trained on. Default: 450.
        validation_rows: Rows that score a run. Default: 1,000.
        selection_seeds: Seeds that choose each method's strength, 2 or more. Default: 2.
        confirmation_seeds: Fresh seeds that compare the frozen winners with none, 2 or more. Default: 8.
        pack_size: Most models that train together. Default: 12.
        methods: Names of the methods that it compares with none. Default: dropout and weight decay.
        strengths: Candidates that every method gets. Default: 5.
        widens: Whether every method then gets two more, beside or beyond its best candidate. Default: False.
        minutes: Training time to which a study of data of your own is fitted; epochs go first, then methods, never
            seeds. Default: None, which trains everything.
        fitted: What was measured and left out to fit the time, in words; the study fills it in.
        leaves_out: What a study of this budget does without, for the report; the plan fills it in.

    Raises:
        ArgumentError: If a value is out of range.
        ArgumentTypeError: If a count is no integer.

    Examples:
        >>> Budget("tiny", hidden=(8,), epochs=2).selection_seeds
        2
    """

    name: str
    hidden: tuple[int, ...] = (256, 256)
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    test_rows: int = 1000
    train_rows: int = 2550
    inner_rows: int = 450
    validation_rows: int = 1000
    selection_seeds: int = 2
    confirmation_seeds: int = 8
    pack_size: int = 12
    methods: tuple[str, ...] = ("dropout", "weight_decay")
    strengths: int = 5
    widens: bool = False
    minutes: float | None = None
    fitted: str = ""
    leaves_out: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise argument_type_error("Budget", "name", "a string", self.name)
        if not isinstance(self.hidden, tuple | list) or not self.hidden:
            raise argument_error("Budget", "hidden", "a sequence of widths, one a hidden layer", self.hidden)
        object.__setattr__(self, "hidden", tuple(_WHOLE.check("Budget", "hidden", width) for width in self.hidden))
        if isinstance(self.methods, str) or not isinstance(self.methods, tuple | list):
            raise argument_error("Budget", "methods", "a sequence of names", self.methods)
        object.__setattr__(self, "methods", tuple(map(_check_method, self.methods)))
        if not isinstance(self.widens, bool):
            raise argument_type_error("Budget", "widens", "True or False", self.widens)
        if self.widens and self.strengths == 1:
            raise argument_error("Budget", "strengths", "2 or more where the grid widens", self.strengths)
        _RATE.check("Budget", "learning_rate", self.learning_rate)
        if self.minutes is not None:
            _MINUTES.check("Budget", "minutes", self.minutes)
        for field in fields(self):
            if field.type is int:
                domain = _SEVERAL if field.name.endswith("seeds") else _WHOLE
                domain.check("Budget", field.name, getattr(self, field.name))

    @property
    def rows(self) -> int:
        """Rows that the study needs."""
        return self.test_rows + self.train_rows + self.inner_rows + self.validation_rows


QUICK = Budget(
    "quick",
    epochs=20,
    methods=("dropout", "weight_decay", "label_smoothing", "shift", "input_noise", "smaller_network", "linear"),
    strengths=4,
    minutes=3,
)
_EVERY_METHOD = tuple(name for name in METHODS_WITH_A_FILE if name != "none")
STANDARD = Budget(
    "standard", epochs=30, selection_seeds=3, confirmation_seeds=10, methods=_EVERY_METHOD, strengths=5, minutes=30,
    widens=True,
)  # fmt: skip
THOROUGH = Budget(
    "thorough", epochs=60, selection_seeds=4, confirmation_seeds=16, methods=_EVERY_METHOD, strengths=7, minutes=180,
    widens=True,
)  # fmt: skip
BUDGETS: dict[str, Budget] = {budget.name: budget for budget in (QUICK, STANDARD, THOROUGH)}
