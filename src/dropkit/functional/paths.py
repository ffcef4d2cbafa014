"""Dropout of whole branches of a network: of each example, or of the whole batch at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dropkit._checks import PROBABILITY, Choice, Integer, argument_error, argument_type_error
from dropkit.functional.address import check_one_draw, check_source
from dropkit.functional.autograd import traced
from dropkit.functional.dropout import drop, dropout
from dropkit.functional.inputs import autocast_dtype, check_input, is_identity, leading
from dropkit.functional.overrides import overridable
from dropkit.kernels.portable import survivor_scale

__all__ = ["MODES", "drop_path", "linear_rates", "skip_path"]

MODES = Choice(("row", "batch"))
_DEPTH = Integer(1, 2**31 - 1, "[1, 2**31)", "It is the number of blocks.")
_FIRST = Choice(("zero", "paper"))


@overridable
def drop_path(
    input: Tensor,
    p: float | Tensor = 0.1,
    training: bool = True,
    mode: str = "row",
    scale_by_keep: bool = True,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Zero the whole output of a branch with probability `p`, for each example, and scale the rest, in training.

    It is `dropout` of what the branch adds to its shortcut, with a draw for each slice of axis 0 or one for all:
    ``x + drop_path(branch(x))``.

    Args:
        input: What the branch gives: a tensor of any shape with the batch along axis 0, of a floating or complex type.
        p: Probability of dropping the branch, as for `dropout`. Default: 0.1.
        training: Whether to drop. If False the input itself is returned. Default: True.
        mode: ``"row"`` draws for each slice of axis 0, ``"batch"`` once for all of them. Default: ``"row"``.
        scale_by_keep: Whether to scale what is kept by ``1 / (1 - p)``, so that nothing is left to do in evaluation.
            Without it evaluation adds more than training does on average. Default: True.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, as for `dropout`; one a slice only by row. Default: drawn.
        mask: A bool tensor to use instead of drawing one, True = kept; of length 1 on all axes that share. Default:
            drawn.
        return_mask: Whether to return ``(output, mask)``; the mask is all True in evaluation. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape, type and memory format; with `return_mask`, a pair.

    Raises:
        ArgumentError: If the mode is unknown or the input has no axis, or as `dropout`.
        ArgumentTypeError: As `dropout`.
        UnsupportedError: As `dropout`.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.drop_path(torch.ones(3, 4), 0.5, key=7)
        tensor([[0., 0., 0., 0.],
                [2., 2., 2., 2.],
                [0., 0., 0., 0.]])

    References:
        Huang, Sun, Liu, Sedra and Weinberger (2016), "Deep networks with stochastic depth", section 3, which draws once
        for a batch and scales in evaluation, and whose p is the probability of keeping.
    """
    return _drop(
        "drop_path", input, p, training, mode, scale_by_keep, generator=generator, key=key, mask=mask,
        return_mask=return_mask, stream=stream,
    )  # fmt: skip


def _drop(
    where: str,
    input: Tensor,
    p: float | Tensor,
    training: bool,
    mode: str,
    scale_by_keep: bool,
    *,
    mask: Tensor | None,
    **noise: Any,
) -> Any:
    """Drop paths on behalf of a function."""
    MODES.check(where, "mode", mode)
    if not isinstance(scale_by_keep, bool):
        raise argument_type_error(where, "scale_by_keep", "True or False", scale_by_keep)
    rank = input.dim() if isinstance(input, Tensor) else 1  # what is no tensor is left to dropout's own check
    if rank == 0:
        raise argument_error(where, "input", "of one axis or more", ())
    if mode == "batch" and mask is None:
        check_one_draw(where, noise["key"], noise["stream"], "mode is 'batch'")
    shared = tuple(range(1 if mode == "row" else 0, rank)) if mask is None else ()
    scale_at = "train" if scale_by_keep or not training else "eval"
    return drop(where, input, p, training, broadcast_dims=shared, scale_at=scale_at, mask=mask, **noise)


