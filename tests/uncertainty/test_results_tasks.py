"""What a classification and a regression give agrees with closed forms, SciPy, and the samples themselves."""

import math

import pytest
import torch
from scipy import stats
from torch import distributions

from dropkit.errors import ArgumentError, UnavailableError, UnsupportedError
from dropkit.uncertainty import bald
from dropkit.uncertainty.results.running import Running

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
CHUNKS = [[50], [1] * 50, [8] * 6 + [2], [3, 13, 1, 20, 0, 8, 5]]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def result_of(output, leaves, task=None, chunks=(50,), **options):
    running = Running(task, **options)
    first = 0
    for chunk in chunks:
        running.add(output, [None if leaf is None else leaf[first : first + chunk] for leaf in leaves])
        first += chunk
    return running.result()


@pytest.mark.parametrize("class_dim", [-1, 1, 0, -3])
def test_a_classification_averages_probabilities(class_dim):
    logits = random(50, 6, 4, 5) * 3
    result = result_of(logits[0], [logits], "classification", class_dim=class_dim, keep_samples=True)
    axis = class_dim % 3
    expected = logits.softmax(axis + 1)
    torch.testing.assert_close(result.samples, expected, **CLOSE)
    torch.testing.assert_close(result.mean, expected.mean(0), **CLOSE)
    torch.testing.assert_close(result.std, expected.std(0), **CLOSE)
    torch.testing.assert_close(result.error.mean, expected.std(0) / math.sqrt(50), **CLOSE)
    mean, each = expected.mean(0).numpy(), expected.numpy()
    predictive = torch.as_tensor(stats.entropy(mean, axis=axis))
    inner = torch.as_tensor(stats.entropy(each, axis=axis + 1))
    torch.testing.assert_close(result.predictive_entropy, predictive, **CLOSE)
    torch.testing.assert_close(result.expected_entropy, inner.mean(0), **CLOSE)
    torch.testing.assert_close(result.error.expected_entropy, inner.std(0) / math.sqrt(50), **CLOSE)
    torch.testing.assert_close(result.mutual_information_uncorrected, predictive - inner.mean(0), **CLOSE)
    bias = (expected.var(0) / (2 * 50 * expected.mean(0))).sum(axis)
    torch.testing.assert_close(result.mutual_information, predictive - inner.mean(0) + bias, **CLOSE)
    modes = expected.argmax(axis + 1).mode(0)
    share = (expected.argmax(axis + 1) != modes.values).double().mean(0)
    torch.testing.assert_close(result.variation_ratio, share, **CLOSE)
    assert torch.equal(result.prediction, expected.mean(0).argmax(axis))


@pytest.mark.parametrize("chunks", CHUNKS, ids=["one", "single", "groups", "uneven"])
@pytest.mark.parametrize("task", ["classification", "regression", None])
def test_chunks_do_not_matter(task, chunks):
    values, spread = random(50, 6, 3), random(50, 6, 3).exp()
    options = {"quantiles": True} if task == "regression" else {}
    output, leaves = ((values[0], spread[0]), [values, spread]) if task == "regression" else (values[0], [values])
    one = result_of(output, leaves, task, **options)
    other = result_of(output, leaves, task, chunks, **options)
    expected = one.numpy()
    assert other.n == one.n == 50
    assert sorted(other.numpy()) == sorted(expected)
    for name, found in other.numpy().items():
        torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected[name]), **CLOSE)
    if task == "regression":
        torch.testing.assert_close(other.quantile([0.1, 0.5]), one.quantile([0.1, 0.5]), **CLOSE)


def test_one_logit_is_that_of_the_second_of_two_classes():
    logits = random(50, 6, 1) * 3
    one = result_of(logits[0], [logits], "classification", keep_samples=True)
    two = torch.cat([torch.zeros_like(logits), logits], -1)
    other = result_of(two[0], [two], "classification")
    torch.testing.assert_close(one.mean, other.mean[:, 1:], **CLOSE)
    torch.testing.assert_close(one.std, other.std[:, 1:], **CLOSE)
    torch.testing.assert_close(one.error.std, other.error.std[:, 1:], **CLOSE)
    torch.testing.assert_close(one.samples, logits.sigmoid(), **CLOSE)
    assert torch.equal(one.prediction, other.prediction)
    names = ("predictive_entropy", "expected_entropy", "mutual_information", "variation_ratio")
    for name in names:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), **CLOSE)
        torch.testing.assert_close(getattr(one.error, name), getattr(other.error, name), **CLOSE)


