"""The explorer without a browser: what it knows of a model, where one stands, its server and its command."""

import json
import socket
import sys
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import kstest, norm

from numpyro_kaem import KAEM, BSpline
from numpyro_kaem import __main__ as command
from numpyro_kaem.reading.explorer import PROBABILITIES, Explorer, Position
from numpyro_kaem.reading.explorer_server import explore
from numpyro_kaem.reading.product import as_product

LOC, SCALE = np.array([1.0, -2.0, 0.5], np.float32), np.array([0.5, 2.0, 1.0], np.float32)
WEIGHTS = np.array([[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0]], np.float32)
NOISE = 0.5
BASIS = BSpline(num_intervals=4, degree=3, domain=(-3.0, 3.0))


def generator(z):
    return z @ WEIGHTS


def exact_encoder(x):
    """Of the posterior under the linear generator, whose rows are orthogonal."""
    precision = 1.0 / SCALE**2 + (WEIGHTS**2).sum(1) / NOISE**2
    mean = (LOC / SCALE**2 + x @ WEIGHTS.T / NOISE**2) / precision
    return jnp.concatenate([mean, jnp.broadcast_to(-0.5 * jnp.log(precision), mean.shape)], axis=-1)


def linear_kaem(encoder=None):
    return KAEM(dist.Normal(LOC, SCALE).to_event(1), generator, "normal", noise=NOISE, encoder=encoder)


@pytest.fixture(scope="module")
def linear():
    """A model of which all is known, and data."""
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    return Explorer(linear_kaem(exact_encoder), x)


@pytest.fixture(scope="module")
def clusters():
    key = jax.random.key(1)
    options = {"latent_size": 2, "hidden_sizes": (), "num_components": 3, "basis": BASIS}
    return KAEM.create(key, (4, 5), likelihood="bernoulli", prior="cluster", encoder=True, **options)


@pytest.fixture(scope="module")
def of_clusters(clusters):
    return Explorer(clusters, np.eye(4, 5)[None].repeat(3, 0))


def test_tables_are_the_quantiles_and_densities_of_the_prior(linear):
    tables = linear.tables
    normal = norm(LOC[:, None], SCALE[:, None])
    np.testing.assert_allclose(tables.quantiles[0], normal.ppf(PROBABILITIES), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tables.density[0], normal.pdf(tables.points[0]), rtol=1e-4)
    assert np.all(tables.points[0, :, 0] < tables.quantiles[0, :, 0])
    assert np.all(tables.points[0, :, -1] > tables.quantiles[0, :, -1])
    assert tables.reference is None


def test_tables_of_a_mixture_have_every_component_with_its_reference(clusters, of_clusters):
    tables, prior = of_clusters.tables, clusters.parts.prior
    assert tables.quantiles.shape == (3, 2, 999)
    for k in range(3):
        expected = np.asarray(as_product(clusters.prior, k).icdf(jnp.array([[0.25, 0.25], [0.9, 0.9]])))
        np.testing.assert_allclose(tables.quantiles[k][:, [249, 899]].T, expected, rtol=1e-4, atol=1e-5)
    reference = norm(np.asarray(prior.loc)[..., None], np.exp(np.asarray(prior.log_scale))[..., None])
    np.testing.assert_allclose(tables.reference, reference.pdf(tables.points), rtol=1e-3)
    # What is drawn has the mass that it should have.
    assert abs(np.trapezoid(tables.density, tables.points, axis=2) - 0.998).max() < 4e-3


