"""Weight drop goes by the names it is given: of tied parameters, and of those that hooks read before the module."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from dropkit import random
from dropkit.errors import ArgumentError
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


HOOKS = {
    "weight_v": torch.nn.utils.weight_norm,
    "weight_g": torch.nn.utils.weight_norm,
    "weight_orig": torch.nn.utils.spectral_norm,
    "bias_orig": lambda module: prune.random_unstructured(module, "bias", amount=0.1),
}


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", HOOKS)
def test_weights_that_a_hook_reads_before_forward_are_refused_and_dropped_one_level_up(name: str) -> None:
    module = HOOKS[name](nn.Linear(3, 4))
    rule = "`names` must be no weight that a hook reads before `forward`"
    with pytest.raises(ArgumentError, match=rf"{rule}.*, got '{name}'.*Give a module that contains it"):
        WeightDrop(module, 0.5, name)
    assert type(module) is nn.Linear
    x = torch.randn(2, 3)
    network = WeightDrop(nn.Sequential(module), 0.5, f"0.{name}")
    weight, found = module.get_parameter(name), network.eval()(x)
    mask = torch.arange(weight.numel()).reshape(weight.shape) > 0
    assert torch.equal(found, module(x))
    assert not torch.equal(network.train()(x, dropout_mask={f"0.{name}": mask}), found)
