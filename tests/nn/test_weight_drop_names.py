"""Weight drop goes by the names it is given: of tied parameters too, and only while the whole module runs."""

import torch
from torch import Tensor, nn

from dropkit import random
from dropkit.nn import WeightDrop

KEY = 0x3141_5926_5358_9793


def tied() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    network[1].weight = network[0].weight
    return network


def test_names_of_one_tied_parameter_have_a_mask_each() -> None:
    network = WeightDrop(tied(), 0.5, ("0.weight", "1.weight"))
    _, masks = network(torch.eye(4), dropout_key=KEY, return_dropout_mask=True)
    for number, mask in enumerate(masks.values()):
        want = random.keep_mask(random.field(KEY, number), (4, 4), 0.5)
        assert torch.equal(mask, torch.from_numpy(want))


def test_the_other_name_of_a_tied_parameter_stays_plain() -> None:
    network = WeightDrop(tied(), 1.0, "0.weight")
    seen: list[Tensor] = []
    for layer in network:
        layer.register_forward_pre_hook(lambda module, _: seen.append(module.weight))
    network(torch.eye(4))
    assert (seen[0] == 0).all()
    assert seen[1] is network[1].weight


def test_a_part_that_is_called_alone_has_its_plain_weight() -> None:
    network, x = WeightDrop(nn.Sequential(nn.Linear(4, 3)), 1.0, "0.weight"), torch.eye(4)
    assert torch.equal(network(x), network[0].bias.expand(4, 3))
    assert torch.equal(network[0](x), nn.functional.linear(x, network[0].weight, network[0].bias))
