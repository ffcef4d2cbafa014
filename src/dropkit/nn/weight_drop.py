"""Weight drop: parameters of any module, dropped anew at every forward pass and put in the place of the plain ones."""

import copyreg
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module, RNNBase

from dropkit._checks import PROBABILITY, argument_error, argument_type_error
from dropkit.errors import UnsupportedError
from dropkit.functional import dropout
from dropkit.functional.address import Names, check_source
from dropkit.functional.inputs import check_mask
from dropkit.functional.noise import noise_at
from dropkit.nn.layer import GeneratorMixin, NoiseMixin, RateMixin, check_bool, check_generator
from dropkit.nn.variants import variant

__all__ = ["WeightDrop"]

_WHERE = "WeightDrop"
_NAMES = Names("weight", "p", "dropout_key")
_ADDED = ("_generator", "_p", "_switch", "dropped_names")
_OUTSIDE = "Give a module that contains it, and the weight's name there, with dots."


@variant(
    family="weights",
    title="weight drop",
    noise="Bernoulli",
    shared="all examples and time steps of a forward pass",
    acts_on="weights",
    dropped=0.0,
    at_one="zeros",
    evaluation="the plain weights",
    formula=r"\tilde W = \frac{M \odot W}{1 - p}, \quad M_{ij} \sim \mathrm{Bernoulli}(1 - p)",
    symbol="p, the probability of dropping",
    use="On the hidden-to-hidden weights of recurrent networks, whose fused kernels it leaves in use.",
    rates=(0.5,),
    inputs=((3, 5),),
    example=lambda p: WeightDrop(torch.nn.Linear(5, 4), p),
    axes=("outputs", "inputs"),
    is_layer=False,
    function=dropout,
)
class WeightDrop(RateMixin):
    """Drop parameters of a module, drawn once a forward pass for all examples and steps, in training.

    ``WeightDrop(module, p, names)`` changes the module in place and returns it. Only its class changes, to one that
    derives from `WeightDrop` and from the class it had, so `isinstance` holds for both, and parameters, their names,
    the `state_dict`, optimizers and hooks stay what they were: dropped weights stand in front of the plain ones while
    `forward` runs, also in the list that recurrent networks keep of theirs, and nothing else sees them. Gradients
    reach the plain weights. Copies, pickles and `torch.compile` work; that compiler takes no recurrent network of
    PyTorch's, with weight drop or without. One module must not run in two threads at once.

    A weight is dropped only while the module itself runs: ``seq[0](x)`` of a wrapped `torch.nn.Sequential` uses the
    plain weights. Masks belong to names, so two names of one tied parameter have a mask each; give one of them, and
    the other stays plain.

    The rate is the module's new attribute `p`, its names `dropped_names`; `remove_weight_drop()` makes it what it was.
    `forward` takes four arguments more, by name: `dropout_key`, `dropout_mask`, `return_dropout_mask` and
    `dropout_stream`.

    Args:
        module: Any module, except one that has an attribute `p`, `rate`, `generator`, `switch` or any other that this
            class adds, and one whose hooks read the weight before `forward` runs; then one that contains it.
        p: Probability of dropping an element of a weight, in ``[0, 1]``. Default: 0.5.
        names: The parameters, by their names in the `state_dict`; those of submodules have dots. Default: ``"weight"``.
        generator: Where keys are drawn, on the parameters' device; eager code only. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If `p` is no number in ``[0, 1]``, a name is unknown, or the module is such a one.
        ArgumentTypeError: If an argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> lstm = dropkit.nn.WeightDrop(torch.nn.LSTM(3, 4), 0.5, "weight_hh_l0")
        >>> lstm
        WeightDropLSTM(3, 4, p=0.5, names=('weight_hh_l0',))
        >>> list(lstm.state_dict())
        ['weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0']
        >>> output, (h, c) = lstm(torch.randn(7, 2, 3))

    References:
        Merity, Keskar and Socher (2018), "Regularizing and optimizing LSTM language models", section 2, which uses the
        DropConnect of Wan, Zeiler, Zhang, LeCun and Fergus (2013) with one mask for all examples and time steps.
    """

    dropped_names: tuple[str, ...]
    _base: ClassVar[type[Module]]

    def __new__(
        cls,
        module: Module,
        p: float = 0.5,
        names: str | Sequence[str] = "weight",
        *,
        generator: torch.Generator | None = None,
    ) -> "WeightDrop":
        """Check everything, then change the class of the module; `__init__` then sets what it has more."""
        _check_module(module)
        PROBABILITY.check(_WHERE, "p", p)
        _check_names(module, names)
        check_generator(_WHERE, generator)
        module.__class__ = _dropping(type(module))
        return module  # type: ignore[return-value]  # which it is now

    def __init__(
        self,
        module: Module,
        p: float = 0.5,
        names: str | Sequence[str] = "weight",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        self._set_noise(p, generator)
        self.dropped_names = (names,) if isinstance(names, str) else tuple(names)

    def forward(
        self,
        *arguments: Any,
        dropout_key: int | Tensor | None = None,
        dropout_mask: Mapping[str, Tensor] | None = None,
        return_dropout_mask: bool = False,
        dropout_stream: int | Tensor = 0,
        **options: Any,
    ) -> Any:
        """Run the module with dropped weights.

        Args:
            *arguments: What the module takes.
            dropout_key: One key for all weights, as for `dropkit.functional.dropout`; the n-th name has the n-th
                field of it, as `dropkit.random.field` counts them. Default: drawn.
            dropout_mask: Bool tensors to use instead, True = kept, by name. Default: drawn.
            return_dropout_mask: Whether to return ``(output, masks by name)``. Default: False.
            dropout_stream: Number of the pass. Default: 0.
            **options: What the module takes by name.

        Returns:
            What the module returns; with `return_dropout_mask`, a pair.

        Raises:
            ArgumentError: As `dropkit.functional.dropout`; or if masks and names differ.
            ArgumentTypeError: As `dropkit.functional.dropout`.
        """
        check_bool(_WHERE, "return_dropout_mask", return_dropout_mask)
        dropped, masks = self._draw(dropout_key, dropout_mask, dropout_stream)
        before: list[tuple[Module, str, Any]] = []
        try:
            _substitute(self, dropped, before)
            output = super().forward(*arguments, **options)
        finally:
            for owner, name, value in reversed(before):
                if value is None:
                    del owner.__dict__[name]
                else:
                    owner.__dict__[name] = value
        return (output, masks) if return_dropout_mask else output

    def _draw(
        self, key: int | Tensor | None, masks: Mapping[str, Tensor] | None, stream: int | Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what stands for the weights, and the masks; in evaluation the weights themselves."""
        weights = {path: _parameter(self, path) for path in self.dropped_names}
        if masks is not None and (not isinstance(masks, Mapping) or masks.keys() != weights.keys()):
            given = sorted(map(str, masks)) if isinstance(masks, Mapping) else masks
            raise argument_error(_WHERE, "dropout_mask", f"a mapping of {list(weights)} to bool tensors", given)
        rate, generator = self.rate, self._source(key, masks) if self.is_on else None
        for path, mask in (masks or {}).items():
            label = f"dropout_mask[{path!r}]"
            check_mask(_WHERE, mask, weights[path], {"dropout_key": key}, {"dropout_stream": stream}, label)
        one = next(iter(weights.values())).new_empty(())  # without slices: one key for all
        _, streams, keys = check_source(_WHERE, one, rate, key, generator, stream, _NAMES)
        if masks is None and self.is_on and (isinstance(rate, Tensor) or rate > 0):
            noise = noise_at(_WHERE, one, keys, streams, generator, _NAMES)
            fields = [noise.field(number) for number in range(len(weights))]
            sources: list[dict[str, Any]] = [{"key": field.key, "stream": field.stream} for field in fields]
        else:
            sources = [{"key": key, "mask": masks and masks[name], "stream": stream} for name in weights]
        pairs = zip(weights.items(), sources, strict=True)
        found = {name: dropout(weight, rate, self.is_on, return_mask=True, **how) for (name, weight), how in pairs}
        dropped = {name: pair[0] for name, pair in found.items()} if self.is_on else {}
        return dropped, {name: pair[1] for name, pair in found.items()}

    def remove_weight_drop(self) -> Module:
        """Make the module what it was, and return it."""
        self.unfollow()
        for name in _ADDED:
            self.__dict__.pop(name, None)
        self.__class__ = self._base  # type: ignore[assignment]  # which it had before
        return self

    def extra_repr(self) -> str:
        """Show what the module shows, the rate and the names."""
        shown = super(NoiseMixin, self).extra_repr()
        noise = self._shown("dropped_names").replace("dropped_names=", "names=")
        return f"{shown}, {noise}" if shown else noise

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Let copies and pickles name the class that the module had, for that of its own is made as it runs."""
        reduced: Any = super().__reduce_ex__(protocol)
        function, arguments, *state = reduced
        if function is not copyreg.__newobj__ or arguments != (type(self),):  # type: ignore[attr-defined]  # its hints leave it out
            base = self._base.__name__
            raise UnsupportedError(f"{_WHERE}: {base} is copied in a way of its own. Call remove_weight_drop() first.")
        return _remake, (self._base,), *state


_classes: dict[type[Module], type[Module]] = {}


def _dropping(base: type[Module]) -> type[Module]:
    """Return the class of modules of a class with weight drop, always the same."""

    def new(cls: type[Module], *arguments: Any, **options: Any) -> Module:
        # A module may make others of its own class, as a slice of a Sequential is one: these drop nothing.
        return base(*arguments, **options) if arguments or options else base.__new__(cls)

    def init(self: Module, *arguments: Any, **options: Any) -> None:
        if arguments or options:
            WeightDrop.__init__(self, *arguments, **options)  # type: ignore[arg-type]  # of a class made below
        else:  # one more of its own class, without arguments
            self.__class__ = base
            base.__init__(self)

    if base not in _classes:
        names = {
            "__new__": new,
            "__init__": init,
            "_base": base,
            "__module__": base.__module__,
            "__doc__": base.__doc__,
        }
        _classes[base] = type(f"{_WHERE}{base.__name__}", (WeightDrop, base), names)
    return _classes[base]


def _remake(base: type[Module]) -> Module:
    cls = _dropping(base)
    return cls.__new__(cls)


def _parameter(module: Module, path: str) -> Any:
    """Return a parameter, or what `torch.func.functional_call` has put in its place."""
    prefix, _, name = path.rpartition(".")
    return module.get_submodule(prefix)._parameters[name]  # behind what an outer call has put there


def _substitute(module: Module, dropped: Mapping[str, Tensor], before: list[tuple[Module, str, Any]]) -> None:
    """Put tensors in front of parameters, and note what was there: attributes are found before parameters."""
    for path, tensor in dropped.items():
        prefix, _, name = path.rpartition(".")
        owner = module.get_submodule(prefix)
        before.append((owner, name, owner.__dict__.get(name)))
        owner.__dict__[name] = tensor
    for owner in {id(owner): owner for owner, *_ in before if isinstance(owner, RNNBase)}.values():
        weights = [getattr(owner, name, None) for name in owner._flat_weights_names]
        refs = [None if weight is None else weakref.ref(weight) for weight in weights]
        for name, value in (("_flat_weights", weights), ("_flat_weight_refs", refs)):
            before.append((owner, name, owner.__dict__.get(name)))
            owner.__dict__[name] = value


def _check_module(module: Any) -> None:
    """Raise unless a module can be changed."""
    if not isinstance(module, Module) or isinstance(module, torch.jit.ScriptModule):
        raise argument_type_error(_WHERE, "module", "a torch.nn.Module in Python", module)
    mixins = (WeightDrop, RateMixin, NoiseMixin, GeneratorMixin)
    added = {*_ADDED, *(name for mixin in mixins for name in vars(mixin))} - {*dir(Module)}
    for name in sorted((name for name in added if hasattr(module, name)), key=str.swapcase):
        rule = f"a module without an attribute `{name}`, which {_WHERE} adds"
        raise argument_error(_WHERE, "module", rule, type(module).__name__, _OUTSIDE)


def _check_names(module: Module, names: Any) -> None:
    """Raise unless names are those of parameters of a floating or complex type."""
    paths = (names,) if isinstance(names, str) else names
    rule = "a name of a parameter, or a sequence of several"
    if not isinstance(paths, Sequence) or not all(isinstance(path, str) for path in paths):
        raise argument_type_error(_WHERE, "names", rule, names)
    known = dict(module.named_parameters(remove_duplicate=False))
    if not paths or len(set(paths)) != len(paths) or not set(paths) <= known.keys():
        raise argument_error(_WHERE, "names", rule, names, f"The module has: {', '.join(known) or 'none'}.")
    early = _read_early(module)
    for path in paths:
        if path in early:
            rule = "no weight that a hook reads before `forward`, as old weight norm, spectral norm and pruning do"
            raise argument_error(_WHERE, "names", rule, path, _OUTSIDE)
        if torch.nn.parameter.is_lazy(known[path]):
            raise argument_error(_WHERE, "names", rule, names, f"Run the module first: {path} has no shape yet.")
        if not (known[path].is_floating_point() or known[path].is_complex()):
            raise argument_type_error(_WHERE, "names", "of a floating or complex type", known[path].dtype)


def _read_early(module: Module) -> set[str]:
    """Return names of parameters from which hooks of PyTorch's compute a weight before a module's `forward` runs."""
    found = set()
    for hook in module._forward_pre_hooks.values():
        if isinstance(name := getattr(hook, "name", None), str):  # torch.nn.utils.weight_norm, spectral_norm
            found |= {f"{name}_g", f"{name}_v", f"{name}_orig"}
        if isinstance(name := getattr(hook, "_tensor_name", None), str):  # torch.nn.utils.prune
            found.add(f"{name}_orig")
    return found
