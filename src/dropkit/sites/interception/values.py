"""What a tensor holds, to be put back."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

__all__ = ["is_freed", "is_writable", "kept_values", "version_of"]


def kept_values(tensor: Tensor) -> Callable[[], None]:
    """Note what a tensor holds, and return what gives it that again, and its version, which graphs remember."""
    value, version = tensor.detach().clone(), version_of(tensor)

    def put_back() -> None:
        if is_freed(tensor):
            return
        if not _is_same(tensor, value):  # by value, for work on `.data` moves no version
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                tensor.copy_(value)
        if version_of(tensor) != version:
            torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))  # it holds what it did then

    return put_back


def _is_same(tensor: Tensor, value: Tensor) -> bool:
    try:
        return tensor.is_meta or torch.equal(tensor, value)
    except Exception:  # noqa: BLE001  # of a layout that cannot be compared, and each says so in its own way
        return False


def is_freed(tensor: Tensor) -> bool:
    """Tell whether a tensor has no memory for now, as parts of sharded models have between forwards."""
    try:
        return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0 and not tensor.is_meta
    except (NotImplementedError, RuntimeError):  # it has none that can be asked for
        return False


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written, as far as that is counted."""
    return 0 if tensor.is_inference() or is_functorch_wrapped_tensor(tensor) else tensor._version


def is_writable(tensor: Tensor) -> bool:
    """Tell whether a tensor can be written into, and not only what it is a view of."""
    return not any(length > 1 and not stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