def test_a_prior_that_was_expanded_is_a_product():
    product = as_product(dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    np.testing.assert_allclose(product.icdf(jnp.array([0.5, 0.9, 0.1])), norm.ppf([0.5, 0.9, 0.1], 0, 2), atol=1e-5)
    assert product.log_prob(jnp.zeros((4, 3))).shape == (4, 3)


def test_a_handle_moves_its_coordinate_and_no_other(linear):
    position = Position(linear)
    np.testing.assert_allclose(position.z, LOC, atol=1e-5)
    before = position.picture()
    position.move(1, 0.9)
    assert position.z[1] == pytest.approx(norm.ppf(0.9, LOC[1], SCALE[1]), rel=1e-4)
    np.testing.assert_allclose(position.z[[0, 2]], LOC[[0, 2]], atol=1e-5)
    np.testing.assert_allclose(position.probabilities, [0.5, 0.9, 0.5], atol=1e-3)
    np.testing.assert_allclose(linear.decode(position.z), position.z @ WEIGHTS, rtol=1e-5)
    after = position.picture()
    assert after.kind == "line" and after.content != before.content
    position.move(1, 1.0)
    assert position.z[1] == pytest.approx(norm.ppf(0.999, LOC[1], SCALE[1]), rel=1e-4)


def test_draws_of_coordinates_are_of_their_densities(linear):
    position = Position(linear, seed=0)
    position.resample(0)
    np.testing.assert_allclose(position.z[1:], LOC[1:], atol=1e-5)
    draws = []
    for _ in range(1_000):
        position.resample()
        draws.append(position.z.copy())
    for draw, loc, scale in zip(np.transpose(draws), LOC, SCALE, strict=True):
        assert kstest(draw, norm(loc, scale).cdf).pvalue > 1e-6
    assert abs(np.corrcoef(np.transpose(draws))[0, 1]) < 5 / 1_000**0.5


def test_the_most_probable_component_comes_first_and_another_one_keeps_the_probabilities(of_clusters):
    position = Position(of_clusters)
    assert position.component == int(np.argmax(of_clusters.weights))
    position.move(0, 0.2)
    other = (position.component + 1) % 3
    position.choose(other)
    np.testing.assert_allclose(position.probabilities, [0.2, 0.5], atol=1e-6)
    assert position.z[0] == of_clusters.tables.quantiles[other, 0, 199]


def test_an_encoded_datum_is_a_draw_from_its_posterior(linear):
    posterior = exact_encoder(linear.x[2])
    mean, deviation = np.asarray(posterior[:3]), np.exp(np.asarray(posterior[3:]))
    encoded = [linear.encode(2, attempt) for attempt in range(6)]
    assert {(one.index, one.component) for one in encoded} == {(2, 0)}
    scores = (np.array([one.z for one in encoded]) - mean) / deviation
    # What 18 draws from a normal distribution have all but certainly.
    assert np.abs(scores).max() < 6 and 0.1 < np.mean(scores**2) < 4.5
    assert "importance sampling from the encoder" in encoded[0].says
    np.testing.assert_array_equal(linear.encode(2, 0).z, encoded[0].z)


def test_a_model_without_an_encoder_takes_a_sampler_and_says_so(linear):
    encoded = Explorer(linear_kaem(), linear.x).encode(1)
    assert encoded.says.startswith("The model has no encoder: datum 1 by ")
    assert encoded.z.shape == (3,)


@pytest.mark.slow
def test_a_datum_of_a_mixture_is_read_in_the_component_that_has_it(of_clusters, clusters):
    encoded = of_clusters.encode(0)
    assert encoded.component == int(np.argmax(clusters.parts.prior.probabilities(jnp.asarray(encoded.z))))


def test_a_morph_leads_from_one_latent_to_the_other(linear):
    a, b = linear.encode(0), linear.encode(3)
    path = linear.path(a, b)
    np.testing.assert_allclose(path[[0, -1]], [a.z, b.z], rtol=1e-6)
    # Along normal scores, which are straight for a normal prior.
    np.testing.assert_allclose(path[25], (a.z + b.z) / 2, atol=1e-4)


def test_effects_are_shares_of_the_variance_and_order_the_coordinates(linear):
    position = Position(linear)
    np.testing.assert_array_equal(position.order(), [0, 1, 2])
    whole, maps = linear.effects(0)
    variances = (WEIGHTS * SCALE[:, None]) ** 2
    np.testing.assert_allclose(whole, variances.sum(1) / variances.sum(), atol=0.02)
    np.testing.assert_allclose(maps, variances, atol=0.05 * variances.max())
    np.testing.assert_array_equal(position.order(), [2, 1, 0])


def test_a_latent_is_saved_by_coordinate(of_clusters):
    position = Position(of_clusters)
    position.move(1, 0.75)
    saved = json.loads(json.dumps(position.saved()))
    assert saved["component"] == position.component and saved["shape"] == [2]
    assert saved["z"] == dict(zip(["z[0]", "z[1]"], position.z, strict=True))
    assert saved["probability"]["z[1]"] == pytest.approx(0.75, abs=1e-6)


def test_categories_in_a_row_are_a_text_and_have_effects():
    options = {"latent_size": 2, "num_categories": 3, "hidden_sizes": (), "basis": BASIS}
    kaem = KAEM.create(
        jax.random.key(0), (6,), likelihood="categorical", prior=dist.Normal(0, 1).expand([2]), **options
    )
    explorer = Explorer(kaem, display=lambda tokens: "".join("abc"[token] for token in tokens))
    text = Position(explorer).picture()
    assert text.kind == "text" and len(text.content[0]) == 6 and set(text.content[0]) <= set("abc")
    whole, maps = explorer.effects(0)
    assert whole.shape == (2,) and 0.9 < whole.sum() < 2.0 and maps is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kaem": 3}, TypeError, "kaem must be a KAEM, got 3"),
        ({"x": np.zeros((3, 5))}, ValueError, r"x must be data of shape \(n, 4\), one datum a row, got \(3, 5\)"),
        ({"x": np.zeros((0, 4))}, ValueError, "x must be data"),
        ({"port": 70_000}, ValueError, "port must be at most 65535, got 70000"),
        ({"port": -1}, ValueError, "port must be a whole number of at least 0"),
        ({"address": "203.0.113.7"}, OSError, "cannot be served at address '203.0.113.7'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    pytest.importorskip("panel")
    with pytest.raises(error, match=message):
        explore(**{"kaem": linear_kaem(), "browser": False} | arguments)


@pytest.mark.parametrize(("index", "message"), [(5, "index must be below 5"), (-1, "index must be a whole number")])
def test_a_datum_that_there_is_not_is_named(linear, index, message):
    with pytest.raises(ValueError, match=message):
        linear.encode(index)


def test_without_data_nothing_can_be_encoded():
    with pytest.raises(ValueError, match="there are no data to encode"):
        Explorer(linear_kaem()).encode(0)


def test_coordinates_that_depend_on_each_other_are_refused():
    kaem = KAEM(dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)), generator, "normal", noise=NOISE)
    with pytest.raises(ValueError, match="MultivariateNormal"):
        Explorer(kaem)


