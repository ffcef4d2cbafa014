"""Which forwards of an addressed model count as runs of a step, and so move its masks."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from dropkit.sites import address, switch

SEED = 2**63 + 5


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_forwards_of_shapes_alone_are_not_counted(kind: str) -> None:
    """As pipelines run them, to learn the shapes of their stages."""
    layers = nn.Sequential(nn.Dropout(0.5), nn.LSTM(8, 8, 2, dropout=0.5))
    with address(layers, SEED) as handle:
        if kind == "meta":
            layers.to_empty(device="meta")(torch.ones(4, 8, device="meta"))
        else:
            with FakeTensorMode(allow_non_fake_inputs=True):
                layers[0](torch.ones(4, 8))
                layers(torch.ones(4, 8))
        assert handle.state_dict()["runs"] == ()


def test_forwards_that_draw_nothing_are_not_counted() -> None:
    """Whoever looks at a model between two updates, in evaluation or switched off, trains on with the same masks."""
    model, x = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), torch.ones(9, 6)

    def masks(looks: bool) -> list[Tensor]:
        handle, found = address(model, SEED), []
        for _ in range(2):
            for _ in range(2):
                found.append(model(x) == 0)
                if looks:
                    with switch(model, "off"):
                        assert torch.equal(model(x), model.eval()(x))
                    model.train()
            assert dict(handle.state_dict()["runs"])["1"] == 2
            handle.step()
        handle.close()
        return found

    first, second = masks(looks=True), masks(looks=False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(first, 2))


@pytest.mark.parametrize("is_reentrant", [True, False])
def test_what_a_backward_pass_draws_again_does_not_count_the_next_forward(is_reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.part, x, use_reentrant=is_reentrant)

    model, x = Checkpointed(), torch.ones(9, 6, requires_grad=True)
    handle = address(model, SEED)
    model(x).sum().backward()
    model.eval()(x)
    assert dict(handle.state_dict()["runs"])["part.1"] == 1
    handle.close()
