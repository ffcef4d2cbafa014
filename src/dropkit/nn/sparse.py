"""Layers that learn which of their weights are noise."""

from typing import Any, Literal

import torch
from torch import Tensor

from dropkit._checks import Number
from dropkit.functional import local_reparameterization, log_uniform_kl
from dropkit.functional.variational import widened
from dropkit.nn.factory import check_factory
from dropkit.nn.layer import check_bool
from dropkit.nn.learned import GaussianWeightsMixin
from dropkit.nn.variants import variant

__all__ = ["SparseVariationalConv2d", "SparseVariationalLinear"]

_THRESHOLD = Number(-1e3, 1e3, remedy="It is compared with ln(alpha); 3 prunes weights of p above 0.953.")
_LOG_SIGMA2 = Number(-100.0, 20.0, remedy="It is the logarithm of a variance at the start.")
_EPSILON = 1e-8  # beside a squared weight, whose logarithm has no value at 0


class _SparseMixin(GaussianWeightsMixin):
    """What layers with a mean and a variance for every weight have in common."""

    LEARNED = "log_sigma2"
    log_sigma2: torch.nn.Parameter
    threshold: float

    @property
    def log_alpha(self) -> Tensor:
        """The logarithm of every weight's variance over its square, in float32 or wider."""
        return widened(self.log_sigma2) - torch.log(widened(self.weight).square() + _EPSILON)

    @property
    def pruned_weight(self) -> Tensor:
        """The weights of evaluation: 0 where `log_alpha` is above the threshold."""
        return torch.where(self.log_alpha > self.threshold, 0.0, self.weight)

    @property
    def sparsity(self) -> float:
        """The share of weights that evaluation leaves out."""
        return float((self.log_alpha > self.threshold).double().mean())

    def kl(self) -> Tensor:
        """Return the divergence of the weights from a log-uniform prior, in nats, summed over all of them."""
        return log_uniform_kl(self.log_alpha).sum()

    def _moments(self) -> tuple[Tensor, Tensor]:
        return self.weight if self.is_on else self.pruned_weight, widened(self.log_sigma2).exp()

    def extra_repr(self) -> str:
        """Show what PyTorch's layer shows, and what differs from the defaults."""
        parts = [super().extra_repr(), f"threshold={self.threshold}"]
        return ", ".join(parts + self._parts())


_ROW: dict[str, Any] = {
    "family": "learned",
    "title": "sparse variational dropout",
    "noise": "Gaussian, its variance learned for each weight",
    "shared": "none",
    "acts_on": "weights",
    "dropped": "mean",
    "evaluation": "weights with ln(alpha) above the threshold are 0",
    "formula": (
        r"y \sim \mathcal{N}\!\left(x \theta + b,\; x^2 \sigma^2\right), \quad "
        r"\ln \alpha_{ij} = \ln \sigma_{ij}^2 - \ln \theta_{ij}^2"
    ),
    "symbol": "alpha = p / (1 - p), the variance of a weight over its square",
    "is_layer": False,
    "function": local_reparameterization,
}


