"""What the tests, the examples of docstrings and the examples of README and docs share."""

import random

import hypothesis
import numpy as np
import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
