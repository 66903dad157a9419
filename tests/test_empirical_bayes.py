"""Empirical Bayes: a prior learned from noisy measurements against the best of all priors, and against the truth."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import eqx_module
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import norm
from speed import optimisation

from numpyro_kaem import BSpline, ImportanceMLE, ImportanceSampling, KAPrior, UnivariateEnergy, fit

pytestmark = pytest.mark.slow

WEIGHTS, MEANS, SPREADS = np.array([0.7, 0.3]), np.array([0.0, 3.0]), np.array([0.4, 0.6])


def simulate(seed, num_data):
    """Effects of two populations, the sizes of their errors, and the measurements."""
    rng = np.random.default_rng(seed)
    population = (rng.random(num_data) < WEIGHTS[1]).astype(int)
    z = rng.normal(MEANS[population], SPREADS[population])
    error = rng.uniform(0.5, 1.5, num_data)
    return z, error, rng.normal(z, error)


def learned_effects(y, error, domain, bend):
    basis = BSpline(num_intervals=20, degree=3, domain=domain)
    initial = UnivariateEnergy.init(jax.random.key(0), basis=basis, base_activation="identity", scale=0.0)
    energy = eqx_module("energy", initial)
    reference = dist.Normal(
        numpyro.param("location", 0.0), numpyro.param("scale", 2.0, constraint=dist.constraints.positive)
    )
    differences = jnp.diff(energy.spline_weight * energy.coefficients, 2)
    numpyro.factor("smoothness", dist.Normal(0.0, bend).log_prob(differences).sum())
    with numpyro.plate("data", y.shape[0]):
        z = numpyro.sample("z", KAPrior(energy, reference))
        numpyro.sample("y", dist.Normal(z, error), obs=y)


def npmle(log_likelihood, iterations=2_000):
    """Log-likelihood per datum of the nonparametric maximum-likelihood prior, and posterior weights under it.

    The score is an upper bound for every prior on the grid: by Jensen's inequality no prior gains more than
    log max_z D(z) on the one that EM has reached, D(z) = mean_i p(y_i | z) / p(y_i).
    """
    shift = log_likelihood.max(1, keepdims=True)
    likelihood = np.exp(log_likelihood - shift)
    mass = np.full(likelihood.shape[1], 1.0 / likelihood.shape[1])
    for _ in range(iterations):
        mass = mass * (likelihood.T @ (1.0 / (likelihood @ mass)) / len(likelihood))
    evidence = likelihood @ mass
    slack = np.log(np.max(likelihood.T @ (1.0 / evidence) / len(likelihood)))
    return np.mean(np.log(evidence) + shift[:, 0]) + slack, likelihood * mass / evidence[:, None]


def normal_maximum_likelihood(y, error):
    """Log-likelihood per datum and posterior means of the best normal prior, in closed form but for two numbers."""

    def loss(parameters):
        return -np.mean(norm.logpdf(y, parameters[0], np.hypot(np.exp(parameters[1]), error)))

    best = minimize(loss, [y.mean(), 0.0])
    location, variance = best.x[0], np.exp(2 * best.x[1])
    return -best.fun, (variance * y + error**2 * location) / (variance + error**2)


def study(seed, num_draws=300, num_steps=500, num_data=1_000):
    """Fit one simulated data set, and score everything by quadrature in float64."""
    z, error, y = simulate(seed, num_data)
    domain = (float(y.min()), float(y.max()))
    data = y.astype(np.float32), error.astype(np.float32)
    kwargs = {"domain": domain, "bend": 2.0}
    result = fit(
        jax.random.key(seed),
        learned_effects,
        data,
        objective=ImportanceMLE(num_draws),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.05, num_steps, alpha=0.01)),
        num_epochs=num_steps,
        batch_size=len(y),
        model_kwargs=kwargs,
        progress=False,
    )
    params = result.params
    prior = KAPrior(params["energy$params"], dist.Normal(params["location"], params["scale"]))

    points = np.linspace(y.min() - 4.0, y.max() + 4.0, 2_001)
    log_likelihood = norm.logpdf(y[:, None], points, error[:, None])
    true_density = norm.pdf(points[:, None], MEANS, SPREADS) @ WEIGHTS
    log_density = np.asarray(jax.jit(prior.log_prob)(points.astype(np.float32)), np.float64)
    scores, errors = {}, {}
    for name, log_prior in {"learned": log_density, "true": np.log(true_density)}.items():
        joint = log_likelihood + log_prior + np.log(points[1] - points[0])
        evidence = logsumexp(joint, axis=1)
        scores[name] = evidence.mean()
        errors[name] = np.mean((np.exp(joint - evidence[:, None]) @ points - z) ** 2)
    atoms = np.linspace(*domain, 401)
    scores["bound"], weights = npmle(norm.logpdf(y[:, None], atoms, error[:, None]))
    errors["nonparametric"] = np.mean((weights @ atoms - z) ** 2)
    scores["normal"], normal_means = normal_maximum_likelihood(y, error)
    errors["normal"] = np.mean((normal_means - z) ** 2)
    errors["measured"] = np.mean((y - z) ** 2)
    return SimpleNamespace(
        effects=z,
        scores=scores,
        errors=errors,
        points=points,
        density=np.exp(log_density),
        params=params,
        data=data,
        kwargs=kwargs,
        history=result.history,
    )


@pytest.fixture(scope="module")
def two_populations():
    with optimisation():
        return study(0, num_draws=200, num_steps=300)


def test_learned_prior_comes_within_a_hundredth_of_a_nat_of_the_best_of_all_priors(two_populations):
    scores = two_populations.scores
    assert scores["learned"] <= scores["bound"]
    assert scores["bound"] - scores["learned"] < 0.01
    assert scores["bound"] - scores["normal"] > 0.05


def test_learned_prior_has_lower_squared_error_than_a_normal_one(two_populations):
    errors = two_populations.errors
    assert errors["learned"] < 0.9 * errors["normal"]
    assert errors["learned"] < 1.03 * errors["true"]
    assert errors["normal"] < errors["measured"]


def test_learned_prior_has_two_modes_and_no_spikes(two_populations):
    points, density = two_populations.points, two_populations.density
    peaks = np.flatnonzero((density[1:-1] > density[:-2]) & (density[1:-1] > density[2:]) & (density[1:-1] > 0.02)) + 1
    np.testing.assert_allclose(points[peaks], MEANS, atol=0.5)
    true_height = WEIGHTS[0] * norm.pdf(0.0, 0.0, SPREADS[0])
    assert density.max() < 1.5 * true_height


def test_importance_sampling_agrees_with_quadrature(two_populations):
    study = two_populations
    posterior = ImportanceSampling(2_000).run(
        jax.random.key(1), learned_effects, study.params, *study.data, **study.kwargs
    )
    # Data share their draws, so the error of the mean log-evidence is that of a mean over draws (delta method); six
    # standard errors are exceeded with a probability below 1e-8. Logarithms of means are too small by half a variance,
    # which has few degrees of freedom: ten times its expectation is exceeded with a probability below 1e-6.
    relative = np.exp(posterior.log_weights - posterior.log_evidence[:, None])
    std_error = relative.mean(0).std() / 2_000**0.5
    bound = 6 * std_error + 10 * np.mean(posterior.log_evidence_std_error**2) / 2
    assert bound < 0.05
    assert abs(posterior.log_evidence.mean() - study.scores["learned"]) < bound
    means = np.einsum("is,is->i", relative, posterior.latents["z"]) / 2_000
    assert abs(np.mean((means - study.effects) ** 2) - study.errors["learned"]) < 0.02


def test_training_loss_is_the_marginal_likelihood(two_populations):
    # The loss adds the penalty of the coefficients' differences, which is counted once for all data.
    energy = two_populations.params["energy$params"]
    differences = np.diff(energy.spline_weight * energy.coefficients, 2)
    penalty = norm.logpdf(differences, 0.0, two_populations.kwargs["bend"]).sum() / 1_000
    loss = two_populations.history["epoch_loss"][-100:]
    # Six standard errors (a false alarm in 1e8), and the bias of 200 draws, which is below 0.01.
    bound = 6 * loss.std() / 10 + 0.01
    assert bound < 0.06
    assert abs(-loss.mean() - penalty - two_populations.scores["learned"]) < bound


def test_the_claims_hold_on_other_data(optimised):
    result = study(1, num_draws=200, num_steps=300, num_data=2_000)
    assert result.scores["learned"] <= result.scores["bound"]
    assert result.scores["bound"] - result.scores["learned"] < 0.01
    assert result.errors["learned"] < 0.85 * result.errors["normal"]
    assert result.errors["learned"] < 1.02 * result.errors["true"]


def test_few_draws_bias_the_prior(two_populations):
    few, many = study(0, num_draws=5, num_steps=300), two_populations
    assert many.scores["learned"] - few.scores["learned"] > 0.01
    assert few.errors["learned"] > many.errors["learned"]
