"""A smaller plain model of one whose layers learnt what they can do without."""

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dropkit._checks import argument_type_error
from dropkit.nn.concrete import ConcreteDropout
from dropkit.nn.dropout import Dropout
from dropkit.nn.sparse import SparseVariationalConv2d, SparseVariationalLinear

__all__ = ["pruned"]

_Units = nn.Linear | nn.Conv2d

# Each acts on every number alone in evaluation, so a unit can be taken out from above it.
_ELEMENTWISE = {
    Dropout, nn.CELU, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ELU, nn.GELU, nn.Hardswish, nn.Hardtanh,
    nn.Identity, nn.LeakyReLU, nn.Mish, nn.ReLU, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Tanh,
}  # fmt: skip
_POOLS = {nn.AvgPool2d, nn.MaxPool2d}


def pruned(model: nn.Module) -> nn.Module:
    """Copy a model with plain PyTorch layers in place of sparse variational ones, and no more units than it needs.

    Weights that evaluation leaves out are 0 in the copy. In a `torch.nn.Sequential`, where linear layers and
    convolutions of one group follow each other with nothing between but activations, dropout, pooling and
    `torch.nn.Flatten`, units that nothing reads are then taken out, and so are those that read nothing: the constant
    that such a unit gives is added to the bias of the next layer. The outputs are those of the model in evaluation, up
    to rounding. A layer keeps at least one unit, and one that the model uses in several places, or whose parameters it
    does, keeps all.

    Args:
        model: A model, or one sparse variational layer; left as it is.

    Returns:
        The copy, in the mode of the model. Its layers have the names that they had.

    Raises:
        ArgumentTypeError: If `model` is no module.

    Examples:
        >>> import torch, dropkit
        >>> sparse = dropkit.nn.SparseVariationalLinear
        >>> model = torch.nn.Sequential(sparse(4, 3), torch.nn.ReLU(), sparse(3, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].log_sigma2[1].fill_(9.0)  # the second unit reads noise alone
        >>> dropkit.nn.pruned(model)
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=2, bias=True)
        )

    References:
        Molchanov, Ashukha and Vetrov (2017), "Variational dropout sparsifies deep neural networks", section 5.
    """
    if not isinstance(model, nn.Module):
        raise argument_type_error("pruned", "model", "a torch.nn.Module", model)
    if isinstance(model, SparseVariationalLinear | SparseVariationalConv2d):
        return _plain(model)
    small = copy.deepcopy(model)
    _replace(small)
    named = (*small.named_modules(remove_duplicate=False), *small.named_parameters(remove_duplicate=False))
    uses = Counter(id(part) for _, part in named)
    for chain in small.modules():
        if type(chain) is nn.Sequential:
            parts = (part for layer in chain for part in (layer, *layer.parameters(recurse=False)))
            if all(uses[id(part)] == 1 for part in parts):
                _shrink(chain)
    return small


def _replace(model: nn.Module) -> None:
    """Put plain layers in the place of sparse ones, wherever the model knows them."""
    plain: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, SparseVariationalLinear | SparseVariationalConv2d):
                plain[child] = plain.get(child) or _plain(child)
                setattr(parent, name, plain[child])
    for module in model.modules():
        if isinstance(module, ConcreteDropout):
            module.follow_instead(plain)


@torch.no_grad()
def _plain(layer: SparseVariationalLinear | SparseVariationalConv2d) -> nn.Linear | nn.Conv2d:
    """Return the PyTorch layer that computes what a layer computes in evaluation."""
    options = {"bias": layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    plain: nn.Linear | nn.Conv2d
    if isinstance(layer, SparseVariationalLinear):
        plain = nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features, **options)
    else:
        plain = nn.utils.skip_init(
            nn.Conv2d, layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, layer.groups, padding_mode=layer.padding_mode, **options,
        )  # fmt: skip
    plain.weight.copy_(layer.pruned_weight).requires_grad_(layer.weight.requires_grad)
    if plain.bias is not None and layer.bias is not None:
        plain.bias.copy_(layer.bias).requires_grad_(layer.bias.requires_grad)
    return plain.train(layer.training)


