"""Placing dropout by a recipe: what the plans are, and that a model then drops where its plan says and nowhere else."""

import copy
import pickle
from contextlib import closing
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import dropkit
from dropkit.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from dropkit.sites import convert, find
from dropkit.sites.interceptor import Handler, attached
from dropkit.sites.recipes import RECIPES
from tests.sites.zoo import CASES, Model, tensors


class Convolutional(nn.Module):
    """Its layers are registered backwards, and share a dropout layer."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.head, self.fc = nn.Linear(16, 5), nn.Linear(8 * 2 * 2, 16)
        self.c3, self.c2, self.c1 = nn.Conv2d(6, 8, 3), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.relu(self.norm(self.c2(self.drop(x))))
        x = F.max_pool2d(F.relu(self.c3(x)), 2)
        x = self.fc(x.flatten(1)).relu()
        return self.head(self.drop(x))


class Recurrent(nn.Module):
    """Two recurrent networks, one upon the other, and a dropout layer before and after them."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.table, self.drop = nn.Embedding(11, 5), nn.Dropout(0.2)
        self.lower = kind(5, 6, 3, batch_first=True, dropout=0.3, **options)
        width = self.lower.hidden_size * (2 if self.lower.bidirectional else 1)
        self.upper, self.head = nn.GRU(width, 4, batch_first=True), nn.Linear(4, 11)

    def forward(self, words: Tensor) -> Tensor:
        x, _ = self.lower(self.drop(self.table(words)))
        x, _ = self.upper(x)
        return self.head(self.drop(x))


class Residual(nn.Module):
    """A block whose branch is added to its shortcut."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 16), nn.Linear(16, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Attending(nn.Module):
    """A transformer written by hand, without any dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.softmax, self.block, self.head = nn.Softmax(-1), Residual(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.softmax(self.q(x) @ self.k(x).transpose(-1, -2) / 8**0.5)
        return self.head(self.block(x + self.out(weights @ self.v(x))).mean(1))


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 2), nn.Dropout(0.3)
    )  # fmt: skip


