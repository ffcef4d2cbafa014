"""A zoo: small, fast models that draw dropout in every way that users' models do, with the sites that each has.

    @pytest.mark.parametrize("model", CASES)
    def test_of_all_models(model: Model) -> None:
        network = model.build()
        network(*model.inputs())

Weights and inputs are the same at every call. A model that needs a package which is not installed is skipped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dropkit
from tests.sites import networks

__all__ = ["MODELS", "Expected", "Model", "tensors"]


@dataclass(frozen=True)
class Expected:
    """A site that a model has."""

    name: str
    kind: str
    p: float | None
    in_train: bool = True
    in_eval: bool = False
    shared: tuple[int, ...] = ()
    calls: int = 1
    is_rewritable: bool = True


@dataclass(frozen=True)
class Model:
    """A model of the zoo.

    Args:
        name: Its name.
        make: Makes it.
        arguments: Makes what its forward takes, by position.
        sites: The sites that call functions, in the order of the forward.
        masks: The sites that are hand-written masks, in the order of the forward.
    """

    name: str
    make: Callable[[], nn.Module]
    arguments: Callable[[], tuple[Any, ...]]
    sites: tuple[Expected, ...] = ()
    masks: tuple[Expected, ...] = ()

    def build(self) -> nn.Module:
        """Make the model, in training mode."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return self.make().train()

    def inputs(self) -> tuple[Any, ...]:
        """Make what its forward takes."""
        with torch.random.fork_rng():
            torch.manual_seed(2)
            return self.arguments()

    def __str__(self) -> str:
        return self.name


MODELS: dict[str, Model] = {}


def add(
    make: Callable[[], nn.Module],
    arguments: Callable[[], tuple[Any, ...]],
    *sites: Expected,
    name: str = "",
    masks: tuple[Expected, ...] = (),
) -> None:
    name = name or make.__name__
    MODELS[name] = Model(name, make, arguments, sites, masks)


def tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output of any structure."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from tensors(list(output.values()))
    elif isinstance(output, tuple | list):
        for part in output:
            yield from tensors(part)
    elif is_dataclass(output):
        yield from tensors([getattr(output, field.name) for field in fields(output)])


def _sites_of_bert(attention: str, hidden: bool) -> tuple[Expected, ...]:
    found = [Expected("embeddings.dropout", "dropout", 0.1)] if hidden else []
    for i in range(2):
        layer, kinds = f"encoder.layer.{i}", {"sdpa": "scaled_dot_product_attention", "eager": "dropout"}
        found.append(Expected(f"{layer}.attention.self#0", kinds[attention], 0.2))
        if hidden:
            found += [Expected(f"{layer}.{part}.dropout", "dropout", 0.1) for part in ("attention.output", "output")]
    return tuple(found)


def _sites_of_gpt2(attention: str) -> tuple[Expected, ...]:
    found = [Expected("transformer.drop", "dropout", 0.1)]
    for i in range(2):
        layer = f"transformer.h.{i}"
        kind = {"sdpa": "scaled_dot_product_attention", "eager": "dropout"}[attention]
        found += [Expected(f"{layer}.attn#0", kind, 0.2), Expected(f"{layer}.attn.resid_dropout", "dropout", 0.3)]
        found.append(Expected(f"{layer}.mlp.dropout", "dropout", 0.3))
    return tuple(found)


def _sites_of_vit() -> tuple[Expected, ...]:
    found = [Expected("pos_drop", "dropout", 0.05)]
    for i in range(2):
        found.append(Expected(f"blocks.{i}.attn#0", "scaled_dot_product_attention", 0.2))
        found += [
            Expected(f"blocks.{i}.{place}", "dropout", 0.15) for place in ("attn.proj_drop", "mlp.drop1", "mlp.drop2")
        ]
    return (*found, Expected("head_drop", "dropout", 0.1))


def _sites_of_encoder() -> Iterator[Expected]:
    for i in range(2):
        yield Expected(f"layers.{i}.self_attn#0", "multi_head_attention", 0.1)
        yield from (Expected(f"layers.{i}.{name}", "dropout", 0.1) for name in ("dropout1", "dropout", "dropout2"))


def _sites_of_our_encoder() -> Iterator[Expected]:
    for i in range(2):
        yield Expected(f"layers.{i}.self_attn", "scaled_dot_product_attention", 0.2)
        yield from (Expected(f"layers.{i}.{name}", "dropout", 0.1) for name in ("dropout1", "dropout", "dropout2"))


add(networks.mlp, networks.rows, Expected("3", "dropout", 0.5))
add(networks.cnn, networks.pictures, Expected("3", "dropout2d", 0.2, shared=(2, 3)), Expected("6", "dropout", 0.5))
add(
    networks.Functional,
    networks.rows,
    Expected("#0", "dropout", 0.3),
    Expected("#1", "dropout", 0.2),
    Expected("#3", "dropout", 0.5),
    name="functional",
)
add(
    lambda: nn.Sequential(networks.Ungated(), nn.Dropout(0.2)),
    networks.rows,
    Expected("0#0", "dropout", 0.4, in_eval=True),
    Expected("1", "dropout", 0.2),
    name="ungated",
)
add(
    networks.Shifted,
    networks.rows,
    Expected("#0", "dropout", 0.1),
    Expected("#1", "dropout", 0.2, in_eval=True),
    Expected("#2", "dropout", 0.3, in_train=False, in_eval=True),
    name="shifted",
)
for kind in ("LSTM", "GRU"):
    for form, example in (("", networks.sequences), ("_packed", networks.packed)):
        add(
            lambda kind=kind: networks.Recurrent(getattr(nn, kind)(8, 6, num_layers=2, dropout=0.4, batch_first=True)),
            example,
            Expected("network#0", kind.lower(), 0.4),
            name=f"{kind.lower()}{form}",
        )
        rates = {"LSTM": {"zoneout_c": 0.1}, "GRU": {"zoneout": 0.1}}[kind]
        add(
            lambda kind=kind, rates=rates: networks.Recurrent(
                getattr(dropkit.nn, kind)(8, 6, batch_first=True, recurrent_p=0.3, **rates)
            ),
            example,
            Expected("network", kind.lower(), None),
            name=f"our_{kind.lower()}{form}",
        )
