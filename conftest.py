"""What the tests, the examples of docstrings and the examples of README and docs share."""

import os
import random
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from dropkit import kernels
from dropkit.kernels.native import library

HAS_GPU = torch.cuda.is_available()

if HAS_GPU:
    os.environ.setdefault(library.ENVIRONMENT, library.TRITON)
else:  # Triton's kernels run in its interpreter, which it looks for when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
if library._find() is None:  # portable operations are tested as if they were wanted: warnings are errors
    os.environ.setdefault(library.ENVIRONMENT, "portable")

collect_ignore_glob = (
    [] if find_spec("triton") else ["src/dropkit/kernels/triton_*.py"]
)  # of whose docstrings it runs the examples

hypothesis.settings.register_profile("dropkit", deadline=None, derandomize=True)
hypothesis.settings.load_profile("dropkit")


def _seed(_namespace: object = None) -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # examples may use the global generator; each must start it at the same place
    if HAS_GPU:
        torch.manual_seed(0)
    else:  # which the former would remember for the day when there is one, with the stack as text, three times
        torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test and every docstring's examples from the same seeds."""
    _seed()


def _light() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dropkit.study.report.svg", lambda *_: "<svg></svg>")
        patch.setattr("dropkit.study.measures.taking.MODELS", 1)
        yield


@pytest.fixture
def light_study() -> Iterator[None]:
    """Leave out of a study what takes most of the time of a tiny one: pictures, and measures of all networks but one.

    For tests of anything else.
    """
    yield from _light()


@pytest.fixture(scope="module")
def light_studies() -> Iterator[None]:
    """Do so for all tests of a module, and for the studies that they share."""
    yield from _light()


if find_spec("sybil"):  # which a machine with a GPU may not have
    from sybil import Sybil
    from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

    pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], pattern="*.md", setup=_seed).pytest()


def pytest_configure(config: pytest.Config) -> None:
    """Let tests on a GPU run where nothing is compiled for the CPU, which is said otherwise; they need one, and Triton.

    Asked for alone (``-m gpu``), they would else be skipped one by one, and all would seem well.
    """
    if not HAS_GPU and config.getoption("markexpr") == "gpu":
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise pytest.UsageError(
            f"Tests on a GPU need a CUDA device, and PyTorch {torch.__version__}, built {built}, finds none. "
            "Where there is one, see nvidia-smi, CUDA_VISIBLE_DEVICES, and which Python runs this: make PYTHON=..."
        )
    if HAS_GPU:
        config.addinivalue_line("filterwarnings", "ignore:dropkit runs on portable operations of PyTorch and NumPy")
    if HAS_GPU and not find_spec("triton"):
        raise pytest.UsageError("Tests on a GPU need Triton (pip install triton); CUDA_VISIBLE_DEVICES= hides the GPU.")


def pytest_report_header() -> list[str]:
    """Show which kernels are tested."""
    return str(kernels.info()).splitlines()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU, or the compiled kernels, where there are none."""
    lacking = {}
    if not HAS_GPU:
        lacking["gpu"] = "needs a CUDA device"
    if kernels.info().library is None:
        lacking["native"] = "needs the compiled kernels, and portable operations serve"
    for item in items:
        for mark in [*item.iter_markers()]:  # not its keywords: folders may bear these names
            if mark.name in lacking:
                item.add_marker(pytest.mark.skip(reason=lacking[mark.name]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Let a test that needs a GPU fail where it is skipped although there is one."""
    report = yield
    is_skipped = report.skipped and not hasattr(report, "wasxfail")
    if HAS_GPU and is_skipped and item.get_closest_marker("gpu"):
        report.outcome, report.longrepr = "failed", f"skipped on a machine with a GPU: {report.longrepr}"
    return report