@pytest.mark.parametrize(("n", "uncorrected"), [(5, 0.162), (10, 0.182), (20, 0.193), (50, 0.199)])
def test_mutual_information_is_corrected_for_few_passes(n, uncorrected):
    """Probabilities from Dirichlet(2) over 10 classes, 4,000 examples; log turns them into logits."""
    alpha = torch.full((10,), 2.0, dtype=torch.float64)
    expected_entropy = torch.digamma(alpha.sum() + 1) - torch.digamma(alpha[0] + 1)
    truth = float(math.log(10) - expected_entropy)
    assert truth == pytest.approx(0.204, abs=1e-3)
    generator = torch.Generator().manual_seed(n)
    gamma = -torch.rand(n, 4000, 10, 2, generator=generator, dtype=torch.float64).log().sum(-1)  # of shape 2
    logits = (gamma / gamma.sum(-1, keepdim=True)).log()
    result = result_of(logits[0], [logits], "classification", (n,))
    plain, corrected = result.mutual_information_uncorrected, result.mutual_information
    assert float(plain.mean()) == pytest.approx(uncorrected, abs=2e-3)
    # What is left of the bias is of second order; 5 standard errors over the examples are for noise.
    noise = float(corrected.std()) / math.sqrt(4000)
    assert noise < 1e-3
    assert float(corrected.mean()) == pytest.approx(truth, abs=5 * noise + 0.06 / n**2)
    assert bool((corrected >= plain).all())
    assert bool((plain >= 0).all())


def test_certain_classes_take_no_logarithm_of_zero():
    logits = torch.tensor([[0.0, -math.inf, -math.inf], [0.0, 0.0, -math.inf]]).expand(50, 2, 3)
    result = result_of(logits[0], [logits], "classification")
    assert result.predictive_entropy.tolist() == pytest.approx([0, math.log(2)])
    assert result.mutual_information.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert result.error.mutual_information.tolist() == [0, 0]


def test_passes_that_agree_have_no_information_and_not_less():
    logits = random(1000, 4).expand(50, 1000, 4)
    result = result_of(logits[0], [logits], "classification")
    assert 0 <= result.mutual_information.min() <= result.mutual_information.max() < 1e-12
    assert result.mutual_information_uncorrected.min() >= 0


