"""Every sampler and objective on every model of the zoo: right within its errors, or refused in words."""

import re
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_zoo import GLOBAL, SAMPLERS, ZOO

from numpyro_kaem import (
    MALA,
    ImportanceMLE,
    ImportanceSampling,
    Ladder,
    Langevin,
    LangevinMLE,
    LatentModel,
    ParallelTempering,
    TemperedSMC,
    ThermodynamicMLE,
)

KEY = jax.random.key(0)
# Standard errors that results may be off, of which each has a false alarm in 2 million; seeds are fixed.
FIVE = 5.0
RUN = {
    "importance": ImportanceSampling(50_000, chunk_size=10_000),
    "smc": TemperedSMC(num_particles=2_000, num_runs=2, progress=False),
    "tempering": ParallelTempering(Ladder.power(8), num_steps=1_500, num_chains=4, progress=False),
    "langevin": Langevin(num_steps=2_500, num_chains=4, progress=False),
}
# What `make test` runs by importance sampling; all others are for `make test-zoo`.
DEFAULT = {
    *(
        "mask on rows",
        "scale on a latent",
        "scale on rows",
        "imputation by a factor",
        "imputation by an observed value",
    ),
    *("random walk in a scan", "a plate in a scan", "a reversed scan", "scope", "lift", "ragged rows"),
    *("NumPy on the data", "table", "series"),
}
TO_ARVIZ = {"imputation by an observed value", "a reversed scan", "scope", "ragged rows", "table"}
# These differ from others in how they are read, which samplers share.
READ = {
    *("keyword arguments", "condition", "intervention", "one row", "deterministic", "half-Cauchy", "waiting times"),
    *("NumPy on the data", "a branch on the data", "table", "series", "list"),
}
# Chains over a ladder and at one temperature are moved by the same code: every model meets one of them.
CASES = [
    pytest.param(
        name, kind, marks=() if kind == "importance" and (name in DEFAULT or ZOO[name].refusals) else pytest.mark.zoo
    )
    for number, name in enumerate(ZOO)
    for kind in SAMPLERS
    if kind == "importance"
    or ZOO[name].refusals
    or (name not in READ and kind != ("langevin", "tempering")[number % 2])
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_samplers_are_right_or_say_why_not(name, kind):
    case = ZOO[name]
    run = lambda: RUN[kind].run(KEY, case.model, {}, *case.data, **case.kwargs)  # noqa: E731
    if kind in case.refusals:
        with pytest.raises((ValueError, TypeError), match=case.refusals[kind]):
            run()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        posterior = run()
    assert np.all(np.isfinite(posterior.ess)) and np.all(posterior.ess > 40)
    if posterior.log_evidence is not None:
        error = np.abs(posterior.log_evidence - np.asarray(case.log_evidence, float))
        # Rounding in float32, and the logarithm's own bias.
        assert np.all(error < FIVE * posterior.log_evidence_std_error + 0.005), (
            error,
            posterior.log_evidence_std_error,
        )
    for site, (mean, sd) in case.moments.items():
        mean, sd = np.asarray(mean, float), np.asarray(sd, float)
        # From the exact means, so that nothing cancels: rows of data come first in these, and not in what is mapped.
        first = posterior.expectation(lambda z, site=site: z[site])
        draws = replace(posterior, latents={site: (posterior.latents[site] - mean[:, None]) ** 2})
        square = draws.expectation(lambda z, site=site: z[site])
        ess = posterior.ess.reshape(-1, *[1] * (mean.ndim - 1))
        assert np.all(np.abs(first - mean) < FIVE * sd / np.sqrt(ess) + 1e-3), (site, first, mean)
        spread = np.sqrt(square)
        assert np.all(np.abs(spread - sd) < FIVE * 2.0 * sd / np.sqrt(ess) + 2e-3), (site, spread, sd)
    if kind == "importance" and name in TO_ARVIZ:  # what it converts does not ask where draws come from
        posterior.to_arviz(num_prior_samples=2, num_predictive_samples=2, num_samples=4)


BY_ROW = [
    name for name, case in ZOO.items() if not case.refusals and (np.size(case.log_evidence) > 1 or name == "one row")
]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.zoo) if name in BY_ROW[1:] else name for name in ZOO]
)
def test_the_loss_is_minus_the_log_evidence(name):
    case, objective = ZOO[name], ImportanceMLE(20_000)

    def loss():
        latent_model = LatentModel(case.model, {}, *case.data, **case.kwargs)
        latent_model.require_per_datum("ImportanceMLE")
        return latent_model, jax.jit(lambda key: objective.evaluate(key, latent_model, None)[0])(KEY)

    if "objective" in case.refusals or (np.shape(case.log_evidence) in ((), (1,)) and name != "one row"):
        with pytest.raises(
            (ValueError, TypeError, jax.errors.JAXTypeError),
            match=f"{case.refusals.get('objective', '')}|{re.escape(GLOBAL)}|was called on traced array|truth value",
        ):
            loss()
        return
    latent_model, value = loss()
    # Of S draws the relative variance of a mean weight is at most 1 / 100 here: six hundredths of a nat a datum.
    expected = -latent_model.scale * np.sum(case.log_evidence)
    assert abs(float(value) - expected) < 0.06 * latent_model.scale * len(case.log_evidence)


