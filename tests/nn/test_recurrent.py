"""LSTM and GRU: PyTorch's own without noise, the papers' formulas with it."""

import copy
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import dropkit
from dropkit import random
from dropkit.errors import ArgumentError
from tests.helpers.contract import all_masks, chances, realised, scale
from tests.helpers.recurrent import (
    BATCH,
    BOTH,
    FORMS,
    HIDDEN,
    KEY,
    LENGTHS,
    RATES_OF,
    SIZE,
    STEPS,
    assert_close,
    by_hand,
    flat,
    inputs,
    network,
    noisy,
    same,
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("how", ["padded", "unbatched", "packed", "packed in order", "states"])
def test_without_noise_it_is_pytorchs(kind: str, form: str, how: str) -> None:
    options = FORMS[form] | {"dropout": 0.0}
    ours = network(kind, SIZE, HIDDEN, **options)
    theirs = getattr(torch.nn, kind)(SIZE, HIDDEN, **{n: v for n, v in options.items() if n[:2] not in {"ti", "up"}})
    theirs.double().load_state_dict(ours.state_dict(), strict=True)
    assert isinstance(ours, getattr(torch.nn, kind))
    first = options.get("batch_first", False)
    x = inputs(first)
    given: list[Any] = [x]
    if how == "unbatched":
        given = [x[0] if first else x[:, 0]]
    elif how.startswith("packed"):
        lengths = sorted(LENGTHS, reverse=True) if how == "packed in order" else LENGTHS
        given = [pack_padded_sequence(x, lengths, first, enforce_sorted=how == "packed in order")]
    elif how == "states":
        state = torch.randn(len(flat(theirs(x))[1]), BATCH, HIDDEN).double()
        given.append((state, -state) if kind == "LSTM" else state)
    want = theirs(*given)
    assert same(ours(*given), want)
    assert same(noisy_twin(ours, zoneouts=0.0).eval()(*given), want)
    twin = noisy_twin(ours)
    keep_all = {site.name: torch.ones(1, 1, site.shape[2], dtype=torch.bool) for site in twin._sites(1, 1)}
    for name in RATES_OF[kind] | {"dropout": 0}:
        setattr(twin, name, 0.0)
    assert_close(twin(*given, masks=keep_all), want)


def noisy_twin(layer: Any, **changes: Any) -> Any:
    twin = copy.deepcopy(layer)
    for name, p in RATES_OF[layer.mode].items():
        setattr(twin, name, changes.get("zoneouts", p) if "zoneout" in name else p)
    return twin


def test_projections() -> None:
    options = {"proj_size": 2, "num_layers": 2, "bidirectional": True}
    ours, theirs = network("LSTM", SIZE, HIDDEN, **options), torch.nn.LSTM(SIZE, HIDDEN, **options).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = inputs()
    assert same(ours(x), theirs(x))
    keep_all = {site.name: torch.ones(1, 1, site.shape[2], dtype=torch.bool) for site in ours._sites(1, 1)}
    assert_close(ours(x, masks=keep_all), theirs(x))
    *_, masks = noisy("LSTM", proj_size=2)(x, key=KEY, return_masks=True)
    assert masks["recurrent_l0"].shape == (BATCH, 1, 2)
    assert masks["zoneout_h_l0"].shape == (BATCH, STEPS, 2)
    assert masks["update_l0"].shape == masks["zoneout_c_l0"].shape == (BATCH, STEPS, HIDDEN)


@pytest.mark.parametrize("form", ["plain", "no bias", "untied", "one update mask"])
@pytest.mark.parametrize("kind", BOTH)
def test_it_is_the_papers_formulas(kind: str, form: str) -> None:
    layer, x = noisy(kind, form), inputs()
    state = torch.randn(BATCH, HIDDEN).double()
    states = (state, -state) if kind == "LSTM" else (state,)
    given = tuple(s.unsqueeze(0) for s in states)
    *result, masks = layer(x, given if kind == "LSTM" else given[0], key=KEY, return_masks=True)
    output, last = by_hand(layer, x, states, masks)
    assert_close(result, (output, tuple(s.unsqueeze(0) for s in last)))
    gradients = [torch.autograd.grad(out.sin().sum(), [*layer.parameters()]) for out in (result[0], output)]
    for found, want in zip(*gradients, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", BOTH)
def test_backward_layers_and_layers_on_layers(kind: str, tied: bool) -> None:
    layer, x = noisy(kind, "both ways", tied=tied), inputs()
    output, _, masks = layer(x, key=KEY, return_masks=True)
    zeros = (torch.zeros(BATCH, HIDDEN).double(),) * (2 if kind == "LSTM" else 1)
    for number in range(2):
        ways = []
        for suffix in (f"_l{number}", f"_l{number}_reverse"):
            own = {n: m for n, m in masks.items() if n.endswith(suffix)}
            own[f"input{suffix}"] = masks[f"input_l{number}"]  # which both directions share
            back = "reverse" in suffix
            own = {n: m.flip(1) if back and m.shape[1] == STEPS else m for n, m in own.items()}
            way, _ = by_hand(layer, x.flip(0) if back else x, zeros, own, suffix)
            ways.append(way.flip(0) if back else way)
        x = torch.cat(ways, -1)
        if number == 0:
            x = torch.where(masks["dropout_l0"].transpose(0, 1), x * scale(layer.dropout), 0.0)
    x = torch.where(masks["output"].transpose(0, 1), x * scale(layer.output_p), 0.0)
    torch.testing.assert_close(output, x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("form", ["plain", "both ways", "untied"])
def test_the_masks_are_fields_of_one_key(kind: str, form: str) -> None:
    layer = noisy(kind, form)
    *_, masks = layer(inputs(), key=KEY, return_masks=True)
    kinds = ["input", "recurrent", "update", "zoneout_c", "zoneout_h", "dropout", "output"]
    for name, mask in masks.items():
        what, _, place = name.partition("_l")
        number = 0 if what == "output" else int(place[0])
        rate = getattr(layer, what if what in layer.RATES else f"{what}_p")
        field = 1 + kinds.index("zoneout_h" if what == "zoneout" else what)
        field += 8 * (2 * number + ("reverse" in place))
        ragged = what in {"update", "dropout"} or "zoneout" in what
        whole = {"full_shape": (BATCH, 2**32, mask.shape[2])} if ragged else {}
        want = random.keep_mask(random.field(KEY, field), mask.shape, rate, **whole)
        assert torch.equal(mask, torch.from_numpy(want)), name
    one, two = (6, 20) if kind == "LSTM" else (5, 16)
    assert len(masks) == (two if form == "both ways" else one)


@pytest.mark.parametrize("kind", BOTH)
def test_one_mask_for_all_steps_and_another_for_each_example(kind: str) -> None:
    layer = network(kind, 50, 60, **RATES_OF[kind], tied=False, update_mask="sequence")
    *_, masks = layer(torch.randn(4, 2, 50).double(), key=KEY, return_masks=True)
    gates = 4 if kind == "LSTM" else 3
    for name in ("input_l0", "recurrent_l0", "update_l0", "output"):
        mask = masks[name]
        assert mask.shape[1] == (gates if name in {"input_l0", "recurrent_l0"} else 1), name
        assert not torch.equal(mask[0], mask[1]), name
        assert mask.shape[1] == 1 or not torch.equal(mask[:, 0], mask[:, 1])
    layer.update_mask = "step"
    *_, masks = layer(torch.randn(4, 2, 50).double(), key=KEY, return_masks=True)
    for name in ("update_l0", "zoneout_c_l0" if kind == "LSTM" else "zoneout_l0"):
        assert masks[name].shape == (2, 4, 60)
        assert not torch.equal(masks[name][:, 0], masks[name][:, 1])


@pytest.mark.parametrize("form", ["plain", "both ways", "batch first", "untied"])
@pytest.mark.parametrize("kind", BOTH)
def test_packed_sequences_are_padded_ones_example_by_example(kind: str, form: str) -> None:
    layer = noisy(kind, form)
    first = layer.batch_first
    x = inputs(first)
    packed, states = layer(pack_padded_sequence(x, LENGTHS, first, enforce_sorted=False), key=KEY)
    padded, lengths = pad_packed_sequence(packed, first)
    assert lengths.tolist() == LENGTHS
    *_, masks = layer(x, key=KEY, return_masks=True)
    for i, length in enumerate(LENGTHS):
        alone = x[i : i + 1, :length] if first else x[:length, i : i + 1]
        own = {n: m[i : i + 1, :length] if m.shape[1] == STEPS else m[i : i + 1] for n, m in masks.items()}
        want = layer(alone, masks=own)
        found = padded[i : i + 1, :length] if first else padded[:length, i : i + 1]
        own_states = tuple(s[:, i : i + 1] for s in (states if kind == "LSTM" else (states,)))
        assert_close((found, own_states), want)
        assert (padded[i, length:] if first else padded[length:, i]).eq(0).all()


@pytest.mark.parametrize("kind", BOTH)
def test_packed_gradients_are_padded_ones(kind: str) -> None:
    layer, x = noisy(kind, "both ways"), inputs().requires_grad_()
    packed, _ = layer(pack_padded_sequence(x, LENGTHS, enforce_sorted=False), key=KEY)
    (gradient,) = torch.autograd.grad(packed.data.square().sum(), x)
    for i, length in enumerate(LENGTHS):
        assert (gradient[length:, i] == 0).all()
        assert (gradient[:length, i] != 0).any()
    sequences = [inputs()[:n, i].requires_grad_() for i, n in enumerate(LENGTHS)]
    again, _ = layer(pack_sequence(sequences, enforce_sorted=False), key=KEY)
    parts = torch.autograd.grad(again.data.square().sum(), sequences)
    for i, part in enumerate(parts):
        torch.testing.assert_close(part, gradient[: LENGTHS[i], i], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", BOTH)
def test_a_batch_and_its_parts_and_its_beginning_have_the_same_masks(kind: str) -> None:
    layer, x = noisy(kind, "both ways"), inputs()
    *_, masks = layer(x, key=KEY, return_masks=True)
    *_, fewer = layer(x[:2, :2], key=KEY, return_masks=True)
    for name, mask in fewer.items():
        assert torch.equal(mask, masks[name][:2, : mask.shape[1]])
    one = noisy(kind)
    output, _ = one(x, key=KEY)
    torch.testing.assert_close(one(x[:2, :2], key=KEY)[0], output[:2, :2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", BOTH)
def test_keys_of_examples(kind: str) -> None:
    layer, x = noisy(kind, "layers"), inputs()
    keys = torch.tensor([5, KEY, 7])
    output, _ = layer(x, key=keys)
    single, _ = layer(x[:, 1:2], key=torch.tensor([KEY]))
    torch.testing.assert_close(output[:, 1:2], single, rtol=1e-12, atol=1e-14)
    assert not torch.equal(layer(x, key=KEY)[0], layer(x, key=KEY, stream=1)[0])


@pytest.mark.parametrize("kind", BOTH)
def test_all_updates_dropped_leave_the_memory_times_its_gates(kind: str) -> None:
    layer, x = network(kind, SIZE, HIDDEN, update_p=0.5), inputs()
    none = {"update_l0": torch.zeros(1, 1, HIDDEN, dtype=torch.bool)}
    h = torch.randn(1, BATCH, HIDDEN).double()
    if kind == "LSTM":
        c0 = torch.randn(1, BATCH, HIDDEN).double()
        product, state = torch.ones_like(c0[0]), (h, c0)
        for step in x:
            gates = torch.nn.functional.linear(step, layer.weight_ih_l0, layer.bias_ih_l0 + layer.bias_hh_l0)
            gates = gates + state[0][0] @ layer.weight_hh_l0.T
            product = product * gates[:, HIDDEN : 2 * HIDDEN].sigmoid()
            _, state = layer(step.unsqueeze(0), state, masks=none)
        _, (_, c) = layer(x, (h, c0), masks=none)
        torch.testing.assert_close(c[0], product * c0[0], rtol=1e-12, atol=0)
    else:
        output, last = layer(x, h, masks=none)
        ratio = torch.cat([h, output[:-1]])
        assert ((output / ratio > 0) & (output / ratio < 1)).all()
        assert torch.equal(last[0], output[-1])


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("training", [True, False])
def test_zoneout_of_everything_is_a_constant_state(kind: str, training: bool) -> None:
    names = [name for name in RATES_OF[kind] if "zoneout" in name]
    layer = network(kind, SIZE, HIDDEN, **dict.fromkeys(names, 1.0)).train(training)
    state = torch.randn(1, BATCH, HIDDEN).double()
    output, last = layer(inputs(), (state, -state) if kind == "LSTM" else state, key=KEY)
    assert torch.equal(output, state.expand(STEPS, -1, -1))
    assert same((output, last), (output, (state, -state) if kind == "LSTM" else state))


@pytest.mark.parametrize("kind", BOTH)
def test_a_zoned_unit_is_the_old_or_the_new_one(kind: str) -> None:
    name = "zoneout_h" if kind == "LSTM" else "zoneout"
    layer, x = network(kind, SIZE, HIDDEN, **{name: 0.5}), inputs()
    output, _, masks = layer(x, key=KEY, return_masks=True)
    before = torch.cat([torch.zeros_like(output[:1]), output[:-1]])
    mask = masks[f"{name}_l0"].transpose(0, 1)
    assert torch.equal(output[~mask], before[~mask])
    assert (output[mask] != before[mask]).all()


@pytest.mark.parametrize("kind", BOTH)
def test_evaluation_takes_the_expectation_of_each_step(kind: str) -> None:
    layer, x = noisy(kind).eval(), inputs()
    states = tuple(torch.zeros(BATCH, HIDDEN).double() for _ in range(2 if kind == "LSTM" else 1))
    plain = getattr(torch.nn, kind)(SIZE, HIDDEN).double()
    plain.load_state_dict(layer.state_dict())
    rates = [layer.zoneout_h, layer.zoneout_c] if kind == "LSTM" else [layer.zoneout]
    for step, found in zip(x, layer(x)[0], strict=True):
        given = tuple(s.unsqueeze(0) for s in states)
        _, new = plain(step.unsqueeze(0), given if kind == "LSTM" else given[0])
        pairs = zip(rates, states, new if kind == "LSTM" else (new,), strict=True)
        states = tuple(realised(p) * s + (1 - realised(p)) * n[0] for p, s, n in pairs)
        torch.testing.assert_close(found, states[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", BOTH)
def test_moments_over_all_masks_of_one_step(kind: str) -> None:
    p, size = 0.3, 4
    masks, x = all_masks(size), torch.randn(1, 1, 3).double()
    plain = network(kind, 3, size)
    weights, count = chances(masks, p), len(masks)
    h = torch.randn(1, 1, size).double()
    given = (h, 2 * h) if kind == "LSTM" else h
    many = tuple(s.expand(-1, count, -1) for s in given) if kind == "LSTM" else h.expand(-1, count, -1)
    want = plain(x, given)
    for name in [n for n in RATES_OF[kind] if n in {"update_p", "output_p"} or "zoneout" in n]:
        layer = network(kind, 3, size, **{name: p})
        site = "output" if name == "output_p" else name.removesuffix("_p") + "_l0"
        output, states = layer(x.expand(-1, count, -1), many, masks={site: masks.unsqueeze(1)})
        expected, new = want
        if name == "output_p":
            found, mean, spread = output[0], expected[0, 0], expected[0, 0].square() * realised(p) / (1 - realised(p))
        elif name == "update_p" and kind == "LSTM":
            found, mean = states[1][0], new[1][0, 0]
            kept = layer(x, given, masks={site: torch.zeros(1, 1, size, dtype=torch.bool)})[1][1][0, 0]
            spread = (mean - kept).square() * realised(p) / (1 - realised(p))
        elif name == "update_p":
            found, mean = output[0], expected[0, 0]
            kept = layer(x, given, masks={site: torch.zeros(1, 1, size, dtype=torch.bool)})[0][0, 0]
            spread = (mean - kept).square() * realised(p) / (1 - realised(p))
        else:
            cell = name == "zoneout_c"
            old, fresh = (2 * h[0, 0], new[1][0, 0]) if cell else (h[0, 0], expected[0, 0])
            found = states[1][0] if cell else output[0]
            mean = realised(p) * old + (1 - realised(p)) * fresh
            spread = realised(p) * (1 - realised(p)) * (fresh - old).square()
        torch.testing.assert_close(weights @ found, mean, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(weights @ (found - mean).square(), spread, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("form", ["plain", "untied"])
@pytest.mark.parametrize("kind", BOTH)
def test_all_hidden_units_dropped_forget_only_at_the_gates(kind: str, form: str) -> None:
    layer, x = noisy(kind, form), inputs()
    layer.recurrent_p = 1.0
    masks = {s.name: torch.ones(1, 1, s.shape[2], dtype=torch.bool) for s in layer._sites(1, 1)}
    without = copy.deepcopy(layer)
    without.weight_hh_l0.data.zero_()
    h = torch.randn(1, BATCH, HIDDEN).double()
    state = (h, h.cos()) if kind == "LSTM" else h
    want = without(x, state, masks=masks)
    assert_close(layer(x, state, masks=masks), want)
    if kind == "LSTM":  # a state of a GRU is its memory too
        assert_close(layer(x, (torch.full_like(h, torch.nan), h.cos()), masks=masks), want)


@pytest.mark.parametrize("kind", BOTH)
def test_at_one_inputs_and_outputs_are_zeros(kind: str) -> None:
    x = torch.full_like(inputs(), torch.nan)
    layer = network(kind, SIZE, HIDDEN, input_p=1.0)
    assert_close(layer(x), layer.eval()(torch.zeros_like(x)))
    output, last = network(kind, SIZE, HIDDEN, output_p=1.0)(inputs())
    assert (output == 0).all()
    assert all((s != 0).all() for s in (last if kind == "LSTM" else (last,)))


def test_input_on_another_device_than_the_weights() -> None:
    for x in (torch.zeros(3, 2, 4, device="meta"), torch.zeros(2, 4, device="meta")):
        with pytest.raises(ArgumentError, match="LSTM: `input` must be on the weights' device cpu, got device"):
            dropkit.nn.LSTM(4, 5, input_p=0.1)(x)