def test_without_panel_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "numpyro_kaem.reading.explorer_page", raising=False)
    monkeypatch.setitem(sys.modules, "panel", None)
    with pytest.raises(ImportError, match=r"pip install 'numpyro_kaem\[explorer\]'"):
        explore(linear_kaem())


# The page and its server ----------------------------------------------------------------------------------------------


@pytest.fixture
def page(of_clusters):
    pytest.importorskip("panel")
    from numpyro_kaem.reading.explorer_page import Page

    return Page(of_clusters, "A model")


def test_a_message_of_a_handle_changes_the_picture(page):
    before = page.picture.shown
    assert before["content"].startswith("data:image/png;base64,")
    page.handles._handle_msg({"kind": "move", "number": 1, "moves": [[0, 0.95], [1, 0.05]]})
    np.testing.assert_allclose(page.position.probabilities, [0.95, 0.05], atol=1e-3)
    assert page.picture.shown != before
    page.handles._handle_msg({"kind": "resample", "coordinate": 1})
    assert page.position.probabilities[0] == pytest.approx(0.95, abs=1e-3)
    assert page.position.probabilities[1] != pytest.approx(0.05, abs=1e-3)


def test_another_cluster_has_other_densities(page):
    before = page.handles.cards
    page.component.value = (page.component.value + 1) % 3
    assert page.position.component == page.component.value
    assert page.handles.cards[0]["density"] != before[0]["density"]


@pytest.mark.slow
def test_cards_are_in_the_order_of_the_effects_that_were_computed_with_maps(page):
    assert not any("map" in card for card in page.handles.cards)
    whole, _ = page.explorer.effects(page.position.component)
    page._deal()
    assert [card["coordinate"] for card in page.handles.cards] == np.argsort(-whole).tolist()
    assert page.handles.cards[0]["effect"] == f"effect {whole.max():.1%}"
    assert all(card["map"]["kind"] == "image" for card in page.handles.cards)


