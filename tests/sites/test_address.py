"""Addressed models: every mask is that of the definition, for every kind of site, whatever else has happened."""

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.overrides import TorchFunctionMode

import dropkit
from dropkit.errors import UnsupportedError
from dropkit.random import call_key, field, keep_mask
from dropkit.sites import address
from dropkit.sites.calls.functions import FUNCTIONS, find_call
from dropkit.sites.handwritten.draws import drawn
from tests.sites.zoo import CASES, MODELS, Model, tensors

SEED = 2**63 + 5
NOISY = {"hand_written"}  # has normal noise besides, which is no dropout
SCRIPTED = {"scripted"}


class Keys(TorchFunctionMode):
    """Notes the keys that calls of dropkit's functions have, seen from outside of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is drawn:
            self.found.append(args[3])
        call = find_call(func, args, kwargs or {}) if func in FUNCTIONS else None
        given = {**(call.arguments if call is not None else {}), **(kwargs or {})}
        name = "dropout_key" if "dropout_key" in given else "key"
        is_ours = (
            func is not drawn
            and str(getattr(func, "__module__", "")).startswith("dropkit")
            and not isinstance(given.get(name), Tensor | None)
        )
        if is_ours and (call is None or call.is_active):
            self.found.append(given[name])
        return func(*args, **(kwargs or {}))


class Sites(nn.Module):
    """Sites of several kinds whose masks can be read off their output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.maps, self.alpha = nn.Dropout(0.3), nn.Dropout2d(0.4), nn.AlphaDropout(0.2)
        self.path, self.ours = dropkit.nn.DropPath(0.5), dropkit.nn.Dropout(0.6)
        self.child = nn.ModuleDict({"été": nn.Dropout(0.5)})

    def forward(self, x: Tensor, q: Tensor) -> dict[str, Tensor]:
        eye = torch.eye(q.size(-2)).expand(*q.shape[:-2], -1, -1)
        return {
            "first": self.first(x),
            "#0": F.dropout(x, 0.1, self.training),
            "maps": self.maps(x),
            "#1": F.scaled_dot_product_attention(q, q, eye, dropout_p=0.25),
            "alpha": self.alpha(x),
            "path": self.path(x),
            "ours": self.ours(x),
            "child.été": self.child["été"](x),
            "#2": torch.dropout(x, 0.7, True),
            "#3": dropkit.functional.dropout(x, 0.35, self.training, broadcast_dims=1),
        }


RATES = {"first": 0.3, "#0": 0.1, "maps": 0.4, "#1": 0.25, "alpha": 0.2, "path": 0.5, "ours": 0.6, "child.été": 0.5} | {
    "#2": 0.7,
    "#3": 0.35,
}
SHARED = {"maps": (2, 3), "path": (1, 2, 3), "#3": (1,)}


def kept(name: str, output: Tensor) -> np.ndarray:
    """Read a mask off an output: what is neither 0 nor, of alpha dropout, its least value."""
    found = output > output.min() + 1e-4 if name == "alpha" else output != 0
    return found.numpy()


def test_masks_are_those_of_the_definition() -> None:
    model, x, q = Sites(), torch.ones(6, 4, 3, 5), torch.randn(2, 3, 7, 8)
    handle = address(model, SEED)
    for step in range(2):
        for call in range(3):
            torch.manual_seed(call)
            for name, output in model(x, q).items():
                key = call_key(SEED, name, step, call)
                wanted = keep_mask(key, output.shape, RATES[name], broadcast_dims=SHARED.get(name, ()))
                assert (kept(name, output) == wanted).all(), (name, step, call)
        handle.step()


def test_the_number_of_a_site_is_that_of_its_name() -> None:
    """The definition of a site, written out once more."""
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.5))
    address(model, 3)
    number = int.from_bytes(hashlib.sha256(b"1").digest()[:4], "little")
    key = dropkit.random.fold(dropkit.random.fold(3, number, 0), 0, 0)
    assert ((model(torch.ones(50)) != 0).numpy() == keep_mask(key, (50,), 0.5)).all()


