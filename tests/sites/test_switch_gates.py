"""Modules that gate their own sites, and masks that are written by hand, switched."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkit.errors import UnsupportedError
from dropkit.sites import find, switch
from tests.sites.switched import Gate, X, is_on
from tests.sites.zoo import MODELS


def test_a_layer_that_is_called_in_training_alone() -> None:
    model = Gate(lambda self, x: self.parts[0](x) if self.training else x, nn.Dropout(0.5)).eval()
    with switch(model, "on"):
        assert is_on(model)
    assert not is_on(model)


def test_gates_within_gates() -> None:
    inner = Gate(lambda self, x: F.dropout(x, 0.5) if self.training else x)
    model = nn.Sequential(Gate(lambda self, x: self.parts[0](x) if self.training else x, inner)).eval()
    with switch(model, "on"):
        assert is_on(model)
    assert not any(module.training for module in model.modules())


def test_a_gate_that_would_move_a_buffer_raises() -> None:
    def forward(self: Gate, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.mean, self.variance, training=self.training)
        return F.dropout(x, 0.5) if self.training else x

    model = Gate(forward).eval()
    before = copy.deepcopy(model.state_dict())
    handle = switch(model, "on")
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="buffers change: mean, variance"):
            model(X)
    handle.close()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(X), F.batch_norm(X, model.mean, model.variance))


def test_a_gate_that_would_return_something_else_raises() -> None:
    model = Gate(lambda self, x: (F.dropout(x, 0.5), x) if self.training else x).eval()
    with switch(model, "on"), pytest.raises(UnsupportedError, match="another structure"):
        model(X)
    assert model(X) is X


def test_a_gate_that_draws_other_noise_is_reported() -> None:
    model = MODELS["hand_written"].build().eval()
    before = model(X)
    with switch(model, "on") as handle:
        with pytest.warns(UserWarning, match=r"cannot be switched 'on' and stay as they are: ~0 \(mask\), ~2 \(mask\)"):
            assert torch.equal(model(X), before)
        assert [site.name for site in handle.unswitched] == ["~0", "~2"]
        assert not handle.sites


def test_masks_are_left_out_and_other_noise_is_not() -> None:
    model = MODELS["hand_written"].build()
    plain = model.eval()(X)
    model.train()
    with switch(model, "off"), torch.no_grad():
        noise = (torch.stack([model(X) for _ in range(200)]) - plain) / 0.1
    # 9600 standard normals: mean and variance within 5 standard errors, 1e-6 false alarms.
    assert abs(float(noise.mean())) < 5 / 9600**0.5
    assert abs(float(noise.var()) - 1) < 5 * (2 / 9600) ** 0.5
    model.eval()
    assert torch.equal(model(X), plain)


def test_of_one_module_a_mask_is_left_out_and_attention_is_not() -> None:
    def forward(self: Gate, x: Tensor) -> tuple[Tensor, Tensor]:
        q, rate = x.view(1, 1, 6, 8), 0.5 if self.training else 0.0
        kept = torch.rand_like(x) > 0.5 if self.training else torch.ones_like(x)
        return F.scaled_dot_product_attention(q, q, q, dropout_p=rate), x * kept

    model = Gate(forward)
    with switch(model, "off", kind="mask") as handle:
        first, second = model(X), model(X)
    assert torch.equal(first[1], X)
    assert not torch.equal(first[0], second[0])
    assert not handle.unswitched
    model.eval()
    with (
        switch(model, "on", kind="scaled_dot_product_attention"),
        pytest.warns(UserWarning, match="cannot be switched"),
    ):
        assert torch.equal(model(X)[1], X)


def test_a_mask_is_gated_where_it_is_drawn() -> None:
    seen: list[bool] = []

    def child(self: Gate, x: Tensor) -> Tensor:
        seen.append(self.training)
        return x[0] * x[1]

    def forward(self: Gate, x: Tensor) -> Tensor:
        kept = (torch.rand_like(x) > 0.5) / 0.5 if self.training else torch.ones_like(x)
        return self.parts[0]((x, kept))

    model = Gate(forward, Gate(child)).eval()
    with switch(model, "on") as handle:
        handle.learn(X)
        seen.clear()
        assert is_on(model)
    assert seen == [False]


def test_a_mask_that_is_always_on_is_left_out() -> None:
    model = Gate(lambda self, x: x * (torch.rand_like(x) > 0.5) / 0.5).eval()
    assert is_on(model)
    generator = torch.get_rng_state()
    with switch(model, "off"):
        assert torch.equal(model(X), X)
    assert torch.equal(torch.get_rng_state(), generator)
    with switch(model, "on"):
        assert is_on(model)


def test_what_is_only_perhaps_dropout_is_left_alone() -> None:
    def forward(self: Gate, labels: Tensor) -> Tensor:
        """Drop whole examples, unscaled, as for classifier-free guidance."""
        kept = torch.rand(len(labels), 1) > 0.5
        return F.dropout(labels * kept, 0.3, self.training)

    model = Gate(forward).train()
    [perhaps] = [site for site in find(model, X) if not site.is_certain]
    assert perhaps.kind == "mask"
    with switch(model, "off"):
        output = torch.stack([model(torch.ones(50, 4)) for _ in range(5)])
    assert set(output.unique().tolist()) == {0.0, 1.0}
