"""Recipes: where dropout belongs in a model of a kind, and how much, by the flow of data through it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch.nn import Module, MultiheadAttention, RNNBase

from dropkit.errors import UnsupportedError
from dropkit.functional import linear_rates
from dropkit.nn import Dropout, Dropout1d, Dropout2d, Dropout3d, DropPath, LockedDropout
from dropkit.nn.recurrent_base import RecurrentBase
from dropkit.sites.placing.branches import correction, find_branches
from dropkit.sites.placing.flow import Flow, Step, Value
from dropkit.sites.placing.walks import (
    depths_of,
    is_before_batch_norm,
    is_on_output,
    mixes,
    sources,
    steps_after,
    steps_before,
    upstream,
)

__all__ = [
    "BATCH_NORM", "CURVED", "PATHS", "RECIPES", "Rates", "Recipe", "Want",
]  # fmt: skip

ELEMENTWISE = ("dropout", "alpha_dropout", "mask")
CHANNELS = ("dropout1d", "dropout2d", "dropout3d", "feature_dropout", "feature_alpha_dropout", "channel_mask")
PATHS = ("drop_path", "skip_path")
CURVED = ("tanh", "sigmoid", "gelu", "silu", "elu", "selu", "softplus", "softmax", "mish", "hardswish", "exp", "log")
_NOUNS = {"recurrent": "recurrent network", "dense": "dense layer"}
_ATTENTION = ("scaled_dot_product_attention", "multi_head_attention")


@dataclass(eq=False)
class Want:
    """A tensor that a recipe drops from.

    Args:
        role: Which of the recipe's rates it has.
        p: The rate.
        value: The tensor.
        reader: The layer that reads it; None where it is wanted for all that read it.
        layer: What makes the layer that drops.
        kinds: Kinds of sites that do the same, and may do it in its place.
        wrong: Kinds of sites that make way for it.
        why: The reason, for the plan.
        network: The recurrent network whose layers it is wanted between.
        site: The site that is to have the rate, where no layer can be placed.
    """

    role: str
    p: float
    value: Value
    reader: Step | None
    layer: Callable[[float], Module]
    kinds: tuple[str, ...]
    wrong: tuple[str, ...]
    why: str
    network: Module | None = None
    site: Step | None = None


Rates = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    Args:
        rates: The rates of its roles: at the first place, and at the last.
        plan: Yields what it wants of a flow.
        fits: Kinds of steps without which it does not fit.
        misfits: Kinds of steps with which it does not, and the recipe that does.
        what: What it is for.
    """

    rates: Rates
    plan: Callable[[Flow, Rates], Iterator[Want]]
    fits: tuple[str, ...]
    what: str
    misfits: Mapping[str, str] = field(default_factory=dict)

    def check(self, name: str, flow: Flow) -> None:
        """Raise unless the recipe fits a model."""
        for step in flow.steps:
            if isinstance(step.module, RecurrentBase):
                kind = type(step.module).__name__
                raise UnsupportedError(
                    f"convert: `{step.path}` is a dropkit.nn.{kind}, which has rates of its own. Set its input_p and "
                    "output_p."
                )
        kinds = [(step, "attention") for step in _attention_weights(flow)]
        kinds += [(step, step.kind) for step in flow.steps]
        for step, kind in kinds:
            if kind in self.misfits:
                raise UnsupportedError(
                    f"convert: the recipe {name!r} is for {self.what}, and this model has {kind} in "
                    f"`{step.path or 'its forward'}`. Try {self.misfits[kind]}."
                )
        if not any(kind in self.fits for _, kind in kinds):
            missing = " or ".join(_NOUNS.get(kind, kind) for kind in self.fits)
            others = ", ".join(repr(other) for other in RECIPES if other != name)
            remedy = f"Choose another of {others}."
            if "recurrent" in self.fits and flow.kind("cell"):
                remedy = "Its cells run a step at a time: use torch.nn.LSTM, GRU or RNN, or dropkit.nn.LSTM or GRU."
            raise UnsupportedError(
                f"convert: the recipe {name!r} is for {self.what}, and a forward of this model has no {missing}. "
                f"{remedy}"
            )


def _mixes_numbers(step: Step) -> bool:
    """Tell whether a step mixes more than lengths and indices with what it reads, as packing does."""
    numbers = [value for value in step.inputs if value.is_floating]
    return step.is_layer or step.kind in ("sum", "norm", "batch_norm") or len(numbers) > 1


def _elementwise(role: str, p: float, step: Step, why: str, wrong: tuple[str, ...] = ()) -> Want:
    return Want(role, p, step.inputs[0], step, Dropout, ELEMENTWISE, wrong, why)


