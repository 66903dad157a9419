"""B-splines."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Num

from numpyro_kaem._numerics.grid import Grid, array_module, check_domain, check_increasing, look_up, search
from numpyro_kaem._numerics.two_floats import exact_product
from numpyro_kaem.checks import check_count
from numpyro_kaem.energies.basis import Basis


class BSpline(Basis):
    """B-splines of any degree, on uniform knots or, by `from_knots`, on any.

    On knots a = t_0 < ... < t_n = b, continued beyond both ends by intervals as wide as the outermost ones, the
    `num_intervals + degree` functions are

        B_g = N_{g - degree, degree},   N_{j,0} = 1 on [t_j, t_{j+1}),
        N_{j,d}(z) = (z - t_j) / (t_{j+d} - t_j) N_{j,d-1}(z) + (t_{j+d+1} - z) / (t_{j+d+1} - t_{j+1}) N_{j+1,d-1}(z).

    They sum to one, are positive, and at most degree + 1 of them differ from zero at a point. `contract` uses that:
    its cost does not depend on the number of intervals.

    Args:
        num_intervals: number of knot intervals, at least 1.
        degree: polynomial degree, 0 to 5 (3 is the cubic spline, with two continuous derivatives).
        domain: (low, high); two numbers, or two arrays of the batch shape of the energy (or one that broadcasts with
            it), for a domain per batch element.

    Raises:
        ValueError: for a domain that is not low < high, knots that do not increase, or counts out of range.

    References:
        C. de Boor, A Practical Guide to Splines, Springer 1978, chapter IX.

    Example:
        ```python
        import jax.numpy as jnp
        from numpyro_kaem import BSpline

        basis = BSpline(num_intervals=20, degree=3, domain=(-3.0, 3.0))
        values = basis(jnp.linspace(-3.0, 3.0, 5))
        assert values.shape == (5, 23)
        assert jnp.allclose(values.sum(-1), 1.0)

        denser_in_the_middle = BSpline.from_knots([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0], degree=3)
        assert denser_in_the_middle.num_basis == 9
        ```
    """

    num_intervals: int = eqx.field(static=True)
    degree: int = eqx.field(static=True)
    uniform: bool = eqx.field(static=True)
    grid: Grid

    def __init__(
        self,
        num_intervals: int,
        degree: int,
        domain: tuple[Num[ArrayLike, "*batch"], Num[ArrayLike, "*batch"]],
    ):
        self.num_intervals = check_count("num_intervals", num_intervals, 1)
        self.degree = _check_degree(degree)
        self.grid = check_domain(domain)
        self.uniform = True

    @classmethod
    def from_knots(cls, knots: Num[ArrayLike, "*batch num_knots"] | Sequence[float | int], degree: int) -> BSpline:
        """B-splines on given knots.

        Args:
            knots: increasing along the last axis, at least 2; with leading axes of the batch shape of the energy (or
                one that broadcasts with it), each batch element has its own.
            degree: polynomial degree, 0 to 5.
        """
        grid = check_increasing(
            knots if hasattr(knots, "dtype") else np.asarray(knots),
            f"knots must be at least two, finite, and increase along the last axis, got {knots!r}",
        )
        self = object.__new__(cls)
        values = {"num_intervals": grid.num_points - 1, "degree": _check_degree(degree), "uniform": False, "grid": grid}
        for name, value in values.items():
            object.__setattr__(self, name, value)
        return self

    @property
    def num_basis(self) -> int:
        """Number of functions, num_intervals + degree."""
        return self.num_intervals + self.degree

    @property
    def num_cells(self) -> int:
        """Number of knot intervals."""
        return self.num_intervals

    @property
    def unit_breakpoints(self) -> np.ndarray:
        """Evenly spaced: the knots of the uniform spline on [0, 1]."""
        return np.linspace(0.0, 1.0, self.num_intervals + 1)

    @property
    def steep_cells(self) -> bool:
        """Of a polygon, whose values at two neighbouring knots have nothing to do with each other."""
        return self.degree == 1

    @property
    def stretched(self) -> bool:
        """Whether the knots are uniform."""
        return self.uniform

    @property
    def breakpoints(self) -> np.ndarray | Array:
        """The knots from a to b."""
        return super().breakpoints if self.uniform else self.grid.points

    knots = breakpoints

    def evaluate(self, z, xp):
        """Values of every function, by the recurrence."""
        knots = xp.asarray(self._extended_knots(), z.dtype)
        if self.uniform:
            index, _ = self._locate(z, xp)
        else:
            index = xp.sum(z[..., None] >= knots[..., self.degree + 1 : self.degree + self.num_intervals], axis=-1)
        index, z = index[..., None], z[..., None]
        values = xp.where(index == np.arange(-self.degree, self.num_intervals + self.degree), 1.0, xp.zeros_like(z))
        for degree in range(1, self.degree + 1):
            rising = (z - knots[..., :-degree]) / (knots[..., degree:] - knots[..., :-degree])
            values = rising[..., :-1] * values[..., :-1] + (1.0 - rising[..., 1:]) * values[..., 1:]
        return values

    def _locate(self, z, xp):
        """Interval of a uniform spline that holds z, and the place of z in it."""
        low, high = self.ends(z.dtype)
        position = (z - low) * (self.num_intervals / (high - low))
        index = xp.clip(xp.floor(position), 0, self.num_intervals - 1)
        return index.astype(np.int32), position - index

    def contract(self, z, coefficients, rest=0.0):
        """The spline sum_g (c_g + r_g) B_g(z) through the degree + 1 functions that do not vanish at z."""
        z, batch_shape = self.clip(z), coefficients.shape[:-1]
        if self.uniform:
            index, place = self._locate(z, jnp)
        else:
            knots = jnp.asarray(self.knots, z.dtype)
            index = search(knots, z, batch_shape)
            left = look_up(knots[..., :-1], index, batch_shape)
            place = (z - left) / (look_up(knots[..., 1:], index, batch_shape) - left)
        middle, *polynomials = jnp.moveaxis(look_up(self._in_cells(coefficients, rest), index, batch_shape, 1), -1, 0)
        value = 0.0
        for polynomial in reversed(polynomials):
            value = value * place + polynomial
        # The part that changes within an interval is added to the rest at the end: a smaller rounding error.
        return value + middle

    def weighted(self, z, weight, coefficients):
        """A weight times the spline, by the polynomials of `combine`: their rounding errors cancel in a density."""
        return self.contract(z, *exact_product(weight[..., None], coefficients))

    def combine(self, cells, places, coefficients, rest):
        """By the local polynomials of every interval: its middle coefficient is the coarse part."""

        def evaluate(coefficients, rest):
            middle, *polynomials = jnp.moveaxis(self._in_cells(coefficients, rest)[..., cells, :], -1, 0)
            value = 0.0
            for polynomial in reversed(polynomials):
                value = value * places.astype(coefficients.dtype) + polynomial[..., None]
            return middle[..., None], value

        local = self._local_polynomials()
        if array_module(local) is jnp:
            return evaluate(coefficients, rest)
        # The derivative is a matrix known now, whose product costs less than what undoes look-ups.
        powers = places[..., None] ** np.arange(self.degree + 1)
        local = np.broadcast_to(local, (self.num_intervals, *local.shape[1:]))
        design = np.zeros((*places.shape, self.num_basis))
        columns = cells[:, None] + np.arange(self.degree + 1)
        np.put_along_axis(design, columns[:, None], powers @ local[cells], axis=-1)

        @jax.custom_jvp
        def combination(coefficients, rest):
            return evaluate(coefficients, rest)

        @combination.defjvp
        def _(primals, tangents):
            coarse, fine = combination(*primals)
            matrix = design.reshape(-1, self.num_basis).T.astype(fine.dtype)
            fine_dot = jnp.matmul(sum(tangents), matrix, precision=lax.Precision.HIGHEST)
            return (coarse, fine), (jnp.zeros_like(coarse), fine_dot.reshape(fine.shape))

        return combination(coefficients, rest)

    def _in_cells(self, coefficients, rest):
        """The spline in each interval as c_m + p_0 + p_1 x + p_2 x^2 + ..., x the place: c_m, and all p, on a new axis.

        The functions sum to one: all p are made from differences to the middle coefficient c_m, which are rounded less.
        """
        windows = np.arange(self.num_intervals)[:, None] + np.arange(self.degree + 1)
        near = coefficients[..., windows]
        middle = near[..., self.degree // 2, None]
        differences = near - middle
        if not isinstance(rest, float):
            differences = differences + rest[..., windows]
        local = self._local_polynomials().astype(coefficients.dtype)
        # Function by function: sums over a short last axis are slow.
        polynomials = sum(differences[..., g, None] * local[..., g] for g in range(self.degree + 1))
        return jnp.concatenate([middle, polynomials], axis=-1)

    def _extended_knots(self) -> np.ndarray | Array:
        """The knots with `degree` more beyond each end."""
        knots = self.knots
        xp, beyond = array_module(knots), np.arange(1, self.degree + 1)
        first, last = knots[..., 1:2] - knots[..., :1], knots[..., -1:] - knots[..., -2:-1]
        return xp.concatenate([knots[..., :1] - first * beyond[::-1], knots, knots[..., -1:] + last * beyond], axis=-1)

    def _local_polynomials(self) -> np.ndarray | Array:
        """The functions of each interval, or of all if uniform, in powers of the place: interval, power, function."""
        if self.uniform:
            knots, num_intervals = np.arange(-self.degree, self.degree + 2.0), 1
        else:
            knots, num_intervals = self._extended_knots(), self.num_intervals
        xp = array_module(knots)
        # knot[j]: the j-th knot from the left end of each interval, in units of its width
        start = slice(self.degree, self.degree + num_intervals)
        width = knots[..., self.degree + 1 : self.degree + 1 + num_intervals] - knots[..., start]
        knot = {
            j: (knots[..., self.degree + j : self.degree + j + num_intervals] - knots[..., start]) / width
            for j in range(-self.degree + 1, self.degree + 1)
        }
        functions = {0: [xp.ones_like(width)]}  # N_{j, degree} in powers of the place
        for degree in range(1, self.degree + 1):
            raised = {j: [xp.zeros_like(width) for _ in range(degree + 1)] for j in range(-degree, 1)}
            for j, function in functions.items():
                # (x - knot_j) / gap times it for N_{j, degree}, (knot_{j+degree} - x) / gap for N_{j-1, degree}
                gap = knot[j + degree] - knot[j]
                for power, coefficient in enumerate(function):
                    share = coefficient / gap
                    raised[j][power + 1] = raised[j][power + 1] + share
                    raised[j][power] = raised[j][power] - knot[j] * share
                    raised[j - 1][power + 1] = raised[j - 1][power + 1] - share
                    raised[j - 1][power] = raised[j - 1][power] + knot[j + degree] * share
            functions = raised
        columns = [xp.stack(functions[j], axis=-1) for j in sorted(functions)]
        return xp.stack(columns, axis=-1)


def _check_degree(degree: int) -> int:
    if check_count("degree", degree, 0) > 5:
        raise ValueError(f"degree must be at most 5, got {degree!r}")
    return int(degree)
