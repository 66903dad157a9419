"""The KAEM object against the same by hand: training, draws; and its files."""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.contrib.module import eqx_module

from benchmarks.timing import alternate, print_rows
from numpyro_kaem import KAEM, ImportanceMLE, KAPrior, fit

LATENTS = 10
# In a process of its own: seconds after the imports.
LOAD = """
import sys, time
import jax, numpyro_kaem
jax.devices()
start = time.perf_counter()
numpyro_kaem.KAEM.load(sys.argv[1])
print(time.perf_counter() - start)
"""


def main() -> None:
    """Print seconds of `fit`, `sample` and `load` with ratios, and what a file has beyond its arrays."""
    x = np.random.default_rng(0).random((2_000, 28, 28)) < 0.2
    kaem = KAEM.create(jax.random.key(0), (28, 28), latent_size=LATENTS, likelihood="bernoulli")
    energy, network = kaem.parts.prior.base_dist.energy, kaem.parts.generator

    def model(x):
        prior = KAPrior(eqx_module("prior", energy), dist.Normal(0.0, 1.0)).to_event(1)
        generator = eqx_module("generator", network)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", prior)
            logits = generator(z)
            numpyro.sample("x", dist.Bernoulli(logits=logits.reshape(*logits.shape[:-1], 28, 28)).to_event(2), obs=x)

    options = {"objective": ImportanceMLE(1_000), "optimizer": optax.adam(1e-3), "num_epochs": 5, "batch_size": 200}
    ways = {"object": partial(kaem.fit, x=x), "by hand": partial(fit, model=model, data=x.astype(np.float32))}

    def train(way):
        history = ways[way](jax.random.key(1), progress=False, **options).history
        return history["seconds"]  # of each epoch, without compilation

    def whole(way):
        ways[way](jax.random.key(1), progress=False, **options)

    rows = []
    seconds = alternate({way: partial(whole, way) for way in ways}, runs=7)
    rows.append(_row("`fit`, 5 epochs, called again", seconds))
    epochs = {way: np.concatenate([train(way) for _ in range(3)]) for way in ways}
    rows.append(_row("an epoch", epochs))

    arrays, static = eqx.partition((energy, network), eqx.is_array)

    @partial(jax.jit, static_argnums=2)
    def draw(arrays, key, number):
        energy, network = eqx.combine(arrays, static)
        z_key, x_key = jax.random.split(key)
        z = KAPrior(energy, dist.Normal(0.0, 1.0)).sample(z_key, (number,))
        return dist.Bernoulli(logits=network(z).reshape(-1, 28, 28)).sample(x_key)

    kaem, key = kaem.at(kaem.params), jax.random.key(2)
    for number in (1_000, 10_000):
        ways = {"object": partial(kaem.sample, key, number), "by hand": partial(draw, arrays, key, number)}
        assert np.array_equal(ways["object"](), ways["by hand"]())
        rows.append(_row(f"`sample`, {number:,} draws", alternate(ways, runs=50)))
    header = ("what", "object, ms: min / median", "by hand, ms: min / median", "ratio of the least")
    print_rows("The KAEM object beside the same by hand", header, rows)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for prior in ("independent", "univariate", "mixture", "cluster"):
            kaem = KAEM.create(jax.random.key(0), (28, 28), latent_size=LATENTS, likelihood="bernoulli", prior=prior)
            path = Path(folder) / f"{prior}.kaem"
            kaem.save(path)
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(kaem.parts) if eqx.is_array(leaf))
            loads = [_load(path) for _ in range(3)]
            extra = f"{(path.stat().st_size - size) / 1024:.1f}"
            rows.append(
                (prior, f"{path.stat().st_size / 1024:,.0f}", extra, f"{min(loads):.2f} / {np.median(loads):.2f}")
            )
    header = ("prior", "file, KiB", "beyond its arrays, KiB", "load after imports, s: min / median")
    print_rows("Files", header, rows)


def _load(path: Path) -> float:
    return float(
        subprocess.run([sys.executable, "-c", LOAD, path], env=os.environ, capture_output=True, check=True).stdout
    )


def _row(name: str, seconds: dict[str, np.ndarray]) -> tuple[str, str, str, str]:
    mine, other = (1e3 * seconds[way] for way in ("object", "by hand"))
    texts = [f"{values.min():.1f} / {np.median(values):.1f}" for values in (mine, other)]
    return name, *texts, f"{mine.min() / other.min():.3f}"


if __name__ == "__main__":
    main()