@torch.no_grad()
def _shrink(chain: nn.Sequential) -> None:
    """Take the units out that a chain of layers can do without."""
    pairs = list(_pairs(chain))
    while any(_take_out(*pair) for pair in pairs):  # a unit less may leave another without a reader
        pass


def _pairs(chain: nn.Sequential) -> Iterator[tuple[_Units, list[nn.Module], _Units]]:
    """Yield layers of which one reads the units of the other, with what lies between them."""
    first: _Units | None = None
    between: list[nn.Module] = []
    for layer in chain:
        if type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1):
            if first is not None and _reads(layer, first, between):
                yield first, between, layer
            first, between = layer, []
        else:
            between.append(layer)


def _reads(second: _Units, first: _Units, between: list[nn.Module]) -> bool:
    """Tell whether each unit of a layer stays apart from the others on its way to another layer."""
    if isinstance(first, nn.Conv2d) and isinstance(second, nn.Linear):
        at = [number for number, layer in enumerate(between) if type(layer) is nn.Flatten]
        if len(at) != 1 or repr(between[at[0]]) != repr(nn.Flatten()):
            return False
        images, rows = between[: at[0]], between[at[0] + 1 :]
    else:
        images, rows = (between, []) if isinstance(first, nn.Conv2d) else ([], between)
    fits = type(first) is type(second) or isinstance(first, nn.Conv2d)
    return (
        fits
        and all(_is_elementwise(layer) or type(layer) in _POOLS for layer in images)
        and all(map(_is_elementwise, rows))
    )


def _is_elementwise(layer: nn.Module) -> bool:
    return type(layer) in _ELEMENTWISE and getattr(layer, "switch", "auto") != "on"


def _take_out(first: _Units, between: list[nn.Module], second: _Units) -> bool:
    """Take units out from between two layers; tell whether there were any."""
    if not second.weight.numel():  # there are none, or nothing that could read them
        return False
    # Flattened images have several numbers a unit.
    read = second.weight.reshape(len(second.weight), len(first.weight), -1)
    constants = _constants(first, between)
    can_move = second.bias is not None and _is_uniform(between, second)
    dead = (first.weight == 0).flatten(1).all(1) & ~constants.isnan() & (can_move | (constants == 0))
    dead |= (read == 0).all(2).all(0)
    if dead.all():
        dead[0] = False
    if not dead.any():
        return False
    if second.bias is not None and can_move:
        second.bias.add_(read[:, dead].sum(2) @ constants[dead])
    kept = ~dead
    _set(first, "weight", first.weight[kept])
    if first.bias is not None:
        _set(first, "bias", first.bias[kept])
    _set(second, "weight", read[:, kept].reshape(len(read), -1, *second.weight.shape[2:]))
    for layer in (first, second):
        names = ("out_features", "in_features") if isinstance(layer, nn.Linear) else ("out_channels", "in_channels")
        for name, count in zip(names, layer.weight.shape, strict=False):
            setattr(layer, name, count)
    return True


def _constants(layer: _Units, between: list[nn.Module]) -> Tensor:
    """Return what the next layer reads of each unit while the unit itself reads nothing; NaN if that is no constant."""
    values = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.clone()
    for each in between:
        if _is_elementwise(each):
            values = copy.deepcopy(each).eval()(values)
        elif type(each) is nn.AvgPool2d:  # at borders its mean counts other numbers in: of constants only 0 stays one
            values = torch.where(values == 0, values, torch.nan)
    return values


def _is_uniform(between: list[nn.Module], second: _Units) -> bool:
    """Tell whether a constant reaches all outputs of a layer alike: the zeros around an image are no part of it."""
    if any(type(layer) is nn.AvgPool2d for layer in between):
        return False
    return isinstance(second, nn.Linear) or second.padding_mode != "zeros" or second.padding in ((0, 0), "valid")


def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    setattr(layer, name, nn.Parameter(value.clone(), requires_grad=getattr(layer, name).requires_grad))
