"""The seam to NumPyro: log-densities of a model, for one datum, read out of the model itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float
from numpyro.handlers import seed, substitute, trace

from numpyro_kaem._compilation.fingerprint import value_of
from numpyro_kaem.models.dependence import TracedModel
from numpyro_kaem.models.rows import Latents, RowModel, data_arrays, parameter_arrays
from numpyro_kaem.models.self_check import (
    check_constants_are_constant,
    check_latents_are_drawn,
    check_priors_are_proper,
    check_rows_stand_alone,
)
from numpyro_kaem.models.staging import StagedFunction, abstract
from numpyro_kaem.models.structure import scaled_log_prob


class LatentModel(TracedModel):
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

    It is an Equinox module whose leaves are parameters, data and key: it may be an argument of compiled functions, one
    program of which serves all models that compute the same, and `at` gives it at other values.

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
        params, data, rng_key: what the model is read at, as arrays of JAX.
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


        @jax.jit
        def log_density(latent_model, x):
            latents = {"z": jnp.zeros(3)}
            return latent_model.at(data=(x,)).log_density(latents)  # the model is not checked again


        assert log_density(latent_model, jnp.zeros(3)) > log_density(latent_model, jnp.ones(3))
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
        RowModel.__init__(self, model, params, data, model_kwargs, plate, rng_key)
        if check:
            check_rows_stand_alone(self)
            check_constants_are_constant(self)
            check_latents_are_drawn(self)
            check_priors_are_proper(self)

    def at(
        self, *, params: dict[str, Any] | None = None, data: tuple | None = None, key: Array | None = None
    ) -> LatentModel:
        """The same model at other parameters, data or random key, all else as it is.

        Where these have the shapes and dtypes of those they take the place of, the model's function is not called. With
        others the model is read again, as `LatentModel(..., check=False)` does it. What the model closes over must be
        what it was.

        Args:
            params: constrained values by parameter site.
            data: the model's positional arguments, a tuple.
            key: draws the indices of sub-sampled plates and seeds random decoders.

        Returns:
            A latent model that shares all that was traced and compiled for this one.

        Raises:
            ValueError: for missing or unknown parameters, or data that do not fit the plate.
        """
        params = self.params if params is None else parameter_arrays(params)
        data = self.data if data is None else data_arrays(data)
        key = self.rng_key if key is None else key
        arrays, static = eqx.partition((data, self.model_kwargs), eqx.is_array)
        given, known = (params, arrays, key), (self.params, self.arrays, self.rng_key)
        if value_of((abstract(given), static)) != value_of((abstract(known), self._program.static)):
            return self.read_again(self.model, params, data, key)
        indices = self.structure.staged.evaluate(lambda values: values["plate"], *given)
        return jax.tree.unflatten(jax.tree.structure(self), jax.tree.leaves((*given, indices)))

    def read_again(self, model: Callable, params: dict[str, Any], data: tuple, key: Array) -> LatentModel:
        """A model with this one's plate and keyword arguments, without a check of its rows."""
        settings: dict[str, Any] = {"plate": self._program.plate, "rng_key": key, "check": False}
        return LatentModel(model, params, *data, **settings, **self.model_kwargs)

    def __reduce__(self) -> tuple:
        params, data, model_kwargs = jax.device_get((self.params, self.data, self.model_kwargs))
        settings: dict[str, Any] = {"plate": self._program.plate, "rng_key": self.rng_key, "check": False}
        return partial(LatentModel, **settings, **model_kwargs), (self.model, params, *data)

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
            num_samples: number of draws.
            x: as in `log_prior`.

        Returns:
            For each latent site an array of shape `(num_samples, *latent_shapes[site])`.

        Raises:
            ValueError: where a prior that depends on the data is given none.
        """
        return jax.vmap(lambda key: self.draw_prior(key, *x))(jax.random.split(key, num_samples))

    def draw_prior(self, key: Array, *x: Any, unconstrained: bool = False) -> Latents:
        """One draw from the prior of one datum, maybe in unconstrained coordinates; see `sample_prior`."""
        return self._draw(key, x, lambda sites: self.read_latents(sites, unconstrained))

    def draw_and_tell(self, key: Array, *x: Any) -> tuple[Latents, Latents]:
        """As `draw_prior` in unconstrained coordinates, and which of these lie on the very end of their support."""
        return self._draw(key, x, lambda sites: (self.read_latents(sites, unconstrained=True), self.at_end(sites)))

    def _draw(self, key: Array, x: tuple, read: Callable[[dict], Any]) -> Any:
        rows = self.lead(self._row(x, "sample_prior", lambda: self.prior_depends_on_data))
        # Staged, only the prior's equations are run: the decoder costs nothing.
        staged = StagedFunction(lambda key: read(self.run({}, rows, key=key)[0]), key)
        return staged.evaluate(lambda drawn: drawn, key)

    def constrain(self, u: Latents, *x: Any) -> Latents:
        """The latents at unconstrained coordinates `u` of one datum (`biject_to` of each support)."""
        return self.read_latents(self._run(u, x or self.first_row, unconstrained=True)[0])

    def unconstrain(self, z: Latents, *x: Any) -> Latents:
        """The unconstrained coordinates of the latents `z` of one datum: the inverse of `constrain`."""
        return self.read_latents(self._run(z, x or self.first_row, unconstrained=False)[0], unconstrained=True)

    def log_density(self, latents: Latents, *rows: Any) -> Float[Array, ""]:
        """The log joint density of all rows: `scale` times the sum over the data, plus the global part.

        It is equal to `numpyro.infer.util.log_density` of the model.

        Args:
            latents: one array of shape `(num_data, *latent_shapes[site])` per latent site.
            rows: positional data, by default `self.rows`.

        Raises:
            ValueError: where the leading axes of latents and rows differ, or shapes do not fit.
        """
        rows = rows or self.rows

        def joint(z: Latents, row: tuple) -> Array:
            sites, _ = self._run(z, row, unconstrained=False)
            return self._sum(sites, (*z, *self.observed_names))

        if self.plate is None:
            return joint({name: jnp.squeeze(value, 0) for name, value in latents.items()}, rows)
        return self.scale * jnp.sum(jax.vmap(joint)(latents, rows)) + self.global_log_density()

    def global_log_density(self) -> Float[Array, ""]:
        """The observed sites and factors outside the data plate, each with its own scale, counted once."""
        if not self.global_names:
            return jnp.asarray(0.0)
        model = seed(substitute(self.model, data={**self.params, **self.plate_indices}), self.rng_key)
        sites = trace(model).get_trace(*self.data, **self.model_kwargs)
        return jnp.asarray(sum(jnp.sum(scaled_log_prob(sites[name])) for name in self.global_names))

    @property
    def unnormalized_sites(self) -> tuple[str, ...]:
        """The latent sites whose distribution is not normalised, such as a `DeepKAPrior`, also inside of wrappers.

        `log_prior` lacks their unknown constants; `objectives` make up for them with negative samples.
        """
        return self.structure.unnormalized_sites

    @property
    def prior_depends_on_data(self) -> bool:
        """Whether the latents' distributions depend on the positional data, by the traced program."""
        return self.depends_on_data(lambda out: out["prior"])

    @property
    def likelihood_depends_on_data(self) -> bool:
        """Whether the observed sites' distributions, masks and scales depend on the positional data."""
        return self.depends_on_data(lambda out: out["likelihood"])

    def _row(self, x: tuple, caller: str, needs_data: Callable[[], bool]) -> tuple:
        if not x and self.plate is not None and jax.tree.leaves(self.rows) and needs_data():
            raise ValueError(f"{caller} of this model needs the datum: pass one row of each positional argument")
        return x or self.first_row

    def _run(self, z: Latents, x: tuple, unconstrained: bool) -> tuple[dict[str, dict], ArrayLike]:
        self.check_latent_names(z)
        return self.run(self.lead(z), self.lead(x), unconstrained=unconstrained)

    def _prior(self, sites: dict[str, dict]) -> Array:
        """The log-density with which the latents of a datum are drawn."""
        return jnp.asarray(sum(jnp.sum(self.draw_terms(sites, name)) for name in self.latent_shapes))

    def _likelihood(self, sites: dict[str, dict]) -> Array:
        """Everything else that a datum counts for."""
        return self._sum(sites, self.observed_names) + jnp.sum(self.correction(sites))

    def _sum(self, sites: dict[str, dict], names: Any) -> Array:
        """The sites' log-probabilities in a run on one datum."""
        return jnp.asarray(sum((jnp.sum(self.site_terms(sites, name)) for name in names), 0.0))