add(networks.encoder, networks.sequences, *_sites_of_encoder())
add(networks.our_encoder, networks.sequences, *_sites_of_our_encoder())
add(networks.SelfAttention, networks.sequences, Expected("attention#0", "multi_head_attention", 0.2), name="attention")
add(
    lambda: networks.SelfAttention(need_weights=False),
    networks.sequences,
    Expected("attention#0", "multi_head_attention", 0.2),
    name="attention_without_weights",
)
add(
    lambda: nn.Sequential(networks.GatedAttention(), networks.Block()),
    networks.sequences,
    Expected("0#0", "scaled_dot_product_attention", 0.25),
    Expected("1.drop", "dropout", 0.3),
    name="sdpa",
)
for use_reentrant in (True, False):
    add(
        lambda use_reentrant=use_reentrant: networks.Checkpointed(use_reentrant),
        networks.rows,
        Expected("first.drop", "dropout", 0.3),
        Expected("second.drop", "dropout", 0.2),
        Expected("#0", "dropout", 0.1),
        name="checkpointed_reentrant" if use_reentrant else "checkpointed",
    )
add(networks.OwnFunction, networks.rows, Expected("#0", "dropout", 0.35), name="own_function")
add(networks.Shared, networks.rows, Expected("block.drop", "dropout", 0.3, calls=3), name="shared")
add(
    lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AlphaDropout(0.1), nn.FeatureAlphaDropout(0.2)),
    networks.pictures,
    Expected("1", "alpha_dropout", 0.1),
    Expected("2", "feature_alpha_dropout", 0.2, shared=(2, 3)),
    name="alpha",
)
add(
    networks.Listed,
    networks.rows,
    Expected("#0", "dropout", 0.15, in_eval=True),
    Expected("#1", "dropout", 0.45, in_eval=True),
    name="listed",
)
add(
    networks.HandWritten,
    networks.rows,
    masks=(Expected("~0", "mask", 0.25), Expected("~2", "mask", 0.1, shared=(1,))),
    name="hand_written",
)
add(
    networks.Structured,
    lambda: ({"x": torch.randn(6, 8)}, 2, torch.randn(6)),
    Expected("drop", "dropout", 0.5),
    name="structured",
)
add(
    networks.Ours,
    networks.sequences,
    Expected("layers.0", "dropout", 0.1),
    Expected("layers.1", "locked_dropout", 0.2, shared=(1,)),
    Expected("layers.2", "drop_path", 0.3, shared=(1, 2)),
    Expected("layers.4", "drop_connect", 0.5),
    Expected("zoneout", "zoneout", 0.15),
    Expected("noise", "variational_dropout", None),
    Expected("#0", "dropout", 0.4, shared=(2,)),
    name="ours",
)
add(
    networks.Scripted,
    networks.rows,
    Expected("part~0", "dropout", 0.3, is_rewritable=False),
    Expected("drop", "dropout", 0.2),
    name="scripted",
)
add(
    lambda: torch.compile(networks.mlp(), backend="eager"),
    networks.rows,
    Expected("3", "dropout", 0.5),
    name="compiled",
)
for form in ("sdpa", "eager"):
    add(lambda form=form: networks.bert(form), networks.tokens, *_sites_of_bert(form, hidden=True), name=f"bert_{form}")
    add(
        lambda form=form: networks.bert(form, 0.0),
        networks.tokens,
        *_sites_of_bert(form, hidden=False),
        name=f"bert_{form}_attention_only",
    )
    add(
        lambda form=form: networks.gpt2(form),
        lambda: (networks.tokens()[0],),
        *_sites_of_gpt2(form),
        name=f"gpt2_{form}",
    )
add(
    networks.vit,
    networks.pictures,
    *_sites_of_vit(),
    masks=tuple(Expected(f"blocks.1.drop_path{i}~0", "mask", 0.3, shared=(1, 2)) for i in (1, 2)),
)
add(
    networks.convnext,
    lambda: (torch.randn(4, 3, 64, 64),),
    Expected("head.drop", "dropout", 0.2),
    masks=tuple(Expected(f"stages.{i}.blocks.0.drop_path~0", "mask", i / 10, shared=(1, 2, 3)) for i in (1, 2, 3)),
)

# Transformers takes seconds to import.
CASES = [
    pytest.param(model, id=name, marks=[pytest.mark.slow] if name.startswith(("bert", "gpt2")) else [])
    for name, model in MODELS.items()
]
"""The models as parameters of a test."""


def facts(site: Any) -> tuple[Any, ...]:
    rate = None if site.p is None else round(site.p, 9)
    return site.name, site.kind, rate, site.in_train, site.in_eval, site.shared, site.calls, site.is_rewritable
