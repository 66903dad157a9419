"""A latent energy-based model: a neural energy as prior, short-run Langevin for its draws and for posteriors.

B. Pang et al., Learning latent space energy-based prior model, NeurIPS 2020, arXiv 2006.08205.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from benchmarks.peers.contestants import Contestant, make, trials
from numpyro_kaem import MLP, DeepKAPrior, LangevinMLE
from numpyro_kaem.kernels import ULA

# Steps of a draw from the prior, and of a posterior chain; both begin at the reference.
PRIOR_STEPS, POSTERIOR_STEPS = 40, 20


class Energy(eqx.Module):
    """A standard normal tilted by a perceptron."""

    network: MLP
    latent_size: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True, default=PRIOR_STEPS)

    def __call__(self) -> dist.Distribution:
        """The distribution of latent vectors, known up to a constant."""
        reference = dist.Normal(jnp.zeros(self.latent_size), 1.0).to_event(1)
        return DeepKAPrior(self.network, reference, num_steps=self.num_steps, step_size=0.08)


def build(key, task, setting):
    """Two hidden layers of 128."""
    prior_key, key = jax.random.split(key)
    return make(key, task, Energy(MLP(prior_key, task.latent_size, 1, (128, 128)), task.latent_size), encoder=False)


def objectives(setting):
    """The step size of posterior chains is tuned."""
    kernel = ULA(step_size=setting.own)
    return {LangevinMLE(kernel, num_steps=POSTERIOR_STEPS, persistent=False, start="prior"): 1.0}


LATENT_EBM = Contestant("latent EBM", build, objectives, trials(1e-2, 2e-3))
