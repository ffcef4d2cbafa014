"""Models in which dropout was placed: their masks, compiled, addressed and switched."""

import copy
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import dropkit
from dropkit.sites import convert, find
from tests.sites.converted import (
    PICTURES,
    PLANS,
    ROWS,
    WORDS,
    Convolutional,
    Recurrent,
    mlp,
)
from tests.sites.zoo import tensors


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}])
def test_masks_are_locked(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    model = Recurrent(kind, **options)
    convert(model, "rnn", WORDS, p=0.5)
    seen = []

    def look(_module: nn.Module, args: tuple[Tensor], result: Tensor) -> None:
        kept = result != 0
        assert torch.equal(kept, kept[:, :1].expand_as(kept))
        assert not torch.equal(kept, kept[:1].expand_as(kept))  # of each sequence its own
        assert torch.equal(result[kept], 2 * args[0][kept])
        seen.append(result)

    for module in model.modules():
        if isinstance(module, dropkit.nn.LockedDropout):
            module.register_forward_hook(look)
    model(WORDS)
    assert len(seen) == 5  # before, twice between and after the lower, which is before the upper, and after the upper


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("form", ["batch first", "time first", "packed", "single"])
def test_layer_by_layer_is_the_whole_network(kind: type[nn.RNNBase], bidirectional: bool, form: str) -> None:
    network = kind(4, 6, 3, bidirectional=bidirectional, batch_first=form == "batch first", dtype=torch.float64)
    x = torch.randn(*((5, 4) if form == "single" else (5, 3, 4)), dtype=torch.float64)
    given = pack_padded_sequence(x, torch.tensor([3, 5, 2]), enforce_sorted=False) if form == "packed" else x
    state = torch.randn(3 * (1 + bidirectional), *(() if form == "single" else (5 if form == "batch first" else 3,)), 6,
                        dtype=torch.float64)  # fmt: skip
    hx = (state, state) if kind is nn.LSTM else state
    wanted = list(tensors(network(given, hx)))

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.head = network, nn.Linear(6 * (1 + bidirectional), 2, dtype=torch.float64)

        def forward(self, x: Any, hx: Any) -> Tensor:
            out = self.network(x, hx)[0]
            return self.head(pad_packed_sequence(out)[0] if form == "packed" else out)

    convert(Wrapped(), "rnn", given, hx)
    assert isinstance(network, kind)
    for layer in network.children():
        layer.p = 0.0
    for value, original in zip(tensors(network(given, hx)), wanted, strict=True):
        torch.testing.assert_close(value, original, rtol=1e-12, atol=1e-12)


def test_packed_and_padded_sequences_have_one_noise() -> None:
    """Of packed sequences, too, one mask serves all steps of one."""
    network = nn.LSTM(4, 6)
    lengths = torch.tensor([3, 5, 2])
    packed = pack_padded_sequence(torch.ones(5, 3, 4), lengths, enforce_sorted=False)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.head = network, nn.Linear(6, 2)

        def forward(self, x: Any) -> Tensor:
            return self.head(self.network(x)[0].data)

    model = Wrapped()
    plan = convert(model, "rnn", packed, p=0.5)
    assert list(plan.rates) == ["network.input_dropout", "network.output_dropout"]
    entered: list[Any] = []
    network.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    model(packed)
    x, seen = pad_packed_sequence(entered[0])
    assert torch.equal(seen, lengths)
    for row, length in enumerate(lengths.tolist()):
        own = x[:length, row]
        assert torch.equal(own, own[:1].expand_as(own))
        assert set(own.flatten().tolist()) <= {0.0, 2.0}


@pytest.mark.slow
def test_compiled() -> None:
    torch.compiler.reset()
    model = mlp()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(ROWS)
    plan = convert(compiled, "srivastava", ROWS)
    assert torch.equal(compiled.eval()(ROWS), model.eval()(ROWS))
    fresh = torch.compile(model.train(), backend="aot_eager", fullgraph=True)
    for network in (compiled.train(), fresh):
        first, second = network(ROWS), network(ROWS)
        assert not torch.equal(first, second)
        assert (first != 0).all()  # the dropout on the output is gone
    plan.undo()
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # PyTorch's own, which it hides
@pytest.mark.parametrize("name", ["rnn", "transformer", "vit", "cnn"])
def test_compiled_with_all_kinds_of_layers(name: str) -> None:
    make, recipe, x, _ = PLANS[name]
    torch.compiler.reset()
    model = make()
    convert(model, recipe, x, p=0.5)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled.eval()(x), model(x))
    model.train()
    assert not torch.equal(compiled(x), compiled(x))
    compiled(x).sum().backward()
    torch.compiler.reset()


def test_addressed_models_are_converted_first() -> None:
    """Layers that were placed have names of their own, and so masks of their own, the same in every copy."""
    model = Recurrent()
    convert(model, "rnn", WORDS)
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    with closing(dropkit.sites.address(model, seed=7)):
        first = model(WORDS)
    torch.manual_seed(2)
    with closing(dropkit.sites.address(twin, seed=7)):
        assert torch.equal(twin(WORDS), first)
    with closing(dropkit.sites.address(twin, seed=8)):
        assert not torch.equal(twin(WORDS), first)


def test_layers_that_are_switched_on_drop_in_evaluation() -> None:
    model = Recurrent()
    convert(model, "rnn", WORDS)
    model.eval()
    for name in ("input_dropout", "between_dropout", "output_dropout"):
        assert torch.equal(model(WORDS), model(WORDS))
        layer = dict(model.named_modules()).get(f"lower.{name}", model.upper.output_dropout)
        layer.switch = "on"
        assert not torch.equal(model(WORDS), model(WORDS))
        layer.switch = "auto"


@pytest.mark.parametrize("name", PLANS)
def test_converted_models_are_switched(name: str) -> None:
    make, recipe, x, _ = PLANS[name]
    model = make()
    convert(model, recipe, x, p=0.5)
    answer = model.eval()(x)
    with dropkit.sites.switch(model, "on"):
        assert not torch.equal(model(x), model(x))
    for module in model.train().modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    with dropkit.sites.switch(model, "off"):
        assert torch.equal(model(x), answer)


def test_train_and_eval_and_rates_reach_the_layers() -> None:
    model = mlp()
    convert(model, "srivastava", ROWS)
    assert torch.equal(model.eval()(ROWS), model(ROWS))
    assert not torch.equal(model.train()(ROWS), model(ROWS))
    model[0].input_dropout.p = 0.0
    assert "0.input_dropout" not in {site.name for site in find(model, ROWS)}
    scheduler = dropkit.schedules.RateScheduler(model, dropkit.schedules.Early(0.5, steps=4))
    assert len(scheduler.rates()) >= 1


def test_statistics_of_batch_norm_are_not_shifted() -> None:
    """All dropout lies behind the normalisation, so that its statistics are those of the model without dropout."""
    plain = Convolutional(norm=True)
    plain.drop.p = 0.0
    model = copy.deepcopy(plain)
    model.drop.p = 0.4
    convert(model, "cnn", PICTURES)
    plain.train()(PICTURES)
    model.train()(PICTURES)
    assert torch.equal(model.norm.running_var, plain.norm.running_var)
    assert not torch.equal(model(PICTURES), plain(PICTURES))
