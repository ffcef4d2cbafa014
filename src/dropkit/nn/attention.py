"""Multi-head attention with dropout of the attention weights."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dropkit._checks import PROBABILITY, argument_error
from dropkit.functional import scaled_dot_product_attention
from dropkit.functional.address import Names, check_source
from dropkit.functional.attention_weights import attend
from dropkit.functional.autograd import traced
from dropkit.functional.inputs import check_mask
from dropkit.nn.attention_inputs import Call, check_masks, check_sizes, check_tensor, merge_masks
from dropkit.nn.factory import check_factory
from dropkit.nn.layer import RateMixin, check_bool
from dropkit.nn.variants import variant

__all__ = ["MultiheadAttention"]

_NAMES = Names("query", "dropout", "dropout_key")


@variant(
    family="attention",
    title="dropout of attention weights",
    noise="Bernoulli",
    shared="none",
    acts_on="attention weights",
    dropped=0.0,
    at_one="zeros",
    evaluation="attention with all its weights",
    formula=r"Y = \frac{Z \odot A}{1 - p} V, \quad A = \mathrm{softmax}\left(\frac{Q K^T}{\sqrt{d}}\right), "
    r"\quad Z \sim \mathrm{Bernoulli}(1 - p)",
    symbol="P_drop, the probability of dropping",
    use="In transformers, at a low rate, beside dropout of the outputs of their sub-layers.",
    rates=(0.1, 0.2),
    inputs=((2, 5, 8),) * 3,
    example=lambda p: MultiheadAttention(8, 2, p, batch_first=True),
    axes=("examples", "heads", "queries", "keys"),
    is_layer=False,
    function=scaled_dot_product_attention,
)
class MultiheadAttention(RateMixin, torch.nn.MultiheadAttention):
    """Attend with several heads, and in training drop each attention weight with probability `dropout`.

    A drop-in replacement for `torch.nn.MultiheadAttention`, which it subclasses: same arguments in the same order, same
    `state_dict`, and for one seed the same initial parameters. The weight of a query and a key has the place
    (example, head, query, key) in the mask, with `batch_first` and without; the keys that `add_bias_kv` and
    `add_zero_attn` add come last. Without `need_weights` few weights are stored on a CPU, and none
    on a GPU with Triton, as `dropkit.functional.scaled_dot_product_attention` says.

    It differs in two results. A query whose keys are all masked gets weights of 0, so its output is the bias of
    `out_proj`; PyTorch's gives that in some of its ways and NaN in others. And the hint `is_causal` changes nothing
    where keys are added, which PyTorch's then hides from all queries but the last.

    Args:
        embed_dim: Width of queries and of the output, a multiple of `num_heads`.
        num_heads: Number of heads.
        dropout: Probability of dropping an attention weight, in ``[0, 1]``; also the attribute `p`, which schedules
            move. Checked again whenever either is assigned. Default: 0.
        bias: Whether the projections have biases. Default: True.
        add_bias_kv: Whether to add a learned key and value to every sequence. Default: False.
        add_zero_attn: Whether to add a key and value of zeros to every sequence. Default: False.
        kdim: Width of keys. Default: `embed_dim`.
        vdim: Width of values. Default: `embed_dim`.
        batch_first: Whether batches are (batch, length, width), not (length, batch, width). Default: False.
        device: Where parameters are made. Default: PyTorch's default device.
        dtype: Their type. Default: PyTorch's default type.
        generator: Where dropout keys are drawn, as for `Dropout`. Default: PyTorch's own generator.

    Raises:
        ArgumentError: If a size is not positive, `embed_dim` is no multiple of `num_heads`, or `dropout` is no number
            in ``[0, 1]``.
        ArgumentTypeError: If an argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> attention = dropkit.nn.MultiheadAttention(embed_dim=8, num_heads=2, dropout=0.1, batch_first=True)
        >>> x = torch.randn(3, 5, 8)
        >>> output, weights = attention(x, x, x)
        >>> output.shape, weights.shape
        (torch.Size([3, 5, 8]), torch.Size([3, 5, 5]))

    References:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin (2017), "Attention is all you need",
        sections 3.2.2 and 5.4, whose P_drop = 0.1; dropout of the weights is in the authors' code.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        where = "MultiheadAttention"
        widths = {name: width for name, width in (("kdim", kdim), ("vdim", vdim)) if width is not None}
        check_sizes(where, {"embed_dim": embed_dim, "num_heads": num_heads} | widths, "num_heads")
        rate = PROBABILITY.check(where, "dropout", dropout)
        flags = {"bias": bias, "add_bias_kv": add_bias_kv, "add_zero_attn": add_zero_attn, "batch_first": batch_first}
        for name, flag in flags.items():
            check_bool(where, name, flag)
        check_factory(where, device, dtype, generator)
        super().__init__(
            embed_dim, num_heads, rate, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        self._set_noise(rate, generator)

    @property
    def dropout(self) -> float:
        """The rate `p`, by PyTorch's name."""
        return self.p

    @dropout.setter
    def dropout(self, dropout: float) -> None:
        self.p = PROBABILITY.check(type(self).__name__, "dropout", dropout)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        dropout_key: int | Tensor | None = None,
        dropout_mask: Tensor | None = None,
        return_dropout_mask: bool = False,
        stream: int | Tensor = 0,
    ) -> Any:
        """Attend.

        Args:
            query: Queries: (length, embed_dim), or a batch of them with three axes, as `batch_first` says. Nested
                tensors are taken in evaluation alone, where PyTorch takes them.
            key: Keys, of width `kdim`.
            value: Values, one a key, of width `vdim`.
            key_padding_mask: Bool tensor of shape (batch, keys), True = ignored, or numbers to add to the scores.
                Default: none.
            need_weights: Whether to return the weights too, which takes more time and memory. Default: True.
            attn_mask: Tensor of shape (queries, keys) or (batch * heads, queries, keys), bool, True = ignored, or
                numbers to add to the scores. Default: none.
            average_attn_weights: Whether returned weights are averaged over heads. Default: True.
            is_causal: Says that `attn_mask` is causal, so that it need not be read; not checked. Default: False.
            dropout_key: The key of the mask, as `key` for `dropkit.functional.dropout`; slices of axis 0 are the
                examples of the batch. Default: drawn.
            dropout_mask: Bool tensor of shape (batch, heads, queries, keys), of length 1 on axes that share, True =
                kept, to use instead. Default: drawn.
            return_dropout_mask: Whether to return that mask too. Default: False.
            stream: Number of the pass, as for `dropkit.functional.dropout`. Default: 0.

        Returns:
            The output, of the query's shape, and the weights, of shape (batch, queries, keys), or (batch, heads,
            queries, keys) where they are not averaged, without the batch's axis where there is no batch; or None
            without `need_weights`. In training they are the weights after dropout, as PyTorch's are. With
            `return_dropout_mask` also the mask, batch first, of a batch of one where there is none; all True in
            evaluation.

        Raises:
            ArgumentError: If shapes do not fit, `is_causal` comes without `attn_mask`, or sources of noise are mixed.
            ArgumentTypeError: If an argument has a wrong type.
        """
        flags = {"need_weights": need_weights, "average_attn_weights": average_attn_weights, "is_causal": is_causal}
        flags["return_dropout_mask"] = return_dropout_mask
        for name, flag in flags.items():
            check_bool("MultiheadAttention", name, flag)
        has_masks = any(mask is not None for mask in (attn_mask, key_padding_mask, dropout_mask))
        is_plain = not (self.training or self.is_on or has_masks or return_dropout_mask or traced())
        if is_plain and isinstance(query, Tensor) and query.is_nested:
            return self._fused(query, key, value, need_weights, average_attn_weights)
        call = self._checked(query, key, value, key_padding_mask, attn_mask, is_causal)
        self._check_noise(call, query, dropout_key, dropout_mask, stream)
        if is_plain:
            return self._fused(query, key, value, need_weights, average_attn_weights)
        q, k, v = self._extended(*(self._heads(x, call) for x in self._projected(query, key, value)))
        extra = k.size(-2) - call.keys
        is_hinted = is_causal and key_padding_mask is None and not (need_weights or extra)
        merged = None if is_hinted else merge_masks(call, attn_mask, key_padding_mask, extra, q.dtype)
        generator = self._source(dropout_key, dropout_mask)
        if not (need_weights or return_dropout_mask) and dropout_mask is None:
            output = scaled_dot_product_attention(
                q, k, v, merged, self.rate, is_hinted, training=self.is_on, generator=generator,
                dropout_key=dropout_key, stream=stream,
            )  # fmt: skip
            return self._joined(output, call), None
        output, weights, mask = attend(
            q, k, v, merged, is_hinted, 1 / math.sqrt(self.head_dim), self.rate, self.is_on, return_dropout_mask,
            generator=generator, key=dropout_key, mask=dropout_mask, stream=stream,
        )  # fmt: skip
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights if call.is_batched else weights.squeeze(0)
        result = self._joined(output, call), weights if need_weights else None
        return (*result, mask) if return_dropout_mask else result

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, average: bool) -> Any:
        """Attend as PyTorch does where nothing is dropped or masked, by its fused kernel if it may."""
        return torch.nn.MultiheadAttention.forward(
            self, query, key, value, need_weights=need_weights, average_attn_weights=average
        )

    def _checked(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> Call:
        """Check what is given, and return its sizes."""
        where = "MultiheadAttention"
        check_tensor(where, "query", query, (2, 3), self.embed_dim)
        check_tensor(where, "key", key, (query.dim(),), self.kdim)
        check_tensor(where, "value", value, (query.dim(),), self.vdim)
        is_batched = query.dim() == 3
        batch_axis, axis = (0, 1) if self.batch_first else (1, 0)
        if not is_batched:
            axis = 0
        elif key.size(batch_axis) != query.size(batch_axis):
            rule = f"of the query's batch size {query.size(batch_axis)} on axis {batch_axis}"
            raise argument_error(where, "key", rule, tuple(key.shape), "batch_first says which axis that is.")
        if value.shape[:-1] != key.shape[:-1]:
            rule = f"of the key's lengths {tuple(key.shape[:-1])} on the axes before the last"
            raise argument_error(where, "value", rule, tuple(value.shape))
        batch = query.size(batch_axis) if is_batched else 1
        call = Call(where, batch, self.num_heads, query.size(axis), key.size(axis), is_batched)
        check_masks(call, attn_mask, key_padding_mask, is_causal, ("attn_mask", "key_padding_mask"))
        return call

    def _check_noise(self, call: Call, query: Tensor, key: Any, mask: Tensor | None, stream: int | Tensor) -> None:
        """Check what says where the noise comes from."""
        if key is not None or type(stream) is not int or stream != 0:
            batch_axis = 0 if self.batch_first else 1
            of_batch = query.transpose(0, batch_axis) if call.is_batched else query.unsqueeze(0)
            check_source(call.where, of_batch, 0.0, key, None, stream, _NAMES)
        if mask is not None:
            keys = call.keys + (self.bias_k is not None) + self.add_zero_attn
            weights = query.new_empty(()).expand(call.batch, call.heads, call.queries, keys)
            check_mask(call.where, mask, weights, {"dropout_key": key}, {"stream": stream}, "dropout_mask")

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values of all heads side by side."""
        if self._qkv_same_embed_dim and query is key is value:
            return functional.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        weights = (
            self.in_proj_weight.chunk(3)
            if self._qkv_same_embed_dim
            else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(map(functional.linear, (query, key, value), weights, biases))

    def _heads(self, x: Tensor, call: Call) -> Tensor:
        """Return a projection as (batch, heads, length, width)."""
        x = (x if call.is_batched else x.unsqueeze(0)).unflatten(-1, (self.num_heads, self.head_dim))
        return x.transpose(1, 2) if self.batch_first or not call.is_batched else x.permute(1, 2, 0, 3)

    def _extended(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Add the learned key and value, and those of zeros."""
        both = [key, value]
        if self.bias_k is not None and self.bias_v is not None:
            learned = (self.bias_k.to(key.dtype), self.bias_v.to(key.dtype))
            added = (bias.view(1, self.num_heads, 1, self.head_dim) for bias in learned)
            both = [torch.cat((x, one.expand(x.size(0), -1, -1, -1)), -2) for x, one in zip(both, added, strict=True)]
        if self.add_zero_attn:
            both = [functional.pad(x, (0, 0, 0, 1)) for x in both]
        return [query, *both]

    def _joined(self, output: Tensor, call: Call) -> Tensor:
        """Return the heads' outputs side by side, as the query lies, projected."""
        along = output.transpose(1, 2) if self.batch_first or not call.is_batched else output.permute(2, 0, 1, 3)
        projected = functional.linear(along.flatten(-2), self.out_proj.weight, self.out_proj.bias)
        return projected if call.is_batched else projected.squeeze(0)