@pytest.mark.parametrize("scale", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("n", [3, 20])
def test_there_is_no_more_information_than_entropy(n, scale):
    logits = random(n, 500, 4) * scale
    result = result_of(logits[0], [logits], "classification", (n,))
    assert bool((result.mutual_information <= result.predictive_entropy).all())
    assert bool((result.mutual_information >= result.mutual_information_uncorrected).all())
    corrected = bald(logits.softmax(-1), corrected=True)
    torch.testing.assert_close(result.mutual_information, corrected, **CLOSE)
    is_bound = result.mutual_information == result.predictive_entropy
    assert bool(is_bound.any()) == (scale > 1)


def test_missing_numbers_of_a_classification_stay_with_their_example():
    logits = random(50, 3, 4)
    logits[7, 1, 2] = math.nan
    result = result_of(logits[0], [logits], "classification")
    for name in ("predictive_entropy", "expected_entropy", "mutual_information", "variation_ratio"):
        assert getattr(result, name).isnan().tolist() == [False, True, False]
        assert getattr(result.error, name).isnan().tolist() == [False, True, False]
    assert result.mean.isnan().any(-1).tolist() == [False, True, False]
    assert result.prediction.shape == (3,)


def test_logits_are_found_by_name_or_as_the_only_numbers():
    logits = random(50, 3, 4).float()
    hidden = random(50, 3, 7, seed=1).float()
    result = result_of({"hidden": hidden[0], "logits": logits[0]}, [hidden, logits], "classification")
    torch.testing.assert_close(result.mean["logits"].sum(-1), torch.ones(3))
    torch.testing.assert_close(result.mean["hidden"], hidden.mean(0))
    ids = torch.arange(3)
    result = result_of((ids, logits[0]), [None, logits], "classification")
    torch.testing.assert_close(result.mean[1].sum(-1), torch.ones(3))
    with pytest.raises(UnsupportedError, match=r"not clear: output\[0\] float32 \(3, 7\).*under the name `logits`"):
        result_of((hidden[0], logits[0]), [hidden, logits], "classification")
    with pytest.raises(UnsupportedError, match="it has no tensor"):
        result_of("text", [None], "classification")
    with pytest.raises(UnsupportedError, match="the logits is not clear"):
        result_of(ids, [ids.expand(50, 3)], "classification")


@pytest.mark.parametrize("given", ["logits", "probs", "one-hot"])
def test_a_categorical_distribution_has_logits_whatever_it_was_made_of(given):
    logits = random(50, 6, 4) * 2
    values = logits if given == "logits" else logits.softmax(-1)
    kind = distributions.OneHotCategorical if given == "one-hot" else distributions.Categorical
    output = kind(**{"logits" if given == "logits" else "probs": values[0]})
    result = result_of(output, [values], "classification", keep_samples=True, class_dim=0)
    expected = result_of(logits[0], [logits], "classification")
    for name, found in result.numpy().items():
        if not name.startswith("samples"):
            torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected.numpy()[name]), **CLOSE)
    torch.testing.assert_close(result.samples.probs, logits.softmax(-1), **CLOSE)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_parameter_of_a_distribution_is_no_output(task):
    """A distribution within an output, of which nothing else is a tensor, is not taken for a prediction."""
    for output in (
        {"policy": distributions.Poisson(MEANS[0].exp())},
        {"policy": distributions.Bernoulli(logits=MEANS[0])},
    ):
        with pytest.raises(UnsupportedError, match="is not clear"):
            result_of(output, [MEANS.exp()], task)
    with pytest.raises(UnsupportedError, match="or a categorical distribution"):
        result_of(distributions.Bernoulli(logits=MEANS[0]), [MEANS], "classification")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logarithms_of_probabilities_are_logits(dtype):
    values = random(50, 6, 4).softmax(-1).to(dtype)
    result = result_of(values[0].log(), [values.log()], "classification")
    torch.testing.assert_close(result.mean.double(), values.double().mean(0), rtol=0, atol=0.02)


def test_one_axis_may_be_that_of_examples():
    logits = random(50, 6)
    with pytest.raises(ArgumentError, match=r"`class_dim` must be 0 where.*logits.unsqueeze\(-1\)"):
        result_of(logits[0], [logits], "classification")
    result = result_of(logits[0], [logits], "classification", class_dim=0)
    torch.testing.assert_close(result.mean, logits.softmax(-1).mean(0), **CLOSE)
    assert result.prediction.shape == ()


@pytest.mark.parametrize("class_dim", [2, -3])
def test_an_axis_that_logits_do_not_have(class_dim):
    logits = random(50, 3, 4)
    with pytest.raises(ArgumentError, match=r"`class_dim` must be an axis of the logits.*shape \(3, 4\)"):
        result_of(logits[0], [logits], "classification", class_dim=class_dim)
    with pytest.raises(ArgumentError, match="one class or more"):
        result_of(logits[0, :, :0], [logits[:, :, :0]], "classification")


@pytest.mark.parametrize("rank", [4, 5])
def test_that_the_last_of_many_axes_is_not_that_of_classes_is_warned_of_unless_it_is_told(rank):
    """Logits of pixels are mostly of shape (batch, classes, height, width)."""
    logits = random(50, 2, 3, 4, *[5] * (rank - 3))
    with pytest.warns(
        UserWarning, match=rf"last of the {rank} axes.*class_dim=1 .* or class_dim={rank - 1} if"
    ) as told:
        result = result_of(logits[0], [logits], "classification")
    assert len(told) == 1
    torch.testing.assert_close(result.mean, logits.softmax(-1).mean(0), **CLOSE)
    for axis in (1, rank - 1, -3):
        result = result_of(logits[0], [logits], "classification", class_dim=axis)
        torch.testing.assert_close(result.mean, logits.softmax(axis if axis < 0 else axis + 1).mean(0), **CLOSE)


