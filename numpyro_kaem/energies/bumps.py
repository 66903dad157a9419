"""Translates of one bump on evenly spaced centres: radial basis functions, their hyperbolic kin, and wavelets."""

from __future__ import annotations

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from numpyro_kaem._numerics.grid import Grid, check_domain
from numpyro_kaem.checks import check_count
from numpyro_kaem.energies.basis import AffineBasis

# Quadrature follows the bumps: the number of its panels is proportional to one over the scale.
_LEAST_SCALE = 0.01


class _Bumps(AffineBasis):
    """Abstract: B_g(z) = U((z - c_g) / (s h)), with centres c_g = a + g h on the domain and a scale s.

    A learned scale is a leaf, log s, shared by the batch; a fixed one is static.
    """

    num_centers: int = eqx.field(static=True)
    grid: Grid
    fixed_scale: float = eqx.field(static=True)
    log_scale: Float[Array, ""] | None

    def __init__(
        self,
        num_centers: int,
        domain: tuple[Num[ArrayLike, "*batch"], Num[ArrayLike, "*batch"]],
        *,
        scale: float = 1.0,
        learn_scale: bool = False,
    ):
        self.num_centers = check_count("num_centers", num_centers, 2)
        self.grid = check_domain(domain)
        if not _LEAST_SCALE <= scale < math.inf:
            raise ValueError(
                f"scale must be at least {_LEAST_SCALE} of the distance between centres, got {scale!r}; for narrower "
                "bumps take more centres"
            )
        self.fixed_scale = float(scale)
        self.log_scale = jnp.log(jnp.asarray(scale, jnp.result_type(float))) if learn_scale else None

    @property
    def scale(self) -> float | Array:
        """Width s of the functions over the spacing of their centres."""
        return self.fixed_scale if self.log_scale is None else jnp.exp(self.log_scale)

    @property
    def num_basis(self) -> int:
        """Number of functions, num_centers."""
        return self.num_centers

    @property
    def half_waves(self) -> float:
        """How often the bump changes its direction in a unit of t, at least 1."""
        return 1.0

    @property
    def unit_breakpoints(self) -> np.ndarray:
        """The centres, and as many points between two of them as a sharp bump needs: quadrature follows the cells."""
        cells_per_spacing = math.ceil(self.half_waves / self.fixed_scale)
        return np.linspace(0.0, 1.0, cells_per_spacing * (self.num_centers - 1) + 1)

    @abc.abstractmethod
    def bump(self, t, xp):
        """U(t)."""

    def unit_values(self, x, xp):
        """Values U((x - c_g) / (s h)) on the unit interval."""
        position = (x * (self.num_centers - 1))[..., None] - np.arange(self.num_centers)
        if self.log_scale is not None:
            position, xp = jnp.asarray(position, self.log_scale.dtype), jnp
        return self.bump(position / self.scale, xp)

    def unit_combination(self, x, coefficients):
        """The combination of bumps, one after the other, and its derivatives in closed form."""
        return _combination(self, 0, x * (self.num_centers - 1), coefficients)

    def derivative(self, order: int, position, center, coefficient):
        """The n-th derivative of c U((p - g) / s) in the position p = x (num_centers - 1)."""

        def function(position):
            return self.bump((position - center) / self.scale, jnp)

        for _ in range(order):
            function = _slope(function)
        return coefficient * function(position)


def _slope(function):
    return lambda t: jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


@eqx.filter_custom_jvp
def _combination(bumps: _Bumps, order: int, position: Array, coefficients: Array) -> Array:
    """The n-th derivative of sum_g c_g U((p - g) / s) in p."""

    # As a loop over the functions, each of which is evaluated at all points: XLA's sum over a last axis calls the
    # exponential for one number at a time, and the reverse mode of that sum keeps all of its terms.
    def add(total, term):
        return total + bumps.derivative(order, position, *term), None

    shape = jnp.broadcast_shapes(position.shape, coefficients.shape[:-1])
    terms = jnp.arange(bumps.num_centers, dtype=position.dtype), jnp.moveaxis(coefficients, -1, 0)
    return jax.lax.scan(add, jnp.zeros(shape, jnp.result_type(position, coefficients)), terms)[0]


@_combination.def_jvp
def _combination_jvp(primals, tangents):
    bumps, order, position, coefficients = primals
    bumps_dot, _, position_dot, coefficients_dot = tangents
    value = _combination(bumps, order, position, coefficients)
    value_dot = jnp.zeros_like(value)
    if position_dot is not None:
        value_dot += _combination(bumps, order + 1, position, coefficients) * position_dot

    def total(bumps, coefficients):
        centers = jnp.arange(bumps.num_centers, dtype=position.dtype)
        return jnp.sum(bumps.derivative(order, position[..., None], centers, coefficients), axis=-1)

    if jax.tree.leaves((bumps_dot, coefficients_dot)):
        value_dot += eqx.filter_jvp(total, (bumps, coefficients), (bumps_dot, coefficients_dot))[1]
    return value, value_dot


