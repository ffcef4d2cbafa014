"""Gaussian dropout whose rate is learned: on activations, and on the weights of a linear layer."""

import math
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import POSITIVE, Choice, Integer, argument_error
from dropkit.functional import local_reparameterization, log_uniform_kl, variational_dropout
from dropkit.functional.variational import bounded, check_real, widened
from dropkit.nn.factory import check_factory
from dropkit.nn.layer import check_bool
from dropkit.nn.learned import FEATURES, RATE, GaussianWeightsMixin, LearnedMixin, shown_rate
from dropkit.nn.variants import Learned, variant

__all__ = ["VariationalDropout", "VariationalLinear"]

_AXIS = Integer(-(2**31), 2**31 - 1, "[-2**31, 2**31)")


def _log_alpha(p: float) -> float:
    """Return the logarithm of the variance of noise that has that of dropout."""
    return math.log(p / (1.0 - p))


def _used(log_alpha: Tensor, max_alpha: float = 1.0) -> Tensor:
    """Return the logarithm of alpha as it is used: at most that of `max_alpha`."""
    return bounded(widened(log_alpha), math.log(max_alpha))


def _divergence(log_alpha: Tensor, max_alpha: float = 1.0) -> Tensor:
    """Return the divergence of each noise from a log-uniform prior."""
    return log_uniform_kl(_used(log_alpha, max_alpha), "polynomial" if max_alpha <= 1.0 else "sigmoid")


def _noisy(input: Tensor, log_alpha: Tensor, training: bool = True, *, key: int | Tensor | None = None) -> Tensor:
    """Apply the noise of a layer with the default bound."""
    return variational_dropout(input, _used(log_alpha), training, key=key)


class _AlphaMixin(LearnedMixin):
    """What layers with a learned, bounded alpha have in common."""

    log_alpha: torch.nn.Parameter
    max_alpha: float

    def _check_alpha(self, p: float, per: str, choice: Choice, max_alpha: float) -> None:
        where = type(self).__name__
        p = RATE.check(where, "p", p)
        choice.check(where, "per", per)
        max_alpha = POSITIVE.check(where, "max_alpha", max_alpha)
        if p / (1.0 - p) > max_alpha:
            rule = f"at most {max_alpha / (1.0 + max_alpha):g}, where alpha is {max_alpha:g}"
            raise argument_error(where, "p", rule, p, "Start at a lower rate, or raise max_alpha.")

    @property
    def bounded_log_alpha(self) -> Tensor:
        """The logarithm of alpha as it is used: at most that of `max_alpha`."""
        return _used(self.log_alpha, self.max_alpha)

    @property
    def p(self) -> Tensor:
        """The rates of dropout with the same mean and variance, alpha / (1 + alpha)."""
        return torch.sigmoid(self.bounded_log_alpha).detach()

    def _kl(self, *shape: int) -> Tensor:
        """Return the divergence of independent noises of a shape, which share the alphas."""
        return _divergence(self.log_alpha, self.max_alpha).expand(shape).sum()