@variant(
    **_ROW,
    use="In place of every fully connected layer of a network that shall become sparse.",
    inputs=((4, 6),),
    example=lambda _: SparseVariationalLinear(6, 3),
    shown=lambda _: SparseVariationalLinear(8, 32, log_sigma2=0.0),
    shown_inputs=((8, 8),),
    axes=("examples", "outputs"),
)
class SparseVariationalLinear(_SparseMixin, torch.nn.Linear):
    """A linear layer that learns a variance for every weight and leaves out the noisiest ones in evaluation.

    A drop-in replacement for `torch.nn.Linear`, with one parameter more, `log_sigma2`. Train on the mean negative
    log-likelihood plus `dropkit.nn.regularization`, at a factor that grows from 0 to 1 over the first epochs: at its
    full weight from the start it prunes before the network has learnt anything. `dropkit.nn.pruned` then gives the
    smaller plain model.

    Args:
        in_features: Size of an input.
        out_features: Size of an output.
        bias: Whether to add a bias, which has no noise. Default: True.
        device: As for `torch.nn.Linear`. Default: PyTorch's.
        dtype: As for `torch.nn.Linear`. Default: PyTorch's.
        threshold: Weights of a larger ``ln(alpha)`` are left out in evaluation. Default: 3.0.
        log_sigma2: The logarithm of every weight's variance at the start. Default: -10.0.
        generator: Where keys are drawn, on the input's device; eager code only. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If `threshold` or `log_sigma2` is out of range, or there is no such device.
        ArgumentTypeError: If `device` or `dtype` has a wrong type, or `generator` is no torch.Generator.

    Examples:
        >>> import torch, dropkit
        >>> layer = dropkit.nn.SparseVariationalLinear(784, 300)
        >>> layer
        SparseVariationalLinear(in_features=784, out_features=300, bias=True, threshold=3.0)
        >>> layer.sparsity < 0.1
        True

    References:
        Molchanov, Ashukha and Vetrov (2017), "Variational dropout sparsifies deep neural networks", section 4, whose
        alpha is the variance of the noise over the squared weight.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        threshold: float = 3.0,
        log_sigma2: float = -10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        threshold = _THRESHOLD.check("SparseVariationalLinear", "threshold", threshold)
        log_sigma2 = _LOG_SIGMA2.check("SparseVariationalLinear", "log_sigma2", log_sigma2)
        check_bool("SparseVariationalLinear", "bias", bias)
        check_factory("SparseVariationalLinear", device, dtype, generator, is_real=True)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.threshold = threshold
        self._set_learned(self.weight.shape, log_sigma2, generator)


@variant(
    **_ROW,
    use="In place of every convolution of a network that shall become sparse.",
    inputs=((2, 3, 5, 5),),
    example=lambda _: SparseVariationalConv2d(3, 4, 3),
    shown=lambda _: SparseVariationalConv2d(1, 4, 3, log_sigma2=0.0),
    shown_inputs=((2, 1, 10, 10),),
    axes=("examples", "channels", "rows", "columns"),
)
class SparseVariationalConv2d(_SparseMixin, torch.nn.Conv2d):
    """A convolution of images that learns a variance for every weight and leaves out the noisiest ones in evaluation.

    A drop-in replacement for `torch.nn.Conv2d`, with one parameter more, `log_sigma2`; otherwise as
    `dropkit.nn.SparseVariationalLinear`. Noise is drawn for every place of the output on its own.

    Args:
        in_channels: As for `torch.nn.Conv2d`.
        out_channels: As for `torch.nn.Conv2d`.
        kernel_size: As for `torch.nn.Conv2d`.
        stride: As for `torch.nn.Conv2d`. Default: 1.
        padding: As for `torch.nn.Conv2d`. Default: 0.
        dilation: As for `torch.nn.Conv2d`. Default: 1.
        groups: As for `torch.nn.Conv2d`. Default: 1.
        bias: Whether to add a bias, which has no noise. Default: True.
        padding_mode: As for `torch.nn.Conv2d`. Default: ``"zeros"``.
        device: As for `torch.nn.Conv2d`. Default: PyTorch's.
        dtype: As for `torch.nn.Conv2d`. Default: PyTorch's.
        threshold: Weights of a larger ``ln(alpha)`` are left out in evaluation. Default: 3.0.
        log_sigma2: The logarithm of every weight's variance at the start. Default: -10.0.
        generator: Where keys are drawn, on the input's device; eager code only. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If `threshold` or `log_sigma2` is out of range, or there is no such device.
        ArgumentTypeError: If `device` or `dtype` has a wrong type, or `generator` is no torch.Generator.

    Examples:
        >>> import torch, dropkit
        >>> layer = dropkit.nn.SparseVariationalConv2d(3, 8, 3, padding=1)
        >>> layer(torch.ones(2, 3, 5, 5)).shape
        torch.Size([2, 8, 5, 5])

    References:
        Molchanov, Ashukha and Vetrov (2017), "Variational dropout sparsifies deep neural networks", section 4, equation
        17, whose alpha is the variance of the noise over the squared weight.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        threshold: float = 3.0,
        log_sigma2: float = -10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        threshold = _THRESHOLD.check("SparseVariationalConv2d", "threshold", threshold)
        log_sigma2 = _LOG_SIGMA2.check("SparseVariationalConv2d", "log_sigma2", log_sigma2)
        check_bool("SparseVariationalConv2d", "bias", bias)
        check_factory("SparseVariationalConv2d", device, dtype, generator, is_real=True)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.threshold = threshold
        self._set_learned(self.weight.shape, log_sigma2, generator)

    def _operate(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(input, weight, bias)