PICTURES, WORDS, ROWS = torch.randn(4, 3, 12, 12), torch.randint(11, (3, 7)), torch.randn(6, 4)
SEQUENCES = torch.randn(3, 5, 8)
_OUTPUT = ("(output)", "nothing", "nothing")
PLANS: dict[str, tuple[Any, str, Tensor, list[tuple[str, str, str]]]] = {
    "mlp": (
        mlp, "srivastava", ROWS,
        [
            ("0.input_dropout", "nothing", "Dropout 0.2"),
            ("2.input_dropout", "nothing", "Dropout 0.5"),
            ("3", "dropout 0.1", "dropout 0.5"),
            ("6", "dropout 0.3", "nothing"),
            _OUTPUT,
        ],
    ),
    "cnn": (
        Convolutional, "cnn", PICTURES,
        [
            ("drop", "dropout 0.4", "nothing"),
            ("c2.input_dropout", "nothing", "Dropout2d 0.1"),
            ("c3.input_dropout", "nothing", "Dropout2d 0.175"),
            ("c3.output_dropout", "nothing", "Dropout2d 0.25"),
            ("drop", "dropout 0.4", "nothing"),
            ("head.input_dropout", "nothing", "Dropout 0.5"),
            _OUTPUT,
        ],
    ),
    "cnn with BatchNorm": (
        lambda: Convolutional(norm=True), "cnn", PICTURES,
        [
            ("drop", "dropout 0.4", "nothing"),
            ("c3.input_dropout", "nothing", "Dropout2d 0.1"),
            ("c3.output_dropout", "nothing", "Dropout2d 0.25"),
            ("drop", "dropout 0.4", "nothing"),
            ("head.input_dropout", "nothing", "Dropout 0.5"),
            ("c2", "nothing", "nothing"),
            _OUTPUT,
        ],
    ),
    "rnn": (
        Recurrent, "rnn", WORDS,
        [
            ("drop", "dropout 0.2", "nothing"),
            ("lower.input_dropout", "nothing", "LockedDropout 0.25"),
            ("lower#0", "lstm 0.3", "nothing"),
            ("lower.between_dropout", "nothing", "LockedDropout 0.25"),
            ("upper.input_dropout", "nothing", "LockedDropout 0.25"),
            ("upper.output_dropout", "nothing", "LockedDropout 0.25"),
            _OUTPUT,
        ],
    ),
    "transformer": (
        Attending, "transformer", SEQUENCES,
        [
            ("softmax.output_dropout", "nothing", "Dropout 0.1"),
            ("out.output_dropout", "nothing", "Dropout 0.1"),
            ("block.fc2.input_dropout", "nothing", "Dropout 0.1"),
            ("block.fc2.output_dropout", "nothing", "Dropout 0.1"),
            _OUTPUT,
        ],
    ),
    "vit": (
        lambda: nn.Sequential(*(Residual() for _ in range(3)), nn.Linear(8, 2)), "vit", SEQUENCES,
        [
            ("1.fc2.output_drop_path", "nothing", "DropPath 0.05"),
            ("2.fc2.output_drop_path", "nothing", "DropPath 0.1"),
            ("0.fc2", "nothing", "nothing"),
            _OUTPUT,
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_plans_of_known_models(name: str) -> None:
    make, recipe, x, rows = PLANS[name]
    model = make()
    plan = convert(model, recipe, x)
    assert [(row.place, row.now, row.then) for row in plan] == rows
    assert {site.name: site.p for site in find(model, x) if site.in_train} == plan.rates
    assert not any(site.in_eval for site in find(model, x))


def _state(model: nn.Module) -> dict[str, Any]:
    """What undoing has to bring back."""
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    kinds = [type(module) for module in model.modules()]
    flags = [module.training for module in model.modules()]
    extra = [sorted(vars(module)) for module in model.modules()]
    return {"printed": str(model), "hooks": hooks, "kinds": kinds, "flags": flags, "attributes": extra}


def _sites(model: nn.Module, inputs: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [(site.name, site.kind, site.p, site.in_train, site.in_eval, site.calls) for site in find(model, *inputs)]


def _answers(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    torch.manual_seed(3)  # for models that draw in evaluation
    was, _ = model.training, model.eval()
    found = list(tensors(model(*inputs)))
    model.train(was)
    return found


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("case", CASES)
def test_every_model_of_the_zoo(case: Model, recipe: str) -> None:
    """A recipe fits and does what its plan says, or does not fit and leaves the model alone; undoing restores it."""
    model, inputs = case.build(), case.inputs()
    before, keys, plain = _state(model), list(model.state_dict()), _sites(model, inputs)
    answers = _answers(model, inputs)
    try:
        plan = convert(model, recipe, *inputs)
    except UnsupportedError:
        assert _state(model) == before
        return
    assert list(model.state_dict()) == keys
    for answer, original in zip(_answers(model, inputs), answers, strict=True):
        assert torch.equal(answer, original)
    sites = [site for site in find(model, *inputs) if site.in_train and site.is_rewritable]
    found = {site.name: site.p for site in sites if "~" not in site.name}
    assert found == {name: p for name, p in plan.rates.items() if "~" not in name}
    torch.compiler.reset()
    plan.undo()
    assert _state(model) == before
    assert _sites(model, inputs) == plain


@pytest.mark.parametrize("name", PLANS)
def test_dry_run_apply_and_undo(name: str) -> None:
    make, recipe, x, _ = PLANS[name]
    model = make().eval()
    before, weights = _state(model), copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    plan = convert(model, recipe, x, dry_run=True)
    assert not plan.is_applied
    assert _state(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    plan.undo()  # nothing to undo
    for _ in range(2):
        plan.apply()
        assert plan.is_applied
        assert str(model) != before["printed"]
        assert not any(module.training for module in model.modules())
        plan.undo()
        assert _state(model) == before
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_copies_keep_their_layers(name: str, copied: Any) -> None:
    make, recipe, x, _ = PLANS[name]
    model = make()
    plan = convert(model, recipe, x)
    twin = copied(model)
    assert str(twin) == str(model)
    plan.undo()
    assert {site.name: site.p for site in find(twin, x)} == plan.rates
    for module in model.modules():
        assert not any("dropout" in name for name, _ in module.named_children())
    fresh = make()
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(fresh.eval()(x), twin.eval()(x))
    twin.load_state_dict(make().state_dict())


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
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
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


def test_rates() -> None:
    def rates(recipe: str, model: nn.Module, x: Tensor, p: Any) -> list[float]:
        plan = convert(model, recipe, x, p=p, dry_run=True)
        return [round(rate, 6) for rate in plan.rates.values()]

    assert sorted(rates("srivastava", mlp(), ROWS, 0.3)) == [0.3, 0.3, 0.3]
    assert sorted(rates("srivastava", mlp(), ROWS, {"input": 0.0})) == [0.5, 0.5]
    assert sorted(rates("srivastava", mlp(), ROWS, {"3": 0.4, "0.input_dropout": 0})) == [0.4, 0.5]
    assert sorted(rates("cnn", Convolutional(), PICTURES, {"channels": (0.0, 0.2), "dense": 0.3})) == [0.1, 0.2, 0.3]
    assert sorted(rates("cnn", Convolutional(), PICTURES, {"channels": 0.2})) == [0.08, 0.14, 0.2, 0.5]
    blocks = nn.Sequential(*(Residual() for _ in range(3)))
    assert sorted(rates("vit", blocks, SEQUENCES, 0.4)) == [0.2, 0.4]


@pytest.mark.parametrize("p", [*dropkit._checks.PROBABILITY.bad_values(), 1.0])
def test_rates_out_of_range(p: Any) -> None:
    if p is not None:
        with pytest.raises(ArgumentError, match="`p` must be a number in"):
            convert(mlp(), "srivastava", ROWS, p=p)
    with pytest.raises(ArgumentError, match=r"`p\['input'\]` must be a number in"):
        convert(mlp(), "srivastava", ROWS, p={"input": p})


def test_wrong_arguments() -> None:
    model = mlp()
    before = _state(model)
    with pytest.raises(ArgumentTypeError, match=r"`model` must be a torch\.nn\.Module"):
        convert(torch.relu, "cnn", ROWS)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="`recipe` must be one of 'srivastava', 'cnn'"):
        convert(model, "resnet", ROWS)
    with pytest.raises(ArgumentError, match="`args` must be example inputs"):
        convert(model, "srivastava")
    with pytest.raises(ArgumentError, match=r"Known are input, hidden, 0\.input_dropout"):
        convert(model, "srivastava", ROWS, p={"hiden": 0.5})
    assert _state(model) == before


@pytest.mark.parametrize(
    ("recipe", "model", "x", "match"),
    [
        ("rnn", Convolutional(), PICTURES, "no recurrent"),
        ("srivastava", Convolutional(), PICTURES, "Try 'cnn'"),
        ("cnn", Attending(), SEQUENCES, "attention in `softmax`. Try 'vit'"),
        ("srivastava", Recurrent(), WORDS, "Try 'rnn'"),
        ("transformer", mlp(), ROWS, "no attention"),
        ("vit", mlp(), ROWS, "no sum"),
        ("rnn", dropkit.nn.LSTM(4, 5), ROWS, "Set its input_p"),
    ],
)
def test_recipes_that_do_not_fit(recipe: str, model: nn.Module, x: Tensor, match: str) -> None:
    before = _state(model)
    with pytest.raises(UnsupportedError, match=match):
        convert(model, recipe, x)
    assert _state(model) == before


def test_a_model_that_raises_is_left_as_it_was() -> None:
    model = mlp()
    before = _state(model)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        convert(model, "srivastava", torch.ones(2, 3))
    assert _state(model) == before


def test_a_model_that_cannot_be_verified_is_left_as_it_was() -> None:
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.runs = nn.Linear(4, 4), nn.Linear(4, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            return self.first(x) if self.runs % 2 else self.second(x)

    model = Restless()
    before = _state(model)
    with pytest.raises(UnsupportedError, match="differ from run to run"):
        convert(model, "srivastava", ROWS)
    assert _state(model) == before
    fails = mlp()
    plan = convert(fails, "srivastava", ROWS, dry_run=True)
    fails[2].register_forward_pre_hook(_fail)
    before = _state(fails)
    with pytest.raises(ZeroDivisionError):
        plan.apply()
    assert _state(fails) == before
    assert not plan.is_applied


def _fail(*_: Any) -> None:
    raise ZeroDivisionError


def test_converted_twice() -> None:
    model = mlp()
    plan = convert(model, "srivastava", ROWS)
    for network in (model, copy.deepcopy(model)):
        with pytest.raises(UnsupportedError, match=r"converted already, in `0`. Call undo"):
            convert(network, "srivastava", ROWS)
    with pytest.raises(UnsupportedError, match="applied already"):
        plan.apply()
    recurrent = Recurrent()
    convert(recurrent, "rnn", WORDS, p={"inputs": 0, "outputs": 0})
    with pytest.raises(UnsupportedError, match="converted already, in `lower`"):
        convert(recurrent, "rnn", WORDS)
    plan.undo()
    assert len(convert(model, "srivastava", ROWS)) == len(plan)


def test_attached() -> None:
    model = mlp()
    with attached(model, Handler.__subclasses__()[0].__new__(Handler.__subclasses__()[0])):  # any handler
        with pytest.raises(UnsupportedError, match="addressed, switched or accelerated"):
            convert(model, "srivastava", ROWS)
        twin = copy.deepcopy(model)
    convert(twin, "srivastava", ROWS)
    convert(model, "srivastava", ROWS)


def test_arguments_by_name_and_tuples() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, *, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return self.layer(input=x), {"x": x}

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.mean, self.scale = Inner(), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor, *, shift: Tensor) -> dict[str, Tensor]:
            h, _ = self.inner(x=x + shift)
            return {"mean": self.mean(h), "scale": self.scale(h)}

    model = Outer()  # whose two heads read one mask
    plan = convert(model, "srivastava", ROWS, shift=torch.ones(4))
    assert plan.rates == {
        "inner.layer.input_dropout": 0.2,
        "inner.layer.output_dropout": 0.5,
    }
    model.train()(ROWS, shift=torch.ones(4))


def test_what_no_module_takes_is_said() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.relu(F.linear(x, self.first)), self.second)

    plan = convert(Bare(), "srivastava", ROWS)
    assert plan.rates == {"input_dropout": 0.2}
    assert "no module takes or gives that tensor alone" in str(plan)
    assert "nothing can be placed" in str(plan)


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


def test_shortcuts_with_layers_of_their_own() -> None:
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.pool, self.short = nn.AvgPool2d(2), nn.Conv2d(3, width, 1)
            self.branch = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 1))

        def forward(self, x: Tensor) -> Tensor:
            out = self.branch(x)
            out += self.short(self.pool(x))
            return out

    model = nn.Sequential(Block(3), Block(4))
    assert convert(model, "vit", PICTURES).rates == {"1.branch.2.output_drop_path": 0.1}


def test_sums_that_are_no_shortcuts() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.left(x) + self.right(x) + 1)

    with pytest.raises(UnsupportedError, match="added to a shortcut"):
        convert(Sums(), "vit", ROWS)


def test_paths_of_sequences_that_have_time_first() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), 2, enable_nested_tensor=False)
    convert(encoder, "vit", SEQUENCES)
    assert [site.shared for site in find(encoder, SEQUENCES)] == [(0, 2), (0, 2)]


