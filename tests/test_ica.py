"""ICA finds sources, its likelihood is exact, its conventions hold, and bad input is told."""

import pickle
import subprocess
import sys

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import numpyro_kaem
from numpyro_kaem import ICA, KAPrior
from numpyro_kaem.separation.source_densities import SourceModel, TabulatedReference
from numpyro_kaem.separation.unmixing import evaluate

SOURCES = {
    "two lumps": lambda rng, n: np.where(rng.random(n) < 0.4, -1.0, 1.0) + 0.3 * rng.normal(size=n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "uniform": lambda rng, n: rng.uniform(-1.0, 1.0, n),
    "Laplace": lambda rng, n: rng.laplace(size=n),
    "skewed": lambda rng, n: np.where(rng.random(n) < 0.5, rng.gamma(2.0, size=n), rng.gamma(6.0, size=n)),
    "sine": lambda rng, n: np.sin(rng.uniform(0.0, 2.0 * np.pi, n)),
}


def mixture(kinds, n, seed):
    """Data and the matrix that mixes unit-variance sources into them."""
    rng = np.random.default_rng(seed)
    sources = np.stack([SOURCES[kind](rng, n) for kind in kinds], axis=1)
    mixing = rng.normal(size=(len(kinds), len(kinds)))
    return sources / sources.std(axis=0) @ mixing.T + rng.normal(size=len(kinds)), mixing


def amari(unmixing, mixing):
    product, size = np.abs(unmixing @ mixing), len(mixing)
    over = np.sum(product / product.max(axis=1, keepdims=True)) + np.sum(product / product.max(axis=0))
    return (over - 2 * size) / (2 * size * (size - 1))


@pytest.fixture(scope="module")
def six():
    """Six awkward sources."""
    x, mixing = mixture(list(SOURCES), 5_000, 0)
    return x, mixing, ICA(random_state=0).fit(x)


@pytest.fixture(scope="module")
def two():
    """Two of them, seen by four sensors with next to nothing beside them."""
    x, _ = mixture(["two lumps", "exponential"], 1_000, 1)
    rng = np.random.default_rng(2)
    axes = np.linalg.qr(rng.normal(size=(4, 4)))[0][:, :2]
    return x, axes, x @ axes.T + 1e-3 * rng.normal(size=(1_000, 4))


# What it is ----------------------------------------------------------------------------------------------------------


# Its data are a few dozen rows, which no search has to end on.
@parametrize_with_checks([ICA(random_state=0, max_iter=30)])
@pytest.mark.filterwarnings("ignore")
def test_it_is_an_estimator_of_scikit_learn(estimator, check):
    check(estimator)


def test_the_package_is_imported_without_scikit_learn_and_says_what_lacks():
    code = """
import sys
import numpyro_kaem
assert "sklearn" not in sys.modules and "ICA" in dir(numpyro_kaem)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sklearn":
            raise ImportError(name)
sys.meta_path.insert(0, Finder())
try:
    numpyro_kaem.ICA
except ImportError as error:
    print(error)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'numpyro_kaem[sources]'" in process.stdout, process.stderr


def test_a_star_import_without_scikit_learn_leaves_it_out():
    code = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "sklearn" else found(name, *rest)
from numpyro_kaem import *
print("ICA" in globals(), "KAPrior" in globals())
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.split() == ["False", "True"], process.stderr


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'PCA'"):
        numpyro_kaem.PCA  # noqa: B018


def test_it_works_in_a_pipeline_with_data_frames_and_survives_a_pickle(two):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(two[0], columns=["left", "right"])
    pipeline = make_pipeline(StandardScaler(), ICA(random_state=0)).set_output(transform="pandas").fit(frame)
    found = pipeline.transform(frame)
    assert list(found.columns) == ["ica0", "ica1"]
    assert list(pipeline[-1].feature_names_in_) == ["left", "right"]
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.transform(frame), found)
    assert again.score(frame) == pipeline.score(frame)
    assert clone(pipeline[-1]).get_params() == pipeline[-1].get_params()


# That it finds sources -----------------------------------------------------------------------------------------------


def test_six_awkward_sources_are_found(six):
    # FastICA has 0.010 to 0.015 on such data; ten other seeds gave 0.0029 to 0.0045.
    _, mixing, ica = six
    assert amari(ica.components_, mixing) < 0.006


@pytest.mark.parametrize("kind", ["uniform", "Laplace", "skewed", "sine"])
def test_three_sources_of_one_kind_are_found(kind):
    # Over seeds the distances have means of 0.003, 0.014, 0.005 and 0.001 and standard deviations of half of these.
    x, mixing = mixture([kind] * 3, 4_000, 3)
    assert amari(ICA(random_state=0).fit(x).components_, mixing) < {"Laplace": 0.05, "skewed": 0.02}.get(kind, 0.01)


def test_the_gradient_is_that_of_the_profile_likelihood():
    x, _ = mixture(["two lumps", "exponential", "Laplace"], 500, 4)
    x[::50] *= 4.0  # beyond the domains of the splines
    sources = np.linalg.inv(np.linalg.cholesky(np.cov(x.T, bias=True))) @ (x - x.mean(axis=0)).T
    model = SourceModel(sources, TabulatedReference(), 12)
    # Not white: the covariances of the sources are part of it.
    unmixing = np.eye(3) + 0.2 * np.random.default_rng(0).normal(size=(3, 3))
    point = evaluate(unmixing, unmixing @ sources, model)
    for row, column in np.ndindex(3, 3):
        values = []
        for step in (-1e-5, 1e-5):
            factor = np.eye(3)
            factor[row, column] += step
            moved = factor @ point.unmixing
            values.append(evaluate(moved, moved @ sources, model).value)
        assert (values[1] - values[0]) / 2e-5 == pytest.approx(-point.gradient[row, column], abs=2e-5)


def test_densities_are_those_of_a_fit_of_one_source(six):
    # The same penalty, basis and reference, by another way to the maximum.
    x, _, ica = six
    source = ica.transform(x)[:, 0]
    basis = numpyro_kaem.BSpline(16, 3, tuple(end[0] for end in ica.sources_.energy.basis.domain))
    reference = dist.StudentT(5.0, 0.0, 0.6**0.5)
    prior = KAPrior.from_samples(source, basis=basis, reference=reference, smoothness=ica.smoothness_[0])
    points = np.quantile(source, np.linspace(0.02, 0.98, 50))
    ours = np.asarray(ica.sources_.log_prob(np.tile(points[:, None], (1, 6))))[:, 0]
    np.testing.assert_allclose(ours, np.asarray(prior.log_prob(points)), atol=2e-3)


def test_the_smoothness_is_large_where_the_reference_is_right_and_small_where_it_is_far_off():
    rng = np.random.default_rng(10)
    of_reference = 0.6**0.5 * rng.standard_t(5.0, (4, 2_000))
    lumps = SOURCES["two lumps"](rng, 2_000)[None]
    z = np.concatenate([of_reference, (lumps - lumps.mean()) / lumps.std()])
    chosen = SourceModel(z, TabulatedReference(), 16).smoothness
    assert np.median(chosen[:4]) >= 0.1
    assert chosen[4] <= 1e-3


@pytest.mark.parametrize("kinds", [list(SOURCES), ["skewed"] * 4])  # of the latter the start sees next to nothing
def test_the_smoothness_from_round_to_round_is_that_of_the_whole_path(kinds):
    x, _ = mixture(kinds, 5_000, 0)
    ica = ICA(random_state=0).fit(x)
    chosen = SourceModel(ica.transform(x).T, TabulatedReference(), 16).smoothness
    np.testing.assert_allclose(ica.smoothness_, chosen)


# The likelihood ------------------------------------------------------------------------------------------------------


def test_scores_are_the_log_densities_of_the_sources_and_the_determinant(six, x64):
    x, _, ica = six
    rows = np.concatenate([x[:200], 30.0 * x[:5]])  # the last ones lie where the reference alone is
    z = ica.transform(rows)
    by_hand = np.asarray(clone(ica).fit(x).sources_.log_prob(z)).sum(axis=1) - np.linalg.slogdet(ica.mixing_)[1]
    np.testing.assert_allclose(ica.score_samples(rows), by_hand, rtol=1e-6, atol=1e-6)
    assert ica.score(rows) == pytest.approx(np.mean(by_hand), rel=1e-7)


def test_the_density_of_the_data_integrates_to_one(two):
    x, _, _ = two
    ica = ICA(random_state=0).fit(x)
    # Even in the arcsinh of the distance, for tails that are heavy.
    t, step = np.linspace(-7.0, 7.0, 701, retstep=True)
    grid = np.stack(np.meshgrid(np.sinh(t), np.sinh(t), indexing="ij"), axis=-1).reshape(-1, 2)
    weights = step**2 * np.prod(np.sqrt(1.0 + grid**2), axis=1)
    assert np.sum(np.exp(ica.score_samples(x.mean(axis=0) + grid)) * weights) == pytest.approx(1.0, abs=2e-3)


def test_scores_of_data_that_are_mapped_linearly_differ_by_the_determinant(six):
    x, _, ica = six
    matrix = np.random.default_rng(6).normal(size=(6, 6)) * np.array([1.0, 1e-3, 1.0, 1e3, 1.0, 1.0])[:, None]
    mapped = ICA(random_state=0).fit(x @ matrix.T + 3.0).score_samples(x @ matrix.T + 3.0)
    np.testing.assert_allclose(mapped, ica.score_samples(x) - np.linalg.slogdet(matrix)[1], atol=2e-3)


# Conventions ---------------------------------------------------------------------------------------------------------


def test_sources_have_unit_variance_positive_skewness_and_the_order_of_what_they_explain(six):
    x, _, ica = six
    z = ica.transform(x)
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(z.std(axis=0), 1.0, rtol=1e-9)
    assert np.all(np.mean(z**3, axis=0) > 0.0)
    explained = np.linalg.norm(ica.mixing_, axis=0)
    assert np.all(np.diff(explained) < 0.0)
    # The densities are in the same order, and not mirrored.
    mean_cube = np.mean(np.asarray(ica.sources_.sample(jax.random.key(0), (20_000,))) ** 3, axis=0)
    skewed = np.mean(z**3, axis=0) > 0.5
    assert skewed.sum() == 2  # the exponential, and one whose halves are gamma distributed
    assert np.all(mean_cube[skewed] > 0.5)


def test_signs_do_not_depend_on_those_of_the_data(two):
    x, _, _ = two
    first, second = ICA(random_state=0).fit(x), ICA(random_state=0).fit(-x)
    np.testing.assert_allclose(first.mixing_, -second.mixing_, atol=1e-5)


def test_it_is_deterministic_given_its_random_state(two):
    x, _, _ = two
    first, second, other = (ICA(random_state=seed).fit(x) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.components_, second.components_)
    np.testing.assert_allclose(first.components_, other.components_, atol=1e-4)


def test_sources_go_back_to_data(six):
    x, _, ica = six
    np.testing.assert_allclose(ica.inverse_transform(ica.transform(x)), x, atol=1e-10)
    np.testing.assert_allclose(ica.components_ @ ica.mixing_, np.eye(6), atol=1e-10)
    np.testing.assert_array_equal(ica.fit_transform(x), clone(ica).fit_transform(x))
    with pytest.raises(ValueError, match=r"X must have shape \(n_samples, 6\), got \(2, 5\)"):
        ica.inverse_transform(np.zeros((2, 5)))


def test_fewer_components_are_those_of_the_principal_subspace(two):
    x, axes, seen = two
    ica, inside = ICA(2, random_state=0).fit(seen), ICA(random_state=0).fit(x)
    assert ica.components_.shape == (2, 4)
    assert ica.mixing_.shape == (4, 2)
    np.testing.assert_allclose(np.abs(axes.T @ ica.mixing_), np.abs(inside.mixing_), atol=0.01)
    # A density in orthonormal coordinates of the subspace: that of the data before they were seen by four sensors.
    assert ica.score(seen) == pytest.approx(inside.score(x), abs=0.005)
    residual = ica.inverse_transform(ica.transform(seen)) - seen
    assert np.abs(residual).max() < 0.01
    # What lies outside of the subspace does not count.
    outside = np.linalg.svd(ica.mixing_)[0][:, 2]
    np.testing.assert_allclose(ica.score_samples(seen[:5] + 7.0 * outside), ica.score_samples(seen[:5]), atol=1e-8)


# What is told --------------------------------------------------------------------------------------------------------


def test_normal_sources_that_cannot_be_told_apart_are_named_and_the_others_found():
    rng = np.random.default_rng(7)
    sources = np.stack([rng.uniform(-1.7, 1.7, 3_000), *rng.normal(size=(2, 3_000))], axis=1)
    mixing = np.array([[1.0, 2.0, 0.3], [0.5, -1.0, 2.0], [0.2, 1.0, 1.0]])
    with pytest.warns(UserWarning, match=r"the sources \[0, 1\] cannot be told from normal ones by 3000 rows"):
        ica = ICA(random_state=0).fit(sources @ mixing.T)
    correlation = np.corrcoef(ica.transform(sources @ mixing.T).T, sources[:, 0])[-1, :-1]
    assert np.abs(correlation).max() > 0.995


def test_sources_that_are_all_normal_are_all_named():
    x = np.random.default_rng(8).normal(size=(1_000, 4))
    with pytest.warns(UserWarning, match=r"the sources \[0, 1, 2, 3\] cannot be told from normal ones by 1000 rows"):
        ICA(random_state=0).fit(x)


def test_no_source_is_named_where_all_can_be_told_apart(two, recwarn):
    ICA(random_state=0).fit(two[0])
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("values", [[-1.0, 1.0], [-1.0, 0.0, 3.0]])
def test_sources_of_few_values_do_not_break_it(values, x64):
    rng = np.random.default_rng(9)
    mixing = rng.normal(size=(3, 3))
    x = rng.choice(values, (1_000, 3)) @ mixing.T
    ica = ICA(random_state=0).fit(x)
    assert amari(ica.components_, mixing) < 1e-3
    # Spikes as narrow as cells, on which the quadrature of the fit and that of the prior agree.
    by_hand = np.asarray(ica.sources_.log_prob(ica.transform(x[:50]))).sum(axis=1) - np.linalg.slogdet(ica.mixing_)[1]
    np.testing.assert_allclose(ica.score_samples(x[:50]), by_hand, atol=1e-3)


def test_a_search_that_is_cut_short_says_what_to_do(two):
    x, _, _ = two
    with pytest.warns(ConvergenceWarning, match=r"did not converge in 1 steps: .* Give a larger max_iter, or a larger"):
        ica = ICA(max_iter=1, random_state=0).fit(x)
    assert ica.n_iter_ == 1


GOOD = np.random.default_rng(0).laplace(size=(50, 3))


def with_value(row, column, value):
    x = GOOD.copy()
    x[row, column] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            with_value(7, 2, np.nan),
            r"1 of 150 values are NaN or infinite \(inf\), the first, NaN, in row 7 and column 2",
        ),
        (with_value(3, 1, -np.inf), r"the first, infinity, in row 3 and column 1; remove these rows"),
        (GOOD * [1.0, 0.0, 1.0], r"columns that vary, but those of \[1\] are constant; leave them out"),
        (GOOD @ np.ones((3, 3)) + GOOD * [1.0, 0.0, 0.0], r"has rank 2 for 3 sources; give n_components=2"),
        (GOOD[:3], r"more rows than sources, got n_samples = 3 for 3 sources"),
        (np.ma.masked_greater(GOOD, 2.0), r"masked values; drop these rows"),
        (
            GOOD * [1.0, 1e200, 1.0],
            r"those of \[1\] have absolute values of up to \[.*e\+200\]; give them in other units",
        ),
        (
            GOOD * [1e-200, 1.0, 1.0],
            r"those of \[0\] have absolute values of up to \[.*e-200\]; give them in other units",
        ),
    ],
)
def test_data_that_cannot_be_separated_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        ICA(random_state=0).fit(x)


@pytest.mark.parametrize(
    ("n_components", "x", "message"),
    [
        (
            3,
            np.hstack([GOOD[:, :2], GOOD[:, :2] @ [[1.0, 2.0], [3.0, 4.0]]]),
            "rank 2 for 3 sources; give n_components=2",
        ),
        (4, np.hstack([GOOD, GOOD**3])[:4], "n_samples = 4 for 4 sources; give more rows, or fewer n_components"),
    ],
)
def test_more_components_than_the_data_span_are_refused(n_components, x, message):
    with pytest.raises(ValueError, match=message):
        ICA(n_components, random_state=0).fit(x)


def test_as_many_components_as_the_rank_are_found_where_features_add_up(two):
    x, _, _ = two
    redundant = np.hstack([x, x @ [[1.0, 2.0], [3.0, 4.0]]])
    sources, alone = (ICA(2, random_state=0).fit_transform(data) for data in (redundant, x))
    correlations = np.abs(np.corrcoef(sources.T, alone.T)[:2, 2:])
    assert np.all(correlations.max(axis=1) > 0.9999)


@pytest.mark.parametrize("method", ["transform", "score_samples"])
def test_new_rows_that_are_not_finite_are_refused(six, method):
    rows = six[0][:10].copy()
    rows[4, 3] = np.inf
    with pytest.raises(ValueError, match=r"1 of 60 values .*, the first, infinity, in row 4 and column 3"):
        getattr(six[2], method)(rows)


def test_constant_columns_are_named():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(GOOD * [1.0, 0.0, 1.0] + 0.1, columns=["Fz", "Cz", "Pz"])
    with pytest.raises(ValueError, match=r"those of \['Cz'\] are constant"):
        ICA().fit(frame)


def test_columns_of_very_different_size_have_full_rank():
    x, mixing = mixture(["two lumps", "exponential"], 1_000, 1)
    size = np.array([1e-9, 1e6])
    ica = ICA(random_state=0).fit(x * size)
    assert amari(ica.components_ * size, mixing) < 0.03


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_components": 4}, ValueError, "n_components must be at most the number of features, got 4 for 3 features"),
        ({"n_components": 0}, ValueError, "n_components must be a whole number of at least 1, got 0"),
        ({"num_intervals": 0}, ValueError, "num_intervals must be a whole number of at least 1, got 0"),
        ({"max_iter": 0}, ValueError, "max_iter must be a whole number of at least 1, got 0"),
        ({"tol": 0.0}, ValueError, "tol must be a positive number, got 0.0"),
        ({"smoothness": -1.0}, ValueError, "smoothness must be a positive number, got -1.0"),
        ({"reference": "normal"}, TypeError, "reference must be a NumPyro distribution or None, got 'normal'"),
        ({"reference": dist.Uniform(-3.0, 3.0)}, ValueError, "density on the whole real line, such as StudentT"),
        ({"reference": dist.Normal(np.zeros(3), 1.0)}, ValueError, r"got Normal of batch shape \(3,\)"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ICA(**arguments).fit(GOOD)
