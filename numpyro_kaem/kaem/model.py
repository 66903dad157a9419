"""The parts of a KAEM, and the NumPyro model and guide that they make."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.contrib.module import eqx_module
from numpyro.distributions.transforms import biject_to

from numpyro_kaem._compilation.programs import jit_by_value
from numpyro_kaem.generators import SequenceDecoder, SequenceEncoder
from numpyro_kaem.kaem.networks import located
from numpyro_kaem.kaem.priors import as_joint, declare_distribution, generator_input


class Parts(eqx.Module):
    """What a KAEM is made of; each may be a module, whose arrays are learned, or a function.

    Attributes:
        prior: a distribution, or a module or function without arguments that returns one.
        generator: from latents to the parameters of a likelihood.
        likelihood: from these to a distribution.
        encoder: from a datum to the location and log-scale of latents, one after the other; None without.
        values: by parameter site, of the sites of functions.
        adapts: whether the grids of the prior's energies are mutable sites.
    """

    prior: Any
    generator: Any
    likelihood: Any
    encoder: Any = None
    values: dict[str, Any] | None = None
    adapts: bool = eqx.field(static=True, default=False)

    def declared(self) -> Parts:
        """The parts with their parameters declared to NumPyro; the prior as a distribution."""
        with handlers.substitute(data=self.values or {}):
            prior = self.prior
            if isinstance(prior, dist.Distribution):
                prior = declare_distribution("prior", prior, self.adapts)
            else:
                prior = _declare("prior", prior)()
            return replace(
                self,
                prior=as_joint(prior),
                generator=_declare("generator", self.generator),
                likelihood=_declare("likelihood", self.likelihood),
            )

    def at(self, params: dict[str, Any]) -> Parts:
        """The parts with these values of their parameters, by site; `values` are those of the sites of functions."""
        with handlers.trace() as declared, handlers.substitute(data=params):
            prior = self.prior
            if isinstance(prior, dist.Distribution):
                prior = declare_distribution("prior", prior, self.adapts)
            else:
                prior = _declare("prior", prior)
            others = {name: _declare(name, getattr(self, name)) for name in ("generator", "likelihood", "encoder")}
            parts = Parts(prior, **others, adapts=self.adapts)
        values = {site: value for site, value in params.items() if site not in declared}
        return replace(parts, values=values or None)

    @property
    def params(self) -> dict[str, Any]:
        """Values of the parameter and mutable sites of the model."""
        trace = handlers.trace(handlers.seed(self.declared, 0)).get_trace()
        return {name: site["value"] for name, site in trace.items() if site["type"] in ("param", "mutable")}

    @property
    def drawn(self) -> Parts:
        """The parts with the prior as a distribution, outside of a model."""
        return handlers.block(handlers.seed(self.declared, 0))()

    @property
    def prior_distribution(self) -> dist.Distribution:
        """The joint distribution of the latents of a datum."""
        return self.drawn.prior

    @property
    def encoder_params(self) -> dict[str, Any] | None:
        """Values of the encoder's parameter sites; None without an encoder."""
        if self.encoder is None:
            return None
        trace = handlers.trace(handlers.seed(_declare, 0)).get_trace("encoder", self.encoder)
        return {name: site["value"] for name, site in trace.items()}

    def conditional(self, z: Array) -> dist.Distribution:
        """The distribution of data given latents; of `declared` or `drawn` parts."""
        given = generator_input(self.prior, z)
        if isinstance(self.generator, SequenceDecoder):
            return self.generator.distribution(given)
        return self.likelihood(self.generator(given))

    def mean(self, z: Float[Array, "num_draws ..."]) -> Array:
        """What is shown of a datum, given draws of its latents; of `declared` or `drawn` parts."""
        given = generator_input(self.prior, z)
        if isinstance(self.generator, SequenceDecoder):
            return self.generator.most_probable(given[0])
        return self.likelihood.mean(self.generator(given))


class Model:
    """The NumPyro model of the parts: `model(x)` of data, `model(num_data=n)` to draw some.

    Sites: `z`, the latents of each datum, and `x`, inside the plate `data`.
    """

    def __init__(self, parts: Parts):
        self.parts = parts

    def __call__(self, x: Array | None = None, *, num_data: int = 1) -> None:
        """Run in NumPyro's handlers."""
        parts = self.parts.declared()
        with numpyro.plate("data", num_data if x is None else x.shape[0]):
            z = numpyro.sample("z", parts.prior)
            numpyro.sample("x", parts.conditional(z), obs=x)


class Guide:
    """The guide of an encoder: normal in the coordinates in which latents are unconstrained."""

    def __init__(self, parts: Parts):
        self.parts = parts

    def __call__(self, x: Array, **_: Any) -> None:
        """Run in NumPyro's handlers."""
        parts = self.parts
        encoder = _declare("encoder", parts.encoder)
        prior = parts.prior_distribution
        encoded = x if isinstance(parts.encoder, SequenceEncoder) else parts.likelihood.encoded(x)
        with numpyro.plate("data", x.shape[0]):
            loc, log_scale = located(encoder(encoded))
            shape = (*loc.shape[:-1], *prior.event_shape)
            normal = dist.Normal(loc.reshape(shape), jnp.exp(log_scale.reshape(shape))).to_event(len(prior.event_shape))
            transform = biject_to(prior.support)
            is_real = isinstance(transform, dist.transforms.IdentityTransform)
            numpyro.sample("z", normal if is_real else dist.TransformedDistribution(normal, transform))


def _declare(name: str, part: Any) -> Any:
    has_parameters = isinstance(part, eqx.Module) and any(map(eqx.is_inexact_array, jax.tree.leaves(part)))
    return eqx_module(name, part) if has_parameters else part


@jit_by_value
def draw(parts: Parts, key: Array, num_samples: int, mean: bool) -> Array:
    """Data drawn from the model, or the means of their likelihoods."""
    z_key, x_key = jax.random.split(key)
    drawn = parts.drawn
    z = drawn.prior.sample(z_key, (num_samples,))
    return jax.vmap(lambda z: drawn.mean(z[None]))(z) if mean else drawn.conditional(z).sample(x_key)


@jit_by_value
def decode(parts: Parts, z: Float[Array, "n ..."]) -> Array:
    """The means of the likelihoods at latents, one by one."""
    drawn = parts.drawn
    return jax.vmap(lambda z: drawn.mean(z[None]))(z)
