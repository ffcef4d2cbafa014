"""Any call that draws dropout, run on dropkit's own operations."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dropkit.functional as ours
from dropkit.errors import UnsupportedError
from dropkit.sites.calls.functions import FUNCTIONS, Call
from dropkit.sites.calls.heads import attend_with_heads
from dropkit.sites.calls.networks import NETWORKS

__all__ = ["has_source", "refusal", "replaced", "replacement"]


def replaced(
    call: Call,
    *,
    key: int | Tensor | None = None,
    mask: Any = None,
    return_mask: bool = False,
    order: Tensor | None = None,
) -> Any:
    """Run a call that draws dropout on dropkit's own operations.

    A call that is not active runs as it is, and so does one that dropkit's operations do not take, unless it is asked
    for something that only they can do. A key leaves alone what the user gave a source of noise; a mask does not. What
    looks on further out sees one call of one function of dropkit's, whatever that does within.

    Args:
        call: The call.
        key: The key of its noise, as for `dropkit.functional.dropout`; fields of it where one call draws several.
            Default: drawn.
        mask: What it keeps, True = kept, to use instead: a bool tensor; floats for noise that is not a mask; of a
            recurrent network a tuple, one for the output of every layer but the last. Default: drawn.
        return_mask: Whether to return that too, None where the call is not active. Default: False.
        order: Of a recurrent network on packed sequences, which example of the batch each sequence is. Default: they
            are in order.

    Returns:
        What the call returns; with `return_mask`, a pair.

    Raises:
        UnsupportedError: If a key, a mask or its return is asked for of a call that cannot have it.
    """
    if not call.is_active:
        return (call.run(), None) if return_mask else call.run()
    is_plain = key is None and mask is None and not return_mask
    if is_plain and refusal(call):
        return call.run()
    own = replacement(call)
    if own is None:
        if is_plain:
            return call.run()
        what = f"{call.function.kind} of {_what(call.input)}"
        remedy = "Convert the input to a dense tensor of a floating type, or leave this call out."
        raise UnsupportedError(f"dropkit.sites: {what} takes no key and no mask. {remedy}")
    if order is not None and "order" in own.arguments:
        own = own.changed(order=order)
    if mask is not None:
        own = _with_mask(own, mask)
    elif key is not None:
        own = _with_key(own, key)
    return _result(call, own, return_mask)


def _result(call: Call, own: Call, return_mask: bool) -> Any:
    """Run what a call was translated to, and return what the call returns, with the mask if that is asked for."""
    try:
        if call.function.function is torch.native_dropout:
            return (found := own.run(), found[1]) if return_mask else own.run()
        return _with_return(own) if return_mask else own.run()
    except NotImplementedError as error:  # as DTensor says that it knows no rule for an operator
        if type(call.input).__name__ != "DTensor":
            raise
        raise UnsupportedError(
            f"dropkit.sites: {call.function.kind} of a DTensor has masks of its parts in an addressed model alone: "
            "address(model, workers=...)."
        ) from error


def replacement(call: Call) -> Call | None:
    """Return an active call as one of dropkit's own functions, or None if those do not take it."""
    function = call.function.function
    if call.function.key is not None:
        return call
    translate = _TRANSLATIONS.get(function)
    if translate is None or not _takes(call.input):
        return None
    found = translate(call)
    return None if found is None else Call(FUNCTIONS[found.pop("function")], found)


def _takes(input: Tensor) -> bool:
    """Tell whether dropkit's functions take an input."""
    is_dense = input.layout in (torch.strided, torch.jagged)
    return is_dense and (input.is_floating_point() or input.is_complex())


def refusal(call: Call) -> str:
    """Return why an active call is left to PyTorch where nothing of its noise is asked for; empty if it is not.

    dropkit's kernels are known to be faster for dense tensors on a CPU: on GPUs PyTorch's dropout is fast, and ours has
    not been timed. None is there to record with ``torch.jit.trace``.
    """
    x = call.input
    if call.function.key is not None:
        return ""
    if not _takes(x) or x.is_nested:
        return f"{x.layout} tensor of {x.dtype}" if not x.is_nested else "nested tensor"
    if type(x) not in (Tensor, torch.nn.Parameter):
        return f"{type(x).__name__}, no plain tensor"
    if not x.is_cpu:
        return f"tensor on {x.device}"
    return "torch.jit.trace" if torch.jit.is_tracing() else ""  # type: ignore[attr-defined]  # missing from its hints


def _what(input: Tensor) -> str:
    return f"a {'nested ' if input.is_nested else ''}tensor of {input.dtype} and {input.layout}"


def _plain(call: Call, **more: Any) -> dict[str, Any]:
    """Return the arguments of dropout for one of PyTorch's functions of an input and a rate."""
    given, function = call.arguments, call.function.function
    inplace = bool(given.get("inplace", function in _IN_PLACE))
    return {"function": ours.dropout, "input": given["input"], "p": _rate(call), "training": True} | (
        {"inplace": inplace} | more
    )


