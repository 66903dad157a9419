"""Energies whose grid adapts while they are trained."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from numpyro.primitives import mutable

from numpyro_kaem.energies import UnivariateEnergy
from numpyro_kaem.grid_adaptation import per_batch_element, with_points


def energy_module(name: str, energy: UnivariateEnergy) -> UnivariateEnergy:
    """Declare an energy inside a NumPyro model: its weights are learned, and its grid may be adapted.

    Like NumPyro's `eqx_module`, with the parameter site `<name>$params`. Besides there is a mutable site `<name>$grid`,
    `{"points": ...}`, which holds the knots of a `BSpline` or the ends of the domain of another basis, per batch
    element. Training never changes it; `adapt_svi_grid` does.

    Args:
        name: prefix of the sites.
        energy: the initial energy. Where its grid has a batch shape already (for a `KAMixture`, with 1 for the
            component axis), that is kept; otherwise each batch element gets a grid of its own.

    Returns:
        The energy with learned weights on its present grid.

    Example:
        ```python
        import jax
        import numpyro
        import numpyro.distributions as dist
        from numpyro_kaem import BSpline, KAPrior, UnivariateEnergy, energy_module

        basis = BSpline(num_intervals=20, degree=3, domain=(-3.0, 3.0))
        initial = UnivariateEnergy.init(jax.random.key(0), (2,), basis=basis)


        def model(y):
            energy = energy_module("energy", initial)
            with numpyro.plate("data", len(y)):
                z = numpyro.sample("z", KAPrior(energy, dist.Normal(0.0, 1.0)).to_event(1))
                numpyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)
        ```
    """
    params, static = eqx.partition(energy, eqx.is_inexact_array)
    params = numpyro.param(f"{name}$params", lambda _: params)
    grid = mutable(f"{name}$grid", {"points": _initial_points(energy)})
    return _on(eqx.combine(params, static), grid["points"])


def adapt_svi_grid(
    svi: SVI,
    state: SVIState,
    name: str,
    energy: UnivariateEnergy,
    z: Num[ArrayLike, "num_samples *batch"],
    weights: Num[ArrayLike, "..."] | None = None,
    uniform_fraction: float = 0.05,
) -> tuple[SVIState, Float[Array, "*batch"]]:
    """Adapt the grid of an energy between two training steps; see `UnivariateEnergy.adapt_grid`.

    The optimiser goes on with the refitted coefficients; what it remembers of the old ones (momenta and other running
    averages) is set back to its initial value. Shapes do not change, so that it may be used inside a compiled loop,
    under `jax.lax.cond` every so many steps.

    Args:
        svi: the inference algorithm that made the state.
        state: its state.
        name: the name under which the model declares the energy.
        energy: the energy that was passed to `energy_module`.
        z: samples of shape (num_samples, *batch), for example from the posterior.
        weights: not negative; of shape (num_samples,) or that of z.
        uniform_fraction: share of evenly spaced knots, above 0 and at most 1.

    Returns:
        The new state, and the largest change of each function on its old domain.

    Raises:
        ValueError: if the state has no such energy, or for samples that `adapt_grid` refuses.

    Example:
        ```python
        import jax
        import numpyro
        import numpyro.distributions as dist
        import optax
        from numpyro.infer import SVI
        from numpyro_kaem import BSpline, ImportanceMLE, KAPrior, UnivariateEnergy, adapt_svi_grid, energy_module

        basis = BSpline(num_intervals=20, degree=3, domain=(-3.0, 3.0))
        initial = UnivariateEnergy.init(jax.random.key(0), (1,), basis=basis)


        def model(y):
            prior = KAPrior(energy_module("energy", initial), dist.Normal(0.0, 1.0))
            with numpyro.plate("data", len(y)):
                z = numpyro.sample("z", prior.to_event(1))
                numpyro.sample("y", dist.Normal(z, 0.1).to_event(1), obs=y)


        y = 0.5 + 0.2 * jax.random.normal(jax.random.key(1), (200, 1))
        svi = SVI(model, lambda y: None, optax.adam(1e-2), loss=ImportanceMLE(100))
        state = svi.init(jax.random.key(2), y)
        state, loss = svi.update(state, y)
        state, change = adapt_svi_grid(svi, state, "energy", initial, y)
        state, loss = svi.update(state, y)
        ```
    """
    site, grid_site = f"{name}$params", f"{name}$grid"
    params, mutable_state = svi.get_params(state), state.mutable_state or {}
    if site not in params or grid_site not in mutable_state:
        found = sorted(key.removesuffix("$grid") for key in mutable_state if key.endswith("$grid"))
        raise ValueError(f"name must be that of an energy_module of the model, one of {found}, got {name!r}")
    static = eqx.filter(energy, eqx.is_inexact_array, inverse=True)
    current = _on(eqx.combine(params[site], static), mutable_state[grid_site]["points"])
    adapted, change = current.adapt_grid(z, weights, uniform_fraction)

    learned = eqx.filter(adapted, eqx.is_inexact_array)
    learned = jax.tree.unflatten(jax.tree.structure(params[site]), jax.tree.leaves(learned))
    points = jnp.broadcast_to(adapted.basis.grid.points, mutable_state[grid_site]["points"].shape)
    unconstrained = svi.optim.get_params(state.optim_state) | {site: learned}
    step, moments = state.optim_state
    fresh = svi.optim.init(unconstrained)[1]

    def renewed(path, fresh_leaf, leaf):
        keys = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
        return fresh_leaf if site in keys and ("coefficients" in keys or "spline_weight" in keys) else leaf

    moments = jax.tree_util.tree_map_with_path(renewed, fresh, moments)
    mutable_state = mutable_state | {grid_site: {"points": points}}
    return SVIState((step, moments), mutable_state, state.rng_key), change


def _initial_points(energy: UnivariateEnergy) -> Array:
    basis = energy.basis
    points = per_batch_element(basis, basis.grid.batch_shape or energy.batch_shape).grid
    return jnp.asarray(points.points, energy.coefficients.dtype)


def _on(energy: UnivariateEnergy, points: Any) -> UnivariateEnergy:
    return eqx.tree_at(lambda f: f.basis, energy, with_points(energy.basis, jnp.asarray(points)))