@pytest.mark.parametrize("packed", [True, False])
def test_networks_between_layers(packed: bool) -> None:
    """Layer 0's output is dropped by field 0 and layer 1's by field 1; the lengths of a batch do not matter."""
    lengths = [3, 5, 2]
    x = [torch.randn(length, 4) for length in lengths]
    model = nn.ModuleDict({"rnn": nn.LSTM(4, 6, num_layers=3, dropout=0.4, batch_first=True)})
    address(model, SEED)
    given = pack_sequence(x, enforce_sorted=False) if packed else nn.utils.rnn.pad_sequence(x, batch_first=True)
    found, _ = model["rnn"](given)
    rnn, key = model["rnn"], call_key(SEED, "rnn#0", 0)
    for example, sequence in enumerate(x):
        output = sequence if packed else given[example]
        for layer in range(3):
            single = nn.LSTM(output.size(-1), 6, batch_first=True)
            single.load_state_dict(
                {name: getattr(rnn, name.replace("l0", f"l{layer}")) for name in single.state_dict()}
            )
            output, _ = single(output)
            if layer < 2:
                place = {"offset": (example, 0, 0), "full_shape": (3, 2**32, 6)}
                mask = keep_mask(field(key, layer), (1, len(output), 6), 0.4, **place)[0]
                output = output * torch.from_numpy(mask) / 0.6
        own = nn.utils.rnn.unpack_sequence(found)[example] if packed else found[example]
        torch.testing.assert_close(own, output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", CASES)
def test_keys_of_all_models(model: Model) -> None:
    """Every call of dropout of every model has the key of its site, step and call, and no generator moves."""
    network, inputs = model.build(), model.inputs()
    if model.name in SCRIPTED:
        with pytest.raises(UnsupportedError, match="`part` is a TorchScript module"):
            address(network, SEED)
        return
    handle = address(network, SEED)
    sites = [site for site in (*model.sites, *model.masks) if site.in_train]
    expected = {call_key(SEED, site.name, 0, call) for site in sites for call in range(site.calls)}
    if model.name == "our_encoder":  # a layer of dropkit's that draws one key for all its parts, and hands it on
        expected = {field(call_key(SEED, f"layers.{i}", 0), d) for i in range(2) for d in range(4)}
    before = torch.get_rng_state()
    with Keys() as keys:
        network(*inputs)
    if model.name.startswith(("our_", "compiled")) and model.name != "our_encoder":
        return  # its keys are seen below, by its masks; those of compiled code in test_address_compiled.py
    assert set(keys.found) == expected
    if model.name not in NOISY:
        assert torch.equal(torch.get_rng_state(), before)
    handle.close()
    assert all(not m._forward_pre_hooks for m in network.modules())


def outputs(model: Model, network: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors(network(*model.inputs()))]


@pytest.mark.parametrize("model", [case for case in CASES if case.values[0].name not in NOISY | SCRIPTED])
def test_all_models_are_reproducible(model: Model) -> None:
    """The second model has the outputs of the first, at every step and call, whatever generators do meanwhile."""
    first, second = model.build(), model.build()
    handles = [address(first, SEED), address(second, SEED)]
    found: list[list[Tensor]] = []
    for _ in range(2):
        for _ in range(2):
            found.append(outputs(model, first))
            torch.rand(3)
            for own, other in zip(outputs(model, second), found[-1], strict=True):
                assert torch.equal(own, other)
        for handle in handles:
            handle.step()
    assert all(not torch.equal(a[0], b[0]) for a, b in itertools.combinations(found, 2))


@pytest.mark.parametrize("name", ["our_lstm", "our_gru_packed"])
def test_our_networks_draw_under_the_key_of_their_site(name: str) -> None:
    model = MODELS[name]
    addressed, plain = model.build(), model.build()
    address(addressed, SEED)
    wanted = plain.network(*model.inputs(), key=call_key(SEED, "network", 0))
    found = addressed.network(*model.inputs())
    assert all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(wanted), strict=True))


@pytest.mark.parametrize("model", [MODELS["checkpointed"], MODELS["checkpointed_reentrant"]])
def test_checkpoints(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradient(network: nn.Module) -> list[Tensor]:
        handle = address(network.double(), SEED)
        [x] = (tensor.double().requires_grad_() for tensor in model.inputs())
        loss = network(x).square().sum()
        handle.step()
        (loss + network(x).sum()).backward()
        return [x.grad, *(parameter.grad for parameter in network.parameters())]

    found = gradient(model.build())
    monkeypatch.setattr("tests.sites.networks.checkpoint", lambda function, *args, **_: function(*args))
    for own, wanted in zip(found, gradient(model.build()), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [("address", "switch"), ("switch", "address")])
def test_switched_models_draw_addressed_masks(order: tuple[str, str]) -> None:
    """Whichever comes first: what a switch turns on has the masks of its sites, and learning moves no count."""

    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)

    model, x = nn.Sequential(nn.Dropout(0.3), Part()).eval(), torch.ones(40, 6)
    for step in order:
        handle = address(model, 2) if step == "address" else dropkit.sites.switch(model, "on")
        kept = handle if step == "switch" else None
    for call in range(2):
        first = keep_mask(call_key(2, "0", 0, call), x.shape, 0.3)
        second = keep_mask(call_key(2, "1#0", 0, call), x.shape, 0.5)
        assert ((model(x) != 0).numpy() == (first & second)).all()
    del kept


