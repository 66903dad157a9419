"""Priors from data: seconds of one call on NumPy input, after compilation."""

import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.timing import print_rows
from numpyro_kaem import KAPrior

SAMPLES, COORDINATES = 100_000, 16


def seconds_of(function: Callable[[], object], runs: int = 5) -> list[float]:
    """Seconds of the first call, which compiles, and of some more."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(function()))
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print the seconds of every way to make a prior of 16 coordinates from 100,000 samples or from densities."""
    rng, shape = np.random.default_rng(0), (SAMPLES, COORDINATES)
    z = np.where(rng.random(shape) < 0.4, rng.normal(-2.0, 0.5, shape), rng.gamma(2.0, size=shape))
    z = z @ (np.eye(COORDINATES) + 0.2 * rng.normal(size=(COORDINATES, COORDINATES)))
    posterior, weights = {"z": z.reshape(4, -1, COORDINATES)}, rng.gamma(1.0, size=SAMPLES)
    center = np.linspace(-1.0, 1.0, COORDINATES)

    calls = {
        "from_samples": lambda: KAPrior.from_samples(z),
        "from_samples, weights": lambda: KAPrior.from_samples(z, weights=weights),
        "from_samples, smoothness given": lambda: KAPrior.from_samples(z, smoothness=1e-4),
        "from_log_density": lambda: KAPrior.from_log_density(
            lambda x: -((x - center) ** 4), (-4.0, 4.0), batch_shape=(COORDINATES,)
        ),
        "from_posterior": lambda: KAPrior.from_posterior(posterior, "z"),
        "from_posterior, correlated": lambda: KAPrior.from_posterior(posterior, "z", correlated=True),
        'from_posterior, rotation="pca"': lambda: KAPrior.from_posterior(posterior, "z", rotation="pca"),
        'from_posterior, rotation="ica"': lambda: KAPrior.from_posterior(posterior, "z", rotation="ica"),
    }
    rows = []
    for name, call in calls.items():
        first, *later = seconds_of(call)
        rows.append((name, f"{first:.2f}", f"{min(later):.2f} / {np.median(later):.2f} / {max(later):.2f}"))
    few = rng.normal(size=(50, 64))
    for name, call in {
        "64 coordinates of 50 samples": lambda: KAPrior.from_samples(few),
        "64 calls of 50 samples": lambda: [KAPrior.from_samples(few[:, at]) for at in range(64)],
        "64 coordinates of 10,000 samples": lambda: KAPrior.from_samples(z[:10_000].repeat(4, axis=1)),
    }.items():
        first, *later = seconds_of(call, 3)
        rows.append((name, f"{first:.2f}", f"{min(later):.2f} / {np.median(later):.2f} / {max(later):.2f}"))
    header = ("what", "first call, s", "later calls, s: min / median / max")
    print_rows(f"Priors from {SAMPLES:,} samples of {COORDINATES} coordinates", header, rows)


if __name__ == "__main__":
    main()
