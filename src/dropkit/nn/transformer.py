"""A layer of a transformer's encoder with dropout where the paper has it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional

from dropkit._checks import PROBABILITY, Number, argument_error, argument_type_error
from dropkit.functional import activation_dropout, dropout_add
from dropkit.functional.address import Names, check_source
from dropkit.functional.autograd import traced
from dropkit.functional.inputs import check_masks as check_named_masks
from dropkit.functional.noise import find_noise
from dropkit.nn.attention import MultiheadAttention
from dropkit.nn.attention_inputs import Call, check_masks, check_sizes, check_tensor, nest_like, pad
from dropkit.nn.dropout import Dropout
from dropkit.nn.factory import check_factory
from dropkit.nn.layer import SWITCH, GeneratorMixin, NoiseMixin, RateMixin, check_bool
from dropkit.nn.variants import variant

__all__ = ["TransformerEncoderLayer"]

_WHERE = "TransformerEncoderLayer"
_NAMES = Names(input="src")
_EPS = Number(0.0, float("inf"), open_low=True, open_high=True)
_PLACES = ("self_attn", "dropout1", "dropout", "dropout2")  # of dropout, in the order of their fields of noise
_PAD = "Pad it to one length, and pass src_mask and src_key_padding_mask."
_FUSED = ((functional.relu, "relu"), (torch.relu, "relu"), (functional.gelu, "gelu"), (functional.silu, "silu"))
_Key = int | Tensor | None


class _Noise(NamedTuple):
    """Where the noise of one call comes from, place by place, and the masks it drew, if they are asked for."""

    keys: Mapping[str, _Key]
    masks: Mapping[str, Tensor]
    stream: int | Tensor
    drawn: dict[str, Tensor] | None

    def is_seen(self, place: str) -> bool:
        """Tell whether the mask of a place is given or asked for, so that the place must not be fused."""
        return place in self.masks or self.drawn is not None

    def of(self, place: str) -> dict[str, Any]:
        """Return what says where the noise of a place comes from, by the names of `dropkit.functional.dropout`."""
        if place in self.masks:
            return {"mask": self.masks[place]}
        return {"key": self.keys[place], "stream": self.stream}


@variant(
    family="attention",
    title="dropout in a transformer",
    noise="Bernoulli",
    shared="none",
    acts_on="attention weights, outputs of sub-layers, hidden units",
    dropped=0.0,
    at_one="zeros",
    evaluation="the layer without dropout",
    formula=r"y = \mathrm{norm}(h + D(W_2 D(\phi(W_1 h)))), \quad h = \mathrm{norm}(x + D(\mathrm{attention}_D(x)))",
    symbol="P_drop, the probability of dropping",
    use="In place of PyTorch's layer in an encoder.",
    rates=(0.1, 0.3),
    inputs=((2, 5, 8),),
    example=lambda p: TransformerEncoderLayer(8, 2, 16, p, batch_first=True),
    is_layer=False,
)
class TransformerEncoderLayer(GeneratorMixin, torch.nn.TransformerEncoderLayer):
    """Self-attention and a feed-forward network, with dropout of weights, hidden units and what is added to residuals.

    A drop-in replacement for `torch.nn.TransformerEncoderLayer`, which it subclasses: same arguments in the same order,
    same `state_dict`, for one seed the same initial parameters, and a place in `torch.nn.TransformerEncoder`. Each kind
    of dropout may have a rate of its own. The rates live in `self_attn`, `dropout1` and `dropout2`, and `dropout`, as
    PyTorch's do, where schedules and switches find them; the properties named as the arguments read and set them.

    One key draws the noise of a call: attention weights have its field 0, as `dropkit.random.field` counts, the output
    of attention has field 1, hidden units have field 2, and the output of the feed-forward network has field 3. Masks
    are named like the modules that drop: ``self_attn``, ``dropout1``, ``dropout`` and ``dropout2``, in this order. Axes
    of these masks are batch first, with `batch_first` and without: (batch, heads, queries, keys) for weights, (batch,
    length, units) for the others. A generator that one of these modules has for itself is left alone.

    In evaluation PyTorch's own code runs. Its fused kernel gives NaN for a query whose keys are all masked; everywhere
    else such a query gets weights of 0.

    Args:
        d_model: Width of the input, a multiple of `nhead`.
        nhead: Number of heads.
        dim_feedforward: Number of hidden units. Default: 2048.
        dropout: The rate of all dropout without a rate of its own, in ``[0, 1]``. Default: 0.1.
        activation: ``"relu"``, ``"gelu"`` or a callable. ReLU, GELU and SiLU of PyTorch, as functions or modules, are
            fused with dropout. Default: ReLU.
        layer_norm_eps: What layer normalisation adds to the variance. Default: 1e-5.
        batch_first: Whether batches are (batch, length, width), not (length, batch, width). Default: False.
        norm_first: Whether normalisation comes before each sub-layer, not after each residual. Default: False.
        bias: Whether linear layers and normalisations have biases. Default: True.
        device: Where parameters are made. Default: PyTorch's default device.
        dtype: Their type. Default: PyTorch's default type.
        attention_p: Rate of attention weights. Default: `dropout`.
        sublayer_p: Rate of what both sub-layers add to the residual. Default: `dropout`.
        feedforward_p: Rate of hidden units. Default: `dropout`.
        generator: Where keys are drawn, as for `Dropout`: also by the copies that `torch.nn.TransformerEncoder` makes.
            Default: PyTorch's own generator.

    Raises:
        ArgumentError: If a value is out of range.
        ArgumentTypeError: If an argument has a wrong type.

    Examples:
        >>> import torch, dropkit
        >>> layer = dropkit.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True, attention_p=0.2)
        >>> encoder = torch.nn.TransformerEncoder(layer, num_layers=2)
        >>> encoder(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])

    References:
        Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin (2017), "Attention is all you need",
        sections 3.1 and 5.4, whose P_drop = 0.1 is the rate of sub-layers' outputs; weights and hidden units are
        dropped in the authors' code. Xiong et al. (2020), "On layer normalization in the transformer architecture",
        section 3, for `norm_first`.
    """

    self_attn: MultiheadAttention

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = functional.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        attention_p: float | None = None,
        sublayer_p: float | None = None,
        feedforward_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_sizes(_WHERE, {"d_model": d_model, "nhead": nhead, "dim_feedforward": dim_feedforward}, "nhead")
        rate = PROBABILITY.check(_WHERE, "dropout", dropout)
        rates = {"attention_p": attention_p, "sublayer_p": sublayer_p, "feedforward_p": feedforward_p}
        of_weights, of_sublayers, of_hidden = (
            rate if own is None else PROBABILITY.check(_WHERE, name, own) for name, own in rates.items()
        )
        if not callable(activation) and activation not in ("relu", "gelu"):
            raise argument_error(_WHERE, "activation", "'relu', 'gelu' or a callable", activation)
        eps = _EPS.check(_WHERE, "layer_norm_eps", layer_norm_eps)
        for name, flag in (("batch_first", batch_first), ("norm_first", norm_first), ("bias", bias)):
            check_bool(_WHERE, name, flag)
        check_factory(_WHERE, device, dtype, generator)
        super().__init__(
            d_model, nhead, dim_feedforward, rate, activation, eps, batch_first, norm_first, bias, device, dtype
        )
        attention = MultiheadAttention(d_model, nhead, of_weights, bias, batch_first=batch_first, device="meta")
        attention.load_state_dict(self.self_attn.state_dict(), assign=True)  # what PyTorch's has drawn already
        self.self_attn = attention
        self.dropout = Dropout(of_hidden)
        self.dropout1, self.dropout2 = Dropout(of_sublayers), Dropout(of_sublayers)
        self.generator = generator

    @property
    def attention_p(self) -> float:
        """Probability of dropping an attention weight."""
        return self.self_attn.p

    @attention_p.setter
    def attention_p(self, p: float) -> None:
        self.self_attn.p = PROBABILITY.check(_WHERE, "attention_p", p)

    @property
    def sublayer_p(self) -> float:
        """Probability of dropping an element of what a sub-layer adds to the residual."""
        return self.dropout1.p

    @sublayer_p.setter
    def sublayer_p(self, p: float) -> None:
        self.dropout1.p = self.dropout2.p = PROBABILITY.check(_WHERE, "sublayer_p", p)

    @property
    def feedforward_p(self) -> float:
        """Probability of dropping a hidden unit."""
        return self.dropout.p

    @feedforward_p.setter
    def feedforward_p(self, p: float) -> None:
        self.dropout.p = PROBABILITY.check(_WHERE, "feedforward_p", p)

    @property
    def switch(self) -> str:
        """The `switch` of all modules that drop, or ``"mixed"`` where theirs differ; set, it is that of all of them."""
        found = {module.switch for module in self._switched()}
        return found.pop() if len(found) == 1 else "mixed"

    @switch.setter
    def switch(self, switch: str) -> None:
        checked = SWITCH.check(_WHERE, "switch", switch)
        for module in self._switched():
            module.switch = checked

    def _switched(self) -> list[NoiseMixin]:
        modules = [getattr(self, place) for place in _PLACES]
        return [module for module in modules if isinstance(module, NoiseMixin)]

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        key: int | Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
        return_masks: bool = False,
        stream: int | Tensor = 0,
    ) -> Any:
        """Apply the layer.

        Args:
            src: Tensor of shape (length, d_model), or a batch with three axes, as `batch_first` says; or a strided
                nested tensor of such sequences, for which no masks are given.
            src_mask: As `attn_mask` for `MultiheadAttention`. Default: none.
            src_key_padding_mask: As its `key_padding_mask`. Default: none.
            is_causal: Says that `src_mask` is causal, so that it need not be read; not checked. Default: False.
            key: The key of all noise of the call, as for `dropkit.functional.dropout`; slices of axis 0 are the
                examples of the batch. Default: drawn.
            masks: Bool tensors by name to use instead of drawing, True = kept, of length 1 on axes that share; others
                are drawn. Nested sequences have the masks of the padded batch. Default: none.
            return_masks: Whether to return the masks too. Default: False.
            stream: Number of the pass, as for `dropkit.functional.dropout`. Default: 0.

        Returns:
            A tensor of the input's shape; with `return_masks`, also a dict of masks, all True in evaluation. What was
            put in the place of a `MultiheadAttention` or `Dropout` of this package has no mask.

        Raises:
            ArgumentError: If shapes do not fit, a mask is unknown, or `is_causal` comes without `src_mask`.
            ArgumentTypeError: If an argument has a wrong type.
        """
        for name, flag in (("is_causal", is_causal), ("return_masks", return_masks)):
            check_bool(_WHERE, name, flag)
        is_seen = masks is not None or return_masks
        is_plain = not (self.training or is_seen or self._draws())
        if isinstance(src, Tensor) and src.is_nested:
            if is_causal:  # which would be ignored
                raise argument_error(_WHERE, "is_causal", "False where src is nested", is_causal, _PAD)
            if is_plain:
                return super().forward(src, src_mask, src_key_padding_mask, is_causal)
            padded, is_padding = self._padded(src, src_mask, src_key_padding_mask)
            options: dict[str, Any] = {"key": key, "masks": masks, "return_masks": return_masks, "stream": stream}
            found = self.forward(padded, src_key_padding_mask=is_padding, **options)
            return (nest_like(src, found[0]), found[1]) if return_masks else nest_like(src, found)
        batch = self._checked(src, src_mask, src_key_padding_mask, is_causal, key, stream)
        if is_plain and not traced():
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        noise = self._noise(batch, key, masks, return_masks, stream)
        if src_key_padding_mask is not None and src.dim() == 2:
            src_key_padding_mask = src_key_padding_mask.unsqueeze(0)
        x, ignored = batch.contiguous(), (src_mask, src_key_padding_mask, is_causal)
        if self.norm_first:
            x = self._added("dropout1", self._attended(self.norm1(x), ignored, noise), x, noise)
            x = self._added("dropout2", self._fed_forward(self.norm2(x), noise), x, noise)
        else:
            x = self.norm1(self._added("dropout1", self._attended(x, ignored, noise), x, noise))
            x = self.norm2(self._added("dropout2", self._fed_forward(x, noise), x, noise))
        x = x.squeeze(0) if src.dim() == 2 else self._turned(x)
        return (x, noise.drawn) if return_masks else x

    def _turned(self, x: Tensor) -> Tensor:
        """Turn a batch as the user lays it into a batch-first one, or back."""
        return x if self.self_attn.batch_first else x.transpose(0, 1).contiguous()

    def _checked(
        self, src: Tensor, src_mask: Any, src_key_padding_mask: Any, is_causal: bool, key: _Key, stream: int | Tensor
    ) -> Tensor:
        """Check what is given, and return the input as a batch, batch first."""
        check_tensor(_WHERE, "src", src, (2, 3), self.self_attn.embed_dim)
        is_batched = src.dim() == 3
        batch = src.unsqueeze(0) if not is_batched else src if self.self_attn.batch_first else src.transpose(0, 1)
        call = Call(_WHERE, batch.size(0), self.self_attn.num_heads, batch.size(1), batch.size(1), is_batched)
        check_masks(call, src_mask, src_key_padding_mask, is_causal, ("src_mask", "src_key_padding_mask"))
        if key is not None or type(stream) is not int or stream != 0:
            check_source(_WHERE, batch, 0.0, key, None, stream, _NAMES)
        return batch

    def _draws(self, given: Iterable[str] = ()) -> bool:
        """Tell whether the next call draws noise in a place whose mask is not given."""
        return any(_may_draw(getattr(self, place)) for place in _PLACES if place not in given)

    def _noise(self, batch: Tensor, key: _Key, masks: Any, return_masks: bool, stream: int | Tensor) -> _Noise:
        """Return the noise of a call, whose key is drawn if none is given and some place needs one."""
        if masks is not None:
            examples, length, width = batch.shape
            shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_PLACES, (examples, length, width))
            shapes["self_attn"] = (examples, self.self_attn.num_heads, length, length)
            shapes["dropout"] = (examples, length, self.linear1.out_features)
            own = {place: shapes[place] for place in _PLACES if _has_mask(getattr(self, place))}
            check_named_masks(_WHERE, masks, own, batch.device)
        given = {} if masks is None else masks
        keys: list[_Key] = [None] * len(_PLACES)
        if self._draws(given):
            generator = self.generator if key is None else None
            _, noise = find_noise(_WHERE, batch, 0.0, key, generator, names=_NAMES)
            keys = [*noise.keys(len(_PLACES))]
        return _Noise(dict(zip(_PLACES, keys, strict=True)), given, stream, {} if return_masks else None)

    def _attended(self, x: Tensor, ignored: tuple[Tensor | None, Tensor | None, bool], noise: _Noise) -> Tensor:
        attn_mask, key_padding_mask, is_causal = ignored
        x, options = self._turned(x), {}
        if isinstance(self.self_attn, MultiheadAttention):
            source = noise.of("self_attn")
            options = {name if name == "stream" else f"dropout_{name}": value for name, value in source.items()}
            options["return_dropout_mask"] = noise.drawn is not None
        output, _, *drawn = self.self_attn(
            x, x, x, attn_mask=attn_mask, key_padding_mask=key_padding_mask, need_weights=False, is_causal=is_causal,
            **options,
        )  # fmt: skip
        if noise.drawn is not None and drawn:
            noise.drawn["self_attn"] = drawn[0]
        return self._turned(output)

    def _fed_forward(self, x: Tensor, noise: _Noise) -> Tensor:
        hidden, activation = self.linear1(x), _fused_name(self.activation)
        if activation and _is_plain(self.dropout) and not noise.is_seen("dropout"):
            rate, is_on = self.dropout.rate, self.dropout.is_on
            hidden = activation_dropout(hidden, activation, rate, is_on, **noise.of("dropout"))
        else:
            hidden = self._dropped("dropout", self.activation(hidden), noise)
        return self.linear2(hidden)

    def _added(self, place: str, output: Tensor, residual: Tensor, noise: _Noise) -> Tensor:
        """Add what a sub-layer gives to the residual, with dropout."""
        module = getattr(self, place)
        if not _is_plain(module) or noise.is_seen(place):
            return residual + self._dropped(place, output, noise)
        return dropout_add(output, residual, module.rate, module.is_on, **noise.of(place))

    def _dropped(self, place: str, x: Tensor, noise: _Noise) -> Tensor:
        module = getattr(self, place)
        if not isinstance(module, NoiseMixin):
            return module(x)
        if noise.drawn is None or not _has_mask(module):
            return module(x, **noise.of(place))
        x, noise.drawn[place] = module(x, **noise.of(place), return_mask=True)
        return x

    def _padded(self, src: Tensor, src_mask: Any, src_key_padding_mask: Any) -> tuple[Tensor, Tensor]:
        """Return nested sequences padded to one length, and where they are padded."""
        for name, mask in (("src_mask", src_mask), ("src_key_padding_mask", src_key_padding_mask)):
            if mask is not None:
                raise argument_error(_WHERE, name, "None where src is nested", type(mask))
        if src.layout != torch.strided or not self.self_attn.batch_first:
            rule = "dense, or nested of the strided layout and batch first"
            raise argument_type_error(_WHERE, "src", rule, src.layout)
        return pad(src)


def _may_draw(module: torch.nn.Module) -> bool:
    """Tell whether a module draws at its next call; the user may have put any other in a place of dropout."""
    if isinstance(module, RateMixin):
        return module.is_on and (isinstance(module.rate, Tensor) or module.rate > 0)
    return module.is_on if isinstance(module, NoiseMixin) else module.training


def _is_plain(module: torch.nn.Module) -> TypeGuard[Dropout]:
    """Tell whether a module is nothing but dropout of single elements, so that it may be fused."""
    is_dropout = type(module) is Dropout and not _has_hooks(module)
    return is_dropout and not module.broadcast_dims and module.scale_at == "train"


def _has_hooks(module: torch.nn.Module) -> bool:
    """Tell whether something is to happen when a module is called, forward or backward, so that it must be."""
    forward, backward = module._forward_hooks or module._forward_pre_hooks, module._backward_hooks
    return bool(forward or backward or module._backward_pre_hooks)


def _has_mask(module: torch.nn.Module) -> TypeGuard[MultiheadAttention | Dropout]:
    """Tell whether a module in a place of dropout takes and returns a mask."""
    return isinstance(module, MultiheadAttention | Dropout)


def _fused_name(activation: Any) -> str | None:
    """Return the name of an activation that is fused with dropout."""
    if isinstance(activation, torch.nn.Module) and _has_hooks(activation):
        return None
    if type(activation) is torch.nn.GELU:
        return "gelu_tanh" if activation.approximate == "tanh" else "gelu"
    kind = {torch.nn.ReLU: "relu", torch.nn.SiLU: "silu"}.get(type(activation))
    return kind or next((name for function, name in _FUSED if activation is function), None)
