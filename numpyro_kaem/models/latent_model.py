"""The seam to NumPyro: log-densities of a model, for one datum, read out of the model itself."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float
from numpyro.handlers import seed, substitute, trace

from numpyro_kaem._compilation.fingerprint import SameProgram
from numpyro_kaem.models.rows import Latents, RowProgram
from numpyro_kaem.models.self_check import (
    check_constants_are_constant,
    check_latents_are_drawn,
    check_priors_are_proper,
    check_rows_stand_alone,
)
from numpyro_kaem.models.staging import StagedFunction
from numpyro_kaem.models.structure import scaled_log_prob


class LatentModel:
    r"""The log-densities of a NumPyro model, for one datum.

    The model's latent sites decide what a datum is. Inside one data plate, a datum is a row of the positional
    data, and

    $$\log p(z, x) = \frac{N}{n} \sum_{i=1}^{n} \bigl[\log p(z_i) + \log p(x_i \mid z_i)\bigr] + \log g$$

    with plate size N, n of its rows at hand, and g the sites outside the plate, counted once. With a latent
    site outside every plate that holds the others, the whole data set is one datum.

    One datum is the model run on positional arrays cut to one row, its plate indices substituted by `[0]`.
    Positional arguments that are no arrays, scalars and keyword arguments reach the model as they are.
    Data given to methods are cast to the dtypes of construction. Methods are pure: they jit, vmap and
    differentiate, in the latents and in the parameters.

    Args:
        model: a NumPyro model; its positional array arguments (or pytrees of them) lead with the data axis.
        params: constrained values by parameter site, as from `svi.get_params(state)`; values of mutable
            sites may be among them. `{}` where the model has none.
        data: the model's positional arguments.
        plate: name of the data plate where several plates hold every latent site.
        rng_key: draws the indices of sub-sampled plates and seeds random decoders; by default
            `jax.random.key(0)`.
        check: compare two rows run together with each run alone (skipped where the data are traced).
        model_kwargs: the model's keyword arguments.

    Attributes:
        plate: name of the data plate; None where the whole data set is one datum.
        num_data: number of rows n (1 where `plate` is None).
        scale: N / n (1.0 where `plate` is None).
        rows: the positional data cut to the n rows; None in place of what is not cut, so that it vmaps.
        latent_shapes: shape of each latent site for one datum.
        observed_names: the observed sites and factors of a datum.
        outside_sites: the latent sites outside the data plate.

    Raises:
        ValueError: for missing or unknown parameters, discrete latents, data that do not fit the plate, an
            ambiguous plate, a model whose rows do not stand alone (the site and the cure are named), and a site
            that is not normalised and observed, or dependent on other latents.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        from numpyro_kaem import LatentModel


        def model(x):
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


        latent_model = LatentModel(model, {}, jnp.array([0.3, -1.2, 0.8]))
        z = latent_model.sample_prior(jax.random.key(0), 5)
        jax.jit(jax.vmap(lambda z: latent_model.log_likelihood(z, 0.3)))(z)  # five draws, one datum
        ```
    """

    def __init__(
        self,
        model: Callable,
        params: dict[str, Any],
        *data: Any,
        plate: str | None = None,
        rng_key: Array | None = None,
        check: bool = True,
        **model_kwargs: Any,
    ):
        rng_key = jax.random.key(0) if rng_key is None else rng_key
        program = self.program = RowProgram(model, params, data, model_kwargs, plate, rng_key)
        self.plate, self.num_data, self.scale, self.rows = (
            program.plate,
            program.num_data,
            program.scale,
            program.rows,
        )
        self.latent_shapes, self.observed_names = program.latent_shapes, program.observed_names
        self.outside_sites = program.outside_sites
        if check:
            check_rows_stand_alone(program)
            check_constants_are_constant(program)
            check_latents_are_drawn(program)
            check_priors_are_proper(program)

    def __reduce__(self) -> tuple:
        program = self.program
        settings = {"plate": program.plate_name, "rng_key": program.rng_key, "check": False}
        given = program.model, jax.device_get(program.params), jax.device_get(program.data)
        return _read_again, (*given, jax.device_get(program.model_kwargs), settings)

    @cached_property
    def as_argument(self) -> SameProgram:
        """The model as an argument of compiled functions: equal to all models that compute the same."""
        return SameProgram(self.program.model, self.program.fingerprint)

    def require_per_datum(self, caller: str) -> None:
        """Raise a ValueError, for `caller`, unless every latent site is inside one data plate."""
        if self.plate is None:
            outside = ", ".join(map(repr, self.outside_sites))
            raise ValueError(
                f"{caller} needs every latent site inside one data plate, but {outside} is outside: "
                "move it inside, or make it a parameter"
            )

    def log_prior(self, z: Latents, *x: Any, unconstrained: bool = False) -> Float[Array, ""]:
        r"""$\log p(z)$ of one datum, the density of its draws; in unconstrained coordinates plus a log-determinant.

        That is $\log|\det \partial z / \partial u|$.

        Args:
            z: one value per latent site, of shapes `latent_shapes`.
            x: one row of each positional argument, without the leading axis; may be left out unless the prior
                depends on the data. Where `plate` is None, the whole data, by default those of construction.
            unconstrained: whether z holds unconstrained coordinates.

        Returns:
            A scalar.

        Raises:
            ValueError: where shapes or sites do not fit, or a prior that depends on the data is given none.
        """
        row = self._row(x, "log_prior", lambda: self.prior_depends_on_data)
        sites, log_det = self._run(z, row, unconstrained)
        return self._prior(sites) + log_det

    def unnormalized_log_prior(self, z: Latents, *x: Any) -> Float[Array, ""]:
        r"""The part of $\log p(z)$ that is known up to a constant only: of `unnormalized_sites`, zero without any.

        Args and errors are as in `log_prior`.
        """
        row = self._row(x, "unnormalized_log_prior", lambda: self.prior_depends_on_data)
        sites, _ = self._run(z, row, unconstrained=False)
        return self._sum(sites, self.unnormalized_sites)

    def log_likelihood(self, z: Latents, *x: Any, unconstrained: bool = False) -> Float[Array, ""]:
        r"""$\log p(x \mid z)$ of one datum: its observed sites and factors.

        A latent site that is masked or scaled is drawn from its whole distribution, which is its `log_prior`; what
        NumPyro's joint density has more or less than that is part of the likelihood.

        Args:
            z: one value per latent site, of shapes `latent_shapes`.
            x: one row of each positional argument, without the leading axis. Where `plate` is None, the whole
                data, by default those of construction.
            unconstrained: whether z holds unconstrained coordinates.

        Returns:
            A scalar.

        Raises:
            ValueError: where shapes or sites do not fit, or the row is missing.
        """
        sites, _ = self._run(z, self._row(x, "log_likelihood", lambda: True), unconstrained)
        return self._likelihood(sites)

    def log_parts(self, z: Latents, *x: Any, unconstrained: bool = False) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """`log_prior` and `log_likelihood` of one datum, of one run of the model; arguments are those of the latter."""
        sites, log_det = self._run(z, self._row(x, "log_likelihood", lambda: True), unconstrained)
        return self._prior(sites) + log_det, self._likelihood(sites)

    def sample_prior(self, key: Array, num_samples: int, *x: Any) -> Latents:
        """Draw from the prior of one datum.

        Args:
            key: a random key.
            num_samples: number of draws, at least 1.
            x: as in `log_prior`.

        Returns:
            For each latent site an array of shape `(num_samples, *latent_shapes[site])`.

        Raises:
            ValueError: where num_samples is below 1, or a prior that depends on the data is given none.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        return jax.vmap(lambda key: self.draw_prior(key, *x))(jax.random.split(key, num_samples))

    def draw_prior(self, key: Array, *x: Any, unconstrained: bool = False) -> Latents:
        """One draw from the prior of one datum, maybe in unconstrained coordinates; see `sample_prior`."""
        rows = self.program.lead(self._row(x, "sample_prior", lambda: self.prior_depends_on_data))
        # Staged, only the prior's equations are run: the decoder costs nothing.
        staged = StagedFunction(lambda key: self.program.draw_latents(key, rows, unconstrained=unconstrained), key)
        return staged.evaluate(lambda z: z, key)

    def draw_and_tell(self, key: Array, *x: Any) -> tuple[Latents, Latents]:
        """As `draw_prior` in unconstrained coordinates, and which of these lie on the very end of their support."""
        rows = self.program.lead(self._row(x, "sample_prior", lambda: self.prior_depends_on_data))
        staged = StagedFunction(lambda key: self.program.draw_and_tell(key, rows), key)
        return staged.evaluate(lambda drawn: drawn, key)

    def constrain(self, u: Latents, *x: Any) -> Latents:
        """The latents at unconstrained coordinates `u` of one datum (`biject_to` of each support)."""
        sites, _ = self._run(u, x or self.program.first_row, unconstrained=True)
        return {name: self.program.datum(name, sites[name]["value"]) for name in u}

    def unconstrain(self, z: Latents, *x: Any) -> Latents:
        """The unconstrained coordinates of the latents `z` of one datum: the inverse of `constrain`."""
        sites, _ = self._run(z, x or self.program.first_row, unconstrained=False)
        return {name: self.program.unconstrained_datum(name, sites[name]) for name in z}

    def log_density(self, latents: Latents, *rows: Any) -> Float[Array, ""]:
        """The log joint density of all rows: `scale` times the sum over the data, plus the global part.

        Args:
            latents: one array of shape `(num_data, *latent_shapes[site])` per latent site.
            rows: positional data, by default `self.rows`.

        Returns:
            A scalar, equal to `numpyro.infer.util.log_density` of the model.

        Raises:
            ValueError: where the leading axes of latents and rows differ, or shapes do not fit.
        """
        rows = rows or self.rows

        def joint(z: Latents, row: tuple) -> Array:
            sites, _ = self._run(z, row, unconstrained=False)
            return self._sum(sites, (*z, *self.observed_names))

        if self.plate is None:
            return joint({name: jnp.squeeze(value, 0) for name, value in latents.items()}, rows)
        leading = {leaf.shape[0] for leaf in jax.tree.leaves((latents, rows))}
        if len(leading) > 1:
            raise ValueError(f"latents and rows must have one leading axis in common, got {sorted(leading)}")
        return self.scale * jnp.sum(jax.vmap(joint)(latents, rows)) + self.global_log_density()

    def global_log_density(self) -> Float[Array, ""]:
        """The observed sites and factors outside the data plate, each with its own scale, counted once."""
        program = self.program
        if not program.global_names:
            return jnp.asarray(0.0)
        model = substitute(program.model, data={**program.params, **program.structure.plate_indices})
        sites = trace(seed(model, program.rng_key)).get_trace(*program.data, **program.model_kwargs)
        return sum(jnp.sum(scaled_log_prob(sites[name])) for name in program.global_names)

    @cached_property
    def unnormalized_sites(self) -> tuple[str, ...]:
        """The latent sites whose distribution is not normalised, such as a `DeepKAPrior`, also inside of wrappers.

        `log_prior` lacks their unknown constants; `objectives` make up for them with negative samples.
        """
        return self.program.structure.unnormalized_sites

    @cached_property
    def prior_depends_on_data(self) -> bool:
        """Whether the latents' distributions depend on the positional data, by the traced program."""
        return self.program.staged.depends(lambda out: out["prior"], 1)

    @cached_property
    def likelihood_depends_on_data(self) -> bool:
        """Whether the observed sites' distributions, masks and scales depend on the positional data."""
        return self.program.staged.depends(lambda out: out["likelihood"], 1)

    def _row(self, x: tuple, caller: str, needs_data: Callable[[], bool]) -> tuple:
        if not x and self.plate is not None and jax.tree.leaves(self.rows) and needs_data():
            raise ValueError(f"{caller} of this model needs the datum: pass one row of each positional argument")
        return x or self.program.first_row

    def _run(self, z: Latents, x: tuple, unconstrained: bool) -> tuple[dict[str, dict], ArrayLike]:
        self.program.check_latent_names(z)
        return self.program.run(self.program.lead(z), self.program.lead(x), unconstrained=unconstrained)

    def _prior(self, sites: dict[str, dict]) -> Array:
        """The log-density with which the latents of a datum are drawn."""
        return jnp.asarray(sum(jnp.sum(self.program.draw_terms(sites, name)) for name in self.latent_shapes))

    def _likelihood(self, sites: dict[str, dict]) -> Array:
        """Everything else that a datum counts for."""
        return self._sum(sites, self.observed_names) + jnp.sum(self.program.correction(sites))

    def _sum(self, sites: dict[str, dict], names: Any) -> Array:
        """The sites' log-probabilities in a run on one datum."""
        return jnp.asarray(sum((jnp.sum(self.program.site_terms(sites, name)) for name in names), 0.0))


def _read_again(
    model: Callable, params: dict[str, Any], data: tuple, model_kwargs: dict[str, Any], settings: dict[str, Any]
) -> LatentModel:
    """A latent model that was pickled."""
    return LatentModel(model, params, *data, **settings, **model_kwargs)
