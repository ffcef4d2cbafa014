"""All that drops units keeps the one contract, and the contract catches what does not."""

from typing import Any

import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

import dropkit
from dropkit.functional import dropout
from tests.contract.double import FAULTS, double
from tests.helpers.contract import CHECKS, Operation

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def module(x: torch.Tensor, p: float = 0.5, training: bool = True, **options: Any) -> Any:
    return dropkit.nn.Dropout(p).train(training)(x, **options)


def packed(x: torch.Tensor, p: float = 0.5, training: bool = True, **options: Any) -> Any:
    """The operation with its rate in a tensor, where p = 0 has no branch of its own."""
    rate = torch.tensor(p, dtype=torch.float64) if p and training else p
    return dropout(x, rate, training, **options)


OPERATIONS: dict[str, Operation] = {"function": dropout, "module": module, "rate in a tensor": packed}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("check", CHECKS)
def test_contract(operation: str, check: str) -> None:
    CHECKS[check](OPERATIONS[operation])


def broken(operation: Operation) -> set[str]:
    """The checks that an operation fails."""
    failed = set()
    for name, check in CHECKS.items():
        torch.manual_seed(0)
        try:
            check(operation)
        except (AssertionError, GradcheckError):
            failed.add(name)
    return failed


@pytest.fixture(scope="module")
def caught() -> dict[str, set[str]]:
    return {fault: broken(double(fault)) for fault in FAULTS}


def test_a_plain_double_keeps_the_contract() -> None:
    assert broken(double()) == set()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(caught: dict[str, set[str]], fault: str) -> None:
    assert caught[fault]


@pytest.mark.parametrize("check", CHECKS)
def test_every_check_catches_a_fault(caught: dict[str, set[str]], check: str) -> None:
    assert any(check in failed for failed in caught.values())
