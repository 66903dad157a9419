"""What posterior chains move on: the parts of a model's log-density, in flat coordinates without bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from numpyro.handlers import reparam

from numpyro_kaem._numerics.convolutions import channels_last
from numpyro_kaem.distributions import ICDFReparam
from numpyro_kaem.distributions.reparam import normal_of_quantile
from numpyro_kaem.models.latent_model import LatentModel


class Point(NamedTuple):
    """A position with the parts of its log-density, from which that at any temperature follows."""

    position: Float[Array, "*batch dim"]
    log_prior: Float[Array, "*batch"]  # with the log-determinant of the transform
    log_likelihood: Float[Array, "*batch"]
    prior_gradient: Float[Array, "*batch dim"]  # zero where a kernel needs none, as the other
    likelihood_gradient: Float[Array, "*batch dim"]

    @property
    def dtype(self) -> jnp.dtype:
        """Of what is computed from the parts: latents in float32 may meet data in float64."""
        return jnp.result_type(self.position, self.log_prior, self.log_likelihood)

    def log_density(self, temperature: Array | float) -> Float[Array, "*batch"]:
        """Log p(z) + t log p(x | z); at t = 0 the prior alone, also where the likelihood is zero."""
        return self.log_prior + tempered(self.log_likelihood, temperature)

    def gradient(self, temperature: Array | float) -> Float[Array, "*batch dim"]:
        """Gradient of `log_density`, zero where it is not finite: there a proposal is a random walk."""
        temperature = jnp.asarray(temperature)[..., None]
        gradient = self.prior_gradient + tempered(self.likelihood_gradient, temperature)
        return jnp.where(jnp.isfinite(gradient), gradient, 0.0)


def tempered(log_likelihood: Array, temperature: Array | float) -> Array:
    """T log p(x | z), which at t = 0 is zero also where the likelihood is."""
    return jnp.where(temperature == 0, 0.0, temperature * log_likelihood)


class Flaws(NamedTuple):
    """How many of the draws of each datum have no valid density, and lie on the very end of their support."""

    invalid: Int[Array, "*batch"]
    at_end: Int[Array, "*batch dim"]
    num_draws: Int[Array, "*batch"]


def count_invalid(points: Point) -> tuple[Point, Array]:
    """Points whose log-likelihood is NaN or +inf, or log-prior NaN, become impossible; and how many there are."""
    likelihood = points.log_likelihood
    invalid = jnp.isnan(likelihood) | (likelihood == jnp.inf) | jnp.isnan(points.log_prior)
    return points._replace(log_likelihood=jnp.where(invalid, -jnp.inf, likelihood)), jnp.sum(invalid)


def map_batched(function: Callable, batch_size: int, *arrays: Any) -> Any:
    """`jax.vmap(function)(*arrays)`, of at most `batch_size` elements at once; 0 for all."""
    if len(jax.tree.leaves(arrays)[0]) == 1:
        # JAX takes long to trace nested maps, and the data and the runs are often one.
        return jax.tree.map(lambda leaf: leaf[None], function(*jax.tree.map(lambda leaf: leaf[0], arrays)))
    if not batch_size or batch_size >= len(jax.tree.leaves(arrays)[0]):
        return jax.vmap(function)(*arrays)
    return jax.lax.map(lambda elements: function(*elements), arrays, batch_size=batch_size)


def fenced(function: Callable, number: Array) -> Callable:
    """A function that XLA compiles for CPUs once, apart from what leads to it and from what follows.

    Otherwise it copies all that it deems cheap into all that uses it: a proposal into every part of the model, and the
    model into every part of the test for acceptance. A branch is left where it is.
    """

    def apart(x: Array) -> Any:
        shapes = jax.eval_shape(function, x)
        # The compiler does not know that a number that is traced is not negative.
        return jax.lax.cond(number >= 0, function, lambda _: jax.tree.map(jnp.zeros_like, shapes), x)

    return lambda x: jax.lax.platform_dependent(x, cpu=apart, default=function)


class Target:
    """The posterior of one datum at any temperature, over a flat vector of unconstrained coordinates.

    With `whiten` these are eps with z = F^-1(Phi(eps)), in which the prior is standard normal. `model` is the model as
    it was given, `latent_model` that whose latents are the coordinates. At most `batch_size` points are evaluated at
    once.
    """

    def __init__(self, latent_model: LatentModel, batch_size: int = 0, *, whiten: bool = False, gradients: bool = True):
        self.model = self.latent_model = latent_model
        self.whiten, self.gradients, self.batch_size = whiten, gradients, batch_size
        self.names = tuple(latent_model.latent_shapes)
        if whiten:
            if adjusted := latent_model.adjusted_sites:
                raise ValueError(
                    f"latent site {adjusted[0]!r} has a mask or a handler's scale, of which whitened coordinates would "
                    "make another density: use a kernel with whiten=False, such as MALA()"
                )
            self._reparam = ICDFReparam()
            whitened = reparam(latent_model.model, config=dict.fromkeys(self.names, self._reparam))
            given = latent_model.params, latent_model.data, latent_model.rng_key
            try:
                self.latent_model = latent_model.read_again(whitened, *given)
            except ValueError as error:
                raise ValueError(
                    f"whitening fails: {error}. Kernels with whiten=False, such as MALA(), need no icdf"
                ) from error
        row = self.latent_model.first_row

        def example() -> Array:
            u = self.latent_model.draw_prior(jax.random.key(0), *row, unconstrained=True)
            flat, self.unravel = ravel_pytree(u)
            return flat

        flat = jax.eval_shape(example)
        self.dim, self.dtype = flat.size, flat.dtype
        # Traced once, however often a program evaluates.
        self.evaluate_raw = jax.jit(self._evaluate_raw)

    def draw(self, key: PRNGKeyArray, row: tuple) -> Float[Array, " dim"]:
        """One exact draw from the prior of a datum, in flat coordinates."""
        return self._flatten(self.latent_model.draw_prior(key, *row, unconstrained=True))

    def draw_and_tell(self, key: PRNGKeyArray, row: tuple) -> tuple[Float[Array, " dim"], Bool[Array, " dim"]]:
        """As `draw`, and which coordinates rounding has put on the very end of their support, from where they move."""
        u, at_end = self.latent_model.draw_and_tell(key, *row)
        return self._flatten(u), ravel_pytree(at_end)[0]

    def position(self, z: dict[str, Array], row: tuple) -> Float[Array, " dim"]:
        """The flat coordinates of latents as the model knows them; those out of the prior's support move inside."""
        # NaN in a coordinate says that the latent is out of support, and in a latent that something is broken.
        is_broken = jnp.any(jnp.isnan(ravel_pytree(z)[0]))
        return jnp.where(is_broken, jnp.nan, self._flatten(self._coordinates(z, row)))

    def _coordinates(self, z: dict[str, Array], row: tuple) -> dict[str, Array]:
        if not self.whiten:
            return self.model.unconstrain(z, *row)
        model = self.model
        sites, _ = model.run(model.lead(z), model.lead(row or model.first_row))

        def whitened(site: dict) -> Array:
            univariate, *_ = self._reparam._unwrap(site["fn"])
            return normal_of_quantile(univariate, site["value"])

        return {f"{name}_base": model.datum(name, whitened(sites[name])) for name in z}

    def _flatten(self, coordinates: dict[str, Array]) -> Float[Array, " dim"]:
        u, _ = ravel_pytree(coordinates)
        # A rounded draw may lie on the very bound of its support, which is at infinity here.
        bound = -jnp.log(jnp.finfo(u.dtype).eps)
        return jnp.nan_to_num(u, nan=0.0, posinf=bound, neginf=-bound)

    def evaluate(self, position: Float[Array, " dim"], row: tuple) -> Point:
        """The point at a position; a log-likelihood that is NaN or +inf counts as zero likelihood."""
        return count_invalid(self.evaluate_raw(position, row))[0]

    def _evaluate_raw(self, position: Float[Array, " dim"], row: tuple) -> Point:
        """The point at a position, with the log-likelihood as the model gives it."""

        def parts(u):
            return self.latent_model.log_parts(self.unravel(u), *row, unconstrained=True)

        if not self.gradients:
            prior, likelihood = parts(position)
            return Point(position, prior, likelihood, jnp.zeros_like(position), jnp.zeros_like(position))

        def with_gradients(u):
            values, push = jax.linearize(parts, u)
            # Pulled back one by one, so that the gradient of the prior does not run the decoder.
            pulls = [jax.linear_transpose(lambda v, i=i: push(v)[i], u) for i in range(2)]
            return values, tuple(pull(jnp.ones_like(value))[0] for pull, value in zip(pulls, values, strict=True))

        (prior, likelihood), gradients = channels_last(with_gradients)(position)
        return Point(position, prior, likelihood, *gradients)

    def latents(self, position: Float[Array, " dim"], row: tuple) -> dict[str, Array]:
        """The latents at a position, as the model knows them."""
        u = self.unravel(position)
        if not self.whiten:
            return self.latent_model.constrain(u, *row)
        model = self.latent_model
        sites, _ = model.run(model.lead(u), model.lead(row or model.first_row))
        return {name: model.datum(f"{name}_base", sites[name]["value"]) for name in self.names}