def test_many_coordinates_come_in_pages(linear):
    pytest.importorskip("panel")
    from numpyro_kaem.reading.explorer_page import NUM_CARDS, Page

    kaem = KAEM(dist.Normal(jnp.zeros(30), 1.0).to_event(1), lambda z: z[..., :4], "normal", noise=NOISE)
    page = Page(Explorer(kaem), "Many")
    seen = []
    for start in page.cards_from.options.values():
        page.cards_from.value = start
        assert len(page.handles.cards) <= NUM_CARDS
        seen += [card["name"] for card in page.handles.cards]
    assert seen == [f"z[{d}]" for d in range(30)]
    page.handles._handle_msg({"kind": "move", "number": 1, "moves": [[24, 0.9]]})
    assert page.position.probabilities[24] == pytest.approx(0.9, abs=1e-3)


def test_files_of_the_latent_are_what_they_say(page):
    page.position.move(0, 0.3)
    np.testing.assert_array_equal(np.load(page._npy_file()), page.position.z)
    assert json.load(page._json_file()) == page.position.saved()


def test_a_page_that_is_not_shown_is_an_object_of_panel():
    panel = pytest.importorskip("panel")
    assert isinstance(explore(linear_kaem(), show=False), panel.Column)


def test_a_server_listens_to_this_machine_alone_until_it_is_stopped(clusters):
    pytest.importorskip("panel")
    server = explore(clusters, browser=False)
    try:
        assert server.url == f"http://127.0.0.1:{server.port}/"
        with urllib.request.urlopen(server.url, timeout=60) as answer:
            assert b"KAEM explorer" in answer.read()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
            assert other.connect_ex(("127.0.0.2", server.port)) != 0
        with pytest.raises(OSError, match=f"port {server.port} of 127.0.0.1 is in use: give another"):
            explore(clusters, port=server.port, browser=False)
    finally:
        server.stop()
    assert "stopped" in repr(server)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
        assert other.connect_ex(("127.0.0.1", server.port)) != 0
    server.stop()
    server.wait()


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory, clusters):
    """A model and files that are none, by name."""
    folder = tmp_path_factory.mktemp("files")
    clusters.save(folder / "good.kaem")
    (folder / "cut.kaem").write_bytes((folder / "good.kaem").read_bytes()[:-100])
    (folder / "text.kaem").write_text("not a model")
    linear_kaem().save(folder / "own.kaem")
    np.save(folder / "other.npy", np.zeros((3, 7)))
    np.savez(folder / "several.npz", a=np.zeros(3))
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.kaem"], "No such file"),
        (["."], "got the folder"),
        (["cut.kaem"], "cut.kaem"),
        (["text.kaem"], "text.kaem"),
        (["own.kaem"], "give it, generator=..., in Python"),
        (["good.kaem", "--data", "none.npy"], "No such file"),
        (["good.kaem", "--data", "text.kaem"], "is no array that numpy.save has written"),
        (["good.kaem", "--data", "several.npz"], "has several arrays"),
        (["good.kaem", "--data", "other.npy"], "x must be data of shape (n, 4, 5)"),
        (["good.kaem", "--port", "99999"], "port must be at most 65535"),
    ],
)
def test_what_the_command_cannot_do_is_one_line_and_exit_code_two(arguments, message, files, monkeypatch, capsys):
    pytest.importorskip("panel")
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as ended:
        command.main(["explore", *arguments, "--no-browser"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("python -m numpyro_kaem explore: ") and printed.err.count("\n") == 1
    assert message in printed.err


def test_a_busy_port_of_the_command_is_a_message(files, monkeypatch, capsys):
    pytest.importorskip("panel")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(SystemExit) as ended:
            command.main(["explore", str(files / "good.kaem"), "--port", str(other.getsockname()[1]), "--no-browser"])
    assert ended.value.code == 2
    assert "is in use: give another one" in capsys.readouterr().err


def test_the_command_says_where_the_page_is(files, monkeypatch, capsys):
    pytest.importorskip("panel")
    monkeypatch.setattr("numpyro_kaem.reading.explorer_server.ExplorerServer.wait", lambda server: server.stop())
    command.main(["explore", str(files / "good.kaem"), "--no-browser"])
    assert "good.kaem is at http://127.0.0.1:" in capsys.readouterr().out
