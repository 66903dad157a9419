"""Learned univariate energies."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num, PRNGKeyArray

from numpyro_kaem._compilation.entry_points import compiled
from numpyro_kaem._numerics.grid import array_module
from numpyro_kaem._numerics.two_floats import exact_product, exact_sum
from numpyro_kaem.checks import broadcasts, check_precision
from numpyro_kaem.energies.adaptation import adapted_basis, comparison_points, least_squares
from numpyro_kaem.energies.basis import Basis
from numpyro_kaem.energies.splines import BSpline


def _silu_difference(center, distance, xp):
    """silu(c + d) - silu(c) = d sigmoid(c + d) + c (sigmoid(c + d) - sigmoid(c)), without cancellation."""
    tanh_center, tanh_z = xp.tanh(0.5 * center), xp.tanh(0.5 * (center + distance))
    sigmoid_difference = 0.5 * xp.tanh(0.5 * distance) * (1.0 - tanh_z * tanh_center)
    return distance * 0.5 * (1.0 + tanh_z) + center * sigmoid_difference


# Each activation act(z), and its difference act(c + d) - act(c) as a function of c and d that keeps the digits of d.
ACTIVATIONS = {
    "silu": (jax.nn.silu, _silu_difference),
    "tanh": (jnp.tanh, lambda c, d, xp: xp.tanh(d) * (1.0 - xp.tanh(c) * xp.tanh(c + d))),
    "identity": (lambda z: z, lambda c, d, xp: d),
}


class UnivariateEnergy(eqx.Module):
    """A batch of learned functions of one variable,

        f(z) = w_base act(z) + w_spline sum_g c_g B_g(z),

    with z moved into the basis's domain [a, b] first, so that f is constant outside of it.

    Attributes:
        base_weight: w_base, of the batch shape.
        spline_weight: w_spline, of the batch shape.
        coefficients: c, of shape batch_shape + (num_basis,).
        basis: the functions B_g and their domain; not trained.
        base_activation: "silu", "tanh" or "identity".

    Raises:
        TypeError: for weights and coefficients that are no arrays of floating-point numbers, or in half precision.
        ValueError: for shapes that do not fit and another base_activation.

    Example:
        ```python
        import jax
        from numpyro_kaem import BSpline, UnivariateEnergy

        basis = BSpline(num_intervals=20, degree=3, domain=(-3.0, 3.0))
        energy = UnivariateEnergy.init(jax.random.key(0), batch_shape=(40,), basis=basis)
        z = jax.random.normal(jax.random.key(1), (100, 40))
        assert energy(z).shape == (100, 40)
        ```
    """

    base_weight: Float[Array, "*batch"]
    spline_weight: Float[Array, "*batch"]
    coefficients: Float[Array, "*batch num_basis"]
    basis: Basis
    base_activation: str = eqx.field(static=True, default="silu")

    def __check_init__(self):
        if self.base_activation not in ACTIVATIONS:
            raise ValueError(f"base_activation must be one of {sorted(ACTIVATIONS)}, got {self.base_activation!r}")
        parts = {name: getattr(self, name) for name in ("coefficients", "base_weight", "spline_weight")}
        if any(part is None for part in parts.values()):  # of a tree whose leaves are elsewhere
            return
        for name, part in parts.items():
            if not hasattr(part, "dtype") or not jnp.issubdtype(part.dtype, jnp.floating):
                raise TypeError(f"{name} must be an array of floating-point numbers, got {part!r}")
        check_half_precision(self)
        num_basis, shape = self.basis.num_basis, self.coefficients.shape
        if shape[-1:] != (num_basis,):
            raise ValueError(
                f"coefficients must have shape (*batch, {num_basis}), one for each function of the basis "
                f"{type(self.basis).__name__}, got shape {shape}"
            )
        batches = {
            "base_weight must have a": self.base_weight.shape,
            "spline_weight must have a": self.spline_weight.shape,
            "basis must have a grid of a batch": self.basis.grid.batch_shape,
        }
        for what, batch in batches.items():
            if not broadcasts(batch, self.batch_shape):
                raise ValueError(f"{what} shape that broadcasts to the energy's, {self.batch_shape}, got {batch}")

    @classmethod
    def init(
        cls,
        key: PRNGKeyArray,
        batch_shape: tuple[int, ...] = (),
        *,
        basis: Basis,
        base_activation: str = "silu",
        scale: float = 0.1,
    ) -> UnivariateEnergy:
        """Draw a random energy.

        Args:
            key: JAX random key.
            batch_shape: shape of the batch of functions.
            basis: the functions that are combined.
            base_activation: "silu", "tanh" or "identity".
            scale: standard deviation of the coefficients and of the base weight, at least 0; with 0 the energy is
                zero and the prior starts as its reference.

        Returns:
            An energy with normal coefficients and base weights, and spline weights of one.

        Raises:
            ValueError: for a scale that is negative or not finite, and another base_activation.

        Example:
            ```python
            import jax
            import jax.numpy as jnp
            from numpyro_kaem import BSpline, UnivariateEnergy

            basis = BSpline(num_intervals=20, degree=3, domain=(-3.0, 3.0))
            energy = UnivariateEnergy.init(jax.random.key(0), (40,), basis=basis, scale=0.0)
            assert jnp.all(energy(jnp.ones((100, 40))) == 0.0)
            ```
        """
        if not 0.0 <= scale < np.inf:
            raise ValueError(f"scale must be a finite number of at least 0, got {scale!r}")
        base_key, coefficient_key = jax.random.split(key)
        return cls(
            base_weight=scale * jax.random.normal(base_key, batch_shape),
            spline_weight=jnp.ones(batch_shape),
            coefficients=scale * jax.random.normal(coefficient_key, (*batch_shape, basis.num_basis)),
            basis=basis,
            base_activation=base_activation,
        )

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch of functions."""
        return self.coefficients.shape[:-1]

    def __call__(self, z: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Evaluate f at z of shape sample_shape + batch_shape (or broadcastable with it)."""
        return self.centered(z) + self.offset

    @property
    def offset(self) -> Float[Array, "*batch"]:
        """The constant w_base act(c), with c the middle of the domain.

        Far from zero the activation is a large number that hardly changes over the domain. It cancels in a normalised
        density, but would take the digits of what does change with it.
        """
        activation, _ = ACTIVATIONS[self.base_activation]
        return self.base_weight * activation(jnp.asarray(self._center(), self.base_weight.dtype))

    def centered(self, z: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Evaluate f(z) - offset."""
        z = jnp.asarray(z)
        z = jnp.broadcast_to(z, jnp.broadcast_shapes(z.shape, self.batch_shape))
        z = z.astype(jnp.result_type(z, self.coefficients))
        center = self._center(z.dtype)
        _, difference = ACTIVATIONS[self.base_activation]
        base = self.base_weight * difference(center, self.basis.clip(z) - center, jnp)
        return base + self.basis.weighted(z, self.spline_weight, self.coefficients)

    def adapt_grid(
        self,
        z: Num[ArrayLike, "num_samples *batch"],
        weights: Num[ArrayLike, "..."] | None = None,
        uniform_fraction: float = 0.05,
    ) -> tuple[UnivariateEnergy, Float[Array, "*batch"]]:
        """Move the grid to where samples are, and refit the coefficients: the function hardly changes.

        For each batch element on its own: the domain is extended to cover the samples (it never shrinks), the knots of
        a `BSpline` become

            (1 - s) times the samples' weighted quantiles + s times evenly spaced knots,   s = uniform_fraction,

        so that about as many samples lie in each interval (where the domain is extended, about three intervals go to
        its old end). Evenly spaced are knots over the old domain and all but the outermost 1 per cent of the samples on
        either side, so that an outlier costs one interval. The coefficients are those of the least-squares fit to the
        function on the old domain and, with less weight, to its continuation by a slope that decays over the width of
        a cell. Other bases get the new domain only. Works on repeated samples, on one sample, with cells that no
        sample falls into, and, compiled, on samples that are not finite: these do not count.

        Args:
            z: samples of shape (num_samples, *batch). A batch axis of size 1 gives all elements along it the same
                grid, as the components of a `KAMixture` need.
            weights: not negative; of shape (num_samples,) or that of z.
            uniform_fraction: s, above 0 and at most 1.

        Returns:
            The energy on its new grid, and per batch element the largest change of the function on its old domain, in
            nats. A smaller change needs more knots.

        Raises:
            ValueError: for samples or weights that are not finite (when they are known now), none at all, negative
                weights, shapes that do not fit, or uniform_fraction out of range.

        Example:
            ```python
            import jax
            from numpyro_kaem import BSpline, UnivariateEnergy

            basis = BSpline(num_intervals=20, degree=3, domain=(-3.0, 3.0))
            energy = UnivariateEnergy.init(jax.random.key(0), (40,), basis=basis)
            z = 2.0 + 0.5 * jax.random.normal(jax.random.key(1), (1000, 40))
            adapted, change = energy.adapt_grid(z)
            assert adapted.basis.knots.shape == (40, 21) and change.shape == (40,)
            ```
        """
        z, weights = _check_samples(z, weights, self, uniform_fraction)
        return self._adapt(z.astype(self.coefficients.dtype), weights, uniform_fraction)

    @compiled
    def _adapt(self, z, weights, uniform_fraction):
        return self._moved_to(adapted_basis(self.basis, z, weights, uniform_fraction))

    def _moved_to(self, basis: Basis) -> tuple[UnivariateEnergy, Float[Array, "*batch"]]:
        """The same function as nearly as the basis can, and the largest change on the old domain."""
        dtype = self.coefficients.dtype
        new, old = comparison_points(basis), comparison_points(self.basis)
        old = jnp.broadcast_to(old, (*new.shape[:-1], old.shape[-1]))
        # Points lead, as functions are evaluated; batch elements that share a grid share them.
        z = jnp.moveaxis(jnp.concatenate([new, old], axis=-1).astype(dtype), -1, 0)
        spline_weight = jnp.where(jnp.abs(self.spline_weight) > 1e-6, self.spline_weight, 1.0)
        moved = eqx.tree_at(
            lambda f: (f.basis, f.spline_weight, f.coefficients),
            self,
            (basis, spline_weight, jnp.zeros_like(self.coefficients)),
        )
        target = jnp.moveaxis((self._continued(z) - moved(z)) / spline_weight, 0, -1)
        design = jnp.moveaxis(basis(z), 0, -2)
        # On the old domain the function counts more than what it goes on by; for a basis of local functions, which
        # can follow both, it alone does.
        beyond = 1e-6 if isinstance(basis, BSpline) else 1e-2
        low, high = self.basis.ends(dtype)
        inside = (z >= low) & (z <= high)
        weights = jnp.broadcast_to(jnp.moveaxis(jnp.where(inside, 1.0, beyond).astype(dtype), 0, -1), target.shape)
        moved = eqx.tree_at(lambda f: f.coefficients, moved, least_squares(design, target, weights))
        change = jnp.where(inside, jnp.abs(moved(z) - self(z)), 0.0)
        return moved, jnp.max(change, axis=0)

    def _continued(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """The function, beyond its domain without a kink: its slope decays over the width of a cell."""
        low, high = self.basis.ends(z.dtype)
        scale = (high - low) / self.basis.num_cells
        value = self(z)
        for end, outwards in ((low, -1.0), (high, 1.0)):
            at = jnp.broadcast_to(jnp.asarray(end - outwards * 1e-3 * scale, z.dtype), self.batch_shape)
            _, slope = jax.jvp(self, (at,), (jnp.ones_like(at),))
            distance = jnp.maximum(outwards * (z - end), 0.0)
            value = value - outwards * slope * scale * jnp.expm1(-distance / scale)
        return value

    def _center(self, dtype=float):
        low, high = self.basis.ends(dtype)
        return 0.5 * (low + high)

    def at_places(
        self, cells: np.ndarray, places: np.ndarray
    ) -> tuple[Float[Array, "*batch num_panels num_nodes"], Float[Array, "*batch num_panels num_nodes"]]:
        """Evaluate f - offset of every function of the batch at fixed places in the cells of the basis.

        The result is a sum coarse + fine. Densities need energies relative to their largest value only, and the
        differences of `coarse` between its large values are exact (see `Basis.combine`).

        Args:
            cells: index of the cell, shape (num_panels,).
            places: places in the cells, from 0 to 1, shape (num_panels, num_nodes).

        Returns:
            coarse and fine; gradients pass through both.
        """
        dtype = self.coefficients.dtype
        product = exact_product(self.spline_weight[..., None], self.coefficients)
        coarse_spline, fine_spline = self.basis.combine(cells, places, *product)

        # From the middle of the domain to the point without a subtraction of the rounded point; what float32 loses of
        # it is kept.
        center, (leading, rest) = self._center(), self.basis.points(cells, places)
        xp = array_module(leading)
        center = center[..., None, None] if xp is jnp else center
        _, difference = ACTIVATIONS[self.base_activation]
        change = difference(center, (leading - center) + rest, xp)
        rounded = change.astype(dtype)
        weight = self.base_weight[..., None, None]
        coarse_base, fine_base = exact_product(weight, jnp.asarray(rounded))
        fine_base = fine_base + weight * (change - rounded).astype(dtype)

        coarse, lost = exact_sum(coarse_spline, coarse_base)
        return coarse, (fine_spline + fine_base) + lost


def check_half_precision(energy: UnivariateEnergy) -> None:
    """Raise where a weight, a coefficient or a scale of the basis has less than the precision of float32."""
    for name in ("base_weight", "spline_weight", "coefficients", "basis"):
        check_precision(f"{name} of an energy", getattr(energy, name))


def check_finite(energy: UnivariateEnergy) -> None:
    """Raise where a weight or a coefficient that is known now is not finite."""
    for name in ("base_weight", "spline_weight", "coefficients"):
        values = getattr(energy, name)
        if isinstance(values, core.Tracer) or not isinstance(values, np.ndarray | jax.Array):
            continue
        wrong = np.argwhere(~np.isfinite(np.asarray(values)))
        if len(wrong):
            index = tuple(map(int, wrong[0]))
            raise ValueError(
                f"energy must be finite, but {name} is {np.asarray(values)[index]} at {index}, one of {len(wrong)} "
                "such values; start from other parameters, or learn them in smaller steps"
            )


def _check_samples(
    z: ArrayLike, weights: ArrayLike | None, energy: UnivariateEnergy, uniform_fraction: float
) -> tuple[Array, Array]:
    """Samples and weights as arrays of one shape, or an error; the weight of what is not finite is zero."""
    if not 0.0 < uniform_fraction <= 1.0:
        raise ValueError(f"uniform_fraction must be a number above 0 and at most 1, got {uniform_fraction!r}")
    z = jnp.asarray(z)
    weights = jnp.ones(()) if weights is None else jnp.asarray(weights)
    if jnp.iscomplexobj(z) or jnp.iscomplexobj(weights):
        raise TypeError(f"z and weights must be real numbers, got dtypes {z.dtype} and {weights.dtype}")
    batch_shape, grid_shape = energy.batch_shape, energy.basis.grid.batch_shape
    fits = z.ndim == len(batch_shape) + 1 and broadcasts(z.shape[1:], batch_shape)
    if not fits or not broadcasts(grid_shape, z.shape[1:]) or z.shape[0] == 0:
        raise ValueError(
            f"z must be at least one sample of shape (num_samples, *batch), with batch {batch_shape} (or 1 for an axis "
            f"that shares its grid; the present grid has {grid_shape}), got shape {z.shape}"
        )
    weights = jnp.broadcast_to(weights if weights.ndim == z.ndim else weights.reshape(-1, *[1] * (z.ndim - 1)), z.shape)
    usable = jnp.isfinite(z) & jnp.isfinite(weights) & (weights >= 0)
    if not isinstance(usable, core.Tracer) and not bool(jnp.all(usable)):
        raise ValueError(
            f"z and weights must be finite and weights not negative; {int(jnp.sum(~usable))} of {usable.size} samples "
            "are not: remove them, or give them the weight zero and a finite value"
        )
    return z, jnp.where(usable, weights, 0.0)
