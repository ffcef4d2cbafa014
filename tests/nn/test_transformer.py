"""The encoder layer: PyTorch's own without dropout, the formula with it, and at home in PyTorch's encoder."""

import copy
import inspect
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dropkit import random
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.nn import Dropout, MultiheadAttention, TransformerEncoderLayer
from dropkit.schedules import Linear, RateScheduler
from tests.helpers.contract import scale
from tests.helpers.copies import pickled, saved
from tests.helpers.ids import by_name

KEY = 0x720F_0000_1234_5678
BATCH, LENGTH, WIDTH, HEADS, HIDDEN = 3, 5, 8, 2, 16
RATES = {"attention_p": 0.4, "sublayer_p": 0.3, "feedforward_p": 0.2}
PADDING = torch.arange(LENGTH) >= torch.tensor([5, 3, 1])[:, None]
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)


def layer_of(kind: type[torch.nn.Module] = TransformerEncoderLayer, **options: Any) -> Any:
    """A layer made from the one seed, with parameters of which none is 0 or 1."""
    torch.manual_seed(0)
    layer = kind(WIDTH, HEADS, HIDDEN, **{"batch_first": True} | options)
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, dtype=parameter.dtype)
    return layer


def data(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(BATCH, LENGTH, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(1))


def dropped(x: Tensor, p: float, field: int) -> Tensor:
    keep = torch.from_numpy(random.keep_mask(random.field(KEY, field), x.shape, p))
    return torch.where(keep, x * scale(p), 0)


def attended(attention: torch.nn.MultiheadAttention, x: Tensor, p: float) -> Tensor:
    q, k, v = (
        part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for part in functional.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    )
    weights = dropped(torch.softmax(q @ k.mT / math.sqrt(q.size(-1)), -1), p, 0)
    return attention.out_proj((weights @ v).transpose(1, 2).flatten(-2))


def formula(layer: TransformerEncoderLayer, x: Tensor) -> Tensor:
    """What a layer computes with the rates of RATES, by hand."""
    of_weights, of_sublayers, of_hidden = RATES.values()

    def attention(x: Tensor) -> Tensor:
        return dropped(attended(layer.self_attn, x, of_weights), of_sublayers, 1)

    def network(x: Tensor) -> Tensor:
        return dropped(layer.linear2(dropped(layer.activation(layer.linear1(x)), of_hidden, 2)), of_sublayers, 3)

    if layer.norm_first:
        x = x + attention(layer.norm1(x))
        return x + network(layer.norm2(x))
    x = layer.norm1(x + attention(x))
    return layer.norm2(x + network(x))


def test_it_is_pytorchs() -> None:
    for ours, theirs in (
        (TransformerEncoderLayer, torch.nn.TransformerEncoderLayer),
        (TransformerEncoderLayer.forward, torch.nn.TransformerEncoderLayer.forward),
    ):
        positional = [p for p in inspect.signature(ours).parameters.values() if p.kind is not p.KEYWORD_ONLY]
        found = [(p.name, p.default) for p in positional]
        assert found == [(p.name, p.default) for p in inspect.signature(theirs).parameters.values()]
    layer = TransformerEncoderLayer(8, 2)
    assert isinstance(layer, torch.nn.TransformerEncoderLayer)
    assert isinstance(layer.self_attn, MultiheadAttention)
    assert all(isinstance(module, Dropout) for module in (layer.dropout, layer.dropout1, layer.dropout2))


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"dtype": torch.float64}, {"activation": torch.nn.GELU()}], ids=str
)
def test_it_has_pytorchs_parameters_and_state(options: dict[str, Any]) -> None:
    layers, states = [], []
    for kind in (TransformerEncoderLayer, torch.nn.TransformerEncoderLayer):
        torch.manual_seed(0)
        layers.append(kind(8, 2, 16, **options))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    ours, theirs = (layer.state_dict() for layer in layers)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [name for name, _ in layers[0].named_modules()] == [name for name, _ in layers[1].named_modules()]
    assert all(parameter.requires_grad for parameter in layers[0].parameters())
    layers[0].load_state_dict(theirs, strict=True)
    layers[1].load_state_dict(ours, strict=True)


