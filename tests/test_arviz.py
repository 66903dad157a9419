"""Conversion to ArviZ, on whichever line of ArviZ is installed."""

import functools
import importlib.util
from dataclasses import replace

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.reparam import LocScaleReparam
from scipy import stats
from speed import slow_unless

from numpyro_kaem.posterior import EllipticalSlice, ImportanceSampling, Langevin, ParallelTempering, TemperedSMC
from numpyro_kaem.posterior.pareto import pareto_smooth

X = np.array([0.5, -1.0, 2.0], np.float32)
Y = np.array([[0.1, 0.2], [0.0, 1.0], [-1.0, 0.5]], np.float32)


def model(x):
    with numpyro.plate("rows", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        a = numpyro.sample("a", dist.Normal())
        numpyro.sample("x", dist.Normal(z.sum(-1) + a, 1.0), obs=x)


@pytest.fixture(scope="module")
def posterior():
    return ImportanceSampling(2_000).run(jax.random.key(0), model, {}, X)


@pytest.fixture(scope="module")
def converted(posterior):
    return posterior.to_arviz(num_samples=400)


CHEAP = {"num_prior_samples": 0, "num_predictive_samples": 0, "log_likelihood": False}


def dims_of(group):
    return {name: group[name].dims for name in group.data_vars}


def group_names(idata):
    return {str(name).strip("/") for name in (idata.groups() if callable(idata.groups) else idata.groups)} - {""}


def test_groups_dimensions_and_coordinates(converted):
    by_draw = ("chain", "draw", "rows")
    latents = {"z": (*by_draw, "z_dim_0"), "a": by_draw}
    by_datum = dict.fromkeys(["log_evidence", "log_evidence_std_error", "ess", "pareto_k"], ("rows",))
    dims = {
        "posterior": latents,
        "prior": latents,
        "posterior_predictive": {"x": by_draw},
        "log_likelihood": {"x": by_draw},
        "sample_stats": {**by_datum, "log_weights": ("rows", "particle"), "lp": by_draw},
        "observed_data": {"x": ("rows",)},
    }
    assert group_names(converted) == set(dims)
    for group, variables in dims.items():
        assert dims_of(converted[group]) == variables
        np.testing.assert_array_equal(converted[group].coords["rows"], [0, 1, 2])
    assert converted["posterior"].sizes["chain"] == 1
    assert converted["posterior"].sizes["draw"] == converted["posterior_predictive"].sizes["draw"] == 400
    assert converted["prior"].sizes["draw"] == 500


def test_values_are_the_resampled_posterior_s(posterior, converted):
    draws = posterior.resample(jax.random.key(0), 400)
    np.testing.assert_array_equal(converted["posterior"]["z"][0].transpose("rows", ...), draws.latents["z"])
    np.testing.assert_allclose(converted["log_likelihood"]["x"][0].T, draws.log_likelihood, rtol=1e-5)
    np.testing.assert_array_equal(converted["observed_data"]["x"], X)
    np.testing.assert_array_equal(converted["sample_stats"]["ess"], posterior.ess)
    np.testing.assert_array_equal(converted["sample_stats"]["pareto_k"], posterior.pareto_k)
    np.testing.assert_array_equal(converted["sample_stats"]["log_weights"], posterior.log_weights)
    log_prior = stats.norm.logpdf(draws.latents["z"]).sum(-1) + stats.norm.logpdf(draws.latents["a"])
    np.testing.assert_allclose(
        converted["sample_stats"]["lp"][0].T, log_prior + draws.log_likelihood, rtol=1e-4, atol=1e-4
    )


def test_prior_and_replicated_data_have_the_model_s_moments(converted):
    # Standard errors of 1,500 prior draws: 0.026 of the mean, 0.018 of the deviation.
    a = converted["prior"]["a"].values
    np.testing.assert_allclose([a.mean(), a.std()], [0.0, 1.0], atol=0.1)
    assert np.abs(np.corrcoef(a[0].T) - np.eye(3)).max() < 0.25
    # x = s + noise, s ~ Normal(0, sqrt(3)): replicated data are Normal(3/4 x, sqrt(3/4 + 1)).
    replicated = converted["posterior_predictive"]["x"][0]
    np.testing.assert_allclose(replicated.mean("draw"), 0.75 * X, atol=0.4)
    np.testing.assert_allclose(replicated.std("draw"), 1.75**0.5, atol=0.25)
    noise = replicated - converted["posterior"]["z"][0].sum("z_dim_0") - converted["posterior"]["a"][0]
    np.testing.assert_allclose(noise.std("draw"), 1.0, atol=0.2)
    assert abs(float(np.corrcoef(noise.values.T)[0, 1])) < 0.25


def test_summary_shows_the_posterior_mean_of_every_datum(converted):
    summary = az.summary(converted, var_names=["a"], round_to="none", kind="stats")
    # a given x is Normal(x / 4, sqrt(3 / 4)); 400 draws have a standard error of 0.045, and 0.3 is six of
    # them.
    np.testing.assert_allclose(summary["mean"].astype(float), X / 4, atol=0.3)


def test_loo_estimates_the_sum_of_the_log_evidence(posterior, converted):
    # A rough estimate: harmonic means of 400 draws.
    np.testing.assert_allclose(elpd(az.loo(converted)), posterior.log_evidence.sum(), atol=1.0)


def elpd(loo):
    return loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd


def test_netcdf_round_trip(converted, tmp_path):
    if not any(map(importlib.util.find_spec, ["h5netcdf", "netCDF4"])):
        pytest.skip("no NetCDF backend installed")
    path = str(tmp_path / "posterior.nc")
    converted.to_netcdf(path)
    loaded = az.from_netcdf(path)
    for group in group_names(converted):
        for name in converted[group].data_vars:
            np.testing.assert_array_equal(loaded[group][name], converted[group][name])
            assert loaded[group][name].dims == converted[group][name].dims


def test_names_and_coordinates_can_be_given(posterior):
    converted = posterior.to_arviz(
        jax.random.key(1),
        10,
        method="stratified",
        num_prior_samples=3,
        num_predictive_samples=4,
        dims={"z": ["axis"]},
        coords={"axis": ["left", "right"], "rows": ["a", "b", "c"]},
    )
    assert converted["posterior"]["z"].sel(axis="left", rows="b").shape == (1, 10)
    assert converted["prior"]["z"].sel(axis="left", rows="b").shape == (1, 3)
    np.testing.assert_array_equal(converted["posterior_predictive"]["x"].sel(rows="b").coords["draw"], [0, 3, 6, 9])


def test_groups_that_cost_time_can_be_left_out(posterior):
    converted = posterior.to_arviz(num_samples=5, num_prior_samples=0, num_predictive_samples=0, log_likelihood=False)
    assert group_names(converted) == {"posterior", "sample_stats", "observed_data"}
    assert "lp" not in converted["sample_stats"]


def test_bad_arguments_are_named(posterior):
    with pytest.raises(ValueError, match=r"dims\['z'\] must name the 1 axes without a plate, .* got \['i', 'j'\]"):
        posterior.to_arviz(num_samples=5, dims={"z": ["i", "j"]})
    with pytest.raises(ValueError, match="latent_model is None"):
        replace(posterior, latent_model=None).to_arviz()


QUIET = {"num_prior_samples": 10, "num_predictive_samples": 20}
SAMPLERS = {
    "Langevin": Langevin(num_steps=200, num_chains=3, progress=False),
    "ParallelTempering": ParallelTempering([0.0, 0.3, 1.0], num_steps=200, num_chains=3, progress=False),
    "TemperedSMC": TemperedSMC(num_particles=200, num_runs=3, num_mcmc_steps=3, progress=False),
    # Its kernel samples a whitened model, but the posterior is of the user's.
    "whitened": Langevin(EllipticalSlice(), num_steps=200, num_chains=3, progress=False),
}


@functools.cache
def of_sampler(name):
    return SAMPLERS[name].run(jax.random.key(0), model, {}, X)


@functools.cache
def converted_of(name):
    return of_sampler(name).to_arviz(**QUIET)


QUICK = ["Langevin", "TemperedSMC"]


@pytest.mark.parametrize("name", slow_unless(QUICK, SAMPLERS))
def test_equal_weights_keep_chains_and_draws(name):
    posterior, converted = of_sampler(name), converted_of(name)
    a = converted["posterior"]["a"]
    assert a.shape == (3, 200, 3)
    by_chain = posterior.latents["a"].reshape(3, 3, 200)
    np.testing.assert_array_equal(a.transpose("rows", "chain", "draw"), by_chain)
    log_likelihood = converted["log_likelihood"]["x"].transpose("rows", "chain", "draw")
    np.testing.assert_allclose(log_likelihood.values.reshape(3, -1), posterior.log_likelihood, rtol=1e-3, atol=1e-3)
    assert converted["posterior_predictive"]["x"].shape == (3, 7, 3)
    statistics = converted["sample_stats"]
    assert statistics["acceptance"].dims == ("rows", "rung")
    np.testing.assert_array_equal(statistics["temperature"], posterior.rungs.temperatures)
    np.testing.assert_array_equal(statistics["rung_ess"], posterior.rungs.ess)
    np.testing.assert_array_equal(statistics["divergences"], posterior.divergences)
    assert "log_weights" not in statistics
    assert "pareto_k" not in statistics
    if name == "ParallelTempering":
        np.testing.assert_array_equal(statistics["swap_acceptance"][:, :2], posterior.rungs.swap_acceptance)
        assert np.isnan(statistics["swap_acceptance"][:, 2]).all()
    else:
        assert "swap_acceptance" not in statistics


def test_rhat_compares_chains_and_tells_those_that_disagree():
    posterior = of_sampler("TemperedSMC")
    assert rhat(posterior) < 1.1
    apart = posterior.latents["a"].copy()
    apart[1, :200] += 3.0  # the first run of datum 1
    assert rhat(replace(posterior, latents={**posterior.latents, "a": apart})) > 1.5


def rhat(posterior):
    converted = posterior.to_arviz(**CHEAP)
    found = az.rhat(converted, var_names=["a"])
    return float(getattr(found, "dataset", found)["a"].max())


@pytest.mark.parametrize("name", QUICK)
def test_num_samples_resamples_equal_weights_too(name):
    converted = of_sampler(name).to_arviz(num_samples=50, **CHEAP)
    assert converted["posterior"]["a"].shape == (1, 50, 3)


def schools(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)


@pytest.fixture(scope="module")
def eight_schools():
    sampler = TemperedSMC(num_particles=500, num_runs=2, num_mcmc_steps=5, progress=False)
    posterior = sampler.run(jax.random.key(0), schools, {}, EFFECTS, ERRORS)
    return posterior.to_arviz(dims={"sigma": ["schools"]}, coords={"schools": list("ABCDEFGH")})


def test_a_global_model_has_an_axis_for_every_plate(eight_schools):
    by_school = ("chain", "draw", "schools")
    assert dims_of(eight_schools["posterior"]) == {"mu": by_school[:2], "tau": by_school[:2], "theta": by_school}
    assert dims_of(eight_schools["prior"]) == dims_of(eight_schools["posterior"])
    for group in ["posterior_predictive", "log_likelihood"]:
        assert dims_of(eight_schools[group]) == {"y": by_school}
    assert eight_schools["sample_stats"]["log_evidence"].dims == ()
    assert eight_schools["sample_stats"]["temperature"].dims == ("rung",)
    assert dims_of(eight_schools["constant_data"]) == {"sigma": ("schools",)}
    np.testing.assert_array_equal(eight_schools["constant_data"]["sigma"], ERRORS)
    np.testing.assert_array_equal(eight_schools["observed_data"]["y"].sel(schools="B"), EFFECTS[1])


def test_a_global_model_has_a_log_likelihood_for_every_observation(eight_schools):
    theta = eight_schools["posterior"]["theta"].values
    expected = stats.norm(theta, ERRORS).logpdf(EFFECTS)
    np.testing.assert_allclose(eight_schools["log_likelihood"]["y"], expected, rtol=1e-5)
    loo = az.loo(eight_schools, pointwise=True)
    assert loo.n_data_points == 8
    # With 8 schools, -30.7 is what Stan's and PyMC's examples of this model give (their priors are similar).
    assert -31.5 < elpd(loo) < -30.0


def test_arviz_plots_what_every_sampler_gives(converted, eight_schools):
    for idata in [converted, eight_schools, *map(converted_of, QUICK)]:
        assert len(az.summary(idata)) > 0
        az.plot_trace(idata)
        (az.plot_ppc if hasattr(az, "plot_ppc") else az.plot_ppc_dist)(idata)
        plt.close("all")


def test_inner_plates_name_axes_wherever_they_are():
    def nested(x):
        with numpyro.plate("inner", 2, dim=-2), numpyro.plate("rows", x.shape[0], dim=-1):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x.T)
        with numpyro.plate("rows", x.shape[0], dim=-2), numpyro.plate("last", 5, dim=-1):
            numpyro.sample("b", dist.Normal())

    posterior = ImportanceSampling(50).run(jax.random.key(0), nested, {}, Y)
    converted = posterior.to_arviz(num_samples=20, num_prior_samples=5, dims={"z": ["coordinate"]})
    by_draw = ("chain", "draw", "rows")
    expected = {"z": (*by_draw, "inner", "coordinate"), "b": (*by_draw, "last")}
    assert dims_of(converted["posterior"]) == dims_of(converted["prior"]) == expected
    assert dims_of(converted["log_likelihood"]) == {"x": (*by_draw, "inner")}
    assert dims_of(converted["posterior_predictive"]) == {"x": (*by_draw, "inner")}
    np.testing.assert_array_equal(converted["observed_data"]["x"].transpose("rows", "inner"), Y)
    terms = stats.norm(converted["posterior"]["z"].values.sum(-1), 1.0).logpdf(Y)
    np.testing.assert_allclose(converted["log_likelihood"]["x"], terms, rtol=1e-4, atol=1e-4)
    renamed = posterior.to_arviz(num_samples=20, dims={"z": ["group", "coordinate"]}, **CHEAP)
    assert renamed["posterior"]["z"].dims == (*by_draw, "group", "coordinate")


