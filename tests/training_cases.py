"""A model and objectives for tests of `fit`, small enough that every step is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer.elbo import ELBO

from numpyro_kaem._checkpoints.arrays import read_arrays
from numpyro_kaem._checkpoints.manifest import verify
from numpyro_kaem.objectives.objective import Objective
from numpyro_kaem.training import fit


def model(x):
    """x = z + noise, z ~ Normal(location, 1): log p(x) is Normal(location, sqrt(1 + noise^2))."""
    location = numpyro.param("location", 0.0)
    noise = numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(location, 1.0))
        numpyro.sample("x", dist.Normal(z, noise), obs=x)


DATA = (3.0 + 1.4 * np.random.default_rng(0).standard_normal(30)).astype(np.float32)


class Squares(ELBO):
    """Half the squared distances of a batch from the location, plus the logarithm of the noise; no randomness."""

    def loss_with_mutable_state(self, rng_key, param_map, model, guide, x):
        loss = 0.5 * jnp.sum((x - param_map["location"]) ** 2) + jnp.log(param_map["noise"])
        return {"loss": loss, "mutable_state": None}


def gradient_descent(batches, rate):
    """Losses of `Squares` and locations after the steps of gradient descent on these batches."""
    losses, locations, location, log_noise = [], [], 0.0, 0.0
    for batch in np.asarray(batches, float):
        losses.append((0.5 * np.sum((batch - location) ** 2) + log_noise) / len(batch))
        location -= rate * np.sum(location - batch)
        log_noise -= rate
        locations.append(location)
    return np.array(losses), np.array(locations)


class KeptChains(Objective):
    """A chain per datum that moves by an autoregression towards its posterior, and is kept.

    Args:
        trap: batches with a value above it have a loss of not-a-number, and chains of it.
    """

    def __init__(self, trap=np.inf):
        super().__init__()
        self.trap = trap

    def initial_state(self, latent_model, num_data):
        state = super().initial_state(latent_model, num_data)
        return state | {"shared": {"steps": jnp.zeros(())}, "per_datum": {"position": jnp.zeros(num_data)}}

    def metric_shapes(self):
        return {"mean": ()}

    def evaluate(self, key, latent_model, state):
        x, params = latent_model.data[0], latent_model.params
        centre = jax.lax.stop_gradient((x + params["location"]) / 2)
        position = state["per_datum"]["position"]
        position = centre + 0.9 * (position - centre) + 0.3 * jax.random.normal(key, x.shape)
        position = jnp.where(jnp.any(x > self.trap), jnp.nan, position)
        loss = 0.5 * jnp.sum((position - params["location"]) ** 2 + (x - position) ** 2 / params["noise"] ** 2)
        loss += x.size * jnp.log(params["noise"])
        shared = {"steps": state["shared"]["steps"] + 1.0}
        return loss, {"metrics": {"mean": position.mean()}, "shared": shared, "per_datum": {"position": position}}


def run(data=DATA, model=model, key=0, **options):
    """Train, by default for two epochs of three batches."""
    options = {"objective": Squares(), "optimizer": optax.sgd(0.02), "num_epochs": 2, "progress": False} | options
    if isinstance(data, np.ndarray):
        options = {"batch_size": 10} | options
    return fit(jax.random.key(key), model, data, **options)


def saved_arrays(directory, step):
    """The arrays of a checkpoint by their paths."""
    folder = directory / f"{step:010d}"
    return read_arrays(folder / "state", list(verify(folder)["tree"]))
