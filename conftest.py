"""What the tests, the examples of docstrings and the examples of README and docs share."""

import os
import random
from importlib.util import find_spec

import hypothesis
import numpy as np
import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from dropkit import kernels
from dropkit.kernels.native import library

if library._find() is None:  # portable operations are tested as if they were wanted: warnings are errors
    os.environ.setdefault(library.ENVIRONMENT, "portable")

if torch.cuda.is_available():
    os.environ.setdefault(library.ENVIRONMENT, library.TRITON)
else:  # Triton's kernels run in its interpreter, which it looks for when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

collect_ignore_glob = (
    [] if find_spec("triton") else ["src/dropkit/kernels/triton_*.py"]
)  # of whose docstrings it runs the examples

hypothesis.settings.register_profile("dropkit", deadline=None, derandomize=True)
hypothesis.settings.load_profile("dropkit")


def _seed(_namespace: object = None) -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # examples may use the global generator; each must start it at the same place
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test and every docstring's examples from the same seeds."""
    _seed()


pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], pattern="*.md", setup=_seed).pytest()


def pytest_report_header() -> list[str]:
    """Show which kernels are tested."""
    return str(kernels.info()).splitlines()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU, or the compiled kernels, where there are none."""
    lacking = {}
    if not torch.cuda.is_available():
        lacking["gpu"] = "needs a CUDA device"
    if kernels.info().library is None:
        lacking["native"] = "needs the compiled kernels, and portable operations serve"
    for item in items:
        for mark in [*item.iter_markers()]:  # not its keywords: folders may bear these names
            if mark.name in lacking:
                item.add_marker(pytest.mark.skip(reason=lacking[mark.name]))
