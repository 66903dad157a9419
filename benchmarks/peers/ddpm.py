"""A diffusion model of the same budget: the slow upper reference.

z_t = alpha_t x + sigma_t eps with log(alpha^2 / sigma^2) linear in t, which makes the plain loss of the noise, mean of
|eps - eps_hat(z_t, t)|^2 (Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020), the evidence lower bound
up to constants (Kingma et al., Variational diffusion models, NeurIPS 2021). A perceptron with skips predicts the noise.
"""

import math
import time
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers.contestants import Contestant, Setting, trials
from benchmarks.peers.tasks import Task
from benchmarks.peers.training import EMA_DECAY, Trained, falling_adamw

NUM_STEPS = 1_000
# Log signal-to-noise ratios of the last step, and of the first: there the levels of data are five standard deviations
# of the noise apart or more, those of 8-bit data two, and numbers are known to a hundredth of their spread.
LEAST = -7.0
LARGEST = {"bernoulli": 3.5, "categorical": 4.0, "8-bit": 11.0, "normal": 9.2}
NUM_BLOCKS = 3


class Denoiser(eqx.Module):
    """The noise in z_t: (size,) and t in [0, 1] to (size,).

    The network says of every number what it might be, given the others: log-odds of levels, or a mean and a spread.
    Bayes' rule adds what its own noisy value says. So no layer has to pass the noise of every number on.
    """

    first: eqx.nn.Linear
    blocks: list
    last: eqx.nn.Linear
    kind: str = eqx.field(static=True)
    num_levels: int = eqx.field(static=True)

    def __init__(self, key, kind: str, size: int, num_levels: int, width: int):
        keys = jax.random.split(key, NUM_BLOCKS + 2)
        self.first = eqx.nn.Linear(size, width, key=keys[0])
        self.blocks = [eqx.nn.Linear(width + 32, width, key=k) for k in keys[1:-1]]
        self.last = eqx.nn.Linear(width, size if num_levels else 2 * size, key=keys[-1])
        self.kind, self.num_levels = kind, num_levels

    def __call__(self, z, t):
        angles = t * jnp.pi * 2.0 ** jnp.arange(-1, 7)
        seen = jnp.concatenate([jnp.sin(angles), jnp.cos(angles), jnp.sin(angles + 1), jnp.cos(angles + 1)])
        hidden = self.first(z)
        for block in self.blocks:
            hidden = hidden + jax.nn.silu(block(jnp.concatenate([jax.nn.silu(hidden), seen])))
        alpha, sigma = self.noise_at(t)
        said, evidence = self.last(jax.nn.silu(hidden)), alpha * z / sigma**2
        if self.kind == "bernoulli":
            guess = jnp.tanh(said + evidence)
        elif self.kind == "categorical":
            logits = (said + 2.0 * evidence).reshape(-1, self.num_levels)
            guess = 2.0 * jax.nn.softmax(logits).ravel()
        else:
            mean, precision = jnp.split(said, 2)
            precision = jnp.exp(jnp.clip(precision, -8.0, 8.0))
            guess = (precision * mean + evidence) / (precision + (alpha / sigma) ** 2)
        return (z - alpha * guess) / sigma

    def noise_at(self, t):
        """alpha and sigma at t in [0, 1]."""
        log_snr = LARGEST[self.kind] + (LEAST - LARGEST[self.kind]) * t
        return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))

    @property
    def step(self):
        """By how much log signal-to-noise ratios of neighbouring steps differ."""
        return (LARGEST[self.kind] - LEAST) / NUM_STEPS


class Levels:
    """Data as numbers that noise is added to, and back."""

    def __init__(self, task: Task):
        self.kind, self.shape = task.likelihood, task.shape
        self.count = {"bernoulli": 2, "8-bit": 256, "categorical": task.num_categories}.get(task.likelihood)
        self.size = task.train[0].size * (self.count if self.kind == "categorical" else 1)
        # Levels whose log-odds the network says.
        self.num_learned = 0 if self.kind in ("8-bit", "normal") else self.count
        if self.kind == "categorical":
            self.values = 2.0 * np.eye(self.count, dtype=np.float32)
        elif self.count:
            self.values = np.linspace(-1, 1, self.count, dtype=np.float32)[:, None]

    def to_numbers(self, x):
        """Rows of `size` numbers."""
        if self.count:
            x = jnp.asarray(self.values)[x.astype(int)]
        return x.reshape(len(x), -1)

    def log_prob(self, x, z, alpha, sigma):
        """Log p(x | z_0): of the levels, each as likely as its distance says; or a narrow normal density."""
        if not self.count:
            scale = sigma / alpha
            residual = (x.reshape(-1) - z / alpha) / scale
            return jnp.sum(-0.5 * residual**2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi))
        z = z.reshape(-1, 1, self.values.shape[-1])
        logits = -0.5 * jnp.sum((z - alpha * self.values) ** 2, -1) / sigma**2
        index = x.reshape(-1).astype(int)
        return jnp.sum(jax.nn.log_softmax(logits)[jnp.arange(len(index)), index])

    def to_data(self, z):
        """The nearest levels."""
        if not self.count:
            return z.reshape(-1, *self.shape)
        z = z.reshape(len(z), -1, 1, self.values.shape[-1])
        return jnp.argmin(jnp.sum((z - self.values) ** 2, -1), -1).reshape(-1, *self.shape)


