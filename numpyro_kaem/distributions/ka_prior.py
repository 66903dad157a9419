"""The tilted reference: a learned, normalised, invertible univariate density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_kaem._densities.density import Density, log_normalizer, unchecked
from numpyro_kaem._fitting.fit import fit_log_density, fit_samples, tabulated_log_density
from numpyro_kaem._fitting.posterior_draws import posterior_draws
from numpyro_kaem._numerics.quadrature import QuadratureRule
from numpyro_kaem.distributions.copula import normal_score_copula
from numpyro_kaem.distributions.leaf_shapes import leaf_shapes, new_axes, settle
from numpyro_kaem.distributions.rotation import estimate_rotation, rotated
from numpyro_kaem.distributions.truncated import LearnedDistribution
from numpyro_kaem.energies import Basis
from numpyro_kaem.energies.energy import UnivariateEnergy, check_finite


class KAPrior(LearnedDistribution):
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
    # Whether the leaves are known to have the shapes of construction: not yet, after JAX has put it together.
    _is_settled = False

    def __init__(
        self,
        energy: UnivariateEnergy,
        reference: dist.Distribution,
        *,
        quadrature: QuadratureRule | None = None,
        validate_args: bool | None = None,
    ):
        density = Density.of(energy, reference, quadrature)
        # That of an expanded reference is wider than its density's.
        batch_shape = jnp.broadcast_shapes(energy.batch_shape, reference.batch_shape)
        self.energy, self.reference, self.quadrature = energy, density.reference, quadrature
        self._reference_has_icdf = density.reference_has_icdf
        self._leaf_shapes = leaf_shapes((energy, self.reference))
        super().__init__(batch_shape, (), validate_args=validate_args)
        self._expanded_shape = batch_shape if batch_shape != density.shape else None
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
        fit = fit_samples(
            z,
            weights=weights,
            basis=basis,
            reference=reference,
            smoothness=smoothness,
            num_folds=num_folds,
            shuffle=shuffle,
        )
        return cls(fit.energy, fit.reference)

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
            TypeError: if fn cannot be called, or arguments are traced or of another type.
            ValueError: if fn is NaN or infinite somewhere on the domain, or -inf everywhere, or returns an array of
                another shape; for a domain that is not low < high. An error of fn itself has a note that says how to
                write one that takes single numbers only.

        Example:
            ```python
            import jax.numpy as jnp
            from numpyro_kaem import KAPrior

            prior = KAPrior.from_log_density(lambda z: -((z**2 - 1.0) ** 2) / 0.3, (-2.5, 2.5))
            assert abs(float(prior.mean)) < 1e-4
            assert float(prior.log_prob(1.0)) > float(prior.log_prob(0.0)) + 3.0
            ```
        """
        fit = fit_log_density(fn, domain, reference=reference, basis=basis, batch_shape=batch_shape)
        return cls(fit.energy, fit.reference)

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
        fn, default, batch_shape = tabulated_log_density(points, density, floor)
        basis = default if basis is None else basis
        return cls.from_log_density(fn, default.domain, reference=reference, basis=basis, batch_shape=batch_shape)

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
        if correlated and rotation is not None:
            raise ValueError(
                f"give correlated=True or rotation={rotation!r}, not both: each of them keeps correlations"
            )
        draws = posterior_draws(idata, var_name, weights)
        options = {"shuffle": False, "weights": draws.weights, **options}
        if not correlated and rotation is None:
            return cls.from_samples(draws.flat.reshape(-1, *draws.event_shape), **options)
        shared = draws.check_joint("correlated=True" if correlated else f"rotation={rotation!r}")
        if correlated:
            marginals = cls.from_samples(draws.flat, **options).tabulate()
            return normal_score_copula(marginals, draws.flat, shared, draws.event_shape)
        loc, matrix = estimate_rotation(draws.flat, shared, rotation)
        sources = cls.from_samples(np.linalg.solve(matrix, (draws.flat - loc).T).T, **options).tabulate()
        return rotated(sources, loc, matrix, draws.event_shape)

    @property
    def log_normalizer(self) -> Float[Array, "*batch"]:
        """Log Z, computed by quadrature; exact gradients by automatic differentiation."""
        density = self._density
        return jnp.broadcast_to(log_normalizer(density), self._shape_with_batch(density))

    def _settled(self) -> KAPrior:
        return settle(self, len(self.batch_shape))

    def _new_axes(self) -> tuple[int, ...]:
        return new_axes((self.energy, self.reference), self._leaf_shapes)

    @property
    def _tilted(self) -> KAPrior:
        return self._settled()

    @property
    def _density(self) -> Density:
        self = self._settled()
        kept = self._kept_table, self._kept_inverse, self._kept_constants
        return unchecked(Density, self.energy, self.reference, None, self.quadrature, self._reference_has_icdf, *kept)