@pytest.fixture(scope="module")
def of_global():
    """A model without a plate, of observations that are one event and of others that are not."""

    def global_model(x, y):
        mean = numpyro.sample("mean", dist.Normal(jnp.zeros(2), 0.1).to_event(1))
        numpyro.sample("x", dist.Normal(mean[..., 0], 1.0), obs=x)
        numpyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    return ImportanceSampling(500).run(jax.random.key(0), global_model, {}, X, Y[0]).to_arviz()


def test_global_latents_have_no_data_dimension(of_global):
    assert of_global["posterior"]["mean"].shape == (1, 500, 2)
    assert of_global["log_likelihood"]["y"].dims == ("chain", "draw")
    assert of_global["posterior_predictive"]["y"].dims == ("chain", "draw", "y_dim_0")
    assert of_global["sample_stats"]["log_evidence"].shape == ()
    np.testing.assert_array_equal(of_global["observed_data"]["y"], Y[0])


def test_observations_without_a_plate_are_replicated_one_by_one(of_global):
    replicated = of_global["posterior_predictive"]["x"]
    assert replicated.dims == ("chain", "draw", "x_dim_0")
    assert abs(np.corrcoef(replicated.values[0].T)[0, 1]) < 0.25
    assert of_global["log_likelihood"]["x"].dims == ("chain", "draw", "x_dim_0")