def _srivastava(flow: Flow, rates: Rates) -> Iterator[Want]:
    for step in flow.kind("dense"):
        if not sources(step.inputs[0]) - set(flow.kind("embedding")):
            yield _elementwise("input", rates["input"][1], step, "the input", CHANNELS)
        else:
            yield _elementwise("hidden", rates["hidden"][1], step, "a hidden layer", CHANNELS)


def _last_dense(flow: Flow) -> list[Step]:
    """Return the dense layers behind which there is no other layer."""
    ends = [step for step in flow.kind("dense") if step.inputs and sources(step.inputs[0])]
    return [
        step for step in ends if not any(after.is_layer for after in steps_after(step.outputs[0], lambda s: False)[0])
    ]


def _cnn(flow: Flow, rates: Rates) -> Iterator[Want]:
    last = _last_dense(flow)
    layers = [step for step in flow.kind("convolution") if sources(step.inputs[0]) and _is_map(step.inputs[0])]
    maps: list[tuple[Value, Step | None]] = [(step.inputs[0], step) for step in layers]
    for step in flow.kind("dense"):
        if sources(step.inputs[0]) and all(source.kind == "convolution" for source in sources(step.inputs[0])):
            dropped = [before.outputs[0] for before in upstream(step.inputs[0]) if before.draws in CHANNELS]
            found = dropped or ([] if step in last else _map_before(step.inputs[0]))
            maps += [(value, None) for value in found[:1]]
    kept = [pair for pair in maps if not is_before_batch_norm(pair[0])]
    depths = depths_of(flow)
    ranks = sorted({depths.get(value, 0) for value, _ in kept})
    low, high = rates["channels"]
    for value, reader in kept:
        p = low + (high - low) * ranks.index(depths.get(value, 0)) / (len(ranks) - 1) if len(ranks) > 1 else high
        convolution = reader if reader is not None else next(iter(sources(value)))
        layer = _LAYERS[convolution.name[-2:]]
        yield Want("channels", p, value, reader, layer, CHANNELS, ELEMENTWISE, "channels of a map, more with depth")
    for value, reader in maps:
        if (value, reader) not in kept:
            yield Want("channels", 0.0, value, reader, Dropout, CHANNELS, ELEMENTWISE, BATCH_NORM)
    for step in last:
        yield _elementwise("dense", rates["dense"][1], step, "before the last dense layer")


_LAYERS = {"1d": Dropout1d, "2d": Dropout2d, "3d": Dropout3d}
BATCH_NORM = "BatchNorm behind it would store the variance of training"


def _is_map(value: Value) -> bool:
    return len(value.shape) in (3, 4, 5) and any(length > 1 for length in value.shape[2:])


def _map_before(value: Value) -> list[Value]:
    """Return the last map before a dense layer that a module takes or gives, unless a curved function follows it."""
    for step in upstream(value):
        if step.name in CURVED:
            break
        if _is_map(step.inputs[0]) and step.inputs[0].ports:
            return [step.inputs[0]]
    return []


def _rnn(flow: Flow, rates: Rates) -> Iterator[Want]:
    for step in flow.kind("recurrent"):
        module = step.module
        if not isinstance(module, RNNBase):
            raise UnsupportedError(
                f"convert: the recipe 'rnn' is for networks such as torch.nn.LSTM, and `{step.path}` calls "
                f"torch.{step.draws} itself. Use a module, or dropkit.nn.LockedDropout beside it."
            )

        def locked(p: float, batch_first: bool = bool(module.batch_first)) -> Module:
            return LockedDropout(p, batch_first)

        wrong = (*ELEMENTWISE, *CHANNELS)
        kinds = ("locked_dropout", "shared_mask")
        yield Want("inputs", rates["inputs"][1], step.inputs[0], step, locked, kinds, wrong, "one mask for all steps")
        if module.num_layers > 1:
            why = "one mask for all steps, between layers"
            yield Want("between", rates["between"][1], step.outputs[0], None, locked, kinds, wrong, why, module)
        value = next((v for v in [step.outputs[0], *_views(step.outputs[0])] if _leaves(v, module)), step.outputs[0])
        readers = steps_after(value, _mixes_numbers, is_by_numbers=True)[0]
        ends = [reader for reader in readers if _mixes_numbers(reader)]
        if not ends and not is_on_output(value, flow):
            why = "nothing reads them, and states stay whole"
            yield Want("outputs", 0.0, value, None, locked, kinds, (), f"outputs of `{step.path}`: {why}")
        elif ends and not all(reader.kind == "recurrent" for reader in ends) and not is_on_output(value, flow):
            yield Want("outputs", rates["outputs"][1], value, None, locked, kinds, wrong, "one mask for all steps")


def _views(value: Value) -> list[Value]:
    return [made for step in value.readers if step.kind == "other" for made in step.outputs]


