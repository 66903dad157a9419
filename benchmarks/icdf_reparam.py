"""Effective samples per gradient of NUTS, in z and in the coordinates of a standard normal."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS

from benchmarks.timing import print_rows
from numpyro_kaem import BSpline, ICDFReparam, KAPrior, UnivariateEnergy

CHAINS, WARMUP, SAMPLES = 4, 500, 1000


def two_bumps(separation: float) -> KAPrior:
    """A standard normal tilted into bumps of standard deviation 0.3 at plus and minus half the separation."""
    basis = BSpline(num_intervals=28, degree=3, domain=(-3.5, 3.5))
    z = np.linspace(-3.5, 3.5, 2001)
    bumps = np.logaddexp(*(-0.5 * ((z - mode) / 0.3) ** 2 for mode in (-separation / 2, separation / 2)))
    coefficients, *_ = np.linalg.lstsq(np.asarray(basis(jnp.asarray(z))), bumps + 0.5 * z**2, rcond=None)
    energy = UnivariateEnergy(jnp.zeros(()), jnp.ones(()), jnp.asarray(coefficients, jnp.float32), basis)
    return KAPrior(energy, dist.Normal(0.0, 1.0))


def rough(reference: dist.Distribution, domain: tuple[float, float]) -> KAPrior:
    """A reference tilted by an energy of standard deviation one."""
    basis = BSpline(num_intervals=8, degree=3, domain=domain)
    return KAPrior(UnivariateEnergy.init(jax.random.key(0), basis=basis, scale=1.0), reference)


PRIORS = {
    "two modes, 4 standard deviations apart": two_bumps(1.2),
    "two modes, 8 standard deviations apart": two_bumps(2.4),
    "two modes, 13 standard deviations apart": two_bumps(4.0),
    "normal reference, energy of size 1": rough(dist.Normal(0.0, 1.0), (-3.0, 3.0)),
    "uniform reference, energy of size 1": rough(dist.Uniform(0.0, 1.0), (0.0, 1.0)),
    "log-normal reference, energy of size 1": rough(dist.LogNormal(0.0, 1.0), (0.05, 6.0)),
}


def main() -> None:
    """Print effective samples per thousand gradients of NUTS in z and in eps."""
    rows = []
    for name, prior in PRIORS.items():

        def model(prior=prior):
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Normal(z, 2.0), obs=0.5)

        measured = [sample(m) for m in (model, reparam(model, config={"z": ICDFReparam()}))]
        rates = [1000 * size / gradients for size, gradients, _ in measured]
        row = [
            f"{size:.0f} / {rate:.1f} / {seconds:.1f}" for (size, _, seconds), rate in zip(measured, rates, strict=True)
        ]
        rows.append((name, *row, f"{rates[1] / rates[0]:.1f}"))
    what = "effective samples / per 1,000 gradients / seconds"
    header = ("prior, likelihood Normal(z, 2)", f"NUTS in z: {what}", "NUTS in eps: the same", "ratio per gradient")
    print_rows(f"ICDFReparam, {CHAINS} chains of {SAMPLES} draws", header, rows)


def sample(model) -> tuple[float, int, float]:
    """Effective sample size of z, gradient evaluations, and seconds after compilation."""
    kernel = NUTS(model)
    mcmc = MCMC(
        kernel,
        num_warmup=WARMUP,
        num_samples=SAMPLES,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.warmup(jax.random.key(0))
    mcmc.run(jax.random.key(1), extra_fields=("num_steps",))  # compiles
    start = time.perf_counter()
    mcmc.run(jax.random.key(1), extra_fields=("num_steps",))
    seconds = time.perf_counter() - start
    z = np.asarray(mcmc.get_samples(group_by_chain=True)["z"], np.float64)
    gradients = int(np.sum(mcmc.get_extra_fields()["num_steps"]))
    return float(numpyro.diagnostics.effective_sample_size(z)), gradients, seconds


if __name__ == "__main__":
    main()