STILL = MALA(step_size=0.4)
CHAIN_OBJECTIVES = {
    "langevin": LangevinMLE(STILL, 150, num_chains=200, persistent=False),
    "tempering": ThermodynamicMLE(Ladder.power(5), STILL, 3_000, persistent=False),
    "smc": ThermodynamicMLE(Ladder.power(5), STILL, 10, sampler="smc", num_particles=3_000),
}


@pytest.mark.zoo
# Chains at one temperature, and in turn those over a ladder and particles.
@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for i, name in enumerate(BY_ROW) for kind in ("langevin", ("tempering", "smc")[i % 2])],
)
def test_chain_objectives_are_where_the_posteriors_are(name, kind):
    """`LangevinMLE` has the posterior mean of the log-joint for its loss, `ThermodynamicMLE` the log-evidence."""
    case, objective = ZOO[name], CHAIN_OBJECTIVES[kind]
    latent_model = LatentModel(case.model, {}, *case.data, **case.kwargs)
    value = -jax.jit(lambda key: objective.evaluate(key, latent_model, None)[0])(KEY) / latent_model.scale
    if kind != "langevin":
        assert abs(value - np.sum(case.log_evidence)) < 0.06 * len(case.log_evidence)
        return
    posterior = RUN["importance"].run(KEY, case.model, {}, *case.data, **case.kwargs)
    joint = jax.vmap(lambda z, row: jax.vmap(lambda z: jnp.add(*latent_model.log_parts(z, *row)))(z))
    values = np.asarray(joint(posterior.latents, latent_model.rows))
    weights = np.exp(posterior.log_weights - posterior.log_weights.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    mean = np.sum(weights * values, 1)
    variance = np.sum(weights * (values - mean[:, None]) ** 2, 1)
    assert abs(value - mean.sum()) < FIVE * np.sqrt(variance.sum() / 200 + np.sum(variance / posterior.ess)) + 1e-3


@pytest.mark.parametrize("name", ["random walk in a scan", "a reversed scan", "positive states in a scan"])
def test_scans_are_moved_step_by_step(name):
    """Densities in unconstrained coordinates, which chains need: those of the latents, with the transform's volume."""
    case = ZOO[name]
    latent_model = LatentModel(case.model, {}, *case.data)
    (z,) = latent_model.sample_prior(KEY, 1).values()
    (site,) = latent_model.latent_shapes
    z = {site: z[0]}
    u = latent_model.unconstrain(z)
    volume = float(jnp.sum(jnp.log(z[site]))) if name.startswith("positive") else 0.0
    np.testing.assert_allclose(
        latent_model.log_prior(u, unconstrained=True), latent_model.log_prior(z) + volume, rtol=1e-5
    )
    np.testing.assert_allclose(
        latent_model.log_likelihood(u, unconstrained=True), latent_model.log_likelihood(z), rtol=1e-5
    )