@pytest.mark.parametrize("activation", ["relu", "gelu", torch.tanh, torch.nn.SiLU()], ids=by_name)
@pytest.mark.parametrize("norm_first", [True, False])
def test_without_dropout_it_is_pytorchs(activation: Any, norm_first: bool) -> None:
    for batch_first, bias, is_batched in itertools.product((True, False), repeat=3):
        padded, causal = batch_first != bias, batch_first != is_batched  # every two options in all their combinations
        built = {"activation": activation, "norm_first": norm_first, "batch_first": batch_first, "bias": bias}
        ours, theirs = layer_of(dropout=0.4, **built), layer_of(torch.nn.TransformerEncoderLayer, **built)
        x = data() if batch_first else data().transpose(0, 1)
        x = x if is_batched else data()[1]
        padding = None if not padded else PADDING if is_batched else PADDING[1]
        called = {"src_mask": CAUSAL if causal else None, "src_key_padding_mask": padding}
        for records_gradients in (True, False):
            with torch.set_grad_enabled(records_gradients):
                want = theirs.eval()(x, **called)
                torch.testing.assert_close(ours.eval()(x, **called), want)
                torch.testing.assert_close(layer_of(dropout=0.0, **built)(x, **called), want)
                if causal:
                    hinted = layer_of(dropout=0.0, **built)(x, **called, is_causal=True)
                    torch.testing.assert_close(hinted, want)


