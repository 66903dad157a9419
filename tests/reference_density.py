"""Tilted references and their mixtures in float64, by NumPy and SciPy alone: the truth that the library is held to.

Only the numbers of a distribution are read (weights, coefficients, domain, knots, scale, logits). Energies are
evaluated by `scipy.interpolate.BSpline` and the written-out formulas of the other bases, references by `scipy.stats`,
and integrals by Gauss-Legendre sums of ten nodes on panels far finer than the library's, one batch element at a time.
"""

import numpy as np
import scipy.interpolate
import scipy.special

from numpyro_kaem import BSpline, Chebyshev, Fourier

UNIT_NODES, UNIT_WEIGHTS = (
    (part + shift) / 2 for part, shift in zip(np.polynomial.legendre.leggauss(10), (1, 0), strict=True)
)
ACTIVATIONS = {"silu": lambda z: z * scipy.special.expit(z), "tanh": np.tanh, "identity": lambda z: z}
BUMPS = {
    "RBF": lambda t: np.exp(-(t**2)),
    "RSWAF": lambda t: 1.0 / np.cosh(t) ** 2,
    "mexican_hat": lambda t: (1.0 - t**2) * np.exp(-(t**2) / 2.0),
    "morlet": lambda t: np.cos(5.0 * t) * np.exp(-(t**2) / 2.0),
    "dog": lambda t: -t * np.exp((1.0 - t**2) / 2.0),
}


def breakpoints(basis):
    """Where the pieces of a basis meet, from end to end of its domain: shape (*batch of the grid, pieces + 1)."""
    if isinstance(basis, BSpline) and not basis.uniform:
        return np.asarray(basis.knots, np.float64)
    low, high = (np.asarray(end, np.float64) for end in basis.domain)
    if isinstance(basis, Fourier):
        pieces = 2 * basis.num_frequencies
    elif isinstance(basis, Chebyshev):
        pieces = 2 * basis.degree
    else:
        pieces = basis.num_intervals if isinstance(basis, BSpline) else basis.num_centers - 1
    return np.linspace(low, high, pieces + 1, axis=-1)


def basis_values(basis, points, z):
    """B_1(z) ... B_G(z) as they are written, on the given breakpoints: shape z.shape + (G,)."""
    low, high = points[[0, -1]]
    z = np.clip(np.asarray(z, np.float64), low, high)
    if isinstance(basis, BSpline):
        (first, *_, last), beyond = np.diff(points)[[0, -1]], np.arange(1, basis.degree + 1)
        knots = np.concatenate([low - first * beyond[::-1], points, high + last * beyond])
        return scipy.interpolate.BSpline(knots, np.eye(len(points) - 1 + basis.degree), basis.degree)(z)
    place = ((z - low) / (high - low))[..., None]
    if isinstance(basis, Fourier):
        angle = 2.0 * np.pi * np.arange(1, basis.num_frequencies + 1) * place
        return np.concatenate([np.ones_like(place), np.cos(angle), np.sin(angle)], axis=-1)
    if isinstance(basis, Chebyshev):
        return np.cos(np.arange(basis.degree + 1) * np.arccos(2.0 * place - 1.0))
    scale = basis.fixed_scale if basis.log_scale is None else np.exp(np.float64(basis.log_scale))
    bump = BUMPS[getattr(basis, "kind", type(basis).__name__)]
    return bump((z[..., None] - points) / (scale * (points[1] - points[0])))


def energy_values(energy, z):
    """f(z) of an energy with any batch shape, at every z: shape z.shape + batch_shape."""
    basis, points = energy.basis, breakpoints(energy.basis)
    base_weight, spline_weight, coefficients = (
        np.asarray(part, np.float64) for part in (energy.base_weight, energy.spline_weight, energy.coefficients)
    )
    z = np.asarray(z, np.float64)
    if points.ndim == 1:
        spline = np.tensordot(basis_values(basis, points, z), coefficients, (-1, -1))
    else:
        points = np.broadcast_to(points, (*base_weight.shape, points.shape[-1]))
        spline = np.empty((*z.shape, *base_weight.shape))
        for index in np.ndindex(base_weight.shape):
            spline[..., *index] = basis_values(basis, points[index], z) @ coefficients[index]
    z = z.reshape(*z.shape, *[1] * base_weight.ndim)
    base = ACTIVATIONS[energy.base_activation](np.clip(z, points[..., 0], points[..., -1]))
    return base * base_weight + spline_weight * spline