def _leaves(value: Value, module: Module) -> bool:
    return any(port.module is module and not port.is_input for port in value.ports)


def _transformer(flow: Flow, rates: Rates) -> Iterator[Want]:
    attending = _attention_weights(flow)
    if not attending:
        raise UnsupportedError(
            "convert: the recipe 'transformer' is for transformers, and nothing in this model attends."
        )
    for step in attending:
        p = rates["attention"][1]
        if step.kind == "attention":
            yield Want("attention", p, step.outputs[0], None, Dropout, (), (), "attention weights", site=step)
        else:
            yield Want("attention", p, step.outputs[0], None, Dropout, ELEMENTWISE, (), "attention weights")
    for _, branch in find_branches(flow):
        yield Want("sublayer", rates["sublayer"][1], branch, None, Dropout, ELEMENTWISE, (), "output of a sub-layer")
    sums = {step for step, _ in find_branches(flow)}
    ends = {source for _, branch in find_branches(flow) for source in sources(branch)}
    corrections = {layer for joint in flow.kind("sum") for layer in correction(joint)}
    for step in (step for step in flow.kind("dense") if step in ends - corrections):
        between = steps_before(step.inputs[0], through_layers=False)
        before = {source.kind for source in between if source.is_layer}
        if before == {"dense"} and not any(joint in sums or _joins(joint) for joint in between):
            yield _elementwise("feed_forward", rates["feed_forward"][1], step, "inside the feed-forward")


def _joins(step: Step) -> bool:
    """Tell whether a step ends a feed-forward block: a normalisation, or attention."""
    return step.kind in ("norm", "batch_norm", "softmax") or step.name in ("matmul", "bmm", "einsum")


def _attention_weights(flow: Flow) -> list[Step]:
    """Return the steps that attend: PyTorch's functions, and any softmax that is multiplied with what was computed."""
    written = [
        step
        for step in flow.kind("softmax")
        if any(
            after.name in ("matmul", "bmm", "einsum") for after in steps_after(step.outputs[0], _mixes_or_multiplies)[0]
        )
    ]
    return [step for step in flow.steps if step in written or step.draws in _ATTENTION]


def _mixes_or_multiplies(step: Step) -> bool:
    return mixes(step) or step.name in ("matmul", "bmm", "einsum")


def _block(path: str) -> str:
    """Return the name of the numbered block that a module is in."""
    parts = path.split(".")
    numbered = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[-1] + 1]) if numbered else path


def _vit(flow: Flow, rates: Rates) -> Iterator[Want]:
    branches = find_branches(flow)
    blocks = list(dict.fromkeys(_block(step.path) for step, _ in branches))
    if not blocks:
        raise UnsupportedError(
            "convert: the recipe 'vit' is for residual networks, and no branch is added to a shortcut."
        )
    low, high = rates["path"]
    rising = [low + (high - low) * share for share in linear_rates(1.0, len(blocks))] if len(blocks) > 1 else [high]
    is_time_first = any(
        isinstance(step.module, MultiheadAttention) and not step.module.batch_first for step in flow.kind("attention")
    )
    for step, branch in branches:
        number = blocks.index(_block(step.path))

        def path(p: float, rank: int = len(branch.shape)) -> Module:
            shared = tuple(axis for axis in range(rank) if axis != 1)
            return Dropout(p, broadcast_dims=shared) if is_time_first and rank > 1 else DropPath(p)

        why = f"branch of block {number + 1} of {len(blocks)}" + ("" if rising[number] else ", where the rate is 0")
        yield Want("path", rising[number], branch, None, path, PATHS, (), why)


def _flat(**rates: float) -> dict[str, tuple[float, float]]:
    return {role: (p, p) for role, p in rates.items()}


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "srivastava": Recipe(
            _flat(input=0.2, hidden=0.5), _srivastava, ("dense",), "fully connected networks",
            {"attention": "'transformer'", "recurrent": "'rnn'", "convolution": "'cnn'"},
        ),
        "cnn": Recipe(
            {"channels": (0.1, 0.25), "dense": (0.5, 0.5)}, _cnn, ("convolution",), "convolutional networks",
            {"attention": "'vit' or 'transformer'"},
        ),
        "rnn": Recipe(_flat(inputs=0.25, between=0.25, outputs=0.25), _rnn, ("recurrent",), "recurrent networks"),
        "transformer": Recipe(
            _flat(attention=0.1, sublayer=0.1, feed_forward=0.1), _transformer, ("attention",), "transformers"
        ),
        "vit": Recipe({"path": (0.0, 0.1)}, _vit, ("sum",), "residual networks"),
    }
)  # fmt: skip
"""All recipes by name."""