@pytest.mark.parametrize(
    "activation",
    ["relu", "gelu", torch.tanh, torch.nn.GELU("tanh"), torch.nn.ReLU()],
    ids=by_name,
)
@pytest.mark.parametrize("norm_first", [True, False])
def test_output_and_gradients_are_the_formula(activation: Any, norm_first: bool) -> None:
    built = {"activation": activation, "norm_first": norm_first, "dtype": torch.float64} | RATES
    layer, x = layer_of(**built), data(torch.float64).requires_grad_()
    found, want = layer(x, key=KEY), formula(layer, x)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-13)
    upstream = torch.linspace(-1, 1, want.numel(), dtype=torch.float64).view(want.shape)
    wrt = (x, *layer.parameters())
    gradients = (torch.autograd.grad(each, wrt, upstream) for each in (found, want))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)
    turned = layer_of(**built, batch_first=False)
    torch.testing.assert_close(turned(x.transpose(0, 1), key=KEY), want.transpose(0, 1), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(layer(x[0], key=KEY), want[0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(layer(x[:2], key=KEY), want[:2], rtol=1e-12, atol=1e-13)
    keys = torch.tensor([KEY, KEY + 1, KEY])
    torch.testing.assert_close(layer(x[[0, 1, 0]], key=keys)[2], want[0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(layer(x[0], key=keys[:1]), want[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("which", [*RATES])
def test_each_rate_is_where_its_name_says(which: str) -> None:
    layer, x = layer_of(dropout=0.0, dtype=torch.float64), data(torch.float64)
    want = layer(x)
    setattr(layer, which, 0.5)
    assert {name: getattr(layer, name) for name in RATES} == dict.fromkeys(RATES, 0.0) | {which: 0.5}
    assert not torch.equal(layer(x, key=KEY), want)
    other = layer_of(dropout=0.0, **{which: 0.5}, dtype=torch.float64)
    assert torch.equal(layer(x, key=KEY), other(x, key=KEY))
    with pytest.raises(
        ArgumentError, match=rf"^TransformerEncoderLayer: `{which}` must be a number in \[0, 1\], got nan"
    ):
        setattr(layer, which, math.nan)
    assert getattr(layer, which) == 0.5
    places = {
        "attention_p": [layer.self_attn],
        "sublayer_p": [layer.dropout1, layer.dropout2],
        "feedforward_p": [layer.dropout],
    }
    assert all(module.p == 0.5 for module in places[which])


def test_rates_default_to_dropout() -> None:
    assert [getattr(TransformerEncoderLayer(8, 2), name) for name in RATES] == [0.1] * 3
    layer = TransformerEncoderLayer(8, 2, dropout=0.3, sublayer_p=0.0)
    assert [getattr(layer, name) for name in RATES] == [0.3, 0.0, 0.3]


def test_at_one_only_the_residuals_are_left() -> None:
    layer, x = layer_of(dropout=1.0, norm_first=True), data()
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("norm_first", [True, False])
def test_in_an_encoder_every_layer_draws_other_masks(norm_first: bool) -> None:
    x = data()
    for generator in (None, torch.Generator().manual_seed(3)):
        layer = layer_of(norm_first=norm_first, generator=generator, **RATES)
        encoder = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        outputs = [each(x) for each in encoder.layers]
        assert not any(torch.equal(one, other) for one, other in itertools.combinations(outputs, 2))
        assert not torch.equal(encoder(x), encoder(x))
        assert all(each.generator is generator for each in encoder.layers)
    torch.manual_seed(3)
    encoder = torch.nn.TransformerEncoder(layer_of(norm_first=norm_first, **RATES), 3, enable_nested_tensor=False)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(
            encoder(x, mask=CAUSAL.float().masked_fill(CAUSAL, -math.inf), src_key_padding_mask=PADDING.float())
        )
    assert torch.equal(*runs)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("records_gradients", [True, False])
def test_an_encoder_evaluates_as_pytorchs(records_gradients: bool) -> None:
    x, kinds = data(), (TransformerEncoderLayer, torch.nn.TransformerEncoderLayer)
    encoders = [torch.nn.TransformerEncoder(layer_of(kind, dropout=0.4), 2).eval() for kind in kinds]
    for called in ({}, {"mask": CAUSAL}, {"src_key_padding_mask": PADDING}):
        with torch.set_grad_enabled(records_gradients):
            ours, theirs = (encoder(x, **called) for encoder in encoders)
        kept = ~PADDING if "src_key_padding_mask" in called else slice(None)
        torch.testing.assert_close(ours[kept], theirs[kept])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("way", ["switch", "train"])
def test_dropout_switched_on_in_evaluation_is_active_though_pytorch_would_take_its_fused_kernel(way: str) -> None:
    encoder, x = torch.nn.TransformerEncoder(layer_of(**RATES), 2).eval(), data()
    for module in encoder.modules():
        if isinstance(module, Dropout | MultiheadAttention):
            if way == "switch":
                module.switch = "on"
            else:
                module.train()
    with torch.no_grad():
        assert not torch.equal(encoder(x), encoder(x))
        one, other = (encoder(x, src_key_padding_mask=PADDING) for _ in range(2))  # nested on the way
        assert one.shape == x.shape
        assert (one != other)[~PADDING].any(-1).all()
        layer, lengths = encoder.layers[0], (~PADDING).sum(1).tolist()
        nested = torch.nested.nested_tensor([row[:n] for row, n in zip(x, lengths, strict=True)])
        found, want = layer(nested, key=KEY), layer(x, src_key_padding_mask=PADDING, key=KEY)
        for i, (row, length) in enumerate(zip(found.unbind(), lengths, strict=True)):
            torch.testing.assert_close(row, want[i, :length])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_that_cannot_be_padded_are_refused() -> None:
    parts = [torch.randn(n, WIDTH) for n in (2, 4)]
    nested, jagged = torch.nested.nested_tensor(parts), torch.nested.nested_tensor(parts, layout=torch.jagged)
    with pytest.raises(ArgumentTypeError, match="`src` must be dense, or nested of the strided layout and batch first"):
        layer_of()(jagged)
    with pytest.raises(ArgumentTypeError, match="`src` must be dense, or nested of the strided layout and batch first"):
        layer_of(batch_first=False)(nested)
    with pytest.raises(ArgumentError, match="`src_mask` must be None where src is nested"):
        layer_of()(nested, CAUSAL)
    for layer in (layer_of(), layer_of().eval()):
        with pytest.raises(ArgumentError, match="`is_causal` must be False where src is nested, got True"):
            layer(nested, is_causal=True)


def test_evaluation_draws_nothing() -> None:
    x, state = data(), None
    for layer in (layer_of(dropout=0.4).eval(), layer_of(dropout=0.0)):
        state = torch.get_rng_state()
        assert torch.equal(layer(x), layer(x))
        assert torch.equal(torch.get_rng_state(), state)
    switched = layer_of(dropout=0.4)
    for module in switched.modules():
        if isinstance(module, Dropout | MultiheadAttention):
            module.switch = "off"
    torch.testing.assert_close(switched(x), layer_of().eval()(x))


def test_padding_of_a_whole_sequence_gives_no_nan_in_training() -> None:
    layer, x = layer_of(**RATES), data().requires_grad_()
    output = layer(x, src_key_padding_mask=torch.ones(BATCH, LENGTH, dtype=torch.bool))
    assert output.isfinite().all()
    assert torch.autograd.grad(output.square().sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved])
def test_copies_are_equal_and_separate(duplicate: Any) -> None:
    layer, x = layer_of(**RATES), data()
    other = duplicate(layer)
    assert repr(other) == repr(layer)
    assert torch.equal(other(x, key=KEY), layer(x, key=KEY))
    other.sublayer_p = 0.9
    other.linear1.weight.data.zero_()
    assert layer.sublayer_p == 0.3
    assert layer.linear1.weight.any()
    assert not any(one is two for one, two in zip(layer.modules(), other.modules(), strict=True))


def test_an_encoder_with_scheduled_rates_compiles_once() -> None:
    encoder, x = torch.nn.TransformerEncoder(layer_of(dropout=0.0), 2, enable_nested_tensor=False), data()
    before = list(encoder.state_dict())
    scheduler = RateScheduler(encoder, Linear(0.0, 0.5, steps=3))
    graphs = CompileCounter()
    compiled = torch.compile(encoder, backend=graphs, fullgraph=True)
    outputs = []
    for _ in range(4):
        outputs.append(compiled(x, src_key_padding_mask=PADDING))
        scheduler.step()
    assert graphs.frame_count == 1
    assert len(scheduler.rates()) == 8
    assert list(encoder.state_dict()) == before
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(outputs, 2))


@pytest.mark.parametrize("norm_first", [pytest.param(True, marks=pytest.mark.slow), False])
def test_compiled_code_has_the_masks_of_a_key(norm_first: bool) -> None:
    layer, x = layer_of(norm_first=norm_first, **RATES), data()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for key in (torch.tensor(KEY), torch.tensor([KEY, 3, 4])):
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        found, want = compiled(one, CAUSAL, key=key), layer(other, CAUSAL, key=key)
        torch.testing.assert_close(found, want)
        found.square().sum().backward()
        want.square().sum().backward()
        torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(layer(x, key=KEY), layer(x, key=torch.tensor(KEY)))


def test_it_is_exported_in_evaluation() -> None:
    encoder, x = torch.nn.TransformerEncoder(layer_of(**RATES), 2, enable_nested_tensor=False).eval(), data()
    exported = torch.export.export(encoder, (x,)).module()
    torch.testing.assert_close(exported(x), encoder(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_torchscript_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"TorchScript cannot express addressed masks"):
        torch.jit.script(layer_of())


@pytest.mark.parametrize("norm_first", [True, False])
def test_derivatives_and_vmap(norm_first: bool) -> None:
    layer = layer_of(norm_first=norm_first, activation="gelu", dtype=torch.float64, **RATES)
    x = data(torch.float64)[:2].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, key=KEY), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x, key=KEY), x, fast_mode=True)
    several = torch.stack([x, 2 * x]).detach()
    found = torch.func.vmap(lambda x: layer(x, key=KEY))(several)
    for i in range(2):
        torch.testing.assert_close(found[i], layer(several[i], key=KEY))
    other = torch.func.vmap(layer, randomness="different")(several[[0, 0]])
    assert not torch.equal(other[0], other[1])


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_draws_the_same_masks(reentrant: bool) -> None:
    layer, gradients = layer_of(**RATES), []
    for checkpointed in (True, False):
        x = data().requires_grad_()
        torch.manual_seed(5)
        out = checkpoint(layer, x, use_reentrant=reentrant) if checkpointed else layer(x)
        torch.rand(3)
        out.square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    layer.generator = torch.Generator()
    with pytest.raises(
        UnsupportedError, match="cannot be used in a checkpointed forward, which cannot replay it: pass"
    ):
        checkpoint(layer, data().requires_grad_(), use_reentrant=reentrant).sum().backward()


@pytest.mark.parametrize("norm_first", [True, False])
def test_autocast(norm_first: bool) -> None:
    layer, x = layer_of(norm_first=norm_first, **RATES), data()
    want = layer(x, src_key_padding_mask=PADDING, key=KEY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x, src_key_padding_mask=PADDING, key=KEY)
    torch.testing.assert_close(found.float(), want, atol=0.06, rtol=0.06)
