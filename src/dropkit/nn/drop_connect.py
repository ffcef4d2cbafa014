"""DropConnect: a linear layer whose weights every example drops anew."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import PROBABILITY, Choice, Integer, argument_error, argument_type_error
from dropkit.functional import drop_connect, drop_connect_inference
from dropkit.functional.drop_connect import SAMPLES
from dropkit.nn.factory import check_factory
from dropkit.nn.layer import RateMixin, check_bool
from dropkit.nn.variants import variant

__all__ = ["DropConnect"]

_WIDTH = Integer(0, 2**31 - 1, "[0, 2**31)")
_INFERENCE = Choice(("mean", "gaussian"))


@variant(
    family="weights",
    title="DropConnect",
    noise="Bernoulli",
    shared="none: a mask an example",
    acts_on="weights",
    dropped=0.0,
    at_one="zeros",
    evaluation="plain weights (the mean rule); the paper's average over Gaussian draws with inference='gaussian'",
    formula=r"y = a\left(\frac{(M \odot [W, b])\,[x, 1]}{1 - p}\right), \quad M_{ij} \sim \mathrm{Bernoulli}(1 - p)",
    symbol="1 - p, the probability of keeping",
    use="In place of a fully connected hidden layer.",
    rates=(0.5,),
    inputs=((3, 5),),
    example=lambda p: DropConnect(5, 4, p=p),
    axes=("examples", "outputs", "inputs and bias"),
    function=drop_connect,
)
class DropConnect(RateMixin, torch.nn.Linear):
    """Apply a linear layer whose weights and biases every example drops anew, with probability `p`, in training.

    Its parameters, their initial values and its `state_dict` are those of `torch.nn.Linear`, which it subclasses. With
    an `activation` the layer is the whole of the paper's, activation included. What is dropped is scaled out in
    training, so that evaluation may use the plain weights: that is the mean rule, the default, which draws nothing and
    ignores what the activation does to the noise. The paper's own inference, ``"gaussian"``, averages the
    activation over draws of Gaussian pre-activations, and needs both to be known.

    Args:
        in_features: Number of inputs.
        out_features: Number of outputs.
        bias: Whether to add biases, which are dropped as weights are. Default: True.
        device: As for `torch.nn.Linear`.
        dtype: As for `torch.nn.Linear`.
        p: Probability of dropping a weight, in ``[0, 1]``. Default: 0.5.
        activation: What is applied to the pre-activations, in training and evaluation: a function of a tensor,
            elementwise or along the last axis. Default: none.
        inference: ``"mean"`` or ``"gaussian"``. Default: ``"mean"``.
        samples: Number of draws an output for ``"gaussian"``, 1 or more. Default: 1000.
        generator: Where keys are drawn, on the input's device; eager code only. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If a value is out of range, or ``inference="gaussian"`` has no activation.
        ArgumentTypeError: If an argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> layer = dropkit.nn.DropConnect(784, 800, p=0.5, activation=torch.relu, inference="gaussian")
        >>> layer(torch.rand(2, 784), key=7).shape
        torch.Size([2, 800])
        >>> layer.eval()(torch.rand(2, 784), key=7).shape
        torch.Size([2, 800])

    References:
        Wan, Zeiler, Zhang, LeCun and Fergus (2013), "Regularization of neural networks using DropConnect", section 3
        and algorithms 1 and 2, whose p is the probability of keeping.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        p: float = 0.5,
        activation: Callable[[Tensor], Tensor] | None = None,
        inference: str = "mean",
        samples: int = 1000,
        generator: torch.Generator | None = None,
    ) -> None:
        where = "DropConnect"
        _WIDTH.check(where, "in_features", in_features)
        _WIDTH.check(where, "out_features", out_features)
        PROBABILITY.check(where, "p", p)
        check_bool(where, "bias", bias)
        if activation is not None and not callable(activation):
            raise argument_type_error(where, "activation", "a function of a tensor, or None", activation)
        if _INFERENCE.check(where, "inference", inference) == "gaussian" and activation is None:
            remedy = "Without one, the average over draws would be the plain layer and noise."
            raise argument_error(where, "inference", "'mean' without `activation`", inference, remedy)
        SAMPLES.check(where, "samples", samples)
        check_factory(where, device, dtype, generator)
        super().__init__(in_features, out_features, bias, device, dtype)
        self._set_noise(p, generator)
        self.activation = activation
        self.inference = inference
        self.samples = samples

    def forward(
        self,
        input: Tensor,
        *,
        key: int | Tensor | None = None,
        mask: Tensor | None = None,
        return_mask: bool = False,
        stream: int | Tensor = 0,
    ) -> Any:
        """Apply the layer.

        Args:
            input: Tensor of shape (..., in_features), of a floating or complex type.
            key: As for `dropkit.functional.drop_connect`; Gaussian inference takes one too. Default: drawn.
            mask: A bool tensor to use instead, True = kept, of shape (..., out_features, in_features + 1), the last
                column for the biases if there are any. Default: drawn.
            return_mask: Whether to return ``(output, mask)``. Default: False.
            stream: Number of the pass. Default: 0.

        Returns:
            A tensor of shape (..., out_features); with `return_mask`, a pair.

        Raises:
            ArgumentError: As `dropkit.functional.drop_connect`.
            ArgumentTypeError: As `dropkit.functional.drop_connect`.
        """
        linear = input, self.weight, self.bias, self.rate
        source: dict[str, Any] = {"generator": self._source(key, mask), "key": key, "stream": stream}
        if self.is_on or self.inference == "mean" or self.activation is None:
            found = drop_connect(*linear, training=self.is_on, mask=mask, return_mask=return_mask, **source)
            output, *kept = found if return_mask else (found,)
            output = output if self.activation is None else self.activation(output)
            return (output, *kept) if return_mask else output
        check_bool("DropConnect", "return_mask", return_mask)
        if mask is not None:
            found = getattr(mask, "dtype", mask)
            remedy = "Gaussian inference has no masks; inference='mean' or training has."
            raise argument_error("DropConnect", "mask", "left out in Gaussian inference", found, remedy)
        output = drop_connect_inference(*linear, activation=self.activation, samples=self.samples, **source)
        return (output, drop_connect(*linear, training=False, return_mask=True)[1]) if return_mask else output

    def extra_repr(self) -> str:
        """Show the sizes, the rate and whatever differs from the defaults."""
        shown = self._shown(inference="mean", samples=1000)
        is_plain = self.activation is None or isinstance(self.activation, torch.nn.Module)  # which is shown as a child
        activation = "" if is_plain else f", activation={getattr(self.activation, '__name__', self.activation)}"
        return f"{torch.nn.Linear.extra_repr(self)}, {shown}{activation}"
