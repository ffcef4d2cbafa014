"""Every argument of every public function and layer, wrong in every way: one sentence, and nothing changed.

The values come from the constraints; what a constraint cannot say is listed in the files of `tests/contract/arguments`,
one for each family. The last tests count that no argument of a public callable is left out.
"""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dropkit
from tests.helpers.wrong import Wrong

PUBLIC: dict[str, Callable[..., Any]] = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (dropkit.random, dropkit.functional, dropkit.nn)
    for name in package.__all__
    if callable(getattr(package, name))
}
PUBLIC |= {f"{name}.forward": found.forward for name, found in PUBLIC.items() if inspect.isclass(found)}
FAMILIES = [
    importlib.import_module(f"tests.contract.arguments.{path.stem}")
    for path in sorted(Path(__file__).with_name("arguments").glob("*.py"))
]
GOOD: dict[str, dict[str, Any]] = {call: good for family in FAMILIES for call, good in family.GOOD.items()}
CASES: dict[str, list[Wrong]] = {call: wrongs for family in FAMILIES for call, wrongs in family.CASES.items()}
for call, wrongs in CASES.items():  # None is no mistake where it is the default
    parameters = inspect.signature(PUBLIC[call]).parameters
    CASES[call] = [wrong for wrong in wrongs if wrong.value is not None or parameters[wrong.name].default is not None]
VARIADIC = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}  # what a wrapped layer takes
# What a layer hands on as it is to the PyTorch layer that it is a kind of, which checks it.
HANDED_ON: dict[str, set[str]] = {
    call: names for family in FAMILIES for call, names in getattr(family, "HANDED_ON", {}).items()
}


def expected(where: str, wrong: Wrong) -> str:
    value = wrong.value if wrong.shown is None else wrong.shown[0] if isinstance(wrong.shown, tuple) else wrong.shown
    shown = " ".join(repr(value).split())  # a message is one line
    shown = shown if len(shown) <= 200 else shown[:197] + "..."
    text = f"{where}: `{wrong.label or wrong.name}` must be {wrong.rule}, got {shown} ({type(value).__name__})."
    return f"{text} {wrong.remedy}" if wrong.remedy else text


def tensors_of(call: str) -> dict[str, torch.Tensor]:
    """What a call with wrong arguments must leave as it is: the tensors it is given, and the layer's own."""
    given = {name: value for name, value in GOOD[call].items() if isinstance(value, torch.Tensor)}
    layer = GOOD[call].get("self")
    return given if layer is None else given | {f"self.{name}": own for name, own in layer.state_dict().items()}


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        pytest.param(call, wrong, id=f"{call}-{wrong.name}-{number}")
        for call, wrongs in CASES.items()
        for number, wrong in enumerate(wrongs)
    ],
)
def test_a_wrong_argument_is_named_with_its_value_and_the_rule(call: str, wrong: Wrong) -> None:
    where = wrong.where or call.removesuffix(".forward").rpartition(".")[2]
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in tensors_of(call).items()}
    with pytest.raises(wrong.error) as caught:
        PUBLIC[call](**GOOD[call] | wrong.beside | {wrong.name: wrong.value})
    assert str(caught.value) == expected(where, wrong)
    assert type(caught.value) is wrong.error
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in tensors_of(call).items())


@pytest.mark.parametrize(
    ("name", "option"), [("dropout", {"training": False}), ("scaled_dot_product_attention", {"dropout_p": 0.1})]
)
def test_with_and_without_dropout_the_same_is_checked(name: str, option: dict[str, Any]) -> None:
    call = f"dropkit.functional.{name}"
    for wrong in CASES[call]:
        if wrong.name in {*option, "inplace"}:
            continue
        with pytest.raises(wrong.error) as caught:
            PUBLIC[call](**GOOD[call] | option | wrong.beside | {wrong.name: wrong.value})
        assert str(caught.value) == expected(name, wrong)


@pytest.mark.parametrize("call", PUBLIC)
def test_what_is_called_good_here_is_taken(call: str) -> None:
    PUBLIC[call](**GOOD[call])


def test_unknown_and_missing_arguments_are_errors_of_type() -> None:
    for call, function in PUBLIC.items():
        with pytest.raises(TypeError):
            function(**GOOD[call], no_such_argument=1)
        parameters = inspect.signature(function).parameters.items()
        required = [n for n, p in parameters if p.default is p.empty and p.kind not in VARIADIC]
        for name in required:
            with pytest.raises(TypeError):
                function(**{n: v for n, v in GOOD[call].items() if n != name})


def test_every_argument_of_every_public_callable_is_tried() -> None:
    assert CASES.keys() == GOOD.keys() == PUBLIC.keys()
    missing = [
        f"{call}({name})"
        for call, function in PUBLIC.items()
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and parameter.kind not in VARIADIC and name not in HANDED_ON.get(call, set())
        if name not in {wrong.name for wrong in CASES[call]}
    ]
    assert missing == []


@pytest.mark.parametrize("call", HANDED_ON)
def test_what_is_handed_on_is_pytorchs_own(call: str) -> None:
    layer = PUBLIC[call]
    base = next(kind for kind in layer.__mro__ if kind.__module__.startswith("torch.nn.modules."))
    theirs, ours = inspect.signature(base.__init__).parameters, inspect.signature(layer).parameters
    assert HANDED_ON[call] <= theirs.keys()
    assert all(ours[name].default == theirs[name].default for name in HANDED_ON[call])