@overridable
def skip_path(
    branch: Callable[[Tensor], Tensor],
    input: Tensor,
    p: float | Tensor = 0.1,
    training: bool = True,
    mode: str = "row",
    scale_by_keep: bool = True,
    *,
    generator: torch.Generator | None = None,
    key: int | Tensor | None = None,
    mask: Tensor | None = None,
    return_mask: bool = False,
    stream: int | Tensor = 0,
) -> Any:
    """Return ``drop_path(branch(input))`` without running the branch where it is dropped.

    The branch gets the kept slices of axis 0 alone, and its results are put back among zeros. Of a branch that works
    slice by slice and draws nothing, results and gradients are the same, to the bit where the branch's own do not
    depend on the size of the batch. If every slice is dropped, the branch does not run, and its parameters get no
    gradient.

    A branch that mixes slices is another function of fewer of them: batch normalisation in training takes its moments
    over the kept slices, as in a smaller batch, and refuses a single value a channel. Where shapes must not depend on
    values, in compiled code, under `torch.func` and on the device meta, the branch runs on all slices.

    Args:
        branch: A function from a tensor to one of the same shape, such as a module.
        input: What the branch gets: a tensor with the batch along axis 0, of a floating or complex type.
        p: Probability of dropping the branch, as for `drop_path`. Default: 0.1.
        training: Whether to drop. Default: True.
        mode: ``"row"`` draws for each slice of axis 0, ``"batch"`` once for all of them. Default: ``"row"``.
        scale_by_keep: Whether to scale what is kept by ``1 / (1 - p)``. Default: True.
        generator: Where to draw the key, as for `dropout`. Default: PyTorch's own generator.
        key: The key, as for `drop_path`. Default: drawn.
        mask: A bool tensor to use instead of drawing one, True = kept, of shape ``(N, 1, ..., 1)``, or of length 1
            on all axes. Default: drawn.
        return_mask: Whether to return ``(output, mask)``. Default: False.
        stream: Number of the pass, as for `dropout`. Default: 0.

    Returns:
        A tensor of the input's shape, to be added to the shortcut; with `return_mask`, a pair.

    Raises:
        ArgumentError: If the branch changes the shape, or as `drop_path`.
        ArgumentTypeError: If the branch cannot be called or the input is nested, or as `drop_path`.
        UnsupportedError: As `dropout`.

    Examples:
        >>> import torch, dropkit
        >>> dropkit.functional.skip_path(torch.square, torch.full((3, 4), 3.0), 0.5, key=7)
        tensor([[ 0.,  0.,  0.,  0.],
                [18., 18., 18., 18.],
                [ 0.,  0.,  0.,  0.]])

    References:
        Huang, Sun, Liu, Sedra and Weinberger (2016), "Deep networks with stochastic depth", section 3, whose p is the
        probability of keeping.
    """
    where = "skip_path"
    if not callable(branch):
        raise argument_type_error(where, "branch", "a function or a module", branch)
    check_input(where, input, return_mask=return_mask)
    if input.is_nested:
        raise argument_type_error(where, "input", "a dense tensor", input.layout, "Use drop_path(branch(input)).")
    thin = input.new_ones((*input.shape[:1], *(1,) * (input.dim() - 1)))
    _, keep = _drop(
        where, thin, p, training, mode, scale_by_keep, generator=generator, key=key, mask=mask, return_mask=True,
        stream=stream,
    )  # fmt: skip
    if is_identity(p, training, mask):
        output = _run(branch, input)
    elif traced() or keep.is_meta:
        output = dropout(_run(branch, input), p, mask=keep, scale_at="train" if scale_by_keep else "eval")
    else:
        output = _of_kept(branch, input, keep, p, scale_by_keep)
    return (output, keep) if return_mask else output


def _of_kept(
    branch: Callable[[Tensor], Tensor], input: Tensor, keep: Tensor, p: float | Tensor, scale_by_keep: bool
) -> Tensor:
    rows = keep.reshape(-1).expand(len(input)).nonzero().squeeze(1)
    if not len(rows):
        return torch.zeros_like(input, dtype=autocast_dtype(input))
    found = _run(branch, input.index_select(0, rows))
    if scale_by_keep:
        rates = p.index_select(0, rows) if isinstance(p, Tensor) and p.dim() else p
        found = _scaled(found, rates)
    return torch.zeros_like(input, dtype=found.dtype).index_copy_(0, rows, found)


def _scaled(found: Tensor, p: float | Tensor) -> Tensor:
    if found.dtype not in (torch.float32, torch.float64):
        return dropout(found, p, mask=torch.ones((1,) * found.dim(), dtype=torch.bool, device=found.device))
    threshold, *_ = check_source("skip_path", found, p, None, None, 0)
    scale = survivor_scale(threshold)  # the same in one pass over memory
    return found * leading(scale, found).to(found.dtype)


def _run(branch: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    found = branch(input)
    if not isinstance(found, Tensor):
        raise argument_type_error("skip_path", "branch", "a function that returns a torch.Tensor", found)
    if found.shape != input.shape:
        rule = f"a function that keeps the shape {tuple(input.shape)}"
        raise argument_error("skip_path", "branch", rule, tuple(found.shape), "Else use drop_path(branch(input)).")
    return found


def linear_rates(p: float, depth: int, first: str = "zero") -> list[float]:
    """Return a rate for each block of a network, which grows linearly with depth to `p` at the last.

    Args:
        p: Probability of dropping the last block, in ``[0, 1]``.
        depth: Number of blocks.
        first: The rate of the first block: ``"zero"``, as most models since have it, also where there is one block; or
            ``"paper"`` for ``p / depth``. Default: ``"zero"``.

    Returns:
        Rates from the first block to the last: ``p * l / (depth - 1)`` for l = 0, 1, ..., or ``p * l / depth`` for
        l = 1, 2, ... as in the paper.

    Raises:
        ArgumentError: If a value is out of range.
        ArgumentTypeError: If ``depth`` is no integer.

    Examples:
        >>> import dropkit
        >>> dropkit.functional.linear_rates(0.5, 3)
        [0.0, 0.25, 0.5]
        >>> dropkit.functional.linear_rates(0.5, 2, first="paper")
        [0.25, 0.5]

    References:
        Huang, Sun, Liu, Sedra and Weinberger (2016), "Deep networks with stochastic depth", equation 4, of the
        probabilities of keeping.
    """
    where = "linear_rates"
    p, depth = PROBABILITY.check(where, "p", p), _DEPTH.check(where, "depth", depth)
    if _FIRST.check(where, "first", first) == "paper":
        return [p * block / depth for block in range(1, depth + 1)]
    return [p * block / max(depth - 1, 1) for block in range(depth)]
