"""What a basis is."""

from __future__ import annotations

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from numpyro_kaem._numerics.grid import Grid, array_module
from numpyro_kaem._numerics.two_floats import stretch


class Basis(eqx.Module):
    """Abstract basis: `num_basis` functions B_1 ... B_G on a domain [a, b].

    Arguments outside the domain are moved to its nearer end, so that every linear combination is constant there. The
    domain (and the knots, where there are any) may differ along a batch. It is not trained: optimisers, `eqx_module`
    and `random_eqx_module` never see it.

    The domain is cut into `num_cells` cells, inside which every function is smooth. A point is told by its cell and
    its place in it, in [0, 1], which are known to full precision even where the point itself is rounded.

    Attributes:
        grid: the points that span the domain.
    """

    grid: eqx.AbstractVar[Grid]

    @property
    def domain(self) -> tuple[float, float] | tuple[Array, Array]:
        """The ends (a, b): floats, or arrays where the domain differs along a batch."""
        return self.grid.ends

    @property
    @abc.abstractmethod
    def num_basis(self) -> int:
        """Number of functions G."""

    @property
    @abc.abstractmethod
    def unit_breakpoints(self) -> np.ndarray:
        """Where the cells of a domain [0, 1] meet: increasing from 0 to 1."""

    @property
    def num_cells(self) -> int:
        """Number of cells of the domain."""
        return len(self.unit_breakpoints) - 1

    @property
    def breakpoints(self) -> np.ndarray | Array:
        """Where cells meet, from a to b; shape (*batch, num_cells + 1), the batch being that of the grid."""
        low, high = (end[..., None] if isinstance(end, jax.Array) else end for end in self.domain)
        points = low + (high - low) * self.unit_breakpoints
        if isinstance(points, jax.Array):
            return points.at[..., -1].set(self.domain[1])
        return np.append(points[:-1], high)

    @property
    def steep_cells(self) -> bool:
        """Whether a combination of the functions may cross its whole range in one cell, so that quadrature is finer."""
        return False

    @property
    def stretched(self) -> bool:
        """Whether the cells are those of [0, 1], moved and stretched, wherever the domain lies."""
        return True

    def points(self, cells: np.ndarray, places: np.ndarray) -> tuple[np.ndarray | Array, np.ndarray | Array]:
        """Points at places in the cells, each as a sum of which the second term is the smaller one.

        Args:
            cells: index of the cell, shape (num_panels,).
            places: places in the cells, from 0 to 1, shape (num_panels, *nodes).

        Returns:
            Two arrays of shape (*batch, num_panels, *nodes), the batch being that of the grid.
        """
        cells = cells.reshape(-1, *[1] * (places.ndim - 1))
        low, high = self.domain
        if self.stretched and isinstance(low, jax.Array):
            cuts = self.unit_breakpoints
            return stretch(low, high, cuts[cells] + np.diff(cuts)[cells] * places)
        breakpoints = self.breakpoints
        return breakpoints[..., cells], (breakpoints[..., 1:] - breakpoints[..., :-1])[..., cells] * places

    def cell_widths(self) -> np.ndarray | Array:
        """Widths of the cells, shape (*batch, num_cells)."""
        low, high = self.domain
        if self.stretched and isinstance(low, jax.Array):
            return (high - low)[..., None] * np.diff(self.unit_breakpoints)
        return self.breakpoints[..., 1:] - self.breakpoints[..., :-1]

    @abc.abstractmethod
    def evaluate(self, z, xp):
        """Values of shape `z.shape + (num_basis,)` for z inside the domain, by the array module xp (NumPy or JAX)."""

    def ends(self, dtype) -> tuple[float, float] | tuple[Array, Array]:
        """The ends of the domain, arrays in the given dtype."""
        low, high = (end.astype(dtype) if isinstance(end, jax.Array) else end for end in self.domain)
        return low, high

    def clip(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """Move z into the domain."""
        return jnp.clip(z, *self.ends(z.dtype))

    def design_matrix(self, points: np.ndarray) -> np.ndarray:
        """Values at fixed points, computed in float64 whatever JAX's precision: `points.shape + (num_basis,)`."""
        return self.evaluate(np.clip(np.asarray(points, np.float64), *self.domain), np)

    def __call__(self, z: Float[Array, "..."]) -> Float[Array, "... num_basis"]:
        """Values B_1(z) ... B_G(z) along a new last axis."""
        return self.evaluate(self.clip(z), jnp)

    def contract(
        self, z: Float[Array, "*sample_and_batch"], coefficients: Float[Array, "*batch num_basis"]
    ) -> Float[Array, "..."]:
        """The linear combination sum_g c_g B_g(z), with the batch shape of the coefficients trailing in z."""
        return jnp.sum(self(z) * coefficients, axis=-1)

    def weighted(
        self,
        z: Float[Array, "*sample_and_batch"],
        weight: Float[Array, "*batch"],
        coefficients: Float[Array, "*batch num_basis"],
    ) -> Float[Array, "..."]:
        """A weight times the linear combination."""
        return weight * self.contract(z, coefficients)

    @abc.abstractmethod
    def combine(
        self,
        cells: np.ndarray,
        places: np.ndarray,
        coefficients: Float[Array, "*batch num_basis"],
        rest: Float[Array, "*batch num_basis"],
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """The linear combination sum_g (c_g + r_g) B_g at fixed places, as a sum coarse + fine.

        An energy of 15 nats has an error of 1e-6 when it is rounded to float32, and so has its exponential. Densities
        need energies relative to their largest value only; the differences of `coarse` between points are exact.

        Args:
            cells: index of the cell, shape (num_panels,).
            places: places in the cells, shape (num_panels, num_nodes).
            coefficients: c.
            rest: r, what c lost when it was rounded.

        Returns:
            coarse and fine, which broadcast to batch_shape + (num_panels, num_nodes); gradients pass through both.
        """


class AffineBasis(Basis):
    """Abstract basis whose functions on [a, b] are those on [0, 1], moved and stretched: B_g(z) = U_g((z-a)/(b-a))."""

    @abc.abstractmethod
    def unit_values(self, x, xp):
        """U_g(x) for x in [0, 1]: shape `x.shape + (num_basis,)`; their absolute values are at most one."""

    def evaluate(self, z, xp):
        """Values of the functions at z."""
        return self.unit_values(self.unit(z), xp)

    def unit(self, z):
        """Where z lies between the ends of the domain, in [0, 1]."""
        low, high = self.ends(z.dtype)
        return (z - low) / (high - low)

    @abc.abstractmethod
    def unit_combination(self, x, coefficients):
        """The linear combination sum_g c_g U_g(x) for x in [0, 1]."""

    def contract(self, z, coefficients):
        """The linear combination at z."""
        return self.unit_combination(self.unit(self.clip(z)), coefficients)

    def combine(self, cells, places, coefficients, rest):
        """By a matrix product whose leading part is exact.

        Coefficients c and values B are split on fixed-point grids, c = c1 + c2 and B = B1 + B2, coarse enough for
        every product and sum in c1 B1 to be exact; the rest is small.
        """
        dtype = coefficients.dtype
        cuts = self.unit_breakpoints
        x = (cuts[cells][:, None] + np.diff(cuts)[cells][:, None] * places).ravel()
        design = self.unit_values(x, np).T
        xp = array_module(design)

        # Sums of products of two numbers with so many bits each still fit into the significand.
        bits = (jnp.finfo(dtype).nmant + 1 - math.ceil(math.log2(len(design) + 1))) // 2
        coarse_design = xp.round(design * 2.0**bits) / 2.0**bits
        if xp is jnp:
            coarse_design = jax.lax.stop_gradient(coarse_design)
        _, exponent = jnp.frexp(jnp.max(jnp.abs(coefficients), axis=-1, keepdims=True))
        coarse_weights = jnp.ldexp(jnp.round(jnp.ldexp(coefficients, bits - exponent)), exponent - bits)
        coarse_weights = jax.lax.stop_gradient(coarse_weights)
        fine_weights = jnp.concatenate([coarse_weights, coefficients - coarse_weights + rest], axis=-1)
        fine_design = xp.concatenate([design - coarse_design, design])

        def product(a, b):
            values = jnp.matmul(a, b.astype(dtype), precision=jax.lax.Precision.HIGHEST)
            return values.reshape(*values.shape[:-1], *places.shape)

        return product(coarse_weights, coarse_design), product(fine_weights, fine_design)
