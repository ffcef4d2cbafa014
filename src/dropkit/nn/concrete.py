"""Dropout that learns its rate by a relaxed mask."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.nn.modules.conv import _ConvNd

from dropkit._checks import POSITIVE, argument_error, argument_type_error
from dropkit.functional import concrete_dropout
from dropkit.functional.variational import check_real, widened
from dropkit.nn.layer import check_bool
from dropkit.nn.learned import FEATURES, RATE, LearnedMixin, shown_rate
from dropkit.nn.variants import Learned, variant

__all__ = ["ConcreteDropout"]


def _first(p: float) -> float:
    """Return the logit of a rate."""
    return math.log(p / (1 - p))


def _divergence(logit: Tensor, square: Tensor, features: int, length_scale: float = 1e-4) -> Tensor:
    """Return the divergence of weights that read `features` units and have a sum of squares."""
    logit = widened(logit)
    p, q = torch.sigmoid(logit), torch.sigmoid(-logit)  # 1 / q is 1 + exp(logit), also where q rounds to 0
    entropy = p * softplus(-logit) + q * softplus(logit)
    return 0.5 * length_scale**2 * square * (1.0 + logit.exp()) - features * entropy


def _noisy(input: Tensor, logit: Tensor, training: bool = True, *, key: int | Tensor | None = None) -> Tensor:
    """Apply the noise of a layer with the default temperature."""
    return concrete_dropout(input, logit, training=training, key=key)


@variant(
    family="learned",
    title="concrete dropout",
    noise="relaxed Bernoulli, its rate learned",
    shared="places of a channel before a convolution, else none",
    acts_on="activations",
    dropped="near 0",
    at_one="refused",
    evaluation="the layer without noise",
    formula=(
        r"y = \frac{x \odot z}{1 - p}, \quad z = \mathrm{sigmoid}\!\left("
        r"\frac{1}{t} \left(\ln \frac{u}{1 - u} - \ln \frac{p}{1 - p}\right)\right), \quad u \sim U(0, 1)"
    ),
    symbol="p, the probability of dropping",
    use="Before every layer with weights of a network whose uncertainty is sampled, in place of a search for rates.",
    rates=(0.1,),
    inputs=((4, 6),),
    example=lambda p: ConcreteDropout(torch.nn.Linear(6, 3), p),
    shown=lambda p: ConcreteDropout(torch.nn.Identity(), p, features=32),
    shown_inputs=((8, 32),),
    axes=("examples", "units"),
    is_layer=False,
    function=concrete_dropout,
    learned=Learned(
        first=_first,
        rate=lambda logit: torch.sigmoid(widened(logit)),
        function=_noisy,
        kl=lambda logit, weight: _divergence(
            logit[..., 0, 0], widened(weight).square().sum((-2, -1)), weight.shape[-2]
        ),
    ),
)
class ConcreteDropout(LearnedMixin):
    """Drop the inputs of a layer at a rate that is learned, by a relaxed mask; the layer alone in evaluation.

    It wraps the layer, or stands before it. Either way `kl` asks for small weights and a rate near one half, against
    the data. Train on the mean negative log-likelihood plus `dropkit.nn.regularization`, and keep `p_logit` out of
    weight decay. For uncertainty sample with ``switch = "on"``.

    With `length_scale` l, N rows and the mean squared error of noise of precision tau, the term that the paper adds,
    ``w |W|^2 / (1 - p) + d K (p ln p + (1 - p) ln(1 - p))`` with ``w = l^2 / (tau N)`` and ``d = 2 / (tau N)``, is
    ``2 / tau * regularization(model, N)``. With a cross-entropy it is `regularization(model, N)`, whose d is theirs and
    whose w is half of that in the authors' code.

    Args:
        layer: The layer whose inputs are dropped. All its parameters count as weights but biases and those of layers
            in it that learn their noise: these have a prior of their own.
        p: The rate at the start, in (0, 1). Default: 0.1.
        wraps: Whether the layer becomes a part of this module, which then calls it. If False this module stands
            before it: it drops its input, and knows the layer for its weights alone. Where another layer is put in that
            layer's place later, `kl` still reads the old one. Default: True.
        features: K, how many inputs may be dropped on their own: features, or channels. Default: those of a linear
            layer or a convolution; needed for any other.
        spatial: Whether a channel's places, the axes after it, share a draw. Default: whether it is a convolution.
        temperature: How far the mask is relaxed, above 0. Default: 2/3 if spatial, else 0.1.
        length_scale: The length scale of the prior: weights are expected to be near 0 by its inverse. Default: 1e-4.
        generator: Where keys are drawn, on the input's device; eager code only. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If a value is out of range, or `features` is needed.
        ArgumentTypeError: If `layer` is no module, or another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> layer = dropkit.nn.ConcreteDropout(torch.nn.Linear(4, 2))
        >>> layer
        ConcreteDropout(
          p=0.1, features=4, temperature=0.1
          (layer): Linear(in_features=4, out_features=2, bias=True)
        )
        >>> layer(torch.ones(3, 4)).shape
        torch.Size([3, 2])
        >>> linear = torch.nn.Linear(4, 2)
        >>> model = torch.nn.Sequential(dropkit.nn.ConcreteDropout(linear, wraps=False), linear)
        >>> list(model.state_dict())
        ['0.p_logit', '1.weight', '1.bias']

    References:
        Gal, Hron and Kendall (2017), "Concrete dropout", equations 3 and 5, whose p is the probability of dropping; the
        spatial form, its temperature and the defaults are those of the authors' code.
    """

    def __init__(
        self,
        layer: torch.nn.Module,
        p: float = 0.1,
        *,
        wraps: bool = True,
        features: int | None = None,
        spatial: bool | None = None,
        temperature: float | None = None,
        length_scale: float = 1e-4,
        generator: torch.Generator | None = None,
    ) -> None:
        where = "ConcreteDropout"
        if not isinstance(layer, torch.nn.Module):
            raise argument_type_error(where, "layer", "a torch.nn.Module", layer)
        p = RATE.check(where, "p", p)
        check_bool(where, "wraps", wraps)
        length_scale = POSITIVE.check(where, "length_scale", length_scale)
        features = _features(where, layer) if features is None else FEATURES.check(where, "features", features)
        spatial = isinstance(layer, _ConvNd) if spatial is None else check_bool(where, "spatial", spatial)
        relaxed = 2 / 3 if spatial else 0.1
        temperature = relaxed if temperature is None else POSITIVE.check(where, "temperature", temperature)
        super().__init__()
        self._set_source(generator)
        like = next(layer.parameters(), torch.empty(0))
        self.p_logit = torch.nn.Parameter(torch.full((), _first(p), dtype=like.dtype, device=like.device))
        self.wraps, self.features, self.spatial = wraps, features, spatial
        self.temperature, self.length_scale = temperature, length_scale
        if wraps:
            self.layer = layer
        else:
            self._followed = (layer,)  # in a tuple, where it stays another module's part

    @property
    def _reader(self) -> torch.nn.Module:
        """The layer whose inputs are dropped."""
        return self.layer if self.wraps else self._followed[0]

    @property
    def p(self) -> Tensor:
        """The rate."""
        return torch.sigmoid(widened(self.p_logit)).detach()

    def kl(self) -> Tensor:
        """Return the divergence of the layer's weights from their prior, in nats, up to a constant."""
        zero = torch.zeros_like(widened(self.p_logit))
        square = sum((widened(weight).square().sum() for weight in self._weights()), zero)
        return _divergence(self.p_logit, square, self.features, self.length_scale)

    def follow_instead(self, layers: Mapping[torch.nn.Module, torch.nn.Module]) -> None:
        """Know another layer for its weights where the one that this module stands before was replaced."""
        if not self.wraps:
            self._followed = (layers.get(self._followed[0], self._followed[0]),)

    def _weights(self) -> Iterator[Tensor]:
        """Yield what the prior is about: no biases, and nothing that has a prior of its own."""
        inside = list(self._reader.modules())
        others = [module for module in inside if isinstance(module, LearnedMixin)]
        read = [module._reader for module in others if isinstance(module, ConcreteDropout)]
        apart = {id(part) for module in (*others, *read) for part in module.modules()}
        for module in inside:
            if id(module) not in apart:
                own = module.named_parameters(recurse=False)
                yield from (value for name, value in own if "bias" not in name)

    def forward(
        self,
        input: Tensor,
        *others: Any,
        dropout_key: int | Tensor | None = None,
        dropout_stream: int | Tensor = 0,
        **options: Any,
    ) -> Any:
        """Drop the input, and call the layer if it is wrapped.

        Args:
            input: What the layer takes first.
            *others: What else it takes.
            dropout_key: As `key` for `dropkit.functional.concrete_dropout`. Default: drawn from the generator.
            dropout_stream: Number of the pass, as `stream` for that function. Default: 0.
            **options: What it takes by name.

        Returns:
            What the layer gives; or, before a layer, a tensor of the input's shape and type.

        Raises:
            ArgumentError: As `dropkit.functional.concrete_dropout`.
            ArgumentTypeError: As `dropkit.functional.concrete_dropout`.
        """
        check_real("ConcreteDropout", "input", input)
        dropped = concrete_dropout(
            input, self.p_logit, self.temperature, self.is_on, broadcast_dims=self._shared_axes(input.dim()),
            generator=self._source(dropout_key), key=dropout_key, stream=dropout_stream,
        )  # fmt: skip
        return self.layer(dropped, *others, **options) if self.wraps else dropped

    def _shared_axes(self, rank: int) -> tuple[int, ...]:
        if not self.spatial:
            return ()
        layer = self._reader
        places = len(layer.kernel_size) if isinstance(layer, _ConvNd) else rank - 2  # a convolution takes one image too
        return tuple(range(rank - places, rank))

    def extra_repr(self) -> str:
        """Show the rate and whatever differs from the defaults."""
        shown = [shown_rate(self.p), f"features={self.features}", f"temperature={self.temperature:.3g}"]
        shown += ["spatial=True"] if self.spatial else []
        return ", ".join(shown + ([] if self.wraps else ["wraps=False"]) + self._parts())


def _features(where: str, layer: torch.nn.Module) -> int:
    """Return how many inputs of a layer may be dropped on their own."""
    found = getattr(layer, "in_channels" if isinstance(layer, _ConvNd) else "in_features", None)
    if isinstance(found, int) and found > 0:  # a lazy layer has 0 until it has been called
        return found
    remedy = "It is the number of inputs that may be dropped on their own."
    raise argument_error(where, "features", f"given for a layer of type {type(layer).__name__}", None, remedy)