def test_the_last_axis_of_the_logits_of_tokens_is_taken_for_that_of_classes():
    logits = random(50, 2, 7, 4)
    result = result_of(logits[0], [logits], "classification")
    torch.testing.assert_close(result.mean, logits.softmax(-1).mean(0), **CLOSE)


def test_a_regression_without_variance_says_how_to_give_one():
    values = random(50, 6)
    result = result_of(values[0], [values], "regression", quantiles=True)
    torch.testing.assert_close(result.epistemic, values.var(0), **CLOSE)
    torch.testing.assert_close(result.variance, values.var(0), **CLOSE)
    torch.testing.assert_close(result.std, values.std(0), **CLOSE)
    torch.testing.assert_close(result.prediction, values.mean(0), **CLOSE)
    with pytest.raises(UnavailableError, match=r"gives no variance of its own\. Let it return"):
        _ = result.aleatoric
    with pytest.raises(UnavailableError, match="needs task='classification'; this result has task='regression'"):
        _ = result.mutual_information
    low, high = result.gaussian_interval(0.9)
    expected = stats.norm.interval(0.9, values.mean(0).numpy(), values.std(0).numpy())
    torch.testing.assert_close(low, torch.as_tensor(expected[0]), **CLOSE)
    torch.testing.assert_close(high, torch.as_tensor(expected[1]), **CLOSE)


