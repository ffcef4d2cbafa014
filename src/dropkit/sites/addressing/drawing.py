"""Where no mask can be drawn: for examples of a transform, for another forward, and for a program that is recorded."""

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_all_functorch_interpreters

from dropkit.errors import UnsupportedError
from dropkit.sites.interception.checkpoints import is_recomputing
from dropkit.sites.interception.compiler import while_compiling
from dropkit.sites.interception.places import Place

__all__ = ["check_batched", "check_drawing", "is_real"]


def is_real(tensor: Tensor) -> bool:
    """Tell whether a tensor has values; one on the meta device, or a fake one, has a shape alone."""
    if type(tensor) is Tensor:
        return not tensor.is_meta
    from torch._subclasses.fake_tensor import is_fake

    return not (tensor.is_meta or is_fake(tensor))


def check_batched(place: Place) -> None:
    """Raise inside of a `vmap` that does not ask for one mask, for there is one key for all examples."""
    if torch._C._are_functorch_transforms_active():
        randomness = _randomness()
        if randomness != "same":
            what = place.name or "the model"
            raise UnsupportedError(
                f'address: {what} draws inside torch.vmap(randomness="{randomness}"), where one key is for all '
                'examples. Ask for randomness="same", give the call one key for each example, or call the model on the '
                "whole batch."
            )


@while_compiling
def _randomness() -> str:
    """Return what the transforms that are running ask for, if it is not the same for all examples."""
    levels = [each for each in retrieve_all_functorch_interpreters() if isinstance(each, VmapInterpreter)]
    return next((asked for each in levels if (asked := each.randomness()) != "same"), "same")


def check_drawing() -> None:
    """Raise where a mask would be drawn for another forward than the one that runs."""
    if torch._C._current_graph_task_id() != -1 and not is_recomputing():
        raise UnsupportedError(
            "address: dropout is drawn inside a backward pass that is no recomputation by torch.utils.checkpoint "
            "of a forward of the addressed model, so its mask could not be that of the forward. Use "
            "torch.utils.checkpoint, and address the model before the forward."
        )
    if _is_recorded():
        raise UnsupportedError(
            "address: dropout is drawn while a program is recorded, as by make_fx, aot_function, torch.jit.trace or "
            "torch.cuda.graph, which would have one mask for ever. Close the handle first, or use torch.compile "
            '(mode="reduce-overhead" for CUDA graphs).'
        )


def _is_recorded() -> bool:
    """Tell whether what runs is recorded: by ``make_fx``, AOT autograd on its own, ``torch.jit.trace``, a CUDA graph.

    Where torch.compile calls them, no module runs any more.
    """
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return True
    kinds = torch._C._TorchDispatchModeKey
    return torch._C._get_tracing_state() is not None or any(
        torch._C._get_dispatch_mode(kind) is not None or torch._ops._get_dispatch_mode_pre_dispatch(kind) is not None
        for kind in (kinds.PROXY, kinds.FUNCTIONAL)
    )
