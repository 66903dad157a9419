"""Learned densities with mean zero, and variance one on request: the effects of groups in hierarchical models."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import core
from jaxtyping import Array, Float
from numpyro.distributions.batch_util import promote_batch_shape

from numpyro_kaem._densities.centered_density import CenteredDensity
from numpyro_kaem._densities.density import unchecked
from numpyro_kaem.distributions.tabulated import TabulatedDistribution
from numpyro_kaem.distributions.truncated import LearnedDistribution, TruncatedPrior


class CenteredPrior(TabulatedDistribution):
    """What `centered_prior` returns; it keeps the prior, whose present parameters its moments are of."""

    arg_constraints = {}
    reparametrized_params = []
    pytree_data_fields = ("base_dist", "_kept_moments")
    pytree_aux_fields = ("unit_variance",)
    # Set by `tabulate`.
    _kept_moments: tuple[Array, Array] | None = None

    def __init__(
        self, base_dist: LearnedDistribution | TruncatedPrior, unit_variance: bool, *, validate_args: bool | None = None
    ):
        self.base_dist, self.unit_variance = base_dist, unit_variance
        super().__init__(base_dist.batch_shape, (), validate_args=validate_args)
        self._expanded_shape = base_dist._expanded_shape

    @property
    def quadrature(self):
        """The panel rule of the prior."""
        return self.base_dist.quadrature

    @property
    def support(self):
        """The support of the prior, moved and scaled."""
        return self._density.support

    @property
    def mean(self) -> Float[Array, "*batch"]:
        """Zero."""
        density = self._density
        return jnp.zeros(self._shape_with_batch(density), density.dtype)

    @property
    def variance(self) -> Float[Array, "*batch"]:
        """One with `unit_variance`, else that of the prior, by quadrature."""
        density = self._density
        return jnp.broadcast_to(density.variance, self._shape_with_batch(density))

    @property
    def _tilted(self):
        return self.base_dist._tilted

    @property
    def _density(self) -> CenteredDensity:
        return unchecked(CenteredDensity, self.base_dist._density, self._kept_moments, self.unit_variance)

    def tabulate(self) -> CenteredPrior:
        """The same distribution with its tables and its moments kept (see `KAPrior.tabulate`)."""
        tabulated = self._copy()
        tabulated.base_dist = self.base_dist.tabulate()
        tabulated._kept_moments = self._density.prepared().moments
        return tabulated


@promote_batch_shape.register
def _(distribution: CenteredPrior) -> CenteredPrior:
    promoted, base_dist = distribution._copy(), promote_batch_shape(distribution.base_dist)
    axes = base_dist.batch_shape[: len(base_dist.batch_shape) - len(distribution.base_dist.batch_shape)]
    promoted.base_dist, promoted._batch_shape = base_dist, axes + distribution.batch_shape
    if distribution._expanded_shape is not None:
        promoted._expanded_shape = axes + distribution._expanded_shape
    return promoted


def centered_prior(prior: dist.Distribution, *, unit_variance: bool = False) -> CenteredPrior:
    """A learned density, moved so that its mean is zero, and scaled so that its variance is one on request:

        x = (z - m) / s,   z ~ p,   p(x) = s p(z = m + s x),

    with the mean m of `prior`, and s = 1, or with `unit_variance` its standard deviation. As the distribution of the
    effects of groups it leaves the intercept, and the scale, to the parameters that have these names:

        y_ij ~ intercept + scale x_i + noise.

    Without it an energy that tilts its reference moves the mean, and intercept and energy are told apart by their
    priors alone. The moments are integrals by quadrature (`prior.mean`, `prior.variance`) and not those of draws, and
    derivatives with respect to the prior's parameters pass through them.

    Args:
        prior: a `KAPrior`, `KAMixture` or `TruncatedPrior`, of any batch shape: each element is centred by its own
            moments.
        unit_variance: whether the variance is one as well.

    Returns:
        A univariate NumPyro distribution of the prior's batch shape, with the prior's methods: `log_prob`, `sample`,
        `cdf`, `icdf`, `survival`, `entropy`, `tabulate` and the like.

    Raises:
        TypeError: if `prior` is something else.
        ValueError: where the reference has no mean, or no variance where it is to be one (`Cauchy`, `StudentT` of few
            degrees of freedom). Of a reference with traced parameters this is not known, and densities are NaN.

    Example:
        ```python
        import jax
        import numpyro
        import numpyro.distributions as dist
        from numpyro_kaem import BSpline, KAPrior, UnivariateEnergy, centered_prior

        energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(12, 3, (-4.0, 4.0)), scale=1.0)


        def model(group, y):
            intercept = numpyro.sample("intercept", dist.Normal(0.0, 10.0))
            scale = numpyro.sample("scale", dist.HalfNormal(5.0))
            with numpyro.plate("groups", 20):
                effect = numpyro.sample("effect", centered_prior(KAPrior(energy, dist.Normal()), unit_variance=True))
            numpyro.sample("y", dist.Normal(intercept + scale * effect[group], 1.0), obs=y)


        prior = centered_prior(KAPrior(energy, dist.Normal()), unit_variance=True)
        assert prior.mean == 0.0 and prior.variance == 1.0
        draws = prior.sample(jax.random.key(1), (100_000,))
        assert abs(draws.mean()) < 0.02 and abs(draws.std() - 1.0) < 0.02
        ```
    """
    if not isinstance(prior, LearnedDistribution | TruncatedPrior):
        raise TypeError(
            f"prior must be a KAPrior, a KAMixture or one of these truncated, got {type(prior).__name__}; "
            "call .to_event and the like on what centered_prior returns"
        )
    _check_moments(prior, ("mean", "variance") if unit_variance else ("mean",))
    return CenteredPrior(prior, unit_variance)


def _check_moments(prior: TabulatedDistribution, names: tuple[str, ...]) -> None:
    """Raise an error where the moments are known not to be finite: those of the reference, which the tilt bounds."""
    if isinstance(prior, TruncatedPrior) and prior._density.is_bounded:
        return
    reference = prior._tilted.reference
    for name in names:
        moment = _known(reference, name)
        if moment is None:  # NumPyro does not know it
            moment = _known(prior, name)
        if moment is not None and not np.all(np.isfinite(moment)):
            raise ValueError(
                f"prior must have a finite {name}, but its reference {type(reference).__name__} has "
                f"{moment[~np.isfinite(moment)][0]}: choose one of lighter tails such as StudentT(4.0) or "
                "Normal(0.0, 1.0), or truncate the prior on both sides"
            )


def _known(distribution: dist.Distribution, name: str) -> np.ndarray | None:
    """A moment of a distribution, or None where it is traced or not implemented."""
    if any(isinstance(leaf, core.Tracer) for leaf in jax.tree.leaves(distribution)):
        return None
    try:
        with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):  # of NumPy's numbers, where it is infinite
            return np.asarray(getattr(distribution, name))
    except (NotImplementedError, ImportError, AttributeError):
        return None