PRESENT, BONUS = np.array([1, 0, 1]), np.array([0.1, 0.2, 0.3], np.float32)


@pytest.fixture(scope="module")
def of_two_sites():
    """Two observed sites, one of them a vector, the other masked, and a factor."""

    def two_sites(x, y, rows, weights):
        with numpyro.plate("rows", x.shape[0]):
            z = numpyro.sample("z", dist.Normal())
            with numpyro.handlers.mask(mask=rows > 0):
                numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            numpyro.sample("y", dist.Normal(z[..., None], 1.0).expand([*z.shape, 2]).to_event(1), obs=y)
            numpyro.factor("bonus", weights["bonus"] * z)

    return ImportanceSampling(200).run(jax.random.key(0), two_sites, {}, X, Y, PRESENT, {"bonus": BONUS})


def test_event_dimensions_of_the_observed_site_are_not_those_of_its_log_likelihood(of_two_sites):
    converted = of_two_sites.to_arviz(num_samples=20, dims={"y": ["pixel"]})
    assert converted["log_likelihood"]["y"].dims == ("chain", "draw", "rows")
    assert converted["posterior_predictive"]["y"].dims == ("chain", "draw", "rows", "pixel")
    assert converted["observed_data"]["y"].dims == ("rows", "pixel")


def test_every_observed_site_and_factor_has_its_own_log_likelihood(of_two_sites):
    converted = of_two_sites.to_arviz(num_samples=20)
    terms, z = converted["log_likelihood"], converted["posterior"]["z"].values
    assert dims_of(terms) == dict.fromkeys(["x", "y", "bonus"], ("chain", "draw", "rows"))
    np.testing.assert_allclose(terms["x"], stats.norm(z, 1.0).logpdf(X) * PRESENT, rtol=1e-4)
    np.testing.assert_allclose(terms["bonus"], BONUS * z, rtol=1e-4)
    total = of_two_sites.resample(jax.random.key(0), 20).log_likelihood
    np.testing.assert_allclose((terms["x"] + terms["y"] + terms["bonus"])[0].T, total, rtol=1e-4, atol=1e-4)
    assert set(converted["observed_data"].data_vars) == set(converted["posterior_predictive"].data_vars) == {"x", "y"}
    assert converted["observed_data"]["y"].dims == ("rows", "y_dim_0")
    assert dims_of(converted["constant_data"]) == {"rows_value": ("rows",), "weights_bonus": ("rows",)}
    np.testing.assert_array_equal(converted["constant_data"]["rows_value"], PRESENT)


