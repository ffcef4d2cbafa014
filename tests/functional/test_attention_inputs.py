"""What attention refuses, and the words it does it with."""

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.functional import scaled_dot_product_attention


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize(
    ("key_axes", "value_axes", "name"), [((2,), (2,), "key"), ((2, 2), (2, 2), "key"), ((2, 6), (2, 3), "value")]
)
def test_fewer_heads_are_refused_without_enable_gqa_and_it_is_advised(
    key_axes: tuple[int, ...], value_axes: tuple[int, ...], name: str, dropout_p: float
) -> None:
    query, key, value = torch.randn(2, 6, 10, 8), torch.randn(*key_axes, 10, 8), torch.randn(*value_axes, 10, 8)
    own = {"key": key, "value": value}[name].size(-3)
    advice = f"`{name}` must be of leading axes.* For its {own} heads to serve the query's 6, pass enable_gqa=True"
    with pytest.raises(ArgumentError, match=advice):
        scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize(
    ("shapes", "enable_gqa", "words"),
    [
        (
            ((2, 6, 5, 8), (2, 4, 5, 8), (2, 4, 5, 8)),
            True,
            "`key` must be of a number of heads that divides the query's 6",
        ),
        (((2, 6, 5, 8), (2, 3, 5, 8), (2, 4, 5, 8)), True, "`value` must be of a number of heads that divides"),
        (((5, 8), (3, 5, 8), (3, 5, 8)), True, "`query` must be of three axes or more where enable_gqa is True"),
        (((3, 5, 8), (5, 8), (3, 5, 8)), True, "`key` must be of three axes or more where enable_gqa is True"),
        (((2, 6, 5, 8), (2, 4, 5, 8), (2, 4, 5, 8)), False, r"`key` must be of leading axes.*\(tuple\)\.$"),
        (((2, 6, 5, 8), (3, 3, 5, 8), (3, 3, 5, 8)), False, r"`key` must be of leading axes.*\(tuple\)\.$"),
    ],
)
def test_heads_that_do_not_fit(
    shapes: tuple[tuple[int, ...], ...], enable_gqa: bool, words: str, dropout_p: float
) -> None:
    with pytest.raises(ArgumentError, match=words):
        scaled_dot_product_attention(*map(torch.randn, shapes), dropout_p=dropout_p, enable_gqa=enable_gqa)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"query": torch.eye(8).to_sparse()}, ArgumentTypeError, "`query` must be a dense"),
        ({"key": torch.eye(8).double().to_sparse()}, ArgumentTypeError, "`key` must be a dense"),
        ({"attn_mask": torch.eye(10).bool().to_sparse()}, ArgumentTypeError, "`attn_mask` must be a dense tensor"),
        ({"attn_mask": torch.ones(10, 10, dtype=torch.bool, device="meta")}, ArgumentError, "`attn_mask` .*device cpu"),
        ({"attn_mask": torch.ones(10, 10, dtype=torch.bool), "is_causal": True}, ArgumentError, "is_causal"),
        ({"attn_mask": torch.ones(10, 10)}, ArgumentTypeError, "`attn_mask` must be bool or torch.float64"),
        ({"attn_mask": torch.ones(10, 9, dtype=torch.bool)}, ArgumentError, "`attn_mask` must be of a shape"),
        ({"attn_mask": torch.ones(3, 1, 1, 1, 10, dtype=torch.bool)}, ArgumentError, "`attn_mask` must be of a shape"),
        ({"key": torch.ones(2, 4, 10, 7, dtype=torch.float64)}, ArgumentError, "`key` must be of the query's width 8"),
        ({"key": torch.ones(3, 4, 10, 8, dtype=torch.float64)}, ArgumentError, "`key` must be of leading axes"),
        ({"value": torch.ones(2, 4, 9, 8, dtype=torch.float64)}, ArgumentError, "`value` must be of as many rows"),
        ({"value": torch.ones(2, 3, 10, 8, dtype=torch.float64)}, ArgumentError, "`value` must be of leading axes"),
    ],
    ids=map(str, range(12)),
)
def test_tensors_that_do_not_fit_the_query(change: dict[str, Any], error: type[Exception], words: str) -> None:
    """What is wrong by itself is tried with the arguments of all functions, in `tests/contract`."""
    query, key, value = (torch.randn(2, 4, 10, 8, dtype=torch.float64) for _ in range(3))
    with pytest.raises(error, match=words):
        scaled_dot_product_attention(**{"query": query, "key": key, "value": value, "dropout_p": 0.1, **change})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype:UserWarning")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_nested_tensors_are_refused(layout: torch.layout, dropout_p: float) -> None:
    query = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=layout)
    with pytest.raises(ArgumentTypeError, match=r"`query` must be a dense tensor, not a nested one.* Pad it"):
        scaled_dot_product_attention(query, query, query, dropout_p=dropout_p)


def test_a_generator_that_cannot_be_replayed_is_refused_in_the_names_of_the_function() -> None:
    own, tensors = torch.Generator(), torch.randn(3, 2, 4, 10, 8, requires_grad=True).unbind()
    out = checkpoint(
        scaled_dot_product_attention,
        *tensors,
        dropout_p=0.1,
        generator=own,
        use_reentrant=False,
        preserve_rng_state=False,
    )
    with pytest.raises(UnsupportedError, match=r"^scaled_dot_product_attention: `generator`.* pass `dropout_key`"):
        out.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_is_refused_in_the_name_of_the_function() -> None:
    tensors = torch.randn(3, 2, 4, 10, 8).unbind()
    with pytest.raises(UnsupportedError, match=r"^scaled_dot_product_attention: torch.jit.trace"):
        torch.jit.trace(lambda *parts: scaled_dot_product_attention(*parts, dropout_p=0.1), tensors)
