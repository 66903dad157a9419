"""Files of a KAEM: what is saved comes back, and old files are read."""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from safetensors.numpy import load as load_tensors

from numpyro_kaem import (
    KAN,
    MLP,
    RBF,
    RSWAF,
    BSpline,
    Chebyshev,
    ConvDecoder,
    ConvEncoder,
    Fourier,
    GaussLegendre,
    KAMixture,
    KAPrior,
    SequenceDecoder,
    SequenceEncoder,
    Trapezoid,
    UnivariateEnergy,
    Wavelet,
)
from numpyro_kaem.kaem import KAEM, ClusterPrior, archive, codec
from numpyro_kaem.kaem.likelihoods import likelihood_by_name
from numpyro_kaem.kaem.networks import Flat

DATA = Path(__file__).parent / "data"
# Of every version of the format: made by `python tests/test_kaem_files.py`, and never again.
OLD = [DATA / "format-1.kaem"]

SPLINE = BSpline(4, 3, (-2.0, 2.0))
NORMAL = dist.Normal(0.0, 1.0)


def energy(shape=(2,), basis=SPLINE, **options):
    return UnivariateEnergy.init(jr.key(0), shape, basis=basis, **options)


def small(prior=None, generator=None, likelihood="normal", **options):
    """A model of two numbers that counts as trained."""
    prior = KAPrior(energy(), NORMAL).to_event(1) if prior is None else prior
    generator = MLP(jr.key(1), 2, 2, (3,)) if generator is None else generator
    kaem = KAEM(prior, generator, likelihood, **options)
    return kaem.at(kaem.params)


def through_a_file(kaem, path, **own):
    kaem.save(path)
    return KAEM.load(path, **own)