MEANS, VARIANCES = random(50, 6, 2), random(50, 6, 2, seed=1).exp()
HEADS = {
    "tuple": ((MEANS[0], VARIANCES[0]), [MEANS, VARIANCES]),
    "list": ([MEANS[0], VARIANCES[0]], [MEANS, VARIANCES]),
    "variance": ({"mean": MEANS[0], "variance": VARIANCES[0]}, [MEANS, VARIANCES]),
    "var": ({"var": VARIANCES[0], "mean": MEANS[0]}, [VARIANCES, MEANS]),
    "log_variance": ({"mean": MEANS[0], "log_variance": VARIANCES[0].log()}, [MEANS, VARIANCES.log()]),
    "logvar": ({"mean": MEANS[0], "logvar": VARIANCES[0].log()}, [MEANS, VARIANCES.log()]),
    "log_var": ({"mean": MEANS[0], "log_var": VARIANCES[0].log()}, [MEANS, VARIANCES.log()]),
    "distribution": (distributions.Normal(MEANS[0], VARIANCES[0].sqrt()), [MEANS, VARIANCES.sqrt()]),
    "independent": (
        distributions.Independent(distributions.Normal(MEANS[0], VARIANCES[0].sqrt()), 1),
        [MEANS, VARIANCES.sqrt(), None],
    ),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_variance_that_the_model_gives_is_the_aleatoric_part(head):
    output, leaves = HEADS[head]
    result = result_of(output, leaves, "regression", CHUNKS[3])
    torch.testing.assert_close(result.epistemic, MEANS.var(0), **CLOSE)
    torch.testing.assert_close(result.aleatoric, VARIANCES.mean(0), **CLOSE)
    torch.testing.assert_close(result.variance, MEANS.var(0) + VARIANCES.mean(0), **CLOSE)
    torch.testing.assert_close(result.error.aleatoric, VARIANCES.std(0) / math.sqrt(50), **CLOSE)
    torch.testing.assert_close(result.prediction, MEANS.mean(0), **CLOSE)
    total = (MEANS.var(0) + VARIANCES.mean(0)).sqrt()
    if isinstance(output, distributions.Distribution):
        torch.testing.assert_close(result.mean, MEANS.mean(0), **CLOSE)
        torch.testing.assert_close(result.std, total, **CLOSE)
    else:
        assert type(result.mean) is type(result.std) is type(output)
        main = "mean" if isinstance(output, dict) else 0
        torch.testing.assert_close(result.mean[main], MEANS.mean(0), **CLOSE)
        torch.testing.assert_close(result.std[main], total, **CLOSE)
    other = result_of(VARIANCES[0], [VARIANCES], None)
    if head == "tuple":
        torch.testing.assert_close(result.std[1], other.std, **CLOSE)


def test_a_variance_that_is_none_is_refused_before_anything_is_taken_in():
    running = Running("regression")
    running.add((MEANS[0], VARIANCES[0]), [MEANS, VARIANCES])
    before = running.result().numpy()
    with pytest.raises(UnsupportedError, match=r"output\[1\] is negative.*`log_variance`"):
        running.add((MEANS[0], VARIANCES[0]), [MEANS, VARIANCES.log()])
    assert running.n == 50
    assert all((found == before[name]).all() for name, found in running.result().numpy().items())


def test_predictions_that_are_not_clear():
    with pytest.raises(UnsupportedError, match=r"the prediction is not clear.*as a tuple of two tensors of one shape"):
        result_of((MEANS[0], MEANS[0, 0]), [MEANS, MEANS[:, 0]], "regression")
    result = result_of({"logits": MEANS[0], "hidden": VARIANCES[0]}, [MEANS, VARIANCES], "regression")
    torch.testing.assert_close(result.prediction, MEANS.mean(0), **CLOSE)


def test_a_mixture_has_the_variance_between_its_parts_too():
    weights, parts = random(50, 6, 2).softmax(-1), random(50, 6, 2, seed=1)
    output = distributions.MixtureSameFamily(
        distributions.Categorical(weights[0]), distributions.Normal(parts[0], 0.5 * torch.ones_like(parts[0]))
    )
    result = result_of(output, [weights, parts, None], "regression")
    mean = (weights * parts).sum(-1)
    torch.testing.assert_close(result.prediction, mean.mean(0), **CLOSE)
    variance = 0.25 + (weights * parts.square()).sum(-1) - mean.square()
    torch.testing.assert_close(result.aleatoric, variance.mean(0), **CLOSE)


def test_a_distribution_without_a_variance_of_its_own():
    class Located(distributions.Normal):
        @property
        def variance(self):
            raise NotImplementedError

    result = result_of(Located(MEANS[0], 1.0), [MEANS, None], "regression")
    torch.testing.assert_close(result.variance, MEANS.var(0), **CLOSE)
    assert not hasattr(result, "aleatoric")


def test_a_distribution_whose_scale_no_dropout_touches():
    output = distributions.Normal(MEANS[0], 2.0)
    result = result_of(output, [MEANS, None], "regression", keep_samples=True)
    torch.testing.assert_close(result.aleatoric, torch.full_like(MEANS[0], 4.0), **CLOSE)
    assert result.error.aleatoric.count_nonzero() == 0
    assert type(result.samples) is distributions.Normal
    assert result.samples.batch_shape == (50, 6, 2)


NO_MEAN = {
    "Categorical": lambda of: distributions.Categorical(logits=of),
    "masked": lambda of: distributions.Categorical(logits=of - of.new_tensor([0, math.inf])),
    "Cauchy": lambda of: distributions.Cauchy(of, of.exp()),
    "HalfCauchy": lambda of: distributions.HalfCauchy(of.exp()),
    "RelaxedBernoulli": lambda of: distributions.RelaxedBernoulli(of.exp(), logits=of),
    "Independent": lambda of: distributions.Independent(distributions.Cauchy(of, of.exp()), 1),
}


@pytest.mark.parametrize("name", NO_MEAN)
def test_a_distribution_without_a_mean_predicts_no_number(name):
    kind = "Categorical" if name == "masked" else name
    with pytest.raises(UnsupportedError, match=rf'without a mean, a {kind},.*task="classification"'):
        Running("regression").add(NO_MEAN[name](MEANS[0]), [MEANS])
    running = Running(None)
    running.add(NO_MEAN["Cauchy"](MEANS[0]), [MEANS, MEANS.exp()])
    torch.testing.assert_close(running.result().mean.loc, MEANS.mean(0))


def test_a_mean_that_some_elements_lack_is_missing_there():
    freedom = torch.tensor([0.5, 3.0], dtype=torch.float64)
    result = result_of(distributions.StudentT(freedom), [freedom.expand(50, 2), None, None], "regression")
    assert result.prediction.isnan().tolist() == [True, False]
    scale = torch.tensor([math.nan], dtype=torch.float64)
    output = distributions.HalfNormal(scale, validate_args=False)
    assert result_of(output, [scale.expand(50, 1)], "regression").prediction.isnan().all()
