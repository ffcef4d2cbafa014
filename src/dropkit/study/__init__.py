"""Studies: does dropout help on these data, at which rate, and against which alternative?

`run` answers in one sentence, with the report that backs it; `resume` goes on with a run that was stopped;
`predict` uses the model that it recommends. A method, a data source, a statistic, a caution and a picture are each one
small file, found by name in the folders beside this one.
"""

from dropkit.study.api import resume, run
from dropkit.study.budgets import BUDGETS, Budget
from dropkit.study.dataset import Dataset
from dropkit.study.methods import METHODS
from dropkit.study.prediction import Predictions, load_models, predict
from dropkit.study.preparation import Column
from dropkit.study.progress import Progress
from dropkit.study.sources import SOURCES

__all__ = [
    "BUDGETS",
    "METHODS",
    "SOURCES",
    "Budget",
    "Column",
    "Dataset",
    "Predictions",
    "Progress",
    "load_models",
    "predict",
    "resume",
    "run",
]
