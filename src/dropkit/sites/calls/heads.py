"""PyTorch's multi-head attention with dropkit's attention inside: its own code, in which three names mean others.

What that code does to queries, keys, values, masks and outputs is PyTorch's to the last bit; only where it drops
attention weights does it call what stands here. The noise comes in the place of the rate, which it hands on.
"""

import inspect
import types
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dropkit.functional import dropout as drop
from dropkit.functional import scaled_dot_product_attention as attend
from dropkit.functional.overrides import overridable

__all__ = ["attend_with_heads"]


class _Weights:
    """The noise of the attention weights of one call.

    Args:
        p: Probability of dropping a weight.
        heads: Number of heads.
        key: The key, or None to draw one.
        mask: The mask to use, of shape (batch, heads, queries, keys), or None to draw one.
        is_returned: Whether `mask` shall be the mask that was used, afterwards.
    """

    def __init__(self, p: float, heads: int, key: Any, mask: Tensor | None, is_returned: bool) -> None:
        self.p, self.heads, self.key, self.mask, self.is_returned = p, heads, key, mask, is_returned

    def __gt__(self, number: float) -> bool:
        return True  # only calls that drop come here


def has_torch_function(_tensors: Any) -> bool:
    """Tell that no one is to be asked: whoever looks on has been, before this ran."""
    return False


def dropout(weights: Tensor, p: _Weights) -> Tensor:
    """Drop attention weights of all heads, which lie along axis 0 with the examples."""
    of_heads = weights.unflatten(0, (-1, p.heads))
    found = drop(of_heads, p.p, key=p.key, mask=p.mask, return_mask=p.is_returned)
    if p.is_returned:
        found, p.mask = found
    return found.flatten(0, 1)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, p: _Weights, is_causal: bool
) -> Tensor:
    """Attend with dropout."""
    noise = {"dropout_key": p.key, "dropout_mask": p.mask, "return_dropout_mask": p.is_returned}
    found = attend(query, key, value, attn_mask, p.p, is_causal, **noise)
    if p.is_returned:
        found, p.mask = found
    return found


_STOCK = F.multi_head_attention_forward
# All names that PyTorch's code looks up, but for those that mean something else here.
_names = [name for name in _STOCK.__code__.co_names if name not in globals() and hasattr(F, name)]
globals().update({name: getattr(F, name) for name in _names})
_forward = types.FunctionType(_STOCK.__code__, globals(), "forward", _STOCK.__defaults__)


@overridable
def attend_with_heads(
    *args: Any,
    dropout_p: float,
    dropout_key: Any = None,
    dropout_mask: Tensor | None = None,
    return_dropout_mask: bool = False,
    **kwargs: Any,
) -> Any:
    """Do what `torch.nn.functional.multi_head_attention_forward` does in training, with noise of a known source.

    Args:
        *args: What it takes.
        dropout_p: Probability of dropping an attention weight.
        dropout_key: The key of the mask. Default: drawn.
        dropout_mask: Bool tensor of shape (batch, heads, queries, keys), True = kept, to use instead. Default: drawn.
        return_dropout_mask: Whether to return ``(result, mask)``. Default: False.
        **kwargs: What it takes by name.
    """
    weights = _Weights(dropout_p, kwargs["num_heads"], dropout_key, dropout_mask, return_dropout_mask)
    result = _forward(*args, dropout_p=weights, **kwargs)
    return (result, weights.mask) if return_dropout_mask else result


_own = list(inspect.signature(attend_with_heads).parameters.values())
_shared = inspect.signature(_STOCK).parameters.values()
attend_with_heads.__signature__ = inspect.Signature([*_shared, *_own[2:5]])  # type: ignore[attr-defined]  # inspect reads it
