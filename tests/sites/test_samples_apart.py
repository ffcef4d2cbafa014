"""Numbered examples are those of the thread, or of the task, that has numbered them."""

import asyncio
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropkit.random import call_key, keep_mask
from dropkit.sites import address, samples
from tests.sites.threads import Meeting, in_another_thread


def mask_of(handle: Any, call: int, rows: list[int]) -> Tensor:
    return torch.from_numpy(keep_mask(call_key(handle.seed, "", handle.last_step, call), (9, 40), 0.5)[rows])


def test_blocks_of_numbers_are_those_of_their_thread() -> None:
    """Neither the counts nor the numbers of forwards elsewhere are touched, also where another forward runs."""

    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            meeting()
            return F.dropout(x)

    model, other, meeting, x = nn.Dropout(0.5), Waiting(), Meeting(), torch.ones(3, 40)
    handle = address(model, 5)
    address(other, 6)

    def numbered() -> Tensor:
        with samples([2, 1, 0]):
            other(x)
            return model(x)

    found = [model(x)]
    with in_another_thread(numbered) as own:
        assert meeting.inside.wait(20)
        found.append(model(x))
        with samples([8, 3, 4]):
            assert torch.equal(model(x) != 0, mask_of(handle, 0, [8, 3, 4]))
            with in_another_thread(lambda: model(x)) as elsewhere:
                pass
        assert handle.state_dict()["runs"] == (("", 3),)
        meeting.go_on.set()
    found += [elsewhere[0], model(x)]
    assert torch.equal(own[0] != 0, mask_of(handle, 0, [2, 1, 0]))
    for call, each in enumerate(found):
        assert torch.equal(each != 0, mask_of(handle, call, [0, 1, 2])), call


def test_blocks_of_numbers_are_those_of_their_task() -> None:
    model, x = nn.Dropout(0.5), torch.ones(2, 40)
    handle = address(model, 5)

    async def numbered(first: int) -> list[Tensor]:
        found = []
        with samples([first, first + 1]):
            for _ in range(3):
                await asyncio.sleep(0)
                found.append(model(x) != 0)
        return found

    async def together() -> list[list[Tensor]]:
        return await asyncio.gather(*(numbered(first) for first in range(3)))

    for first, found in enumerate(asyncio.run(together())):
        for call, kept in enumerate(found):
            assert torch.equal(kept, mask_of(handle, call, [first, first + 1]))
    assert handle.state_dict()["runs"] == ()


def test_a_step_in_another_thread_begins_the_counts_of_a_block_anew() -> None:
    model, x = nn.Dropout(0.5), torch.ones(2, 40)
    handle = address(model, 5)
    with samples([0, 1]):
        model(x)
        with in_another_thread(handle.step):
            pass
        assert torch.equal(model(x) != 0, mask_of(handle, 0, [0, 1]))
