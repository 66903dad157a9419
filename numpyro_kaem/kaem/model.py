"""The parts of a KAEM, and the NumPyro model and guide that they make."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro import handlers
from numpyro.contrib.module import eqx_module
from numpyro.distributions.transforms import biject_to

from numpyro_kaem._compilation.programs import jit_by_value
from numpyro_kaem.kaem.priors import as_joint, declare_distribution, from_uniforms, generator_input


class NNXModule(eqx.Module):
    """A module of Flax NNX as one of Equinox: its `Param`s are arrays, all else is as it was.

    `module()` is the module of NNX again, with the arrays as they are now.
    """

    params: dict[str, Any]
    others: dict[str, Any]
    graph: Any = eqx.field(static=True)

    def __init__(self, module: Any):
        from flax import nnx

        self.graph, params, others = nnx.split(module, nnx.Param, ...)
        self.params, self.others = nnx.to_pure_dict(params), nnx.to_pure_dict(others)
        if any(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(self.others)):
            kinds = sorted({type(leaf).__name__ for _, leaf in nnx.to_flat_state(others)})
            raise ValueError(
                f"a module of NNX must have no arrays but its Params, got {kinds}: use LayerNorm in place of BatchNorm"
            )

    def module(self) -> Any:
        """The module of NNX."""
        from flax import nnx

        return nnx.merge(self.graph, self.params, self.others)

    def __call__(self, *args: Any) -> Any:
        """What the module of NNX gives."""
        return self.module()(*args)


def as_equinox(part: Any) -> Any:
    """A module of NNX as one of Equinox; everything else as it is."""
    if not type(part).__module__.startswith("flax") and not any(
        base.__module__.startswith("flax.nnx") for base in type(part).__mro__
    ):
        return part
    return NNXModule(part)


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
            others = (_declare(name, getattr(self, name)) for name in ("generator", "likelihood", "encoder"))
            parts = Parts(prior, *others, adapts=self.adapts)
        values = {site: value for site, value in params.items() if site not in declared}
        return replace(parts, values=values or None)

    @property
    def params(self) -> dict[str, Any]:
        """Values of the parameter and mutable sites of the model."""
        trace = handlers.trace(handlers.seed(self.declared, 0)).get_trace()
        return {name: site["value"] for name, site in trace.items() if site["type"] in ("param", "mutable")}

    @cached_property
    def drawn(self) -> Parts:
        """The parts with the prior as a distribution, outside of a model."""
        return handlers.block(handlers.seed(self.declared, 0))()

    @property
    def prior_distribution(self) -> dist.Distribution:
        """The joint distribution of the latents of a datum."""
        return self.drawn.prior

    def decode(self, z: Array) -> dist.Distribution:
        """The distribution of data at latents."""
        drawn = self.drawn
        return drawn.likelihood(drawn.generator(generator_input(drawn.prior, z)))


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
            numpyro.sample("x", parts.likelihood(parts.generator(generator_input(parts.prior, z))), obs=x)


class Guide:
    """The guide of an encoder: normal in the coordinates in which latents are unconstrained."""

    def __init__(self, parts: Parts):
        self.parts = parts

    def __call__(self, x: Array, **_: Any) -> None:
        """Run in NumPyro's handlers."""
        parts = self.parts
        encoder = _declare("encoder", parts.encoder)
        prior = parts.prior_distribution
        encoded = parts.likelihood.encoded(x)
        with numpyro.plate("data", x.shape[0]):
            loc, log_scale = jnp.split(encoder(encoded), 2, axis=-1)
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
    output = drawn.generator(generator_input(drawn.prior, z))
    return drawn.likelihood.mean(output) if mean else drawn.likelihood(output).sample(x_key)
