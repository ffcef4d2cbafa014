"""Outputs of every type are taken apart and put together as what they were."""

from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, distributions
from torch.nn.utils.rnn import pack_sequence
from torch.utils import _pytree

from dropkit.uncertainty.results.outputs import flatten

A, B = torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [4.0]])
Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Plain:
    first: Tensor
    second: Any = None
    derived: Tensor = field(init=False)

    def __post_init__(self):
        self.derived = self.first + 1

    @cached_property
    def doubled(self):
        return 2 * self.first


@dataclass(frozen=True, slots=True)
class Frozen:
    first: Tensor
    second: Any


class Attributes(dict):
    """A dictionary whose entries are its attributes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class Labelled(OrderedDict):
    label = "unset"


class Several(list):
    pass


class Unknown:
    def __init__(self):
        self.hidden = A


class Registered:
    def __init__(self, value):
        self.value = value


def seen(output: Any) -> list[tuple[str, bool]]:
    leaves, rebuild = flatten(output)
    return [(name, isinstance(leaf, Tensor)) for name, leaf in zip(rebuild.names, leaves, strict=True)]


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (A, ["output"]),
        (None, ["output"]),
        ([A, [B]], ["output[0]", "output[1][0]"]),
        ((A, B), ["output[0]", "output[1]"]),
        (Pair(A, 3), ["output.first", "output.second"]),
        (Several([A]), ["output[0]"]),
        (deque([A, B], maxlen=2), ["output[0]", "output[1]"]),
        (torch.max(B, 1), ["output[0]", "output[1]"]),
        ({"a b": A, 3: B}, ["output['a b']", "output[3]"]),
        (OrderedDict(x=A, y=None), ["output.x", "output.y"]),
        (defaultdict(list, x=A), ["output.x"]),
        (Attributes(x=A, y=B), ["output.x", "output.y"]),
        (Labelled(x=A), ["output.x"]),
        (UserDict(x=A), ["output.x"]),
        (MappingProxyType({"x": A}), ["output.x"]),
        (SimpleNamespace(x=A, y="text"), ["output.x", "output.y"]),
        (Plain(A, B), ["output.first", "output.second", "output.derived"]),
        (Frozen(A, (B, "text")), ["output.first", "output.second[0]", "output.second[1]"]),
        (torch.Size([2, 3]), ["output"]),
        (Unknown(), ["output"]),
        ([], []),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) or isinstance(value, Several) else len(value),
)
def test_every_type_is_put_together_as_what_it_was(output, names):
    leaves, rebuild = flatten(output)
    assert rebuild.names == names
    same = rebuild(leaves)
    assert type(same) is type(output)
    assert [id(leaf) for leaf in flatten(same)[0]] == [id(leaf) for leaf in leaves]
    other = rebuild([("new", i) for i in range(len(leaves))])
    if leaves and rebuild.paths != [()]:
        assert [id(leaf) for leaf in flatten(output)[0]] == [id(leaf) for leaf in leaves], "the output itself changed"
        assert other is not output
    with pytest.raises(ValueError, match="leaves"):
        rebuild([*leaves, None])


def test_attributes_keep_what_is_no_leaf():
    labelled = Labelled(x=A)
    labelled.label = "mine"
    rebuild = flatten(labelled)[1]
    assert rebuild([B]).label == "mine"
    assert rebuild([B])["x"] is B
    attributes = Attributes(x=A)
    other = flatten(attributes)[1]([B])
    assert other.x is B
    assert other["x"] is B
    assert attributes.x is A
    assert flatten(defaultdict(list, x=A))[1]([B])["other"] == []


def test_what_a_dataclass_derives_once_is_derived_anew():
    output = Plain(A)
    assert torch.equal(output.doubled, 2 * A)
    leaves, rebuild = flatten(output)
    other = rebuild([B, *leaves[1:]])
    assert torch.equal(other.doubled, 2 * B)
    assert torch.equal(other.derived, A + 1), "what is derived at the start is a leaf of its own"


def test_packed_sequences_have_one_leaf():
    packed = pack_sequence([torch.ones(3, 2), torch.zeros(1, 2)], enforce_sorted=False)
    leaves, rebuild = flatten((packed, A))
    assert rebuild.names == ["output[0].data", "output[1]"]
    other, _ = rebuild([leaves[0] + 1, A])
    assert type(other) is type(packed)
    assert torch.equal(other.batch_sizes, packed.batch_sizes)
    assert torch.equal(other.unsorted_indices, packed.unsorted_indices)
    assert torch.equal(other.data, packed.data + 1)


def test_hugging_face_outputs():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    output = outputs.BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=A, hidden_states=(A, B))
    rebuild = flatten(output)[1]
    assert rebuild.names == ["output.last_hidden_state", "output.hidden_states[0]", "output.hidden_states[1]"]
    other = rebuild([B, A, A])
    assert type(other) is type(output)
    assert other.last_hidden_state is B
    assert other["last_hidden_state"] is B
    assert other[0] is B
    assert other.pooler_output is None
    assert output.last_hidden_state is A


def test_what_pytrees_were_told_of(request):
    _pytree.register_pytree_node(Registered, lambda it: ([it.value], None), lambda parts, _: Registered(*parts))
    request.addfinalizer(lambda: _pytree._deregister_pytree_node(Registered))
    leaves, rebuild = flatten({"x": Registered(A)})
    assert leaves == [A]
    assert rebuild([B])["x"].value is B


ROWS = torch.tensor([[0.2, 0.3, 0.5]])
DISTRIBUTIONS = {
    "Normal": (distributions.Normal(A, 1.0), ["loc", "scale"]),
    "Categorical-probs": (distributions.Categorical(probs=ROWS), ["probs"]),
    "Categorical-logits": (distributions.Categorical(logits=ROWS), ["logits"]),
    "OneHotCategorical": (distributions.OneHotCategorical(logits=ROWS), ["probs"]),
    "Bernoulli": (distributions.Bernoulli(logits=A), ["logits"]),
    "StudentT": (distributions.StudentT(A), ["df", "loc", "scale"]),
    "MultivariateNormal": (distributions.MultivariateNormal(A, torch.eye(2)), ["loc", "covariance_matrix"]),
    "LowRank": (
        distributions.LowRankMultivariateNormal(A, torch.ones(2, 1), A),
        ["loc", "cov_factor", "cov_diag"],
    ),
    "LogNormal": (distributions.LogNormal(A, A), ["loc", "scale"]),
    "Uniform": (distributions.Uniform(A - 1, A), ["low", "high"]),
    "ContinuousBernoulli": (distributions.ContinuousBernoulli(probs=ROWS), ["probs"]),
    "Independent": (
        distributions.Independent(distributions.Normal(B, 1.0), 1),
        ["base_distribution.loc", "base_distribution.scale", "reinterpreted_batch_ndims"],
    ),
    "Mixture": (
        distributions.MixtureSameFamily(distributions.Categorical(probs=A), distributions.Normal(A, A)),
        ["mixture_distribution.probs", "component_distribution.loc", "component_distribution.scale"],
    ),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions_are_made_of_their_arguments(name):
    output, names = DISTRIBUTIONS[name]
    expected, _ = output.mean, output.variance  # also after what they derive of their arguments was asked for
    for optional in ("probs", "logits", "precision_matrix", "scale_tril"):
        getattr(output, optional, None)
    leaves, rebuild = flatten(output)
    assert rebuild.names == [f"output.{each}" for each in names]
    same = rebuild(leaves)
    assert type(same) is type(output)
    torch.testing.assert_close(same.mean, expected, equal_nan=True)
    several = rebuild([leaf.expand(4, *leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves])
    assert several.batch_shape == (4, *output.batch_shape)
    variances = output.variance.expand(4, *output.variance.shape)
    torch.testing.assert_close(several.variance, variances, equal_nan=True)


def test_plain_distributions_take_any_numbers():
    output = {"x": distributions.Categorical(probs=ROWS)}
    rebuild = flatten(output)[1]
    assert torch.equal(rebuild.plain([torch.zeros(1, 3)])["x"].probs, torch.zeros(1, 3))


def test_a_distribution_that_keeps_no_arguments_is_a_leaf():
    class Own(distributions.Distribution):
        def __init__(self, secret):
            self._secret = secret
            super().__init__(validate_args=False)

    assert seen(Own(A)) == [("output", False)]