def test_states_of_recurrent_networks_stay_whole() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.head = nn.GRU(8, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.network(x)[1][-1])

    plan = convert(Last(), "rnn", SEQUENCES)
    assert plan.rates == {"network.input_dropout": 0.25}
    assert "nothing reads them" in str(plan)


def test_dropout_that_is_wrong_is_removed() -> None:
    """Before BatchNorm, and on what is returned, whatever its shape and pointwise functions."""
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6),
        nn.Dropout(0.2), nn.Softmax(-1), nn.Unflatten(1, (2, 3)),
    )  # fmt: skip
    plan = convert(model, "srivastava", ROWS)
    assert plan.rates == {"6.input_dropout": 0.5}
    reasons = {row.place: row.why for row in plan}
    assert "BatchNorm" in reasons["2"]
    assert "after the output" in reasons["7"]
    assert (model[2].p, model[7].p) == (0.0, 0.0)


def test_attention_that_nothing_reaches_is_said() -> None:
    class Bare(Attending):
        def forward(self, x: Tensor) -> Tensor:
            weights = F.softmax(self.q(x) @ self.k(x).transpose(-1, -2), -1)
            return self.head((x + self.out(weights @ self.v(x))).mean(1))

    plan = convert(Bare(), "transformer", SEQUENCES)
    assert plan.rates == {"out.output_dropout": 0.1}
    assert "attention weights: no module takes or gives" in str(plan)