class ReferenceDensity:
    """One density sum_c pi_c pi0_c(z) exp(f_c(z)) / Z_c, with its CDF from below and from above.

    Args:
        energy: an energy with batch shape (num_components,), of which numbers are read only; one grid for all.
        reference: a frozen `scipy.stats` distribution, its parameters of shape () or (num_components,).
        logits: log-proportions up to a constant, (num_components,).
        panels: panels between two breakpoints.
        kinks: of the reference, where panels have to end.
    """

    def __init__(self, energy, reference, logits=(0.0,), panels=40, kinks=()):
        self.energy, self.reference = energy, reference
        self.log_proportions = scipy.special.log_softmax(np.asarray(logits, np.float64))
        points = breakpoints(energy.basis)
        points = points.reshape(-1, points.shape[-1])[0]
        inner = points[:-1, None] + np.diff(points)[:, None] * np.arange(panels) / panels
        inside = [kink for kink in kinks if points[0] < kink < points[-1]]
        self.edges = np.unique(np.concatenate([inner.ravel(), points[-1:], inside]))
        self.low, self.high = low, high = points[0], points[-1]
        f_low, f_high = energy_values(energy, np.array([low, high]))
        nodes = self.edges[:-1, None] + np.diff(self.edges)[:, None] * UNIT_NODES
        tilted = self._tilt(nodes)
        scale = tilted.max(axis=(0, 1))
        mass = np.einsum("pnc,n,p->pc", np.exp(tilted - scale), UNIT_WEIGHTS, np.diff(self.edges))
        lower = np.exp(f_low - scale) * reference.cdf(low)
        upper = np.exp(f_high - scale) * reference.sf(high)
        self.log_normalizer = np.log(lower + mass.sum(0) + upper) + scale  # of each component
        self.log_weights = self.log_proportions - self.log_normalizer
        self._tail_weights = np.exp(f_low + self.log_weights), np.exp(f_high + self.log_weights)
        panel_mass = mass @ np.exp(scale + self.log_weights)
        below, above = (
            np.sum(weight * tail)
            for weight, tail in zip(self._tail_weights, (reference.cdf(low), reference.sf(high)), strict=True)
        )
        self.lower_tail, self.upper_tail = below, above
        self._from_below = below + np.concatenate([[0.0], np.cumsum(panel_mass)])
        self._from_above = above + np.concatenate([np.cumsum(panel_mass[::-1])[::-1], [0.0]])

    def _tilt(self, z):
        return self.reference.logpdf(np.asarray(z)[..., None]) + energy_values(self.energy, z)

    def log_prob(self, z):
        """Normalised log-density."""
        return scipy.special.logsumexp(self._tilt(np.asarray(z, np.float64)) + self.log_weights, axis=-1)

    def probabilities(self, z):
        """F(z) and 1 - F(z), each to its own full precision, for z of any shape."""
        z = np.asarray(z, np.float64)
        low, high = self.low, self.high
        inside = np.clip(z, low, high)
        panel = np.clip(np.searchsorted(self.edges, inside, side="right") - 1, 0, len(self.edges) - 2)
        left = self.edges[panel]
        part = np.exp(self.log_prob(left[..., None] + (inside - left)[..., None] * UNIT_NODES)) @ UNIT_WEIGHTS
        part = np.where(inside > left, part * (inside - left), 0.0)
        below, above = self._from_below[panel] + part, self._from_above[panel] - part
        lower = np.sum(self._tail_weights[0] * self.reference.cdf(np.minimum(z, low)[..., None]), axis=-1)
        upper = np.sum(self._tail_weights[1] * self.reference.sf(np.maximum(z, high)[..., None]), axis=-1)
        below = np.where(z < low, lower, np.where(z > high, 1.0 - upper, below))
        above = np.where(z > high, upper, np.where(z < low, 1.0 - lower, above))
        return below, above

    def u_error(self, u, z):
        """|F(z) - u|, through 1 - F and 1 - u where u > 1/2."""
        u = np.asarray(u, np.float64)
        below, above = self.probabilities(z)
        return np.where(u < 0.5, np.abs(below - u), np.abs(above - (1.0 - u)))

    def integration_rule(self, dtype):
        """Points of the given dtype over the whole support, and weights: the integral of g is sum(weights * g(points)).

        Points in the tails are evenly spread in the reference's probability. Where rounding a point to the dtype moves
        it, the weight makes up for the change of this density, so that only a difference of g from it counts.
        """
        low, high = self.low, self.high
        body = (self.edges[:-1, None] + np.diff(self.edges)[:, None] * UNIT_NODES).ravel()
        body_weights = (np.diff(self.edges)[:, None] * UNIT_WEIGHTS).ravel()
        below, above = self.reference.cdf(low), self.reference.sf(high)
        tails = np.concatenate([self.reference.ppf(below * UNIT_NODES), self.reference.isf(above * UNIT_NODES)])
        tail_weights = np.concatenate([below * UNIT_WEIGHTS, above * UNIT_WEIGHTS])
        with np.errstate(divide="ignore", invalid="ignore"):
            tail_weights = np.where(tail_weights > 0, tail_weights / np.exp(self.reference.logpdf(tails)), 0.0)
        exact, weights = np.concatenate([body, tails]), np.concatenate([body_weights, tail_weights])
        points = np.where(weights > 0, exact, low).astype(dtype)
        change = np.where(weights > 0, self.log_prob(exact) - self.log_prob(points), 0.0)
        return points, weights * np.exp(change)

    def moments(self):
        """Mean, variance and entropy; in the tails by ten nodes in every octave of the reference's probability."""
        points, weights = self.integration_rule(np.float64)
        body = slice(0, 10 * (len(self.edges) - 1))
        z, mass = [points[body]], [weights[body] * np.exp(self.log_prob(points[body]))]
        octaves = 0.5 ** np.arange(1, 61)[:, None]
        shares, share_weights = (octaves * (1.0 + UNIT_NODES)).ravel(), (octaves * UNIT_WEIGHTS).ravel()
        if self.lower_tail > 0:
            z.append(self.reference.ppf(self.reference.cdf(self.low) * shares))
            mass.append(self.lower_tail * share_weights)
        if self.upper_tail > 0:
            z.append(self.reference.isf(self.reference.sf(self.high) * shares))
            mass.append(self.upper_tail * share_weights)
        z, mass = np.concatenate(z), np.concatenate(mass)
        mean = np.sum(mass * z)
        return mean, np.sum(mass * (z - mean) ** 2), -np.sum(mass * self.log_prob(z))