def test_priors_and_replicated_data_are_those_of_the_datum():
    def regression(x, loc):
        with numpyro.plate("rows", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(loc, 0.1))
            numpyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    loc = np.array([-2.0, 0.0, 2.0], np.float32)
    posterior = ImportanceSampling(500).run(jax.random.key(0), regression, {}, np.array([0, 1, 1]), loc)
    converted = posterior.to_arviz(log_likelihood=False)
    np.testing.assert_allclose(converted["prior"]["z"].mean(("chain", "draw")), loc, atol=0.03)
    replicated = converted["posterior_predictive"]["x"]
    assert np.issubdtype(replicated.dtype, np.integer)
    np.testing.assert_allclose(replicated.mean(("chain", "draw")), 1 / (1 + np.exp(-loc)), atol=0.1)
    np.testing.assert_array_equal(converted["constant_data"]["loc"], loc)


def test_a_site_that_cannot_be_sampled_is_left_out_of_the_predictive():
    class Unsampled(dist.Normal):
        def sample(self, key, sample_shape=()):
            raise NotImplementedError

        def expand(self, batch_shape):
            return Unsampled(jnp.broadcast_to(self.loc, batch_shape), jnp.broadcast_to(self.scale, batch_shape))

    def two_sites(x):
        with numpyro.plate("rows", x.shape[0]):
            z = numpyro.sample("z", dist.Normal())
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            numpyro.sample("y", Unsampled(z, 1.0), obs=x)

    posterior = ImportanceSampling(50).run(jax.random.key(0), two_sites, {}, X)
    with pytest.warns(RuntimeWarning, match="observed site 'y' has a Unsampled that cannot be sampled"):
        converted = posterior.to_arviz(num_prior_samples=0)
    assert dims_of(converted["posterior_predictive"]) == {"x": ("chain", "draw", "rows")}
    assert set(converted["log_likelihood"].data_vars) == {"x", "y"}


