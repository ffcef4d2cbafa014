"""Several things on one model: the order in which they were opened, and on which part of it, makes no difference."""

from contextlib import ExitStack
from itertools import permutations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from dropkit.random import call_key, keep_mask
from dropkit.sites import accelerate, address, inject, record, switch
from dropkit.sites.calls.functions import Call
from dropkit.sites.interception.attachment import attached
from dropkit.sites.interception.interceptor import Handler
from dropkit.sites.interception.places import Place


class Net(nn.Module):
    """Drops by a layer, by a call, and by a rate that is 0 in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.drop(x), 0.25, self.training).view(1, 1, 6, 8)
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if self.training else 0.0)


NAMES = ("record", "switch", "address", "accelerate", "inject")
X = torch.ones(6, 8)


def opened(stack: ExitStack, name: str, model: nn.Module, masks: dict[Any, Any]) -> Any:
    if name == "record":
        return stack.enter_context(record(model))
    if name == "inject":
        return stack.enter_context(inject(model, masks, strict=False))
    if name == "switch":
        return stack.enter_context(switch(model, "on"))
    if name == "accelerate":
        return stack.enter_context(accelerate(model))
    handle = address(model, seed=7)
    stack.callback(handle.close)
    return handle


@pytest.mark.parametrize("order", list(permutations(NAMES)), ids="-".join)
def test_every_order_records_addressed_masks_and_given_ones_of_what_is_switched_on(order: tuple[str, ...]) -> None:
    model, given = Net().eval(), (torch.arange(48).view(6, 8) % 3 > 0)
    with ExitStack() as stack:
        handles = {name: opened(stack, name, model, {"drop": given}) for name in order}
        model(X)
        masks = handles["record"]
    assert set(masks) == {("drop", 0), ("#0", 0), ("#1", 0)}
    assert torch.equal(masks["drop", 0], given)
    for name, shape, p in (("#0", (6, 8), 0.25), ("#1", (1, 1, 6, 6), 0.5)):
        assert masks[name, 0].tolist() == keep_mask(call_key(7, name, step=0), shape, p).tolist()
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize("order", list(permutations(NAMES[:4])), ids="-".join)
@pytest.mark.parametrize("whole", NAMES[:4])
def test_parts_of_a_model_and_the_whole_of_it(whole: str, order: tuple[str, ...]) -> None:
    """One of all on the whole, and the others on a part, named as in what they are of."""
    model = nn.Sequential(nn.Identity(), Net()).eval()
    with ExitStack() as stack:
        handles = {name: opened(stack, name, model if name == whole else model[1], {}) for name in order}
        model(X)
        masks = handles["record"]
    name, addressed = ("1.drop" if whole == one else "drop" for one in ("record", "address"))
    expected = keep_mask(call_key(7, addressed, step=0), (6, 8), 0.5)
    assert masks[name, 0].tolist() == expected.tolist()
    assert len(masks) == 3
    assert not _get_current_function_mode_stack()


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
def test_the_lowest_turn_is_asked_first_and_of_one_turn_the_first(order: tuple[int, ...]) -> None:
    asked: list[int] = []

    class Noted(Handler):
        def __init__(self, number: int) -> None:
            self.number, self.turn = number, (0, 1, 1, 2)[number]

        def dropout(self, place: Place, call: Call) -> Any:
            asked.append(self.number)
            return call.run()

        def other(self, function: Any, args: Any, kwargs: Any) -> Any:
            return function(*args, **kwargs)

    model = nn.Sequential(nn.Dropout(0.5))
    hook = model.register_forward_pre_hook(lambda _, inputs: F.dropout(*inputs, 0.5))  # of the model's own
    with ExitStack() as stack:
        for number in order:
            stack.enter_context(attached(model, Noted(number)))
        model(X)
    hook.remove()
    same = [number for number in order if number in (1, 2)]
    assert asked == [0, *same, 3] * 2
