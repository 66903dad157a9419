"""Data as people have them: Series, tables, lists, and models that need their values."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest

from numpyro_kaem import ImportanceMLE, ImportanceSampling, LatentModel, fit
from numpyro_kaem.models.data import Columns, NotAnArray, as_arrays

FRAME = pd.DataFrame({"y": [0.5, -1.0, 2.0, 0.1], "n": [1, 2, 3, 4], "name": list("abcd")})


def test_what_holds_numbers_becomes_arrays():
    given = {"series": FRAME["n"], "list": [[1, 2], [3, 4]], "text": "abc", "number": 2.0, "none": None, "f": np.sum}
    arrays = as_arrays("data", given)
    np.testing.assert_array_equal(arrays["series"], [1, 2, 3, 4])
    np.testing.assert_array_equal(arrays["list"], [[1, 2], [3, 4]])
    assert {name: arrays[name] for name in ("text", "number", "none", "f")} == {
        "text": "abc",
        "number": 2.0,
        "none": None,
        "f": np.sum,
    }
    x = jnp.ones(3)
    assert as_arrays("data", (x, [x, x]))[0] is x


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"a": np.array(["x"])}, TypeError, r"data\['a'\] must hold numbers, got a ndarray of <U1: encode text"),
        ((FRAME["name"],), TypeError, r"data\[0\] must hold numbers, got a Series of "),
        (np.ma.masked_greater(np.arange(3.0), 1.0), ValueError, r"data has 1 masked values, and JAX has no masked"),
    ],
    ids=["text", "series", "masked"],
)
def test_what_does_not_is_named(given, error, message):
    with pytest.raises(error, match=message):
        as_arrays("data", given)


def test_a_masked_array_without_masked_values_is_an_array():
    np.testing.assert_array_equal(as_arrays("data", np.ma.masked_array(np.arange(3.0))), [0.0, 1.0, 2.0])


def test_a_table_is_its_columns():
    table = as_arrays("data", FRAME)
    assert isinstance(table, Columns) and len(table) == 4 and table.columns == ["y", "n"] and list(table) == ["y", "n"]
    np.testing.assert_array_equal(table["y"], FRAME["y"])
    np.testing.assert_array_equal(table.n, FRAME["n"])
    np.testing.assert_allclose(table[["y", "n"]].to_numpy(), FRAME[["y", "n"]].to_numpy())
    cut = jax.tree.map(lambda leaf: leaf[:2], table)
    assert len(cut) == 2 and cut.columns == table.columns
    with pytest.raises(NotAnArray, match="column 'name' holds no numbers: encode it first"):
        cut["name"]
    with pytest.raises(NotAnArray, match=r"'groupby': a table is given to the model as arrays by column, \['y', 'n'\]"):
        table.groupby("name")
    with pytest.raises(KeyError):
        table["other"]


def by_row(frame):
    slope = numpyro.param("slope", 0.0)
    with numpyro.plate("rows", len(frame)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z + slope * frame["n"], 1.0), obs=frame["y"])


def test_tables_are_cut_to_rows():
    latent_model = LatentModel(by_row, {"slope": 0.1}, FRAME)
    assert latent_model.plate == "rows" and latent_model.num_data == 4
    posterior = ImportanceSampling(20_000).run(jax.random.key(0), by_row, {"slope": 0.1}, FRAME)
    expected = dist.Normal(0.1 * FRAME["n"].to_numpy(), 2**0.5).log_prob(FRAME["y"].to_numpy())
    assert np.all(np.abs(posterior.log_evidence - expected) < 5 * posterior.log_evidence_std_error)
    options = {"optimizer": optax.adam(0.1), "num_epochs": 2, "batch_size": 2, "progress": False}
    result = fit(jax.random.key(0), by_row, FRAME[["y", "n"]], objective=ImportanceMLE(10), **options)
    assert np.isfinite(result.params["slope"])


def needs_values(x):
    with numpyro.plate("rows", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=np.log(x))


MESSAGE = r"needs the values of its data at line \d+ of test_given_data.py, `numpyro.sample\(.*np.log\(x\)\)`.* jax.num"


def test_the_line_that_cannot_be_traced_is_named():
    with pytest.raises(TypeError, match=MESSAGE):
        ImportanceSampling(10).run(jax.random.key(0), needs_values, {}, np.ones(3))
    options = {"optimizer": optax.adam(0.1), "num_epochs": 1, "batch_size": 2, "progress": False}
    with pytest.raises(TypeError, match=MESSAGE):
        fit(jax.random.key(0), needs_values, np.ones(4), objective=ImportanceMLE(10), **options)


def test_values_may_be_given_by_keyword():
    def model(x, rate=None, kind=None):
        with numpyro.plate("rows", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, float(np.exp(rate)) if rate > 0 else 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0 if kind == "plain" else 2.0), obs=x)

    x = np.array([0.3, -1.0])
    for rate in (np.float64(0.5), np.array(0.5), jnp.array(0.5)):
        posterior = ImportanceSampling(20_000).run(jax.random.key(0), model, {}, x, rate=rate, kind="plain")
        expected = dist.Normal(0.0, np.sqrt(1.0 + np.e)).log_prob(x)
        assert np.all(np.abs(posterior.log_evidence - expected) < 5 * posterior.log_evidence_std_error)


def test_new_values_are_a_new_program():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.factor("y", -0.5 * np.sum(np.square(y)) + 0.0 * mu)

    sampler = ImportanceSampling(10)
    for value in (1.0, 2.0, 1.0):
        posterior = sampler.run(jax.random.key(0), model, {}, pd.Series([value]))
        np.testing.assert_allclose(posterior.log_evidence, -0.5 * value**2, rtol=1e-6)


def test_errors_of_the_model_itself_are_as_they_are():
    def broken(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu.nonsense, 1.0), obs=y)

    with pytest.raises(AttributeError, match="nonsense"):
        ImportanceSampling(10).run(jax.random.key(0), broken, {}, np.ones(3))


@pytest.mark.parametrize("y", [(0.3, 1.0), range(2), ["a", "b"], [[1.0], [1.0, 2.0]]], ids=str)
def test_observed_values_that_are_no_arrays_are_named(y):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(TypeError, match=f"site 'y' has a {type(y).__name__} for its value, which must be an array"):
        ImportanceSampling(10).run(jax.random.key(0), model, {}, y)


def test_masked_values_among_parameters_are_refused():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.0), 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"params\['m'\] has 1 masked values"):
        ImportanceSampling(10).run(jax.random.key(0), model, {"m": np.ma.array(0.0, mask=True)}, 1.0)
