"""The tilted reference: a learned, normalised, invertible univariate density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import core
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_kaem._compilation.entry_points import compiled
from numpyro_kaem._densities.cdf_table import CDFTable, build_table, log_integral
from numpyro_kaem._densities.cut_panels import CutPanels
from numpyro_kaem._densities.log_tails import log_mass_above, log_mass_below
from numpyro_kaem._densities.panels import Panels, nodes_first
from numpyro_kaem._densities.reference import (
    check_reference,
    kinks,
    reaches_outside,
    support_ends,
    warn_of_narrow_panels,
    with_numbers_as_arrays,
)
from numpyro_kaem._numerics.quadrature import QuadratureRule
from numpyro_kaem.distributions.leaf_shapes import leaf_shapes, settle
from numpyro_kaem.distributions.tabulated import TabulatedDistribution
from numpyro_kaem.energies import Basis
from numpyro_kaem.energies.energy import UnivariateEnergy, check_finite, check_half_precision


class KAPrior(TabulatedDistribution):
    """A univariate reference distribution pi0, tilted by a learned energy f:

        p(z) = pi0(z) exp(f(z)) / Z,
        Z = exp(f(a)) F0(a) + int_a^b pi0(z) exp(f(z)) dz + exp(f(b)) (1 - F0(b)),

    with [a, b] the domain of the energy's basis. Outside of it f is constant, so the tails are the reference's and no
    mass is lost. The integral is a composite Gauss-Legendre sum; the tails come from the reference in closed form.

    Like `Normal(loc, scale)` it is univariate with a batch shape: event_shape is (), batch_shape is that of the energy
    broadcast with the reference's. Use `.to_event(1)` or `.to_event(2)` for a joint prior of independent coordinates.

    Draws are exact (inverse transform: no chain, no rejection), differentiable, and cost one table look-up each.

    Args:
        energy: the learned function f, a `UnivariateEnergy`.
        reference: pi0, a continuous univariate NumPyro distribution; its parameters may be learned. One whose `icdf`
            does not work has its tails inverted by bisection of its `cdf`.
        quadrature: the panel rule, such as `GaussLegendre(10, 40)` for an energy that is much rougher than a standard
            deviation of 5 nats; None for one with which quantiles are exact for smoother ones, `GaussLegendre(10, 10)`
            in float64, and in float32 `GaussLegendre(10, 4)` for all bases whose cells are not steep.
        validate_args: as in every NumPyro distribution; an energy has to be finite.

    Raises:
        TypeError: if energy or reference are of another type, or have parameters of half precision.
        ValueError: for a reference that is discrete, multivariate or has neither icdf nor cdf, for batch shapes that
            do not broadcast, and for a domain that reaches outside the reference's support.

    A reference of known location and scale that is narrower than the panels there is warned of.

    References:
        Kolmogorov-Arnold Energy Models: Fast, Interpretable Generative Modeling, arXiv 2506.14167.

    Example:
        ```python
        import jax
        import numpyro.distributions as dist
        from numpyro_kaem import BSpline, KAPrior, UnivariateEnergy

        basis = BSpline(num_intervals=20, degree=3, domain=(-3.0, 3.0))
        energy = UnivariateEnergy.init(jax.random.key(0), (40,), basis=basis, scale=1.0)
        prior = KAPrior(energy, dist.Normal(0.0, 1.0))
        z = prior.sample(jax.random.key(1), (1000,))
        assert z.shape == prior.log_prob(z).shape == (1000, 40)
        joint = prior.to_event(1)
        assert joint.log_prob(z).shape == (1000,)
        ```
    """

    arg_constraints = {}
    reparametrized_params = []
    pytree_data_fields = ("energy", "reference")
    pytree_aux_fields = ("quadrature", "_reference_has_icdf", "_leaf_shapes")

    def __init__(
        self,
        energy: UnivariateEnergy,
        reference: dist.Distribution,
        *,
        quadrature: QuadratureRule | None = None,
        validate_args: bool | None = None,
    ):
        if not isinstance(energy, UnivariateEnergy):
            raise TypeError(f"energy must be a UnivariateEnergy, got {energy!r}; make one with UnivariateEnergy.init")
        check_half_precision(energy)
        if quadrature is not None and not isinstance(quadrature, QuadratureRule):
            raise TypeError(f"quadrature must be a rule such as GaussLegendre() or Trapezoid(), got {quadrature!r}")
        reference_shape = getattr(reference, "batch_shape", ())
        if isinstance(reference, dist.ExpandedDistribution):
            reference = reference.base_dist  # an ExpandedDistribution hides cdf and icdf
        self._reference_has_icdf = check_reference(reference)
        try:
            batch_shape = jnp.broadcast_shapes(energy.batch_shape, reference_shape)
        except ValueError as error:
            raise ValueError(
                f"the energy's batch shape {energy.batch_shape} and the reference's {reference_shape} must broadcast"
            ) from error
        ends = energy.basis.domain
        if not any(isinstance(end, core.Tracer) for end in ends):
            bounds = np.broadcast_arrays(*ends, *support_ends(reference))
            with np.errstate(over="ignore"):
                rounded = [bound.astype(energy.coefficients.dtype) for bound in bounds]
            outside = (rounded[0] < rounded[2]) | (rounded[1] > rounded[3])
            if np.any(outside):
                a, b, low, high = (float(bound[outside][0]) for bound in bounds)
                raise ValueError(
                    f"domain ({a}, {b}) of the energy's basis reaches outside the support ({low}, {high}) of the "
                    f"reference {type(reference).__name__}; choose a domain inside the support"
                )
        reference = with_numbers_as_arrays(reference, energy.coefficients.dtype)
        self.energy, self.reference, self.quadrature = energy, reference, quadrature
        warn_of_narrow_panels(reference, energy.basis.breakpoints, self._rule.panels_per_interval)
        self._leaf_shapes = leaf_shapes((energy, reference))
        super().__init__(batch_shape, (), validate_args=validate_args)
        self._expanded_shape = batch_shape if batch_shape != self._table_shape else None
        if self._validate_args:
            check_finite(energy)

    @classmethod
    def from_samples(
        cls,
        z: ArrayLike | Sequence,
        *,
        weights: ArrayLike | Sequence | None = None,
        basis: Basis | None = None,
        reference: dist.Distribution | None = None,
        smoothness: ArrayLike | Sequence | None = None,
        num_folds: int = 10,
        shuffle: bool = True,
    ) -> KAPrior:
        """Fit a prior to samples, coordinate by coordinate, by penalised maximum likelihood:

            maximise  sum_i w_i log p(z_i) - 1/2 smoothness s^3 int_a^b f''(z)^2 dz,

        with normalised weights w and the samples' standard deviation s, so that the penalty is the roughness of f as
        a function of z / s: the same smoothness means the same at any scale of the data. A large one leaves the
        reference, tilted by a log-linear function. The base weight is zero.

        The problem is concave, and solved in float64 by Newton's method on the host; data enter through the means of
        the basis functions. Correlations between coordinates are not kept (see `from_posterior`).

        With a smoothness that is chosen and no basis given, the result is checked: at quantiles of n samples its CDF
        is within 0.02 + 1.8 / sqrt(n) of theirs, or an error says by how much it is not.

        Samples with ties are no draws of a density. Where the smoothness is chosen, values on a lattice (counts,
        scores, rounded numbers) are spread evenly over their steps, which adds step^2 / 12 to the variance, other
        values that at least 8 samples share over half the way to their neighbours, and repeated draws share a fold.
        Samples of so few values that this adds more than a tenth to the variance are refused. With a given smoothness
        samples are fitted as they are.

        Args:
            z: samples, NumPy or JAX, shape (num_samples, *batch).
            weights: importance weights, not negative, shape (num_samples,) or that of z; they need not sum to one.
                Doubling a weight is the same as repeating its sample.
            basis: the functions that f is made of; None for cubic B-splines on 40 intervals over the range of the
                samples of each coordinate and 5 percent more on either side, as far as the reference's support goes.
                Their knots are even; where samples are so dense that these would miss it, they follow the samples, and
                the roughness is that of f in the coordinate in which the knots are even.
                Samples beyond a given basis's domain count as if they lay at its end, where f is constant; some have to
                lie inside. A learnable scale of the basis stays at its initial value.
            reference: pi0, which shapes the tails; None for a Normal with the samples' mean and standard deviation, or
                where the range is more than 40 times that of the middle half, with a warning, for StudentT
                distributions fitted to the samples (of all coordinates). Bounded data want one with their support
                (Gamma, LogNormal, Uniform).
            smoothness: weight of the penalty, at least 0, a number or an array of the batch shape; None to choose it
                for each coordinate by cross-validation, from a path of 25 values between 1e-10 and 100.
            num_folds: folds of the cross-validation.
            shuffle: assign samples to folds at random (always in the same way). False for samples that depend on
                their neighbours, as those of a Markov chain: folds are then runs of samples.

        Returns:
            A prior of batch shape `batch`, in JAX's default floating-point dtype.

        Raises:
            TypeError: if arguments are traced or of another type.
            ValueError: for samples that are not finite, masked, do not vary, are huge or tiny for the dtype, lie
                outside the reference's support, are too few or discrete; for a reference without mass where they are,
                a basis on a domain that holds none, and fits that are not close to them or too rough; for negative
                weights or weights that sum to zero; for a negative smoothness; for shapes that do not fit.

        References:
            P. H. C. Eilers and B. D. Marx, Flexible Smoothing with B-splines and Penalties, Statistical Science
            11(2), 1996. C. Gu and C. Qiu, Smoothing Spline Density Estimation, Annals of Statistics 21(1), 1993.

        Example:
            ```python
            import numpy as np
            from numpyro_kaem import KAPrior

            rng = np.random.default_rng(0)
            z = np.where(rng.random(2_000) < 0.3, rng.normal(-2.0, 0.5, 2_000), rng.normal(1.0, 1.0, 2_000))
            prior = KAPrior.from_samples(z)
            assert prior.batch_shape == ()
            assert abs(float(prior.cdf(-1.0)) - np.mean(z < -1.0)) < 0.02
            ```
        """
        from numpyro_kaem._fitting.fit import fit_samples

        return fit_samples(
            z,
            weights=weights,
            basis=basis,
            reference=reference,
            smoothness=smoothness,
            num_folds=num_folds,
            shuffle=shuffle,
        ).prior

    @classmethod
    def from_log_density(
        cls,
        fn: Callable[[np.ndarray], ArrayLike],
        domain: tuple[ArrayLike | Sequence, ArrayLike | Sequence],
        *,
        reference: dist.Distribution | None = None,
        basis: Basis | None = None,
        batch_shape: tuple[int, ...] = (),
    ) -> KAPrior:
        """Fit a prior to a log-density that is known on a domain.

        Of all priors with this reference and basis, it is the one that is nearest in Kullback-Leibler divergence on
        the domain: f = fn - log pi0 by least squares first, which also settles it where there is next to no density,
        then the means of the basis functions made equal to the density's by Newton's method.

        If the fit differs from fn by more than 0.01 in total variation (by quadrature on the domain), a warning says
        by how much, and what number of cells is enough.

        Args:
            fn: log-density up to a constant, called once with a NumPy array of points, shape (num_points, *batch),
                and returning an array of that shape. Where it is -inf the density is taken to be 30 nats below its
                largest value, for an energy is finite: a gap in the support becomes a region of next to no density.
            domain: (low, high), numbers or arrays of the batch shape.
            reference: pi0, which continues the density beyond the domain; None for a Uniform on the domain, so that
                there is none beyond.
            basis: the functions that f is made of, on the same domain; None for cubic B-splines on 40 intervals.
            batch_shape: shape of the batch of densities, where neither domain nor reference have it.

        Returns:
            A prior of the batch shape, in JAX's default floating-point dtype.

        Raises:
            TypeError: if fn cannot be called, or takes single numbers only, or arguments are traced or of another type.
            ValueError: if fn is NaN or infinite somewhere on the domain, or -inf everywhere, or returns an array of
                another shape; for a domain that is not low < high.

        Example:
            ```python
            import jax.numpy as jnp
            from numpyro_kaem import KAPrior

            prior = KAPrior.from_log_density(lambda z: -((z**2 - 1.0) ** 2) / 0.3, (-2.5, 2.5))
            assert abs(float(prior.mean)) < 1e-4
            assert float(prior.log_prob(1.0)) > float(prior.log_prob(0.0)) + 3.0
            ```
        """
        from numpyro_kaem._fitting.fit import fit_log_density

        return fit_log_density(fn, domain, reference=reference, basis=basis, batch_shape=batch_shape).prior

    @classmethod
    def from_table(
        cls,
        points: ArrayLike | Sequence,
        density: ArrayLike | Sequence,
        *,
        floor: float = 1e-3,
        reference: dist.Distribution | None = None,
        basis: Basis | None = None,
    ) -> KAPrior:
        """Fit a prior to densities that are tabulated on a grid, such as photometric redshifts.

        The logarithm of the table, raised to the floor, is interpolated by monotone cubics (Fritsch and Carlson 1980)
        and fitted as `from_log_density` does.

        Args:
            points: where the densities are known, increasing, shape (num_points,); the domain is between its ends.
            density: up to a constant for each, not negative, shape (num_points, *batch).
            floor: share of its largest value below which no density is taken to be. Where there is next to no density
                between two peaks, samplers that follow gradients have to climb a wall: a higher floor is crossed in
                fewer steps, and takes a little mass from the peaks.
            reference: pi0, which continues the density beyond the domain; None for a Uniform on the domain.
            basis: the functions that f is made of; None for cubic B-splines on half as many intervals as the table
                has, from 40 to 160.

        Returns:
            A prior of the batch shape, in JAX's default floating-point dtype.

        Raises:
            TypeError: if arguments are traced or of another type.
            ValueError: for points that do not increase, densities that are negative, not finite or zero everywhere,
                shapes that do not fit, or a floor out of (0, 1).

        Example:
            ```python
            import numpy as np
            from numpyro_kaem import KAPrior

            redshift = np.linspace(0.0, 3.0, 151)
            two_peaks = np.exp(-0.5 * ((redshift - 0.6) / 0.1) ** 2) + 0.3 * np.exp(
                -0.5 * ((redshift - 2.1) / 0.2) ** 2
            )
            prior = KAPrior.from_table(redshift, two_peaks)
            assert abs(float(prior.cdf(1.3)) - 0.62) < 0.01
            ```
        """
        from numpyro_kaem._fitting.density_table import tabulated_log_density
        from numpyro_kaem._fitting.fit import fit_log_density

        fn, default, batch_shape = tabulated_log_density(points, density, floor)
        basis = default if basis is None else basis
        return fit_log_density(fn, default.domain, reference=reference, basis=basis, batch_shape=batch_shape).prior

    @classmethod
    def from_posterior(
        cls,
        idata: Any,
        var_name: str | Sequence[str],
        *,
        correlated: bool = False,
        rotation: str | None = None,
        weights: ArrayLike | Sequence | None = None,
        **options: Any,
    ) -> dist.Distribution:
        """Make yesterday's posterior today's prior.

        The marginal posterior of each coordinate is fitted by `from_samples` to the draws of all chains. What becomes
        of the dependence between coordinates is to be chosen:

        | | marginals | correlation | other dependence |
        |---|---|---|---|
        | default | kept | **lost** | **lost** |
        | `correlated=True` | kept | kept, of normal scores | lost |
        | `rotation="pca"` | sums of fitted coordinates | kept | lost |
        | `rotation="ica"` | sums of fitted coordinates | kept | kept as far as it is a linear mixture |

        Losing a strong correlation between coefficients makes a prior that is far too wide in some directions and
        far too narrow in others. `correlated=True` gives NumPyro's `GaussianCopula` over the fitted marginals. A
        rotation fits independent coordinates s with z = mean + A s, where A whitens the draws; its marginals are
        those of a weighted sum, and its support is unbounded, whatever the variables are: rotate their logarithms.

        Args:
            idata: `arviz.InferenceData` (ArviZ 0.x) or `xarray.DataTree` (1.x) with a group `posterior`, or a dict of
                arrays with leading axes (chain, draw) such as `mcmc.get_samples(group_by_chain=True)`.
            var_name: one variable, or several, which are flattened and put one after the other in this order.
            correlated: keep correlations by a Gaussian copula.
            rotation: "pca" or "ica" (by scikit-learn's FastICA).
            weights: importance weights of the draws, shape (num_chains, num_draws) or flattened.
            **options: of `from_samples`: reference, basis, smoothness, num_folds, shuffle (False by default here,
                for draws of a chain depend on each other). With a rotation they are those of s.

        Returns:
            By default a `KAPrior` whose batch shape is the variable's, or (num_coordinates,) for several. With
            `correlated` or `rotation` a joint distribution with that event shape instead: a `GaussianCopula`, or a
            `TransformedDistribution` of a KAPrior.

        Raises:
            TypeError: for a var_name of another type, or an option that `from_samples` does not have.
            ValueError: for a variable that is not there (those that are there are listed), linearly dependent
                coordinates, both kinds of correlation at once, and as `from_samples` does.
            ImportError: for rotation="ica" without scikit-learn.

        Example:
            ```python
            import numpy as np
            from numpyro_kaem import KAPrior

            rng = np.random.default_rng(0)
            slope = rng.gamma(3.0, size=(4, 500))  # 4 chains of 500 draws, in place of an InferenceData
            posterior = {"intercept": rng.normal(size=(4, 500)) - slope, "slope": slope}

            prior = KAPrior.from_posterior(posterior, ["intercept", "slope"], correlated=True)
            assert prior.event_shape == (2,)
            assert -0.95 < float(prior.correlation_matrix[0, 1]) < -0.75
            ```
        """
        from numpyro_kaem._fitting.fit import fit_posterior

        return fit_posterior(idata, var_name, correlated=correlated, rotation=rotation, weights=weights, **options)

    @property
    def log_normalizer(self) -> Float[Array, "*batch"]:
        """Log Z, computed by quadrature; exact gradients by automatic differentiation."""
        self = self._settled()
        return jnp.broadcast_to(self._log_normalizer(), self._shape_with_batch())

    def _settled(self):
        return settle(self, len(self.batch_shape))

    @property
    def _table_shape(self):
        return jnp.broadcast_shapes(self.energy.batch_shape, self.reference.batch_shape)

    @property
    def _basis(self):
        return self.energy.basis

    @property
    def _dtype(self):
        return self.energy.coefficients.dtype

    @property
    def _reference(self):
        return self.reference

    @property
    def _tails_invert(self):
        return self._reference_has_icdf

    def _log_density(self, z):
        (low, high), constants = self._body, self._constants()
        # Relative to the largest value, as the normaliser is, and beyond the body by the numbers that made the tails:
        # the rounding error of a single number, such as log Z, would be that of all of the mass or of a whole tail.
        energy = self.energy.centered(z) - constants.largest
        energy = jnp.where(z < low, constants.at_ends[0], jnp.where(z > high, constants.at_ends[1], energy))
        return self.reference.log_prob(z) + (energy - constants.log_integral)

    @property
    def _kinks(self):
        return kinks(self.reference)

    def _tilt(self, pieces: Panels | CutPanels | None = None) -> _Tilt:
        rule, panels, basis, shape = self._rule, self._panels, self.energy.basis, self._table_shape
        pieces = self._pieces if pieces is None else pieces
        coarse, fine = self.energy.at_places(*panels.places_and_ends(rule))
        largest = jnp.max(jax.lax.stop_gradient(coarse), axis=(-2, -1))
        energy = (coarse - largest[..., None, None]) + fine
        energy, at_ends = pieces.refine(energy[..., :-2, :], rule), energy[..., -2:, 0]

        # What rounding took from the nodes is given back to first order: far from zero it is not negligible.
        nodes = pieces.nodes(basis, rule, self._dtype)
        rank = max(nodes[0].ndim - 2, len(self.reference.batch_shape))
        log_reference, correction = jax.jvp(
            self.reference.log_prob, *(((jnp.asarray(nodes_first(part, rank)),)) for part in nodes)
        )
        log_reference = jnp.moveaxis(log_reference + correction, 0, -1)
        log_reference = log_reference.reshape(*log_reference.shape[:-1], *energy.shape[-2:])

        log_density = jnp.broadcast_to(energy + log_reference, (*shape, *energy.shape[-2:]))
        traced = any(isinstance(end, core.Tracer) for end in basis.domain)
        if traced or np.any(np.isnan(support_ends(self.reference))):  # not known when the prior was made
            outside = reaches_outside(self.reference, *basis.domain, self._dtype)
            log_density = jnp.where(jnp.expand_dims(outside, (-2, -1)), jnp.nan, log_density)

        low, high = (jnp.asarray(end, self._dtype) for end in self._body)
        return _Tilt(
            largest=largest,
            log_density=log_density,
            sizes=pieces.sizes(basis),
            at_ends=(at_ends[..., 0], at_ends[..., 1]),
            log_tails=(
                jnp.broadcast_to(at_ends[..., 0] + log_mass_below(self.reference, low), shape),
                jnp.broadcast_to(at_ends[..., 1] + log_mass_above(self.reference, high), shape),
            ),
        )

    @compiled
    def _log_normalizer(self):
        constants = self._constants()
        return self.energy.offset + constants.largest + constants.log_integral

    def _log_integral(self, tilt: _Tilt):
        return log_integral(tilt.log_density, tilt.sizes, self._rule, *tilt.log_tails)

    def _constants(self) -> _Constants:
        if self._kept_constants is not None:
            return self._kept_constants
        return self._constants_of(self._tilt())

    def _constants_of(self, tilt: _Tilt) -> _Constants:
        return _Constants(tilt.largest, tilt.at_ends, self._log_integral(tilt))

    def _build(self) -> tuple[CDFTable, _Constants]:
        tilt = self._tilt()
        table = build_table(tilt.log_density, *self._edges_and_sizes, self._rule, *tilt.log_tails)
        return table, self._constants_of(tilt)

    def _log_tail_weights(self) -> tuple[Array, Array]:
        constants = self._constants()
        lower, upper = constants.at_ends
        return lower - constants.log_integral, upper - constants.log_integral


class _Tilt(NamedTuple):
    """With e = f - offset - largest: log pi0 + e at the nodes, e at the body's ends, log-masses of the tails."""

    largest: Array
    log_density: Array
    sizes: np.ndarray | Array
    at_ends: tuple[Array, Array]
    log_tails: tuple[Array, Array]


class _Constants(NamedTuple):
    """What of a `_Tilt` a normalised log-density needs: the log of the integral of pi0 exp(e) comes last."""

    largest: Array
    at_ends: tuple[Array, Array]
    log_integral: Array