@variant(
    family="learned",
    title="variational dropout",
    noise="Gaussian, its variance learned for each unit or for all",
    shared="none",
    acts_on="activations",
    dropped="mean",
    at_one="refused",
    evaluation="identity",
    formula=r"y = x \odot \xi, \quad \xi \sim \mathcal{N}(1, \alpha)",
    symbol="alpha = p / (1 - p), the variance of the noise",
    use="In place of Gaussian dropout where each unit shall find its own rate.",
    rates=(0.5, 0.2),
    inputs=((4, 6),),
    example=lambda p: VariationalDropout(6, p),
    shown=lambda p: VariationalDropout(32, p),
    shown_inputs=((8, 32),),
    axes=("examples", "units"),
    is_layer=False,
    function=variational_dropout,
    learned=Learned(
        first=_log_alpha,
        rate=lambda log_alpha: torch.sigmoid(_used(log_alpha)),
        function=_noisy,
        kl=lambda log_alpha, _: _divergence(log_alpha).sum((-2, -1)),
        per_unit=True,
        highest=0.5,
    ),
)
class VariationalDropout(_AlphaMixin):
    """Multiply activations by Gaussian noise of mean 1 and a learned variance alpha; do nothing in evaluation.

    The type B of the paper: the noise of a unit is that of all weights that read it. Train on the mean negative
    log-likelihood plus `dropkit.nn.regularization`. Where `max_alpha` is 1 or less the divergence is the paper's
    polynomial, above it that of Molchanov, Ashukha and Vetrov (2017), which holds for every alpha.

    Args:
        features: Size of the axis `dim`.
        p: The rate at the start, in (0, 1); alpha starts at ``p / (1 - p)``. Default: 0.5.
        per: ``"unit"`` for an alpha a feature, ``"layer"`` for one alpha. Default: ``"unit"``.
        dim: The axis of features; -1, or 1 for channels of images. Default: -1.
        max_alpha: What alpha is capped at. Above 1 the paper's prior has no use for a unit: it may go to infinity.
            Default: 1.0.
        device: Where `log_alpha` is made. Default: PyTorch's.
        dtype: Its type. Default: PyTorch's.
        generator: Where keys are drawn, on the input's device; eager code only. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If a value is out of range, `p` begins above `max_alpha`, or there is no such device.
        ArgumentTypeError: If `features` or `dim` is no integer, `device` or `dtype` has a wrong type, or `generator` is
            no torch.Generator.

    Examples:
        >>> import torch, dropkit
        >>> layer = dropkit.nn.VariationalDropout(3, p=0.2)
        >>> layer.p
        tensor([0.2000, 0.2000, 0.2000])
        >>> layer(torch.ones(2, 3), key=7)
        tensor([[1.6058, 0.9045, 0.9923],
                [1.1442, 1.9160, 0.8603]], grad_fn=<MulBackward0>)
        >>> layer.kl()
        tensor(3.3680, grad_fn=<SumBackward0>)

    References:
        Kingma, Salimans and Welling (2015), "Variational dropout and the local reparameterization trick", section 3.2
        and appendix C, whose alpha is the variance of the noise.
    """

    PER = Choice(("unit", "layer"))

    def __init__(
        self,
        features: int,
        p: float = 0.5,
        *,
        per: str = "unit",
        dim: int = -1,
        max_alpha: float = 1.0,
        device: Any = None,
        dtype: Any = None,
        generator: torch.Generator | None = None,
    ) -> None:
        features = FEATURES.check("VariationalDropout", "features", features)
        self._check_alpha(p, per, self.PER, max_alpha)
        dim = _AXIS.check("VariationalDropout", "dim", dim)
        check_factory("VariationalDropout", device, dtype, generator, is_real=True)
        super().__init__()
        self.features, self.dim = features, dim
        self.per = per
        self.max_alpha = float(max_alpha)
        self._set_source(generator)
        first = torch.full((features,) if per == "unit" else (), _log_alpha(p), device=device, dtype=dtype)
        self.log_alpha = torch.nn.Parameter(first)

    def kl(self) -> Tensor:
        """Return the divergence of the features' noise from a log-uniform prior, in nats, summed over the features."""
        return self._kl(self.features)

    def forward(self, input: Tensor, *, key: int | Tensor | None = None, stream: int | Tensor = 0) -> Tensor:
        """Apply the noise.

        Args:
            input: Tensor with `features` numbers on the axis `dim`.
            key: As for `dropkit.functional.variational_dropout`. Default: drawn from the generator.
            stream: Number of the pass. Default: 0.

        Returns:
            A tensor of the input's shape and type.

        Raises:
            ArgumentError: If the input has another number of features, or as `dropkit.functional.variational_dropout`.
            ArgumentTypeError: As `dropkit.functional.variational_dropout`.
        """
        where = type(self).__name__
        check_real(where, "input", input)
        if not -input.dim() <= self.dim < input.dim() or input.size(self.dim) != self.features:
            rule = f"of {self.features} features on axis {self.dim}"
            raise argument_error(where, "input", rule, tuple(input.shape))
        log_alpha = self.bounded_log_alpha
        if self.per == "unit":
            log_alpha = log_alpha.reshape(
                (-1,) + (1,) * (-1 - self.dim if self.dim < 0 else input.dim() - 1 - self.dim)
            )
        return variational_dropout(input, log_alpha, self.is_on, generator=self._source(key), key=key, stream=stream)

    def extra_repr(self) -> str:
        """Show the features, the mean rate, and whatever differs from the defaults."""
        shown = [str(self.features), shown_rate(self.p)]
        for name, default in (("per", "unit"), ("dim", -1), ("max_alpha", 1.0)):
            shown += [f"{name}={getattr(self, name)!r}"] if getattr(self, name) != default else []
        return ", ".join(shown + self._parts())