def test_accelerated_models_draw_addressed_masks() -> None:
    model, x = nn.Sequential(nn.Dropout(0.3)), torch.ones(40, 6)
    with dropkit.sites.accelerate():
        address(model, 2)
        assert ((model(x) != 0).numpy() == keep_mask(call_key(2, "0", 0), x.shape, 0.3)).all()
    dropkit.sites.accelerate(model)
    assert ((model(x) != 0).numpy() == keep_mask(call_key(2, "0", 0, 1), x.shape, 0.3)).all()


@pytest.mark.parametrize("is_first", [True, False])
def test_checkpoints_of_a_model_with_every_handler(is_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched on in evaluation, accelerated and addressed: recomputations do what the forward did."""

    def gradient(name: str) -> Tensor:
        model = MODELS[name].build().double().eval()
        if is_first:
            address(model, SEED)
        switched, accelerated = dropkit.sites.switch(model, "on"), dropkit.sites.accelerate(model)
        if not is_first:
            address(model, SEED)
        [x] = (tensor.double().requires_grad_() for tensor in MODELS[name].inputs())
        model(x).square().sum().backward()
        switched.close()
        del accelerated
        return x.grad

    found = [gradient("checkpointed"), gradient("checkpointed_reentrant")]
    monkeypatch.setattr("tests.sites.networks.checkpoint", lambda function, *args, **_: function(*args))
    wanted = gradient("checkpointed")
    for own in found:
        torch.testing.assert_close(own, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupt_is_forgotten(again: bool) -> None:
    """PyTorch calls no hook where a forward is cut off by what is no Exception, as by a key in a notebook."""

    class Interrupted(nn.Module):
        cuts = False

        def forward(self, x: Tensor) -> Tensor:
            if self.cuts:
                raise KeyboardInterrupt
            return F.dropout(x, 0.5)

    model = nn.Sequential(nn.Dropout(0.5), Interrupted())
    handle = address(model, seed=3)
    x = torch.ones(4, 6)
    want = model(x)
    handle.step()
    model[1].cuts = True
    with pytest.raises(KeyboardInterrupt):
        model(x)
    model[1].cuts = False
    if again:
        with dropkit.sites.samples(range(4)):
            model(x)
    assert bool(torch.overrides._get_current_function_mode_stack()) is not again
    handle.load_state_dict({**handle.state_dict(), "last_step": 0, "runs": {}})
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch.equal(model(x), want)
    handle.close()


class Skipping(nn.Module):
    """A branch that a function runs on some examples alone."""

    def __init__(self) -> None:
        super().__init__()
        self.path, self.branch = dropkit.nn.DropPath(0.5), nn.Sequential(nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        skipped: Tensor = self.path.skip(self.branch, x)
        return skipped


def test_what_a_skipped_branch_does_is_seen() -> None:
    model, x = Skipping(), torch.ones(6, 50)
    assert [site.name for site in dropkit.sites.find(model, x)] == ["#0", "branch.0"]
    handle = address(model, seed=4)
    whole = keep_mask(call_key(4, "#0", 0), (6, 1), 0.5)
    inner = keep_mask(call_key(4, "branch.0", 0), (int(whole.sum()), 50), 0.5)
    kept = (model(x) != 0).numpy()
    assert (kept[whole[:, 0]] == inner).all()
    assert not kept[~whole[:, 0]].any()
    handle.close()
    with dropkit.sites.record(model) as masks:
        output = model(x)
    with dropkit.sites.inject(model, masks):
        assert torch.equal(model(x), output)
    with dropkit.sites.switch(model, "off"):
        assert torch.equal(model(x), x)
    assert not torch.overrides._get_current_function_mode_stack()


def test_what_modules_draw_that_are_added_later_is_their_parents() -> None:
    model, x = nn.Sequential(nn.Dropout(0.5), nn.Identity()), torch.ones(6, 50)
    handle = address(model, seed=4)
    model[1] = nn.Dropout(0.5)
    first, second = (keep_mask(call_key(4, name, 0), (6, 50), 0.5) for name in ("0", "#0"))
    assert ((model(x) != 0).numpy() == (first & second)).all()
    handle.close()


ATEN = torch.ops.aten
OPERATORS: dict[str, Any] = {
    "#0": [lambda x: ATEN.native_dropout(x, 0.5, True)[0], lambda x: ATEN.dropout.default(x, 0.5, True)],
    "~0": [
        lambda x: x * ATEN.bernoulli(torch.full_like(x, 0.5)),
        lambda x: x * (ATEN.rand_like(x) >= 0.5),
        lambda x: x * (ATEN.rand.default(list(x.shape)) >= 0.5),
    ],
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, i) for name, calls in OPERATORS.items() for i in range(len(calls))]
)
def test_operators_that_are_called_by_their_own_names(name: str, number: int) -> None:
    class Calling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return OPERATORS[name][number](x)

    model = Calling()
    address(model, SEED)
    kept = model(torch.ones(9, 6)) != 0
    assert (kept.numpy() == keep_mask(call_key(SEED, name, 0), (9, 6), 0.5)).all()
