"""Orthogonal series on the whole domain: Fourier and Chebyshev."""

from __future__ import annotations

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Num

from numpyro_kaem._numerics.grid import Grid, check_domain
from numpyro_kaem.checks import check_count
from numpyro_kaem.energies.basis import AffineBasis


class _Series(AffineBasis):
    """Abstract: functions whose derivatives are combinations of the functions themselves."""

    @abc.abstractmethod
    def recurrence(self, x, coefficients):
        """The series at x in [0, 1], without a value of every function."""

    @abc.abstractmethod
    def differentiated(self, coefficients):
        """The coefficients of the series' derivative in x."""

    def unit_combination(self, x, coefficients):
        """The series, whose derivative in x is the series of other coefficients."""
        return _combination(self, x, coefficients)


@eqx.filter_custom_jvp
def _combination(series: _Series, x: Array, coefficients: Array) -> Array:
    return series.recurrence(x, coefficients)


@_combination.def_jvp
def _combination_jvp(primals, tangents):
    series, x, coefficients = primals
    _, x_dot, coefficients_dot = tangents
    value = _combination(series, x, coefficients)
    value_dot = jnp.zeros_like(value)
    if x_dot is not None:
        value_dot += _combination(series, x, series.differentiated(coefficients)) * x_dot
    if coefficients_dot is not None:
        value_dot += series.recurrence(x, coefficients_dot)
    return value, value_dot


class Fourier(_Series):
    """Sines and cosines whose period is the domain.

    With x = (z - a) / (b - a) and K = num_frequencies, the 2 K + 1 functions are

        1, cos(2 pi x), ..., cos(2 pi K x), sin(2 pi x), ..., sin(2 pi K x).

    A series takes the same value at both ends of the domain, as an energy on a circle should; the base activation of
    a `UnivariateEnergy` adds a difference. For a density on the line, choose a domain wider than the data.

    Args:
        num_frequencies: K, at least 1.
        domain: (low, high); two numbers, or two arrays of the batch shape of the energy (or one that broadcasts with
            it), for a domain per batch element.

    Raises:
        ValueError: for a domain that is not low < high, or fewer than one frequency.

    Example:
        ```python
        import jax.numpy as jnp
        from numpyro_kaem import Fourier

        basis = Fourier(num_frequencies=10, domain=(-jnp.pi, jnp.pi))
        assert basis(jnp.linspace(-3.0, 3.0, 5)).shape == (5, 21)
        ```
    """

    num_frequencies: int = eqx.field(static=True)
    grid: Grid

    def __init__(self, num_frequencies: int, domain: tuple[Num[ArrayLike, "*batch"], Num[ArrayLike, "*batch"]]):
        self.num_frequencies = check_count("num_frequencies", num_frequencies, 1)
        self.grid = check_domain(domain)

    @property
    def num_basis(self) -> int:
        """Number of functions, 2 num_frequencies + 1."""
        return 2 * self.num_frequencies + 1

    @property
    def steep_cells(self) -> bool:
        """A wave goes from crest to trough in half a period."""
        return True

    @property
    def unit_breakpoints(self) -> np.ndarray:
        """Half periods of the highest frequency."""
        return np.linspace(0.0, 1.0, 2 * self.num_frequencies + 1)

    def unit_values(self, x, xp):
        """1, the cosines and the sines."""
        turns = x[..., None] * np.arange(1, self.num_frequencies + 1)
        angle = (2.0 * np.pi) * (turns - xp.round(turns))
        return xp.concatenate([xp.ones_like(angle[..., :1]), xp.cos(angle), xp.sin(angle)], axis=-1)

    def recurrence(self, x, coefficients):
        """The series by Horner's rule in exp(2 pi i x)."""
        angle = (2.0 * np.pi) * x
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        constant, cosines, sines = jnp.split(coefficients, (1, self.num_frequencies + 1), axis=-1)
        # Re sum_k (a_k - i b_k) exp(2 pi i k x)
        real = imaginary = 0.0
        for k in reversed(range(self.num_frequencies)):
            real, imaginary = real + cosines[..., k], imaginary - sines[..., k]
            real, imaginary = real * cos - imaginary * sin, real * sin + imaginary * cos
        return constant[..., 0] + real

    def differentiated(self, coefficients):
        """Cosines and sines change places."""
        constant, cosines, sines = jnp.split(coefficients, (1, self.num_frequencies + 1), axis=-1)
        frequencies = 2.0 * np.pi * np.arange(1, self.num_frequencies + 1)
        return jnp.concatenate([jnp.zeros_like(constant), frequencies * sines, -frequencies * cosines], axis=-1)


class Chebyshev(_Series):
    """Chebyshev polynomials T_0 ... T_degree on the domain, by recurrence.

    With x = (2 z - a - b) / (b - a),

        T_0 = 1,   T_1 = x,   T_{k+1} = 2 x T_k - T_{k-1},

    whose derivatives are finite at both ends of the domain (those of cos(k arccos x), as computed, are not).

    Args:
        degree: highest degree, at least 1.
        domain: (low, high); two numbers, or two arrays of the batch shape of the energy (or one that broadcasts with
            it), for a domain per batch element.

    Raises:
        ValueError: for a domain that is not low < high, or a degree below 1.

    References:
        J. C. Mason and D. C. Handscomb, Chebyshev Polynomials, CRC 2002.

    Example:
        ```python
        import jax.numpy as jnp
        from numpyro_kaem import Chebyshev

        basis = Chebyshev(degree=10, domain=(-3.0, 3.0))
        assert jnp.allclose(basis(jnp.array(3.0)), jnp.ones(11))
        ```
    """

    degree: int = eqx.field(static=True)
    grid: Grid

    def __init__(self, degree: int, domain: tuple[Num[ArrayLike, "*batch"], Num[ArrayLike, "*batch"]]):
        self.degree = check_count("degree", degree, 1)
        self.grid = check_domain(domain)

    @property
    def num_basis(self) -> int:
        """Number of functions, degree + 1."""
        return self.degree + 1

    @property
    def unit_breakpoints(self) -> np.ndarray:
        """The extrema of T_degree, and its zeros: near the ends a series changes by many nats between two of them."""
        return 0.5 - 0.5 * np.cos(np.pi * np.arange(2 * self.degree + 1) / (2 * self.degree))

    def unit_values(self, x, xp):
        """T_0 ... T_degree of 2 x - 1."""
        x = 2.0 * x - 1.0
        values = [xp.ones_like(x), x]
        for _ in range(self.degree - 1):
            values.append(2.0 * x * values[-1] - values[-2])
        return xp.stack(values, axis=-1)

    def recurrence(self, x, coefficients):
        """The series by Clenshaw's recurrence."""
        x = 2.0 * x - 1.0
        last = before = 0.0
        for k in reversed(range(1, self.degree + 1)):
            last, before = coefficients[..., k] + 2.0 * x * last - before, last
        return coefficients[..., 0] + x * last - before

    def differentiated(self, coefficients):
        """Sums of every second coefficient: T_k' = 2 k (T_{k-1} + T_{k-3} + ...), the last one halved if it is T_0."""
        order, power = np.arange(self.degree + 1), np.arange(self.degree + 1)[:, None]
        odd = (power > order) & ((power - order) % 2 == 1)
        # twice, because x goes from 0 to 1 where the polynomials are those on [-1, 1]
        matrix = np.where(odd, 2.0 * np.where(order == 0, 1.0, 2.0) * power, 0.0).astype(coefficients.dtype)
        return jnp.matmul(coefficients, matrix, precision=lax.Precision.HIGHEST)
