"""The function that builds a user's network: what it must do, and what the plan records of it."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dropkit._checks import argument_error, argument_type_error
from dropkit.errors import ArgumentError
from dropkit.random import call_key
from dropkit.study.budgets import Budget
from dropkit.study.dataset import Dataset
from dropkit.study.methods import METHODS
from dropkit.study.network import row_losses
from dropkit.study.own.inputs import Inputs, count_rows, mapped, shapes_in_words
from dropkit.study.own.loading import checked_batches
from dropkit.study.own.randomness import seeded
from dropkit.study.plan import Plan
from dropkit.study.splits import outer_split, seed_key, seed_split

__all__ = [
    "Factory",
    "OwnNetwork",
    "arranged",
    "check_network",
    "describe_network",
    "module_outputs",
    "same_network",
    "that_fit_network",
    "widths_or_factory",
]

Factory = Callable[[float], nn.Module]

_RULE = "a function of p that builds an untrained torch.nn.Module"
_REMEDY = "Such as lambda p: Net(p). Many networks are trained, each from its own first weights."


@dataclass(frozen=True, eq=False)
class OwnNetwork:
    """A function that builds networks, and what the plan records of them.

    Args:
        factory: From a probability of dropping to an untrained network.
        class_name: Of the networks.
        parameters: How many numbers one has.
        sha256: Of class name, printed form, and names and shapes of the state, at p = 0 and p = 0.5.
    """

    factory: Factory
    class_name: str
    parameters: int
    sha256: str

    def build(self, p: float, key: int) -> nn.Module:
        """Return the untrained network of the seed of key `key`."""
        with seeded(call_key(key, "own network weights", 0)):
            return self.factory(p)

    def described(self) -> dict[str, Any]:
        """Return what the plan records."""
        return {"class": self.class_name, "parameters": self.parameters, "sha256": self.sha256}


def widths_or_factory(where: str, network: object, data: Dataset) -> tuple[Sequence[int] | None, Factory | None]:
    """Tell the two kinds of `network` apart: widths of hidden layers, or a function that builds networks.

    Raises:
        ArgumentTypeError: If it is neither, such as a network that was built already.
        ArgumentError: If there are no widths, or it is no function where a function loads the rows.
    """
    rule = f"widths of hidden layers such as [64, 64], or {_RULE}"
    if callable(network) and not isinstance(network, nn.Module):
        return None, network
    if network is not None and (isinstance(network, str | bytes) or not isinstance(network, Sequence)):
        raise argument_type_error(where, "network", rule, network, _REMEDY)
    if data.load is not None:
        remedy = "The module gets the inputs that `load` gives."
        raise argument_error(
            where, "network", f"{_RULE}, as a function loads the rows of {data.name!r}", network, remedy
        )
    if network is None:
        return None, None
    if not network:
        raise argument_error(where, "network", rule, network)
    return network, None


def that_fit_network(
    where: str, grids: Mapping[str, tuple[float, ...]], methods: Sequence[str] | None
) -> dict[str, tuple[float, ...]]:
    """Return the grids of the methods that act on weights, loss or inputs, and the linear baseline.

    Raises:
        ArgumentError: If a method that was asked for by name would have to change the network, or no other is left.
    """
    fit = [name for name, method in METHODS.items() if method.fits_any_network]
    asked = [name for name in methods or () if name not in fit]
    if asked or not any(METHODS[name].compared and name != "none" for name in grids if name in fit):
        remedy = f"These act on any network: {', '.join(fit)}."
        raise argument_error(where, "methods", "methods that fit a network of your own", asked or list(grids), remedy)
    return {name: grid for name, grid in grids.items() if name in fit}


def arranged(inputs: Tensor, image_shape: tuple[int, int] | None) -> Tensor:
    """Return prepared rows in the form that a network gets: images of one channel, or columns."""
    return inputs.unflatten(-1, (1, *image_shape)) if image_shape else inputs


def module_outputs(module: nn.Module, inputs: Inputs, classes: int) -> Tensor:
    """Return what a network says of rows, on its device: of shape (rows, classes), or (rows, 1) where classes is 0.

    Raises:
        ArgumentError: If the outputs are not of that shape.
    """
    device, rows = next(module.parameters()).device, count_rows(inputs)
    found = module(mapped(inputs, lambda value: value.to(device)))
    wanted = [(rows, classes)] if classes else [(rows, 1), (rows,)]
    if not isinstance(found, Tensor) or found.shape not in wanted or not found.is_floating_point():
        got = f"{found.dtype} of {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        shapes = " or ".join(str(shape) for shape in wanted)
        what = "one logit a class" if classes else "one number a row"
        raise ArgumentError(
            f"`network` must build networks with outputs of shape {shapes}, {what}; for inputs of "
            f"{shapes_in_words(inputs)} it gave {got}."
        )
    return found if found.ndim == 2 else found[:, None]


def check_network(
    where: str, factory: object, data: Dataset, budget: Budget, grids: Mapping[str, tuple[float, ...]]
) -> OwnNetwork:
    """Build networks and take one step of training with them, so that a mistake is found before a run begins.

    Args:
        where: Name of the function whose argument this is.
        factory: What the user gave.
        data: The rows.
        budget: Whose batch is tried.
        grids: The methods of the study; where none of them is dropout, p may do nothing.

    Raises:
        ArgumentTypeError: If it is no function, or gives something else than a network.
        ArgumentError: If it fails, the networks are not fresh or have no parameters, their outputs are of another
            shape, or p does nothing.
        DataError: If a function of the user's loads the rows, and it is at fault.
    """
    first, second, dropping = (_built(where, factory, p) for p in (0.0, 0.0, 0.5))
    if _storages(first) & (_storages(second) | _storages(dropping)):
        raise _error(where, "gives the same parameters at every call", "Build a new network inside it.")
    if [tensor.shape for tensor in first.parameters()] != [tensor.shape for tensor in dropping.parameters()]:
        raise _error(where, "gives other parameters at p = 0.5 than at p = 0", "Only dropout may depend on p.")
    if not any(tensor.requires_grad for tensor in first.parameters()):
        raise _error(where, "gives a network without a parameter to train", "Give it at least one layer.")
    batch = _first_batch(data, budget)
    traces = [_tried(where, module, batch, data, p) for module, p in ((first, 0.0), (dropping, 0.5))]
    drops = any(METHODS[name].recipe(grid[0]).dropout for name, grid in grids.items())
    if drops and all(torch.equal(*pair) for pair in zip(*traces, strict=True)):
        remedy = "Give p to its dropout, or leave dropout out of `methods`."
        raise _error(where, "gives a network on which p has no effect: p = 0 and p = 0.5 train alike", remedy)
    return describe_network(where, factory)


def describe_network(where: str, factory: Any) -> OwnNetwork:
    """Return what the plan records of a function's networks.

    Raises:
        ArgumentTypeError: If it is no function, or gives something else than a network.
        ArgumentError: If it fails.
    """
    plain, dropping = _built(where, factory, 0.0), _built(where, factory, 0.5)
    count = sum(tensor.numel() for tensor in plain.parameters())
    return OwnNetwork(factory, type(plain).__name__, count, _digest(plain, dropping))


def same_network(where: str, factory: object, plan: Plan, data: Dataset, path: Path) -> OwnNetwork | None:
    """Return the network that a run began with, given its function again; None for the study's own.

    Raises:
        ArgumentTypeError: If it is no function.
        ArgumentError: If the run began with another network.
    """
    if not plan.network:
        if factory is not None:
            raise argument_error(where, "network", f"left out for {path}, which has the study's own network", factory)
        return None
    began = f"{path} began with a network of your own, {plan.network['class']}"
    if factory is None:
        raise ArgumentError(f"{where}: {began}: give the function that builds it to `{where}` as `network`.")
    found = check_network(where, factory, data, plan.budget, plan.strengths)
    if found.described() != plan.network:
        raise ArgumentError(
            f"{where}: {began} of {plan.network['parameters']:,} parameters; the function `network` builds another "
            f"one, {found.class_name} of {found.parameters:,}. Give the one it began with."
        )
    return found


def _error(where: str, what: str, remedy: str) -> ArgumentError:
    return ArgumentError(f"{where}: the function `network` {what}. {remedy}")


def _built(where: str, factory: Any, p: float) -> nn.Module:
    if isinstance(factory, nn.Module) or not callable(factory):
        raise argument_type_error(where, "network", _RULE, factory, _REMEDY)
    try:
        with seeded(0):
            module = factory(p)
    except Exception as error:
        what = f"fails at p = {p:g}: {type(error).__name__}: {error}"
        raise _error(where, what, "It must take the probability of dropping alone.") from error
    if not isinstance(module, nn.Module):
        raise argument_type_error(where, "network", _RULE, module, "This is what the function gave.")
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise _error(where, "gives a lazy module, whose shapes are not known yet", "Give its layers their input sizes.")
    odd = [name for name, value in module.state_dict().items() if not isinstance(value, Tensor)]
    if odd:
        raise _error(where, f"gives a network whose state {odd[0]!r} is no tensor", "Keep it in a buffer.")
    return module


def _storages(module: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in module.parameters() if tensor.numel()}


def _first_batch(data: Dataset, budget: Budget) -> tuple[Inputs, Inputs, Tensor]:
    """Return its inputs in training and in evaluation, and its targets."""
    _, rest = outer_split(data, budget, 0)
    train = seed_split(data, rest, budget, seed_key(0, 0)).train
    prepared = data.prepared(train)
    size = max(2, budget.batch_size)
    rows, others = torch.from_numpy(train[:size]), torch.from_numpy(train[size : size + size // 2])
    targets = torch.from_numpy(prepared.targets)[rows]
    if data.load is not None:
        return *checked_batches(data, [rows, others] if len(others) else [rows]), targets
    inputs = arranged(torch.from_numpy(prepared.inputs)[rows], data.image_shape)
    return inputs, inputs, targets


def _tried(
    where: str, module: nn.Module, batch: tuple[Inputs, Inputs, Tensor], data: Dataset, p: float
) -> list[Tensor]:
    """Take a step and score; return the outputs in training and all gradients."""
    inputs, in_evaluation, targets = batch
    with seeded(0):
        try:
            module.train()
            found = module_outputs(module, inputs, data.classes)
            row_losses(found[None], targets.to(found.device)[None]).mean().backward()
            optimizer = torch.optim.Adam([tensor for tensor in module.parameters() if tensor.requires_grad])
            trace = [
                found.detach(),
                *(tensor.grad.clone() for tensor in module.parameters() if tensor.grad is not None),
            ]
            optimizer.step()
            module.eval()
            with torch.no_grad():
                module_outputs(module, in_evaluation, data.classes)
            _ = [tensor.cpu().numpy() for tensor in module.state_dict().values()]
        except ArgumentError as error:
            raise ArgumentError(f"{where}: {error}") from None
        except Exception as error:
            what = f"gives a network that fails at p = {p:g} on inputs of {shapes_in_words(inputs)}"
            remedy = "Inputs are (rows, 1, height, width) for images and (rows, columns) for everything else."
            if data.load is not None:
                remedy = "Its one argument is the inputs as the function `load` of the data gives them."
            raise _error(where, f"{what}: {type(error).__name__}: {error}", remedy) from error
    return trace


def _digest(*modules: nn.Module) -> str:
    found = hashlib.sha256()
    for module in modules:
        printed = re.sub(r" at 0x[0-9a-f]+", "", repr(module))  # an address differs from process to process
        shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in module.state_dict().items()]
        found.update(f"{type(module).__qualname__}\n{printed}\n{shapes}\n".encode())
    return found.hexdigest()