def test_rates_in_attributes_are_found() -> None:
    """Whatever they are called, by giving each its own rate for a forward; not such as only look alike."""

    class Attributes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.p, self.drop_rate, self.dropped, self.dropout = 0.1, 0.0, 0.3, 0

        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(self.first(x), self.p, self.training) * (1 - self.dropped)
            x = F.dropout(self.second(x), self.drop_rate, self.training)
            return F.dropout(self.third(x), p=self.dropout, training=self.training)

    model = Attributes()
    plan = convert(model, "srivastava", ROWS)
    assert plan.rates == {"first.input_dropout": 0.2, "#0": 0.5, "#1": 0.5}
    assert (model.p, model.drop_rate, model.dropped, model.dropout) == (0.5, 0.5, 0.3, 0)
    assert type(model.dropout) is int
    plan.undo()
    assert (model.p, model.drop_rate) == (0.1, 0.0)


def test_wrapped_models() -> None:
    model = mlp()
    plan = convert(nn.DataParallel(model), "srivastava", ROWS)
    assert list(plan.rates) == ["0.input_dropout", "2.input_dropout", "3"]
    plan.undo()
    assert str(model) == str(mlp())


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
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


def test_the_table() -> None:
    lines = str(convert(mlp(), "srivastava", ROWS)).splitlines()
    assert lines[0].split() == ["place", "now", "planned", "why"]
    assert lines[4].split()[:5] == ["6", "dropout", "0.3", "nothing", "nothing"]
    assert len({line.index(word) for line, word in zip(lines[1:3], ("nothing", "nothing"), strict=True)}) == 1
