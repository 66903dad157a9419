"""Empirical Bayes refuses what it cannot answer, and says where it is."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_kaem import empirical_bayes

Y, ERROR = np.array([0.3, -1.2, 2.0, 0.7]), np.array([1.0, 0.5, 1.0, 2.0])


def with_error(effect, error):
    return dist.Normal(effect, error)


def changed(array, at, value):
    array = np.array(array, float)
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((changed(Y, 2, np.nan), ERROR), r"data\[0\] must be finite, .* the first nan for datum 2"),
        ((Y, changed(ERROR, 1, np.inf)), r"data\[1\] must be finite, .* the first inf for datum 1"),
        ((Y, changed(ERROR, 3, 0.0)), r"scale of Normal is 0 for datum 3"),
        ((Y, changed(ERROR, 1, -0.5)), r"scale of Normal is -0.5 for datum 1"),
        ((np.ma.masked_array(Y, [False, True, False, False]), ERROR), r"data\[0\] has 1 masked"),
        ((Y, ERROR[:3]), r"data\[1\] must have as many entries as data\[0\], 4, got 3"),
        ((np.empty(0), np.empty(0)), r"data\[0\] must have one entry for each effect"),
    ],
)
def test_data_that_are_wrong_are_named(data, message):
    with pytest.raises(ValueError, match=message):
        empirical_bayes(with_error, *data)


@pytest.mark.parametrize(
    ("likelihood", "error", "message"),
    [
        (lambda effect, error: effect, TypeError, "likelihood must return a NumPyro distribution"),
        (lambda effect: dist.Normal(effect, 1.0), TypeError, "positional argument"),
        (lambda effect, error: dist.Normal(effect, ERROR), ValueError, "what differs from datum to datum"),
        (lambda effect, error: dist.Normal(effect, error).to_event(1), ValueError, "event shape"),
        (0.5, TypeError, "likelihood"),
        (lambda effect, error: dist.HalfNormal(jnp.exp(effect)), ValueError, "datum 1 is -1.2"),
        (lambda effect, error: dist.Normal(jnp.log(effect), error), ValueError, "loc of Normal is -inf"),
    ],
)
def test_likelihoods_that_are_no_distribution_of_the_data_are_refused(likelihood, error, message):
    with pytest.raises(error, match=message):
        empirical_bayes(likelihood, Y, ERROR)


def test_a_datum_that_no_effect_explains_is_named():
    class Never(dist.Normal):
        def log_prob(self, value):
            return jnp.where(value > 1.5, -jnp.inf, super().log_prob(value))

    with pytest.raises(ValueError, match="zero at all of them for 1, the first datum 2"):
        empirical_bayes(lambda effect, error: Never(effect, error), Y, ERROR)


def test_effects_at_which_the_likelihood_has_no_value_are_named():
    with pytest.raises(ValueError, match="at the effect -"):
        empirical_bayes(lambda rate: dist.Poisson(rate + 2.0), np.array([3, 0, 2, 1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0, -1.0, 1.0, 1.0]}, r"weights must be finite and not negative, got -1.0 for datum 1"),
        ({"weights": [1.0, 1.0]}, r"weights must have shape \(4,\)"),
        ({"weights": np.zeros(4)}, "weights must not all be zero"),
        ({"covariates": np.ones(4)}, "column 0 is 1 throughout"),
        ({"covariates": np.arange(3.0)}, r"covariates must have shape \(4, num_covariates\)"),
        ({"covariates": np.outer([1.0, 2.0, 0.0, 5.0], [1.0, 2.0])}, "rank of 2 columns, less their means, is 1"),
        ({"scale_covariates": changed(Y, 1, np.nan)}, "scale_covariates must be finite, got nan for datum 1"),
        ({"point_mass": np.nan}, "point_mass must be"),
        ({"point_mass": -1.0, "reference": dist.Gamma(2.0, 1.0)}, r"point_mass must be in the support"),
        ({"smoothness": -1.0}, "smoothness must be finite and at least 0"),
        ({"smoothness": "loocv"}, 'smoothness must be "cross-validation"'),
        ({"smoothness": "cross-validation"}, "at least 10 entries for 10 folds"),
        ({"reference": dist.Poisson(3.0)}, "reference"),
        ({"reference": dist.Normal(jnp.zeros(3), 1.0)}, r"reference must have batch shape \(\)"),
        ({"num_folds": 1}, "num_folds"),
        ({"chunk_size": 0}, "chunk_size"),
    ],
)
def test_options_that_are_wrong_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        empirical_bayes(with_error, Y, ERROR, **options)


@pytest.fixture(scope="module")
def result():
    return empirical_bayes(with_error, Y, ERROR)


def test_questions_that_have_no_answer_are_refused(result):
    with pytest.raises(ValueError, match="q must be one or several probabilities"):
        result.quantile([0.5, 1.5])
    with pytest.raises(ValueError, match="low must not be above high"):
        result.probability(1.0, 0.0)
    with pytest.raises(ValueError, match="one for each of 4 data"):
        result.probability(low=np.zeros(3))
    with pytest.raises(TypeError, match="key"):
        result.sample(0)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        result.density_band(np.zeros(1), level=95.0)
    with pytest.raises(ValueError, match="data must be 2 arrays"):
        result.posterior(Y)
    with pytest.raises(ValueError, match="covariates must have 0 columns"):
        result.posterior(Y, ERROR, covariates=Y)
