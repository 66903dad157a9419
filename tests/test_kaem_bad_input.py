"""What the KAEM object says of bad input: the argument, its value and the cure."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from numpyro_kaem import KAEM, MLP, BSpline, HeldOut, Langevin, TemperedSMC

KEY = jax.random.key(0)
SMALL = {"latent_size": 2, "hidden_sizes": (8,), "basis": BSpline(num_intervals=6, degree=3, domain=(-3.0, 3.0))}
SMC = TemperedSMC(num_particles=64, num_mcmc_steps=4, num_runs=2, progress=False)


def standard_normal(size=2):
    return dist.Normal(jnp.zeros(size), 1.0).to_event(1)


BERNOULLI = KAEM.create(KEY, (6,), likelihood="bernoulli", **SMALL)
BAD = {
    "shape": (lambda k: k.fit(KEY, np.zeros((3, 5))), r"x must have .* shape \(6,\), got shape \(3, 5\).*prior.*MLP"),
    "grey": (lambda k: k.fit(KEY, np.full((3, 6), 200)), r"x must be 0 or 1 .* got 200 at \[0, 0\].*divide by 200"),
    "held out": (lambda k: k.fit(KEY, np.zeros((3, 6)), held_out=np.full((2, 6), 0.5)), r"held_out must be 0 or 1"),
    "two samplers": (
        lambda k: k.fit(KEY, np.zeros((3, 6)), held_out=HeldOut(np.zeros((2, 6)), sampler=SMC), held_out_sampler=SMC),
        "give held_out_sampler or HeldOut",
    ),
    "NaN": (lambda k: k.log_likelihood(KEY, np.full((3, 6), np.nan)), r"x must be finite, got nan at \[0, 0\]"),
    "state": (lambda k: k.fit(KEY, np.zeros((3, 6)), continue_optimizer=True), "needs a model that was trained"),
    "evidence": (
        lambda k: k.log_likelihood(KEY, np.zeros((3, 6)), Langevin(num_steps=2, progress=False)),
        "sampler must have an evidence",
    ),
    "clusters": (lambda k: k.cluster_probabilities(KEY, np.zeros((3, 6))), "prior must be a ClusterPrior"),
    "site": (lambda k: k.at({"decoder$params": 1}), r"params has no site of this model: \['decoder\$params'\]"),
    "kind": (
        lambda k: KAEM.create(KEY, (6,), latent_size=2, likelihood="normal", prior="flow"),
        "prior must be one of",
    ),
    "likelihood": (lambda k: KAEM.create(KEY, (6,), latent_size=2, likelihood="beta"), "likelihood must be one of"),
    "categories": (lambda k: KAEM.create(KEY, (6,), latent_size=2, likelihood="categorical"), "num_categories goes"),
    "noise": (lambda k: KAEM.create(KEY, (6,), latent_size=2, likelihood="8-bit", noise=0.1), "noise is that of"),
    "generator": (
        lambda k: KAEM(standard_normal(3), MLP(KEY, 2, 6, (4,)), "normal"),
        r"prior has latents of shape \(3,\), of which the generator is given \(3,\), but MLP does not take them",
    ),
    "output": (
        lambda k: KAEM(standard_normal(), MLP(KEY, 2, 6, (4,)), "normal", shape=(7,)),
        r"latents of shape \(2,\), of which generator MLP makes \(6,\), but the likelihood of data of shape \(7,\)",
    ),
    "integers": (
        lambda k: KAEM.create(KEY, (6,), likelihood="normal", **SMALL).fit(KEY, np.ones((3, 6), int)),
        r"real numbers for likelihood 'normal', got dtype int64: pass \(x / 255.0\)",
    ),
    "bytes": (
        lambda k: KAEM.create(KEY, (6,), likelihood="8-bit", **SMALL).fit(KEY, np.full((3, 6), 0.5)),
        r"integers from 0 to 255 .* got 0.5 at \[0, 0\]: images from 0 to 1 are numpy.round\(255 \* x\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(BERNOULLI)