@variant(
    family="learned",
    title="variational dropout of weights",
    noise="Gaussian, its variance learned for each weight, input unit or for all",
    shared="none",
    acts_on="weights",
    dropped="mean",
    at_one="refused",
    evaluation="the mean weights",
    formula=r"y \sim \mathcal{N}\!\left(x \theta + b,\; x^2 (\alpha \theta^2)\right)",
    symbol="alpha = p / (1 - p), the variance of a weight over its square",
    use="In place of a fully connected layer where each weight shall find its own noise.",
    rates=(0.5, 0.2),
    inputs=((4, 6),),
    example=lambda p: VariationalLinear(6, 3, p=p),
    shown=lambda p: VariationalLinear(8, 32, p=p),
    shown_inputs=((8, 8),),
    axes=("examples", "outputs"),
    is_layer=False,
    function=local_reparameterization,
)
class VariationalLinear(_AlphaMixin, GaussianWeightsMixin, torch.nn.Linear):
    """A linear layer whose weights have independent Gaussian noise of a learned relative variance alpha.

    The type A of the paper. Noise is drawn for every output of every example on its own, by local reparameterisation;
    evaluation uses the mean weights. A drop-in replacement for `torch.nn.Linear`, with one parameter more, `log_alpha`.
    Train on the mean negative log-likelihood plus `dropkit.nn.regularization`; the divergence is chosen as for
    `dropkit.nn.VariationalDropout`.

    Args:
        in_features: Size of an input.
        out_features: Size of an output.
        bias: Whether to add a bias, which has no noise. Default: True.
        device: As for `torch.nn.Linear`. Default: PyTorch's.
        dtype: As for `torch.nn.Linear`. Default: PyTorch's.
        p: The rate at the start, in (0, 1); alpha starts at ``p / (1 - p)``. Default: 0.5.
        per: ``"weight"`` for an alpha a weight, ``"unit"`` for one an input unit, ``"layer"`` for one alpha.
            Default: ``"weight"``.
        max_alpha: What alpha is capped at. Default: 1.0.
        generator: Where keys are drawn, on the input's device; eager code only. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If a value is out of range, `p` begins above `max_alpha`, or there is no such device.
        ArgumentTypeError: If `device` or `dtype` has a wrong type, or `generator` is no torch.Generator.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.nn.VariationalLinear(784, 300, p=0.2, per="unit")
        VariationalLinear(in_features=784, out_features=300, bias=True, p=0.2, per='unit')

    References:
        Kingma, Salimans and Welling (2015), "Variational dropout and the local reparameterization trick", sections 2.3
        and 3.1, whose alpha is the variance of a weight over its square.
    """

    LEARNED = "log_alpha"
    PER = Choice(("weight", "unit", "layer"))

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        p: float = 0.5,
        per: str = "weight",
        max_alpha: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        self._check_alpha(p, per, self.PER, max_alpha)
        check_bool("VariationalLinear", "bias", bias)
        check_factory("VariationalLinear", device, dtype, generator, is_real=True)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.per, self.max_alpha = per, float(max_alpha)
        shape = {"weight": (out_features, in_features), "unit": (in_features,), "layer": ()}[per]
        self._set_learned(shape, _log_alpha(p), generator)

    def kl(self) -> Tensor:
        """Return the divergence of the weights from a log-uniform prior, in nats, summed over all of them."""
        return self._kl(*self.weight.shape)

    def _moments(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.bounded_log_alpha.exp() * widened(self.weight).square()

    def extra_repr(self) -> str:
        """Show what PyTorch's layer shows, the mean rate, and whatever differs from the defaults."""
        shown = [super().extra_repr(), shown_rate(self.p)]
        for name, default in (("per", "weight"), ("max_alpha", 1.0)):
            shown += [f"{name}={getattr(self, name)!r}"] if getattr(self, name) != default else []
        return ", ".join(shown + self._parts())