def test_a_model_of_factors_has_no_replicated_data():
    def factors(x):
        with numpyro.plate("rows", x.shape[0]):
            z = numpyro.sample("z", dist.Normal())
            numpyro.factor("close", -jnp.abs(x - z))

    posterior = ImportanceSampling(50).run(jax.random.key(0), factors, {}, X)
    converted = posterior.to_arviz(num_prior_samples=0)
    assert "posterior_predictive" not in group_names(converted)
    assert dims_of(converted["constant_data"]) == {"x": ("rows",)}
    assert dims_of(converted["log_likelihood"]) == {"close": ("chain", "draw", "rows")}


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_pareto_k_is_the_shape_of_the_weights_tail(shape):
    weights = 1.0 + np.random.default_rng(0).pareto(1.0 / shape, size=(5, 100_000))
    k = pareto_smooth(np.log(weights).astype(np.float32))[1]
    # The tail holds 949 weights: the standard error of k-hat is about (1 + k) / sqrt(949), 0.06 at most.
    np.testing.assert_allclose(k.mean(), shape, atol=0.15)


def test_pareto_k_where_there_is_no_tail_to_fit():
    rng = np.random.default_rng(0)
    log_weights = rng.normal(size=(4, 1000))
    log_weights[0] = -np.inf
    log_weights[1, 50:] = -np.inf
    log_weights[2] = 3.0
    k = pareto_smooth(log_weights)[1]
    np.testing.assert_array_equal(k[:3], [np.inf, np.inf, -np.inf])
    assert np.isfinite(k[3])
    assert np.isnan(pareto_smooth(log_weights[:, :20])[1]).all()