class RBF(_Bumps):
    """Gaussian radial basis functions on evenly spaced centres.

    With spacing h = (b - a) / (num_centers - 1), centres c_g = a + g h and scale s,

        B_g(z) = exp(-t^2),   t = (z - c_g) / (s h).

    Args:
        num_centers: number of functions, at least 2.
        domain: (low, high); the first and the last centre lie on its ends. Two numbers, or two arrays of the batch
            shape of the energy (or one that broadcasts with it), for a domain per batch element.
        scale: s, at least 0.01.
        learn_scale: make log s a parameter, shared by the batch and started at `scale`.

    Raises:
        ValueError: for a domain that is not low < high, fewer than two centres, or a scale below 0.01.

    References:
        Z. Li, Kolmogorov-Arnold Networks are Radial Basis Function Networks, arXiv 2405.06721.

    Example:
        ```python
        import jax.numpy as jnp
        from numpyro_kaem import RBF

        basis = RBF(num_centers=7, domain=(-3.0, 3.0))
        assert basis(jnp.array([0.0, 1.0])).shape == (2, 7)
        assert float(basis(jnp.array(1.0))[4]) == 1.0
        ```
    """

    def bump(self, t, xp):
        """exp(-t^2)."""
        return xp.exp(-(t**2))


class RSWAF(_Bumps):
    """Reflectional switch activation functions on evenly spaced centres.

    With spacing h = (b - a) / (num_centers - 1), centres c_g = a + g h and scale s,

        B_g(z) = 1 - tanh(t)^2,   t = (z - c_g) / (s h).

    Args:
        num_centers: number of functions, at least 2.
        domain: (low, high); the first and the last centre lie on its ends. Two numbers, or two arrays of the batch
            shape of the energy (or one that broadcasts with it), for a domain per batch element.
        scale: s, at least 0.01.
        learn_scale: make log s a parameter, shared by the batch and started at `scale`.

    Raises:
        ValueError: for a domain that is not low < high, fewer than two centres, or a scale below 0.01.

    References:
        A. Delis, FasterKAN, 2024, where the functions have this name.

    Example:
        ```python
        import jax.numpy as jnp
        from numpyro_kaem import RSWAF

        basis = RSWAF(num_centers=7, domain=(-3.0, 3.0))
        assert float(basis(jnp.array(1.0))[4]) == 1.0
        ```
    """

    def bump(self, t, xp):
        """1 - tanh(t)^2, as 1 / cosh(t)^2: near one, the compiler's tanh has errors that do not cancel out of a sum."""
        return 1.0 / xp.cosh(xp.clip(t, -20.0, 20.0)) ** 2


_WAVELETS = {
    "mexican_hat": lambda t, xp: (1.0 - t**2) * xp.exp(-0.5 * t**2),
    "morlet": lambda t, xp: xp.cos(5.0 * t) * xp.exp(-0.5 * t**2),
    "dog": lambda t, xp: -t * xp.exp(0.5 - 0.5 * t**2),
}


class Wavelet(_Bumps):
    """Wavelets on evenly spaced centres.

    With spacing h = (b - a) / (num_centers - 1), centres c_g = a + g h and scale s, B_g(z) = U((z - c_g) / (s h)) with

        mexican_hat   U(t) = (1 - t^2) exp(-t^2 / 2)
        morlet        U(t) = cos(5 t) exp(-t^2 / 2)
        dog           U(t) = -t exp((1 - t^2) / 2), the derivative of a Gaussian

    each with a largest absolute value of one.

    Args:
        kind: "mexican_hat", "morlet" or "dog".
        num_centers: number of functions, at least 2.
        domain: (low, high); the first and the last centre lie on its ends. Two numbers, or two arrays of the batch
            shape of the energy (or one that broadcasts with it), for a domain per batch element.
        scale: s, at least 0.01.
        learn_scale: make log s a parameter, shared by the batch and started at `scale`.

    Raises:
        ValueError: for another kind, a domain that is not low < high, fewer than two centres, or a scale below
            0.01.

    References:
        Z. Bozorgasl and H. Chen, Wav-KAN: Wavelet Kolmogorov-Arnold Networks, arXiv 2405.12832.

    Example:
        ```python
        import jax.numpy as jnp
        from numpyro_kaem import Wavelet

        basis = Wavelet("mexican_hat", num_centers=20, domain=(-3.0, 3.0))
        assert basis(jnp.zeros(5)).shape == (5, 20)
        ```
    """

    kind: str = eqx.field(static=True)

    def __init__(
        self,
        kind: str,
        num_centers: int,
        domain: tuple[Num[ArrayLike, "*batch"], Num[ArrayLike, "*batch"]],
        *,
        scale: float = 1.0,
        learn_scale: bool = False,
    ):
        if kind not in _WAVELETS:
            raise ValueError(f"kind must be one of {sorted(_WAVELETS)}, got {kind!r}")
        self.kind = kind
        super().__init__(num_centers, domain, scale=scale, learn_scale=learn_scale)

    @property
    def half_waves(self) -> float:
        """A Morlet wavelet is a wave of 5 radians a unit."""
        return 5.0 / math.pi if self.kind == "morlet" else 1.0

    @property
    def steep_cells(self) -> bool:
        """Cells of a Morlet wavelet are half waves."""
        return self.kind == "morlet"

    def bump(self, t, xp):
        """The wavelet at t."""
        return _WAVELETS[self.kind](t, xp)