def assert_equal(a, b):
    """The same classes, settings and arrays, to the bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def round_trip(value):
    arrays = {}
    described = json.loads(json.dumps(codec.describe(value, arrays, "value")))
    return codec.build(described, arrays)


VALUES = {
    "b-spline": lambda: energy(),
    "knots of a batch": lambda: energy(basis=BSpline.from_knots(jnp.array([[-1.0, 0.0, 2.0], [-2.0, 1.0, 3.0]]), 3)),
    "knots": lambda: energy(basis=BSpline.from_knots(np.linspace(-2, 2, 12) ** 3, 1)),
    "radial": lambda: energy(basis=RBF(5, (-2.0, 2.0), learn_scale=True), base_activation="tanh"),
    "switch": lambda: energy(basis=RSWAF(5, (-2.0, 2.0))),
    "fourier": lambda: energy(basis=Fourier(3, (-2.0, 2.0))),
    "chebyshev": lambda: energy(basis=Chebyshev(4, (-2.0, 2.0))),
    "wavelet": lambda: energy(basis=Wavelet("mexican_hat", 5, (-2.0, 2.0))),
    "perceptron": lambda: MLP(jr.key(0), 2, 3, (4, 5), jnp.sin, compute_dtype=jnp.bfloat16),
    "affine": lambda: MLP(jr.key(0), 2, 3, ()),
    "kolmogorov-arnold": lambda: KAN(jr.key(0), 2, 3, (4,), basis=SPLINE),
    "decoder": lambda: ConvDecoder(jr.key(0), 2, (5, 6, 1), (3, 2), activation=jax.nn.relu, upsampling="resize"),
    "encoder": lambda: ConvEncoder(jr.key(0), (5, 6, 1), 4, (2, 3), activation=jnp.tanh),
    "sequence decoder": lambda: SequenceDecoder(jr.key(0), 2, 4, 3, width=8, num_heads=2, num_layers=1, end_token=0),
    "sequence encoder": lambda: SequenceEncoder(jr.key(0), 4, 3, 2, width=8, num_heads=2, num_layers=1),
    "flat": lambda: Flat(MLP(jr.key(0), 4, 2, ()), 2),
    "clusters": lambda: ClusterPrior(jr.key(0), 3, 2, basis=SPLINE),
    "equinox": lambda: (eqx.nn.Linear(2, 3, key=jr.key(0)), eqx.nn.LayerNorm(3), eqx.nn.Lambda(jax.nn.softplus)),
    "bernoulli": lambda: likelihood_by_name("bernoulli", (2, 3)),
    "normal": lambda: likelihood_by_name("normal", (2,), 0.25),
    "categorical": lambda: likelihood_by_name("categorical", (2,), None, 3),
    "8-bit": lambda: likelihood_by_name("8-bit", (4, 4, 3)),
    "bfloat16": lambda: jnp.ones(3, jnp.bfloat16),
    "prior": lambda: KAPrior(energy(), NORMAL),
    "prior with a rule": lambda: KAPrior(energy(), NORMAL, quadrature=GaussLegendre(4, 7)),
    "prior by the trapezoid rule": lambda: KAPrior(energy(), dist.StudentT(3.0, 0.5, 2.0), quadrature=Trapezoid(20)),
    "expanded prior": lambda: KAPrior(energy(()), NORMAL).expand((2,)),
    "expanded reference": lambda: KAPrior(energy(()), NORMAL.expand((2,))),
    "prior of wide references": lambda: KAPrior(energy(()), dist.Laplace(jnp.zeros(3), 1.0)),
    "transformed reference": lambda: KAPrior(energy((), BSpline(4, 3, (0.5, 2.0))), dist.LogNormal(0.0, 1.0)),
    "truncated reference": lambda: KAPrior(
        energy((), BSpline(4, 3, (0.5, 2.0))), dist.TruncatedNormal(0.0, 1.0, low=0.25, high=3.0)
    ),
    "truncated prior": lambda: KAPrior(energy(), NORMAL).truncate(-1.0, None),
    "mixture": lambda: KAMixture(KAPrior(energy((2, 3)), NORMAL), jnp.arange(3.0)).to_event(1),
    "mixture of vectors": lambda: dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.array([0.25, 0.75])), KAPrior(energy((2, 3)), NORMAL).to_event(1)
    ),
    "correlated": lambda: dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.5, 2.0]])),
    "masked": lambda: dist.Normal(jnp.zeros(2), 1.0).mask(jnp.array([True, False])),
    "numbers": lambda: (1, 2.5, float("inf"), None, "text", [True, np.float32(0.5).item()]),
    "dtypes": lambda: (jnp.dtype("bfloat16"), jnp.dtype("float32")),
}
FAMILIES = {
    "Normal": (0.5, 2.0),
    "Cauchy": (0.5, 2.0),
    "Logistic": (0.5, 2.0),
    "Laplace": (0.5, 2.0),
    "Gumbel": (0.5, 2.0),
    "StudentT": (4.0, 0.5, 2.0),
    "AsymmetricLaplace": (0.5, 2.0, 1.5),
    "SoftLaplace": (0.5, 2.0),
    "Uniform": (0.0, 4.0),
    "Beta": (2.0, 3.0),
    "Gamma": (2.0, 3.0),
    "Exponential": (2.0,),
    "HalfNormal": (2.0,),
    "HalfCauchy": (2.0,),
    "Weibull": (2.0, 3.0),
    "LogNormal": (0.5, 2.0),
    "InverseGamma": (2.0, 3.0),
    "Pareto": (0.25, 3.0),
    "Chi2": (3.0,),
}


@pytest.mark.parametrize("name", VALUES)
def test_what_is_described_is_built_again_to_the_bit(name):
    value = VALUES[name]()
    assert_equal(round_trip(value), value)


@pytest.mark.parametrize("family", FAMILIES)
def test_priors_over_every_family_are_built_again_to_the_bit(family):
    reference = getattr(dist, family)(*FAMILIES[family])
    prior = KAPrior(energy((), BSpline(4, 3, (0.3, 0.9))), reference)
    assert_equal(round_trip(prior), prior)


def test_numbers_of_half_precision_are_kept(tmp_path):
    generator = jax.tree.map(lambda w: w.astype(jnp.bfloat16), MLP(jr.key(0), 2, 2, (3,)))
    kaem = small(generator=generator)
    assert_equal(through_a_file(kaem, tmp_path / "a.kaem").parts, kaem.parts)


def test_a_loaded_model_draws_and_scores_as_the_saved_one(tmp_path):
    kaem = small(ClusterPrior(jr.key(0), 3, 2, basis=SPLINE), encoder=MLP(jr.key(2), 2, 4, ()))
    state = [jnp.arange(3), jnp.ones((2, 2))]
    kaem = kaem._with(history={"loss": np.array([2.0, 1.0])}, optimizer_state=state)
    kaem.save(tmp_path / "a.kaem", optimizer_state=True)
    loaded = KAEM.load(tmp_path / "a.kaem")
    assert_equal(loaded.parts, kaem.parts)
    assert (loaded.shape, loaded.is_trained) == (kaem.shape, True)
    assert_equal(loaded.optimizer_state, state)
    assert loaded.history["loss"].dtype == np.float64 and list(loaded.history["loss"]) == [2.0, 1.0]
    np.testing.assert_array_equal(loaded.sample(jr.key(3), 5), kaem.sample(jr.key(3), 5))
    kaem.save(tmp_path / "b.kaem", history=False)
    bare = KAEM.load(tmp_path / "b.kaem")
    assert bare.history is None and bare.optimizer_state is None


def test_a_file_is_at_most_64_KiB_larger_than_its_arrays(tmp_path):
    decoder = SequenceDecoder(jr.key(0), 2, 4, 3, width=8, num_heads=2, num_layers=4)
    encoder = SequenceEncoder(jr.key(0), 4, 3, 4, width=8, num_heads=2, num_layers=4)
    prior = KAPrior(energy((2,), BSpline.from_knots(np.linspace(-3, 3, 300) ** 3, 3)), NORMAL).to_event(1)
    kaem = small(prior, decoder, "categorical", encoder=encoder)
    leaves = jax.tree.leaves((kaem.params, kaem.guide_params))
    kaem._with(optimizer_state=2 * leaves).save(tmp_path / "a.kaem", optimizer_state=True)
    content = (tmp_path / "a.kaem").read_bytes()
    assert len(content) - sum(array.nbytes for array in load_tensors(content).values()) <= 64 * 1024


def test_a_file_of_64_bits_is_rounded_where_jax_has_32(tmp_path):
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(True):
        basis = BSpline.from_knots(jnp.array([[-1.0, 0.1, 2.0], [-2.0, 1.0, 3.0]]), 3)
        kaem = small(KAPrior(energy((2,), basis), NORMAL).to_event(1))
        kaem.save(tmp_path / "a.kaem")
        assert_equal(KAEM.load(tmp_path / "a.kaem").parts, kaem.parts)
        knots = kaem.parts.prior.base_dist.energy.basis.grid.points
    with pytest.warns(UserWarning, match=r"float64, which are rounded to float32.*jax_enable_x64"):
        loaded = KAEM.load(tmp_path / "a.kaem")
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params) if leaf.dtype.kind == "f"} == {np.dtype("float32")}
    np.testing.assert_array_equal(loaded.parts.prior.base_dist.energy.basis.grid.points, np.float32(knots))
    small().save(tmp_path / "b.kaem")
    with enable_x64(True):
        loaded = KAEM.load(tmp_path / "b.kaem")
    assert_equal(loaded.parts, small().parts)


# Parts of the user's own


class Own(eqx.Module):
    layer: eqx.nn.Linear
    scale: float
    key: jax.Array

    def __init__(self, key, size=2, scale=1.0):
        self.layer, self.scale, self.key = eqx.nn.Linear(2, size, key=key), scale, key

    def __call__(self, z):
        return self.scale * jax.vmap(self.layer)(z)


def test_a_module_of_ones_own_is_given_again_and_gets_its_arrays(tmp_path):
    kaem = small(generator=Own(jr.key(0), scale=2.0))
    path = tmp_path / "a.kaem"
    loaded = through_a_file(kaem, path, generator=Own(jr.key(1), scale=2.0)).parts.generator
    z = jnp.ones((1, 2))
    np.testing.assert_array_equal(loaded(z), kaem.parts.generator(z))
    with pytest.raises(ValueError, match=r"generator of .*a.kaem.* is 'Own', not of this package: give it, generator="):
        KAEM.load(path)
    with pytest.raises(ValueError, match=r"generator must be like the 'Own'.*weight is \(3, 2\), saved was \(2, 2\)"):
        KAEM.load(path, generator=Own(jr.key(1), 3))
    with pytest.raises(ValueError, match=r"generator must be like.*weights\[0\] is \(2, 2\), saved was missing"):
        KAEM.load(path, generator=MLP(jr.key(0), 2, 2, ()))
    with pytest.raises(ValueError, match=r"likelihood is in .* leave out likelihood="):
        KAEM.load(path, generator=Own(jr.key(1)), likelihood="normal")


def test_a_module_of_nnx_is_given_again(tmp_path):
    nnx = pytest.importorskip("flax.nnx")
    kaem = small(generator=nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    loaded = through_a_file(kaem, tmp_path / "a.kaem", generator=nnx.Linear(2, 2, rngs=nnx.Rngs(1)))
    assert_equal(loaded.params, kaem.params)


def own_prior():
    loc = numpyro.param("loc", jnp.zeros(2))
    scale = numpyro.contrib.module.eqx_module("scale", eqx.nn.Linear(1, 2, key=jr.key(0)))(jnp.ones(1))
    own = numpyro.contrib.module.eqx_module("own", Own(jr.key(0)))(jnp.ones((1, 2)))[0]
    return dist.Normal(loc + own, jnp.exp(scale)).to_event(1)


def own_likelihood(output):
    return dist.Laplace(output, 1.0)


def test_values_of_parameters_of_functions_are_in_the_file(tmp_path):
    kaem = small(own_prior, likelihood=own_likelihood)
    kaem = kaem.at(jax.tree.map(lambda value: value + 1.0, kaem.params))
    path = tmp_path / "a.kaem"
    loaded = through_a_file(kaem, path, prior=own_prior, likelihood=own_likelihood)
    assert_equal(loaded.params, kaem.params)
    with pytest.raises(ValueError, match=r"likelihood of .* is 'own_likelihood', not of this package"):
        KAEM.load(path, prior=own_prior)
    with pytest.raises(ValueError, match=r"have no parameter 'own\$params'"):
        KAEM.load(path, prior=lambda: NORMAL.expand((2,)).to_event(1), likelihood=own_likelihood)


def test_classes_of_numpyro_are_likelihoods_that_a_file_knows(tmp_path):
    kaem = small(likelihood=dist.Poisson, generator=MLP(jr.key(0), 2, 2, (), jnp.exp))
    assert through_a_file(kaem, tmp_path / "a.kaem").parts.likelihood.function is dist.Poisson


def test_a_distribution_that_is_not_known_is_given_again(tmp_path):
    class Wide(dist.Normal):
        pass

    kaem = small(Wide(jnp.zeros(2), 2.0).to_event(1))
    loaded = through_a_file(kaem, tmp_path / "a.kaem", prior=Wide(jnp.ones(2), 1.0).to_event(1))
    assert_equal(loaded.parts.prior, kaem.parts.prior)
    with pytest.raises(ValueError, match=r"prior of .* is 'Independent', not of this package"):
        KAEM.load(tmp_path / "a.kaem")


# Files of earlier versions


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_an_old_file_is_read_and_gives_the_numbers_it_gave(path):
    kaem, expected = KAEM.load(path), json.loads(path.with_suffix(".json").read_text())
    for name, value in numbers(kaem).items():
        np.testing.assert_allclose(np.array(value), np.array(expected[name]), rtol=2e-4, err_msg=name)
    assert kaem.optimizer_state and kaem.history


def numbers(kaem):
    """What a model computes."""
    z = jnp.array([[0.5, -0.25], [-1.5, 1.0]])
    x = jnp.arange(128).reshape(2, 8, 8, 1)

    @eqx.filter_jit
    def compute(parts):
        drawn = parts.drawn
        return {
            "prior.log_prob": drawn.prior.log_prob(z),
            "log_prob": drawn.conditional(z).log_prob(x),
            "draws": drawn.prior.sample(jr.key(0), (3,)),
            "means": drawn.mean(z[None])[:, ::4, ::4],
            "encoder": parts.encoder(parts.likelihood.encoded(x)),
        }

    computed = {name: np.asarray(value).tolist() for name, value in compute(kaem.parts).items()}
    return computed | {"loss": kaem.history["loss"].tolist()}


def write_data(path):
    """What of the present version of the format is kept."""
    prior = ClusterPrior(jr.key(0), 3, 2, basis=SPLINE)
    generator, encoder = ConvDecoder(jr.key(1), 2, (8, 8, 1), (3,)), ConvEncoder(jr.key(2), (8, 8, 1), 4, (3,))
    kaem = KAEM(prior, generator, "8-bit", encoder=encoder)
    x = jr.randint(jr.key(3), (40, 8, 8, 1), 0, 256)
    kaem = kaem.fit(jr.key(4), x, num_epochs=2, batch_size=20, progress=False)
    kaem.save(path, optimizer_state=True)
    path.with_suffix(".json").write_text(json.dumps(numbers(kaem), indent=1) + "\n")


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    write_data(DATA / f"format-{archive.VERSION}.kaem")