def test_smoothed_weights_are_quantiles_of_the_tail():
    log_weights = np.log(1.0 + np.random.default_rng(0).pareto(1.25, size=(2, 10_000)))
    smoothed, _ = pareto_smooth(log_weights)
    order = np.argsort(log_weights[0])
    tail = order[-300:]
    np.testing.assert_array_equal(smoothed[0, order[:-300]], log_weights[0, order[:-300]])
    assert np.all(np.diff(smoothed[0, tail]) >= 0)
    # The tail of weights above the 97th percentile c is c times a Pareto law of shape 0.8.
    expected = -0.8 * np.log1p(-(np.arange(300) + 0.5) / 300) + log_weights[0, order[-301]]
    np.testing.assert_allclose(smoothed[0, tail[:290]], expected[:290], atol=0.3)
    assert smoothed.max() <= log_weights.max()


def test_weights_without_a_tail_are_not_smoothed():
    rng = np.random.default_rng(0)
    log_weights = rng.normal(size=(4, 1000))
    log_weights[0] = -np.inf
    log_weights[1, 50:] = -np.inf
    log_weights[2] = 3.0
    smoothed, _ = pareto_smooth(log_weights)
    np.testing.assert_array_equal(smoothed[:3], log_weights[:3])
    assert np.any(smoothed[3] != log_weights[3])
    np.testing.assert_array_equal(pareto_smooth(log_weights[:, :20])[0], log_weights[:, :20])


@pytest.mark.skipif(not hasattr(az, "psislw"), reason="ArviZ 1.x has it elsewhere, and takes other arguments")
def test_pareto_smoothing_is_arviz_s():
    rng = np.random.default_rng(0)
    for log_weights in (rng.normal(size=(3, 1000)), 30.0 * rng.normal(size=(3, 100)), np.log(rng.random((3, 25)))):
        expected, k = az.psislw(log_weights.copy())
        smoothed, _ = pareto_smooth(log_weights)
        np.testing.assert_allclose(pareto_smooth(log_weights)[1], k, rtol=1e-9)
        np.testing.assert_allclose(smoothed - np.logaddexp.reduce(smoothed, 1)[:, None], expected, atol=1e-9)


def test_deterministic_sites_are_kept_with_the_plates_they_are_in():
    """Such as latents that a reparameterisation has replaced by others."""

    @numpyro.handlers.reparam(config={"theta": LocScaleReparam(0.0)})
    def schools(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        with numpyro.plate("schools", 3):
            theta = numpyro.sample("theta", dist.Normal(mu, 2.0))
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)
        numpyro.deterministic("mean", theta.mean())

    posterior = ImportanceSampling(50).run(jax.random.key(0), schools, {}, jnp.array([0.5, 1.0, -2.0]))
    theta = posterior.latents["mu"][..., None] + 2.0 * posterior.latents["theta_decentered"]
    np.testing.assert_allclose(posterior.deterministic["theta"], theta, rtol=1e-5, atol=1e-5)
    dataset = posterior.to_arviz(log_likelihood=False, num_prior_samples=0, num_predictive_samples=0)["posterior"]
    assert dataset["theta"].dims == ("chain", "draw", "schools") and dataset["mean"].dims == ("chain", "draw")


def test_names_of_what_there_is_not_are_refused(posterior):
    with pytest.raises(ValueError, match=r"dims names \['zz'\], but there are only \["):
        posterior.to_arviz(num_samples=5, dims={"zz": ["axis"]}, **CHEAP)
    with pytest.raises(ValueError, match=r"coords names \['axis'\], but there are only \["):
        posterior.to_arviz(num_samples=5, coords={"axis": [1, 2]}, **CHEAP)


@pytest.mark.parametrize("dim", [-1, -2])
def test_deterministic_sites_of_a_datum_lack_its_axis(dim):
    def local(x):
        with numpyro.plate("data", x.shape[0], dim=dim):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1) if dim == -1 else dist.Normal())
            total = numpyro.deterministic("total", z.sum(-1) if dim == -1 else 2.0 * z)
            numpyro.sample("x", dist.Normal(total, 1.0), obs=x if dim == -1 else x[:, None])
        numpyro.deterministic("constant", jnp.ones(5))

    posterior = ImportanceSampling(50).run(jax.random.key(0), local, {}, jnp.arange(4.0))
    values = posterior.deterministic
    assert values["constant"].shape == (4, 50, 5)
    expected = posterior.latents["z"].sum(-1) if dim == -1 else 2.0 * posterior.latents["z"]
    np.testing.assert_allclose(values["total"], expected, rtol=1e-6)
