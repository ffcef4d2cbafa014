"""Monte Carlo passes over the zoo: the values of single passes under the same masks, and models as they were."""

from typing import Any

import pytest
import torch
from torch import nn

from dropkit.errors import UnsupportedError
from dropkit.uncertainty import mc
from tests.sites.zoo import MODELS, Model, tensors

SLOW = {"bert", "gpt2", "vit", "convnext"}  # other libraries take seconds to load
# What the zoo's models have before their first site, or why passes run one after another.
ENGINES = {
    **dict.fromkeys(("shifted", "lstm", "gru", "our_encoder", "listed", "ours", "scripted"), "batched"),
    **dict.fromkeys(("lstm_packed", "gru_packed", "our_lstm_packed", "our_gru_packed"), "loop"),
}
CASES = [
    pytest.param(model, id=name, marks=[pytest.mark.slow] if name.split("_")[0] in SLOW else [])
    for name, model in MODELS.items()
    if name != "hand_written"
]


def kept(model: nn.Module) -> Any:
    """Return all that passes must leave alone."""
    is_script = isinstance(model, torch.jit.ScriptModule)
    state = [] if is_script else [value.clone() for value in (*model.buffers(), *model.parameters())]
    return state, [module.training for module in model.modules()], torch.get_rng_state()


def same(before: Any, after: Any) -> bool:
    return all(map(torch.equal, before[0], after[0])) and before[1] == after[1] and torch.equal(before[2], after[2])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:mc. (these sites|passes over)", "ignore:None of the inputs")
def test_passes_together_are_single_passes_with_the_same_masks(case: Model) -> None:
    model, inputs = case.build(), case.inputs()
    before = kept(model)
    found = {engine: mc(model, 6, seed=3, engine=engine, keep_samples=True)(*inputs) for engine in ("auto", "loop")}
    assert same(before, kept(model))
    assert found["auto"].facts["engine"] == ENGINES.get(case.name, "prefix")
    assert found["loop"].facts["engine"] == "loop"
    pairs = list(zip(*(tensors(result.samples) for result in found.values()), strict=True))
    assert pairs
    assert any(bool((values.std(0) > 0).any()) for _, values in pairs)
    for together, single in pairs:
        torch.testing.assert_close(together, single, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:mc. (these sites|passes over)", "ignore:None of the inputs")
def test_every_site_of_a_model_drops(case: Model) -> None:
    result = mc(case.build(), 2, seed=0)(*case.inputs())
    dropped = {site.name for site in result.facts["sites"]}
    assert dropped == {site.name for site in (*case.sites, *case.masks) if site.is_rewritable}


def test_a_model_that_cannot_be_turned_on_is_refused() -> None:
    case = MODELS["hand_written"]  # it draws other noise in training mode alone, which would come back
    with pytest.raises(UnsupportedError, match="cannot be turned on in evaluation: ~0"):
        mc(case.build(), 2)(*case.inputs())


def test_under_autocast() -> None:
    model, x = MODELS["encoder"].build(), MODELS["encoder"].inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = mc(model, 5, seed=0)(*x)
    want = mc(model, 5, seed=0)(*x)
    torch.testing.assert_close(result.mean.float(), want.mean, rtol=0.1, atol=0.1)
