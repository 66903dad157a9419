"""Programs of a KAEM: they draw in plain JAX, without this package, what it draws."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from speed import slow_unless

from numpyro_kaem import MLP, BSpline, KAMixture, KAPrior, SequenceDecoder, UnivariateEnergy
from numpyro_kaem.kaem import KAEM, ClusterPrior
from numpyro_kaem.kaem.priors import from_uniforms

pytest.importorskip("flatbuffers")

NUM_SAMPLES = 4
BASIS = BSpline(4, 3, (-2.0, 2.0))
# In another process, which cannot import what made the programs.
RUN = """
import sys

for blocked in ("numpyro_kaem", "numpyro", "equinox", "jaxtyping", "optax"):
    sys.modules[blocked] = None

from pathlib import Path
import jax.export, jax.numpy as jnp, numpy as np

folder = Path(sys.argv[1])
for name, given in (("sample", jnp.uint32(7)), ("from_uniforms", np.load(folder / "u.npy"))):
    program = jax.export.deserialize((folder / f"{name}.stablehlo").read_bytes())
    np.save(folder / f"{name}.npy", program.call(given))
"""


def prior_of(kind):
    normal = dist.Normal(0.0, 1.0)
    if kind == "cluster":
        return ClusterPrior(jr.key(0), 3, 2, basis=BASIS)
    shape = {"independent": (2,), "sequence": (2,), "univariate": (2, 3), "mixture": (2, 3)}[kind]
    prior = KAPrior(UnivariateEnergy.init(jr.key(0), shape, basis=BASIS, scale=1.0), normal)
    if kind == "mixture":
        return KAMixture(prior, jnp.arange(3.0)).to_event(1)
    return prior.to_event(len(shape))


def model(kind):
    if kind == "sequence":
        generator = SequenceDecoder(jr.key(1), 2, 5, 4, width=8, num_heads=2, num_layers=1, end_token=0)
        kaem = KAEM(prior_of(kind), generator, "categorical")
    else:
        kaem = KAEM(prior_of(kind), MLP(jr.key(1), 2, 3, (4,)), "normal")
    return kaem.at(kaem.params)


KINDS = ("independent", "univariate", "mixture", "cluster", "sequence")
NUM_UNIFORMS = {"independent": 2, "univariate": 6, "mixture": 2, "cluster": 3, "sequence": 2}


@pytest.fixture(scope="module", params=slow_unless(["cluster"], KINDS))
def exported(request, tmp_path_factory):
    """A model and the folder of its programs, which another process has run."""
    kind = request.param
    kaem, folder = model(kind), tmp_path_factory.mktemp(kind)
    kaem.export(folder, num_samples=NUM_SAMPLES)
    np.save(folder / "u.npy", jr.uniform(jr.key(2), (NUM_SAMPLES, NUM_UNIFORMS[kind])))
    process = subprocess.run([sys.executable, "-c", RUN, folder], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return kind, kaem, folder


def test_a_program_draws_what_the_model_draws(exported):
    _, kaem, folder = exported
    np.testing.assert_allclose(
        np.load(folder / "sample.npy"), kaem.sample(jr.key(7), NUM_SAMPLES), rtol=1e-4, atol=1e-5
    )


def test_a_program_gives_the_means_at_the_quantiles_of_uniforms(exported):
    kind, kaem, folder = exported
    u = jnp.asarray(np.load(folder / "u.npy"))
    parts = kaem.parts
    if kind == "cluster":
        clusters = parts.prior
        chosen = jnp.searchsorted(jnp.cumsum(jax.nn.softmax(clusters.logits)), u[:, -1], side="right")
        every = clusters().component_distribution.base_dist.icdf(u[:, None, :-1])
        z = every[jnp.arange(len(u)), chosen]
    else:
        base = parts.prior.base_dist
        z = base.icdf(u.reshape(-1, *base.batch_shape))
    z = z.sum(-1) if z.ndim == 3 else z
    # The mean of "normal" is the generator's output.
    means = parts.generator.most_probable(z) if kind == "sequence" else parts.generator(z)
    np.testing.assert_allclose(np.load(folder / "from_uniforms.npy"), means, rtol=1e-4, atol=1e-5)


def test_a_folder_says_what_its_programs_take_and_give(exported):
    kind, _, folder = exported
    about = json.loads((folder / "about.json").read_text())
    gives = ["int32", [NUM_SAMPLES, 4]] if kind == "sequence" else ["float32", [NUM_SAMPLES, 3]]
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["sample.stablehlo"] == {"takes": [["uint32", []]], "gives": [gives]}
    takes = [["float32", [NUM_SAMPLES, NUM_UNIFORMS[kind]]]]
    assert about["from_uniforms.stablehlo"] == {"takes": takes, "gives": [gives]}


def test_a_program_is_of_the_platforms_that_were_asked_for(tmp_path):
    model("independent").export(tmp_path, num_samples=2, platforms=["cpu"])
    program = jax.export.deserialize((tmp_path / "sample.stablehlo").read_bytes())
    assert program.platforms == ("cpu",)
    with pytest.raises(ValueError, match=r"platforms must be .*\['gpu'\]"):
        model("independent").export(tmp_path, num_samples=2, platforms=["gpu"])
    with pytest.raises(ValueError, match="num_samples"):
        model("independent").export(tmp_path, num_samples=0)


def test_the_parts_are_as_before_when_they_have_been_exported(exported):
    _, kaem, _ = exported
    prior = kaem.parts.prior_distribution
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(prior))


def test_a_prior_without_quantiles_is_told_before_anything_is_written(tmp_path):
    correlated = dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.5, 1.0]]))
    kaem = KAEM(correlated, MLP(jr.key(1), 2, 3, ()), "normal")
    with pytest.raises(ValueError, match="prior must be a product of univariate distributions with icdf"):
        kaem.at(kaem.params).export(tmp_path / "programs", num_samples=2)
    assert not (tmp_path / "programs").exists()
    with pytest.raises(ValueError, match="prior must be a product of univariate"):
        from_uniforms(correlated, jnp.ones((1, 2)))


def test_without_flatbuffers_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ImportError, match=r"pip install 'numpyro_kaem\[export\]'"):
        model("independent").export(tmp_path, num_samples=2)
