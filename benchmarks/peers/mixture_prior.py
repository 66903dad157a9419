"""A variational autoencoder whose prior is a learned mixture of Gaussians over whole latent vectors."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.infer import Trace_ELBO

from benchmarks.peers.contestants import Contestant, make, trials


class GaussianMixture(eqx.Module):
    """A mixture of K Gaussians of diagonal covariance, begun as a `ClusterPrior` is."""

    loc: jax.Array
    log_scale: jax.Array
    logits: jax.Array

    def __init__(self, key, num_components: int, latent_size: int):
        self.loc = 0.8 * jax.random.normal(key, (num_components, latent_size))
        self.log_scale = jnp.full((num_components, latent_size), math.log(0.6))
        self.logits = jnp.zeros(num_components)

    def __call__(self) -> dist.Distribution:
        """The distribution of latent vectors."""
        components = dist.Normal(self.loc, jnp.exp(self.log_scale)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)


def build(key, task, setting):
    """The number of components is tuned."""
    prior_key, key = jax.random.split(key)
    return make(key, task, GaussianMixture(prior_key, int(setting.own), task.latent_size), encoder=True)


MIXTURE_VAE = Contestant("VAE, Gaussian mixture", build, lambda setting: {Trace_ELBO(): 1.0}, trials(20, 10))
