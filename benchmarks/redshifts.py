"""Tabulated densities of two peaks: what a floor of the density costs NUTS, and what it saves."""

import time

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

from benchmarks.timing import print_rows
from numpyro_kaem import ICDFReparam, KAPrior

NUM_GALAXIES, NUM_DRAWS = 30, 2_000


def tables() -> tuple[np.ndarray, np.ndarray]:
    """Redshifts and the densities of galaxies at them; every third has a second peak."""
    rng = np.random.default_rng(0)
    redshift = np.linspace(0.0, 3.0, 151)
    densities = []
    for galaxy in range(NUM_GALAXIES):
        peak, width = rng.gamma(4.0, 0.2), 0.03 + 0.05 * rng.random()
        density = np.exp(-0.5 * ((redshift - peak) / width) ** 2) / width
        if galaxy % 3 == 0:
            density = 0.6 * density + 0.4 * np.exp(-0.5 * ((redshift - (peak + 1.2) % 3.0) / 0.08) ** 2) / 0.08
        densities.append(density)
    return redshift, np.stack(densities, axis=-1)


def main() -> None:
    """Print divergences and steps of NUTS for several floors."""
    rows = []
    for floor in (1e-13, 1e-4, 1e-3, 1e-2):
        prior = KAPrior.from_table(*tables(), floor=floor).tabulate()

        def model(prior=prior):
            location = numpyro.sample("location", dist.Normal(0.0, 1.0))
            scale = numpyro.sample("scale", dist.HalfNormal(1.0))
            z = numpyro.sample("z", prior.to_event(1))
            numpyro.factor("population", dist.LogNormal(location, scale).log_prob(z).sum())

        kernel = NUTS(numpyro.handlers.reparam(model, config={"z": ICDFReparam()}))
        mcmc = MCMC(kernel, num_warmup=500, num_samples=NUM_DRAWS, progress_bar=False)
        start = time.perf_counter()
        mcmc.run(jax.random.key(0), extra_fields=("diverging", "num_steps"))
        fields, draws = mcmc.get_extra_fields(), mcmc.get_samples()
        rows.append(
            (
                f"{floor:g}",
                str(int(fields["diverging"].sum())),
                f"{fields['num_steps'].mean():.0f}",
                f"{time.perf_counter() - start:.0f}",
                f"{draws['location'].mean():.2f}",
            )
        )
    header = ("floor", "divergences", "steps a draw", "seconds", "posterior mean of the location")
    print_rows(f"{NUM_GALAXIES} tabulated densities, {NUM_DRAWS:,} draws of NUTS by ICDFReparam", header, rows)


if __name__ == "__main__":
    main()