_IN_PLACE = frozenset((torch.dropout_, torch.feature_dropout_, torch.alpha_dropout_, torch.feature_alpha_dropout_))


def _rate(call: Call) -> Any:
    """Return the rate as a float, the type that the short way of a call knows."""
    is_taken = isinstance(call.p, Tensor) and call.p.dtype == torch.float64
    return call.p if is_taken else float(call.p)


def _of_maps(call: Call) -> dict[str, Any] | None:
    """Return the arguments for dropout of whole feature maps."""
    x = call.input
    if x.is_nested or x.dim() < 2:
        return None  # PyTorch's has the message
    usual = _USUAL_AXES.get(call.function.kind)
    if usual is not None and x.dim() not in usual:
        call.function.function(x[:0], 0.0, False)  # it warns of such shapes, and says what it takes them for
    return _plain(call, broadcast_dims=call.shared)


_USUAL_AXES = {"dropout1d": (2, 3), "dropout2d": (4,), "dropout3d": (4, 5)}


def _alpha(call: Call) -> dict[str, Any] | None:
    x = call.input
    return None if x.is_nested or x.is_complex() else _plain(call, function=ours.alpha_dropout)


def _feature_alpha(call: Call) -> dict[str, Any] | None:
    x = call.input
    if x.is_nested or x.is_complex() or x.dim() < 2:
        return None
    return _plain(call, function=ours.feature_alpha_dropout)


def _native(call: Call) -> dict[str, Any]:
    return _plain(call, return_mask=True)


def _attention(call: Call) -> dict[str, Any] | None:
    given = dict(call.arguments)
    query, mask = given["query"], given.get("attn_mask")
    if any(given[name].is_nested or given[name].dim() < 2 for name in ("query", "key", "value")):
        return None
    if mask is not None and mask.is_floating_point():
        given["attn_mask"] = mask.to(query.dtype)  # which may be wider in PyTorch's
    return {"function": ours.scaled_dot_product_attention, **given, "dropout_p": _rate(call), "training": True}


def _heads(call: Call) -> dict[str, Any]:
    return {"function": attend_with_heads, **call.arguments, "dropout_p": _rate(call)}


def _network(call: Call) -> dict[str, Any]:
    given = dict(call.arguments)
    values = given.pop("data") if "data" in given else given.pop("input")
    return {"function": NETWORKS[call.function.kind], "input": values, "order": None, **given, "dropout": _rate(call)}


_TRANSLATIONS: Mapping[Callable[..., Any], Callable[[Call], dict[str, Any] | None]] = {
    **dict.fromkeys((F.dropout, torch.dropout, torch.dropout_), _plain),
    **dict.fromkeys((F.dropout1d, F.dropout2d, F.dropout3d), _of_maps),
    **dict.fromkeys((torch.feature_dropout, torch.feature_dropout_), _of_maps),
    **dict.fromkeys((F.alpha_dropout, torch.alpha_dropout, torch.alpha_dropout_), _alpha),
    F.feature_alpha_dropout: _feature_alpha,
    torch.feature_alpha_dropout: _feature_alpha,
    torch.feature_alpha_dropout_: _feature_alpha,
    torch.native_dropout: _native,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _heads,
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _network),
}

# What says where a drawn mask lies, or where its key is drawn: a mask has none of it.
_ADDRESS = ("generator", "offset", "full_shape", "broadcast_dims")


def has_source(call: Call) -> bool:
    """Tell whether the noise of a call has a source of its own, which only those of dropkit's functions may have."""
    row, given = call.function, call.arguments
    sources = (row.key, row.mask, "generator") if row.key is not None else ()
    return any(name is not None and given.get(name) is not None for name in sources)


def _with_key(call: Call, key: int | Tensor) -> Call:
    """Give a call a key, unless its noise has a source."""
    return call if has_source(call) else call.changed(**{str(call.function.key): key})


def _with_mask(call: Call, mask: Any) -> Call:
    """Give a call a mask in the place of any source of noise."""
    row = call.function
    if row.mask is None:
        remedy = "Give it a key instead."
        raise UnsupportedError(f"dropkit.sites: {row.kind} takes no mask, for its noise is not one. {remedy}")
    cleared: dict[str, Any] = {name: None for name in _ADDRESS if name in call.arguments}
    if "broadcast_dims" in cleared:
        cleared["broadcast_dims"] = ()
    if "stream" in call.arguments:
        cleared["stream"] = 0
    return call.changed(**cleared, **{str(row.key): None, row.mask: mask})


def _with_return(call: Call) -> tuple[Any, Any]:
    """Run a call and return what it returns, and its mask."""
    row = call.function
    if row.returned is None:
        raise UnsupportedError(f"dropkit.sites: {row.kind} returns no mask, for its noise is not one.")
    if call.arguments.get(row.returned):  # the user asked for it too
        found = call.run()
        return found, found[-1]
    result, mask = call.changed(**{row.returned: True}).run()
    return result, mask