class Diffusion:
    """A trained diffusion model, with what the scores ask of a model."""

    def __init__(self, denoiser: Denoiser, levels: Levels):
        self.denoiser, self.levels = denoiser, levels
        self.num_parameters = sum(leaf.size for leaf in jax.tree.leaves(denoiser) if eqx.is_inexact_array(leaf))

    def log_likelihood(self, key, x) -> np.ndarray:
        """The bound of each datum, by 200 times drawn evenly."""
        return np.asarray(_bound(self.denoiser, self.levels, key, jnp.asarray(x), 200))

    def sampler(self, num_samples: int):
        """A compiled function from a key to draws."""
        return lambda key: _draw(self.denoiser, self.levels, key, num_samples)


def losses(denoiser, numbers, key):
    """Squared errors of the noise, one time for each row, the times even between 0 and 1."""
    key_t, key_noise = jax.random.split(key)
    t = (jax.random.uniform(key_t) + jnp.arange(len(numbers)) / len(numbers)) % 1.0
    t = jnp.ceil(t * NUM_STEPS) / NUM_STEPS
    noise = jax.random.normal(key_noise, numbers.shape)
    alpha, sigma = denoiser.noise_at(t[:, None])
    return jnp.sum((noise - jax.vmap(denoiser)(alpha * numbers + sigma * noise, t)) ** 2, -1)


@eqx.filter_jit
def _bound(denoiser, levels, key, x, num_times):
    alpha_1, sigma_1 = denoiser.noise_at(1.0)
    alpha_0, sigma_0 = denoiser.noise_at(0.0)

    def of_datum(args):
        key, x = args
        key_0, key = jax.random.split(key)
        numbers = levels.to_numbers(x[None])[0]
        squares = losses(denoiser, jnp.broadcast_to(numbers, (num_times, numbers.size)), key)
        diffusion = 0.5 * NUM_STEPS * jnp.expm1(denoiser.step) * jnp.mean(squares)
        last = 0.5 * jnp.sum(sigma_1**2 + (alpha_1 * numbers) ** 2 - 1 - jnp.log(sigma_1**2))
        z = alpha_0 * numbers + sigma_0 * jax.random.normal(key_0, numbers.shape)
        return levels.log_prob(x, z, alpha_0, sigma_0) - diffusion - last

    return jax.lax.map(of_datum, (jax.random.split(key, len(x)), x))


@eqx.filter_jit
def _draw(denoiser, levels, key, num_samples):
    step = -jnp.expm1(-denoiser.step)  # 1 - SNR(t) / SNR(s)

    def back(z, number):
        t = (number + 1) / NUM_STEPS
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.noise_at(t), denoiser.noise_at(number / NUM_STEPS)
        noise = jax.vmap(partial(denoiser, t=t))(z)
        mean = alpha_s / alpha_t * (z - step * sigma_t * noise)
        return mean + sigma_s * jnp.sqrt(step) * jax.random.normal(jax.random.fold_in(key, number), z.shape), None

    z = jax.random.normal(jax.random.fold_in(key, NUM_STEPS), (num_samples, levels.size))
    z, _ = jax.lax.scan(back, z, jnp.arange(NUM_STEPS - 1, -1, -1))
    return levels.to_data(z)


def train(task: Task, setting: Setting, seed: int, budget: float, num_scores: int, num_scored: int) -> Trained:
    """Train for `budget` seconds of a core, as the others are, and keep the parameters of the best bound."""
    levels = Levels(task)
    key, init_key = jax.random.split(jax.random.key(seed))
    denoiser = Denoiser(init_key, levels.kind, levels.size, levels.num_learned, int(setting.own))
    start, static = eqx.partition(denoiser, eqx.is_inexact_array)
    data = levels.to_numbers(jnp.asarray(task.train))
    num_steps = len(data) // task.batch_size

    @jax.jit
    def epoch(carry, key, all_steps):
        optimizer = falling_adamw(setting.rate, setting.weight_decay, all_steps)
        order = jax.random.permutation(key, len(data))[: num_steps * task.batch_size].reshape(num_steps, -1)

        def step(carry, at):
            arrays, average, state = carry
            rows, key = at
            gradient = jax.grad(lambda a: losses(eqx.combine(a, static), data[rows], key).mean())(arrays)
            updates, state = optimizer.update(gradient, state, arrays)
            arrays = optax.apply_updates(arrays, updates)
            average = jax.tree.map(lambda a, b: EMA_DECAY * a + (1 - EMA_DECAY) * b, average, arrays)
            return (arrays, average, state), None

        return jax.lax.scan(step, carry, (order, jax.random.split(key, num_steps)))[0]

    carry = start, start, falling_adamw(1.0, 0.0, 1.0).init(start)
    clock = []
    for _ in range(3):  # the first is compiled
        begun = time.process_time()
        jax.block_until_ready(epoch(carry, key, 1.0))
        clock.append(time.process_time() - begun)
    num_epochs = max(1, round(budget / min(clock[1:])))
    every = -(-num_epochs // num_scores)
    best, scores, seconds = None, [], []
    for number in range(1, num_epochs + 1):
        carry = epoch(carry, jax.random.fold_in(key, number), float(num_epochs * num_steps))
        if number % every == 0 or number == num_epochs:
            model = Diffusion(eqx.combine(carry[1], static), levels)
            score = float(np.mean(model.log_likelihood(jax.random.key(0), task.validation[:num_scored])))
            if not scores or score > max(scores):
                best = model
            scores.append(score)
            seconds.append(number * min(clock[1:]))
    return Trained(best, scores, seconds, num_epochs)


DDPM = Contestant("DDPM", None, None, trials(512, 256))
