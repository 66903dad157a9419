"""Energies whose grid adapts while they are trained."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num, PyTree
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState
from numpyro.primitives import mutable

from numpyro_kaem.energies.adaptation import movable_points, with_points
from numpyro_kaem.energies.energy import UnivariateEnergy

# What Optax's optimisers call their running averages and sums of squared gradients.
_SECOND_MOMENTS = {"nu", "nu_max", "sum_of_squares", "e_g", "e_x", "n", "v", "v_row", "v_col"}


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
    params = numpyro.param(f"{name}$params", lambda _: eqx.filter(energy, eqx.is_inexact_array))
    points = jnp.asarray(movable_points(energy.basis), energy.coefficients.dtype)
    batch_shape = energy.basis.grid.batch_shape or energy.batch_shape
    grid = mutable(f"{name}$grid", {"points": jnp.broadcast_to(points, (*batch_shape, points.shape[-1]))})
    return _energy(energy, params, grid["points"])


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

    The optimiser goes on with the refitted coefficients. Of the old ones its momenta are set back to their initial
    value, and second moments to their mean over the coefficients of each function,

        m_k <- 0,    v_k <- 1/K (v_1 + ... + v_K),

    because on knots at the samples' quantiles gradients are about equally large; with v_k = 0 the steps of Adam, whose
    count goes on, would be several times its learning rate. Shapes do not change, so that it may be used inside a
    compiled loop, under `jax.lax.cond` every so many steps.

    Args:
        svi: the inference algorithm that made the state, with an optimiser of Optax.
        state: its state.
        name: the name under which the model declares the energy.
        energy: the energy that was passed to `energy_module`.
        z: samples of shape (num_samples, *batch), for example from the posterior.
        weights: not negative; of shape (num_samples,) or that of z.
        uniform_fraction: share of evenly spaced knots, above 0 and at most 1.

    Returns:
        The new state, and the largest change of each function on its old domain.

    Raises:
        ValueError: if the state has no such energy, for samples that `adapt_grid` refuses, or an optimiser of NumPyro's
            own, whose state does not tell what belongs to which parameter.

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
    if grid_site not in mutable_state:
        found = sorted(key.removesuffix("$grid") for key in mutable_state if key.endswith("$grid"))
        raise ValueError(f"name must be that of an energy_module of the model, one of {found}, got {name!r}")
    step, optimizer_state = state.optim_state
    if not (isinstance(optimizer_state, tuple) and len(optimizer_state) == 2 and isinstance(optimizer_state[0], dict)):
        raise ValueError(
            "svi must have an optimiser of Optax for a grid to adapt, such as optax.adam(1e-3), got one of NumPyro"
        )
    current = _energy(energy, params[site], mutable_state[grid_site]["points"])
    adapted, change = current.adapt_grid(z, weights, uniform_fraction)

    points = jnp.broadcast_to(adapted.basis.grid.points, mutable_state[grid_site]["points"].shape)
    unconstrained = svi.optim.get_params(state.optim_state) | {site: _learned(adapted, params[site])}
    _, (_, fresh) = svi.optim.init(unconstrained)

    def renewed(path, fresh_leaf, leaf):
        keys = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
        if site not in keys or "coefficients" not in keys:
            return leaf
        if _SECOND_MOMENTS.isdisjoint(keys):
            return fresh_leaf
        return jnp.broadcast_to(jnp.mean(leaf, axis=-1, keepdims=True), leaf.shape) if jnp.ndim(leaf) else leaf

    memory = jax.tree_util.tree_map_with_path(renewed, fresh, optimizer_state[1])
    mutable_state = mutable_state | {grid_site: {"points": points}}
    return SVIState((step, (unconstrained, memory)), mutable_state, state.rng_key), change


def on_adapted_grid(
    name: str, energy: UnivariateEnergy, params: dict[str, Any], old: SVIState, new: SVIState
) -> dict[str, Any]:
    """Parameters other than those of a state, whose energy is refitted on the grid that `adapt_svi_grid` has given it.

    Coefficients are those of a function on one grid: a moving average of them has to move with the grid.
    """
    site, grid_site = f"{name}$params", f"{name}$grid"
    before, after = (_energy(energy, params[site], s.mutable_state[grid_site]["points"]) for s in (old, new))
    moved, _ = before._moved_to(after.basis)
    return params | {site: _learned(moved, params[site])}


def _energy(energy: UnivariateEnergy, learned: PyTree, points: Any) -> UnivariateEnergy:
    """The energy with other weights, on another grid."""
    energy = eqx.combine(learned, eqx.filter(energy, eqx.is_inexact_array, inverse=True))
    return eqx.tree_at(lambda f: f.basis, energy, with_points(energy.basis, jnp.asarray(points)))


def _learned(energy: UnivariateEnergy, like: PyTree) -> PyTree:
    """The weights of an energy, as its parameter site has them."""
    weights = eqx.filter(energy, eqx.is_inexact_array)
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(weights))
