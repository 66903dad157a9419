"""Conversion to ArviZ, on whichever line of ArviZ is installed."""

import importlib.util

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_kaem.arviz import pareto_k
from numpyro_kaem.posterior import ImportanceSampling

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


def test_groups_dimensions_and_coordinates(converted):
    dims = {
        "posterior": {"z": ("chain", "draw", "rows", "z_dim_0"), "a": ("chain", "draw", "rows")},
        "log_likelihood": {"x": ("chain", "draw", "rows")},
        "sample_stats": dict.fromkeys(["log_evidence", "log_evidence_std_error", "ess", "pareto_k"], ("rows",)),
        "observed_data": {"x": ("rows",)},
    }
    for group, variables in dims.items():
        found = converted[group]
        assert {name: found[name].dims for name in found.data_vars} == variables
        np.testing.assert_array_equal(found.coords["rows"], [0, 1, 2])
    assert converted["posterior"].sizes["chain"] == 1
    assert converted["posterior"].sizes["draw"] == 400


def test_values_are_the_resampled_posterior_s(posterior, converted):
    draws = posterior.resample(jax.random.key(0), 400)
    np.testing.assert_array_equal(converted["posterior"]["z"][0].transpose("rows", ...), draws.latents["z"])
    np.testing.assert_array_equal(converted["log_likelihood"]["x"][0].T, draws.log_likelihood)
    np.testing.assert_array_equal(converted["observed_data"]["x"], X)
    np.testing.assert_array_equal(converted["sample_stats"]["ess"], posterior.ess)
    np.testing.assert_array_equal(converted["sample_stats"]["pareto_k"], posterior.pareto_k)


def test_summary_shows_the_posterior_mean_of_every_datum(converted):
    summary = az.summary(converted, var_names=["a"], round_to="none", kind="stats")
    # a given x is Normal(x / 4, sqrt(3 / 4)); 400 draws have a standard error of 0.045, and 0.3 is six of
    # them.
    np.testing.assert_allclose(summary["mean"].astype(float), X / 4, atol=0.3)


def test_loo_estimates_the_sum_of_the_log_evidence(posterior, converted):
    loo = az.loo(converted)
    elpd = loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd
    # A rough estimate: harmonic means of 400 draws.
    np.testing.assert_allclose(elpd, posterior.log_evidence.sum(), atol=1.0)


def test_netcdf_round_trip(converted, tmp_path):
    if not any(map(importlib.util.find_spec, ["h5netcdf", "netCDF4"])):
        pytest.skip("no NetCDF backend installed")
    path = str(tmp_path / "posterior.nc")
    converted.to_netcdf(path)
    loaded = az.from_netcdf(path)
    for group in ["posterior", "log_likelihood", "sample_stats", "observed_data"]:
        for name in converted[group].data_vars:
            np.testing.assert_array_equal(loaded[group][name], converted[group][name])
            assert loaded[group][name].dims == converted[group][name].dims


def test_names_and_coordinates_can_be_given(posterior):
    converted = posterior.to_arviz(
        jax.random.key(1),
        10,
        method="stratified",
        dims={"z": ["axis"]},
        coords={"axis": ["left", "right"], "rows": ["a", "b", "c"]},
    )
    assert converted["posterior"]["z"].sel(axis="left", rows="b").shape == (1, 10)


def test_global_latents_have_no_data_dimension():
    def global_model(x):
        mean = numpyro.sample("mean", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    posterior = ImportanceSampling(500).run(jax.random.key(0), global_model, {}, Y[0])
    converted = posterior.to_arviz(num_samples=50)
    assert converted["posterior"]["mean"].shape == (1, 50, 2)
    assert converted["log_likelihood"]["x"].dims == ("chain", "draw")
    assert converted["sample_stats"]["log_evidence"].shape == ()
    np.testing.assert_array_equal(converted["observed_data"]["x"], Y[0])


def test_event_dimensions_of_the_observed_site_are_not_those_of_its_log_likelihood():
    def vector(x):
        with numpyro.plate("rows", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    posterior = ImportanceSampling(200).run(jax.random.key(0), vector, {}, Y)
    converted = posterior.to_arviz(num_samples=20, dims={"x": ["pixel"]})
    assert converted["log_likelihood"]["x"].dims == ("chain", "draw", "rows")
    assert converted["observed_data"]["x"].dims == ("rows", "pixel")


def test_several_observed_sites_share_one_log_likelihood():
    def two_sites(x, y):
        with numpyro.plate("rows", x.shape[0]):
            z = numpyro.sample("z", dist.Normal())
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            numpyro.sample("y", dist.Normal(z[..., None], 1.0).expand([*z.shape, 2]).to_event(1), obs=y)

    posterior = ImportanceSampling(200).run(jax.random.key(0), two_sites, {}, X, Y)
    converted = posterior.to_arviz(num_samples=20)
    assert list(converted["log_likelihood"].data_vars) == ["log_likelihood"]
    assert set(converted["observed_data"].data_vars) == {"x", "y"}
    assert converted["observed_data"]["y"].dims == ("rows", "y_dim_0")


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_pareto_k_is_the_shape_of_the_weights_tail(shape):
    weights = 1.0 + np.random.default_rng(0).pareto(1.0 / shape, size=(5, 100_000))
    k = pareto_k(np.log(weights).astype(np.float32))
    # The tail holds 949 weights: the standard error of k-hat is about (1 + k) / sqrt(949), 0.06 at most.
    np.testing.assert_allclose(k.mean(), shape, atol=0.15)


def test_pareto_k_where_there_is_no_tail_to_fit():
    rng = np.random.default_rng(0)
    log_weights = rng.normal(size=(4, 1000))
    log_weights[0] = -np.inf
    log_weights[1, 50:] = -np.inf
    log_weights[2] = 3.0
    k = pareto_k(log_weights)
    np.testing.assert_array_equal(k[:3], [np.inf, np.inf, -np.inf])
    assert np.isfinite(k[3])
    assert np.isnan(pareto_k(log_weights[:, :20])).all()
