"""A variational autoencoder whose prior is a normalising flow, by FlowJAX."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import paramax
from flowjax.distributions import Normal
from flowjax.experimental.numpyro import distribution_to_numpyro
from flowjax.flows import coupling_flow
from numpyro.infer import Trace_ELBO

from benchmarks.peers.contestants import Contestant, make, trials


class Flow(eqx.Module):
    """A flow of coupling layers, its bijection the way in which a density is computed without a loop."""

    flow: eqx.Module

    def __init__(self, key, num_layers: int, latent_size: int):
        base = Normal(jnp.zeros(latent_size))
        self.flow = coupling_flow(key, base_dist=base, flow_layers=num_layers, nn_width=64)

    def __call__(self) -> dist.Distribution:
        """The distribution of latent vectors."""
        return distribution_to_numpyro(paramax.unwrap(self.flow))


def build(key, task, setting):
    """The number of layers is tuned."""
    prior_key, key = jax.random.split(key)
    return make(key, task, Flow(prior_key, int(setting.own), task.latent_size), encoder=True)


FLOW_VAE = Contestant("VAE, flow", build, lambda setting: {Trace_ELBO(): 1.0}, trials(4, 8))
