"""Domains and knots are not trained: optimisers that touch every leaf and Bayesian modules leave them as they are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import eqx_module, random_eqx_module
from numpyro.infer import SVI, Trace_ELBO
from prior_cases import quick_jit
from speed import slow_unless

from numpyro_kaem import RBF, BSpline, KAPrior, UnivariateEnergy
from numpyro_kaem._numerics.grid import Grid

LOW, HIGH = np.array([-3.0, -2.5, -1.0], np.float32), np.array([3.0, 2.0, 4.0], np.float32)
KNOTS = np.sort(np.random.default_rng(0).uniform(-3.0, 3.0, size=(3, 7)).astype(np.float32), axis=-1)
BASES = {
    "shared domain": lambda: BSpline(5, 3, (-3.0, 3.0)),
    "shared knots": lambda: BSpline.from_knots(KNOTS[0], 3),
    "domain each": lambda: RBF(8, (LOW, HIGH)),
    "knots each": lambda: BSpline.from_knots(KNOTS, 3),
    "learned scale, domain each": lambda: RBF(8, (LOW, HIGH), learn_scale=True),
}
# All of them change a parameter whose gradient is zero: by decay, by the sign of a momentum, by noise.
OPTIMISERS = {
    "adamw": optax.adamw(0.1, weight_decay=0.5),
    "lion": optax.lion(0.1, weight_decay=0.5),
    "noisy_sgd": optax.noisy_sgd(0.1, eta=1.0),
}


def bits(basis):
    """Every number of the grid, bit by bit."""
    return np.asarray(basis.breakpoints).tobytes(), [np.asarray(end).tobytes() for end in basis.domain]


@pytest.mark.parametrize("basis", slow_unless(["learned scale, domain each"], BASES))
def test_optimisers_leave_grids_alone(basis):
    energy = UnivariateEnergy.init(jax.random.key(0), (3,), basis=BASES[basis]())
    before = bits(energy.basis)

    def model(z):
        with numpyro.plate("data", len(z)):
            f = eqx_module("energy", energy)
            numpyro.sample("z", KAPrior(f, dist.Normal(0.0, 1.0)).to_event(1), obs=z)

    @quick_jit
    def train(z):
        every = {name: SVI(model, lambda z: None, optimiser, Trace_ELBO()) for name, optimiser in OPTIMISERS.items()}
        states = {name: svi.init(jax.random.key(2), z) for name, svi in every.items()}
        update = lambda states, _: ({name: svi.update(states[name], z)[0] for name, svi in every.items()}, None)  # noqa: E731
        states, _ = jax.lax.scan(update, states, length=3)
        return {name: svi.get_params(states[name])["energy$params"] for name, svi in every.items()}

    z = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    for optimiser, trained in train(z).items():
        trained = eqx.combine(trained, energy)
        assert bits(trained.basis) == before, optimiser
        pairs = zip(*(jax.tree.leaves(numbers(e)) for e in (trained, energy)), strict=True)
        moved = [np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs]
        assert len(moved) == 3 + ("scale" in basis) and all(moved), optimiser


def numbers(energy):
    return eqx.filter(energy, eqx.is_inexact_array)


@pytest.mark.parametrize("basis", BASES)
def test_bayesian_modules_leave_grids_alone(basis):
    energy = UnivariateEnergy.init(jax.random.key(0), (3,), basis=BASES[basis]())
    with numpyro.handlers.trace() as trace, numpyro.handlers.seed(rng_seed=0):
        drawn = random_eqx_module("energy", energy, prior=dist.Normal(0.0, 1.0))
    names = {name for name, site in trace.items() if site["type"] == "sample"}
    scale = {"energy/basis.log_scale"} if "scale" in basis else set()
    assert names == {"energy/base_weight", "energy/spline_weight", "energy/coefficients"} | scale
    assert bits(drawn.basis) == bits(energy.basis)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_points_survive_their_journey_as_integers(x64, dtype):
    values = np.random.default_rng(1).normal(size=(4, 5)).cumsum(axis=-1).astype(dtype)
    values = np.sort(values, axis=-1)
    grid = Grid.of(values)
    leaf = jax.tree.leaves(grid)
    assert len(leaf) == 1 and jnp.issubdtype(leaf[0].dtype, jnp.integer) and grid.batch_shape == (4,)
    np.testing.assert_array_equal(jax.jit(lambda g: g.points)(grid), values)
    np.testing.assert_array_equal(grid.ends, (values[:, 0], values[:, -1]))
    static = Grid.of(values[0])
    assert jax.tree.leaves(static) == [] and static.batch_shape == ()
    np.testing.assert_array_equal(static.points, values[0])
