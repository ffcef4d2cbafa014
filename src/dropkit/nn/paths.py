"""Dropout of whole branches: stochastic depth."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dropkit.functional import drop_path, skip_path
from dropkit.functional.paths import MODES
from dropkit.nn.layer import MaskMixin, check_bool
from dropkit.nn.variants import variant

__all__ = ["DropPath", "StochasticDepth"]


@variant(
    family="paths",
    title="stochastic depth",
    noise="Bernoulli",
    shared="all of an example, or with mode='batch' all of a batch",
    acts_on="paths",
    dropped=0.0,
    at_one="zeros",
    evaluation="identity",
    formula=r"y_n = x_n + \frac{z_n}{1 - p} f(x_n), \quad z_n \sim \mathrm{Bernoulli}(1 - p)",
    symbol="p_l, the probability of keeping block l",
    use="On the branch of a residual block, before it is added to its shortcut, at rates that grow with depth.",
    rates=(0.1, 0.2, 0.5),
    inputs=((32, 2, 2),),
    axes=("examples", "rows", "columns"),
    function=drop_path,
    aliases=("StochasticDepth",),
)
class DropPath(MaskMixin):
    """Zero the output of a residual branch with probability `p`, for each example, and scale the rest, in training.

    Use it on the branch, never on the sum: ``x + drop_path(branch(x))``, or ``x + drop_path.skip(branch, x)``, which
    does not run the branch where it is dropped. Rates over depth are `dropkit.functional.linear_rates`.

    Args:
        p: Probability of dropping the branch, in ``[0, 1]``. Default: 0.1.
        mode: ``"row"`` draws for each slice of axis 0, ``"batch"`` once for all of them, as the paper does. Default:
            ``"row"``.
        scale_by_keep: Whether to scale what is kept by ``1 / (1 - p)``, so that nothing is left to do in evaluation.
            Default: True.
        generator: Where keys are drawn, as for `Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If ``p`` is no number in ``[0, 1]`` or the mode is unknown.
        ArgumentTypeError: If another argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> layer, x = dropkit.nn.DropPath(0.5), torch.ones(3, 4)
        >>> x + layer(torch.square(x), key=7)
        tensor([[1., 1., 1., 1.],
                [3., 3., 3., 3.],
                [1., 1., 1., 1.]])
        >>> torch.equal(layer.skip(torch.square, x, key=7), layer(torch.square(x), key=7))
        True

    References:
        Huang, Sun, Liu, Sedra and Weinberger (2016), "Deep networks with stochastic depth", section 3, which draws once
        for a batch and scales in evaluation, and whose p is the probability of keeping.
    """

    def __init__(
        self,
        p: float = 0.1,
        mode: str = "row",
        scale_by_keep: bool = True,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.mode = MODES.check("DropPath", "mode", mode)
        self.scale_by_keep = check_bool("DropPath", "scale_by_keep", scale_by_keep)
        self._set_noise(p, generator)

    def _drop(self, input: Tensor, **noise: Any) -> Any:
        return drop_path(input, self.rate, self.is_on, self.mode, self.scale_by_keep, **noise)

    def skip(
        self,
        branch: Callable[[Tensor], Tensor],
        input: Tensor,
        *,
        key: int | Tensor | None = None,
        mask: Tensor | None = None,
        return_mask: bool = False,
        stream: int | Tensor = 0,
    ) -> Any:
        """Return ``self(branch(input))`` without running the branch where it is dropped.

        Args:
            branch: A function from a tensor to one of the same shape, such as a module. What it does to one example
                should not depend on the others; `dropkit.functional.skip_path` says what becomes of one that does.
            input: What the branch gets: a tensor with the batch along axis 0.
            key: As for `dropkit.functional.drop_path`. Default: drawn from the generator.
            mask: A bool tensor to use instead, True = kept. Default: drawn.
            return_mask: Whether to return ``(output, mask)``. Default: False.
            stream: Number of the pass. Default: 0.

        Returns:
            A tensor of the input's shape, to be added to the shortcut; with `return_mask`, a pair.

        Raises:
            ArgumentError: As `dropkit.functional.skip_path`.
            ArgumentTypeError: As `dropkit.functional.skip_path`.
        """
        return skip_path(
            branch, input, self.rate, self.is_on, self.mode, self.scale_by_keep, generator=self._source(key, mask),
            key=key, mask=mask, return_mask=return_mask, stream=stream,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Show the rate and whatever differs from the defaults."""
        return self._shown(mode="row", scale_by_keep=True)


StochasticDepth = DropPath
