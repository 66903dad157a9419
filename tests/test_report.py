"""The report of a model: what it says against closed forms, when it warns, and that the file is whole and safe."""

import dataclasses
import math
import os
import re
import shutil
import struct
import sys
import time
import zlib
from html.parser import HTMLParser
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import mannwhitneyu

from numpyro_kaem import KAEM, BSpline, ClusterPrior, ImportanceSampling, KAPrior, Score, UnivariateEnergy, report
from numpyro_kaem.reading.display import Display, line, png
from numpyro_kaem.reading.distrust import doubts
from numpyro_kaem.reading.findings import find
from numpyro_kaem.reading.memorisation import nearest

KEY = jax.random.key(0)
BASIS = BSpline(num_intervals=6, degree=3, domain=(-3.0, 3.0))
SAMPLER = ImportanceSampling(2_000, progress=False)
NOISE = 2.0
SECTIONS = ["distrust", "summary", "training", "scores", "samples", "coordinates", "memorisation", "origin"]
SECTIONS += ["reconstructions"]
VOID = {"meta", "link", "img", "input", "br", "path", "line"}
# Of two coordinates that act on pictures of 5 x 4, the second four times as much; the third does nothing.
WEIGHTS = np.zeros((3, 20), np.float32)
WEIGHTS[0, :10], WEIGHTS[1, 10:] = 1.0, 2.0
TITLE = 'Model <script>alert("x")</script> & friends'


def learned(*shape):
    energy = UnivariateEnergy.init(jax.random.key(1), shape, basis=BASIS, scale=0.3)
    return KAPrior(energy, dist.Normal(0.0, 1.0))


def pictures(z):
    return (z @ WEIGHTS).reshape(*z.shape[:-1], 5, 4)


def model(prior, generator, likelihood="normal", **options):
    """With a history, as after a training."""
    kaem = KAEM(prior, generator, likelihood, **({"noise": NOISE} if likelihood == "normal" else {}), **options)
    history = {
        "loss": np.linspace(30.0, 10.0, 40),
        "epoch_loss": np.linspace(28.0, 12.0, 4),
        "steps": np.arange(10, 50, 10),
        "seconds": np.full(4, 0.5),
        "non_finite_steps": np.zeros(4, int),
        "held_out_epoch": np.array([2, 4]),
        "held_out_log_likelihood": np.array([-20.0, -13.0]),
        "held_out_std_error": np.array([0.5, 0.5]),
        "compile_seconds": np.array(1.0),
    }
    return kaem._with(history=history, is_trained=True)


@pytest.fixture(scope="module")
def kaem():
    return model(learned(3).to_event(1), pictures)


@pytest.fixture(scope="module")
def data(kaem):
    return np.asarray(kaem.sample(jax.random.key(7), 320))


@pytest.fixture(scope="module")
def options(data):
    return {"x": data[:200], "held_out": data[200:], "sampler": SAMPLER, "num_scored": 100, "title": TITLE}


@pytest.fixture(scope="module")
def found(kaem, options):
    """What page and card are made of."""
    arguments = {name: options[name] for name in ("x", "held_out", "sampler", "num_scored")}
    return find(kaem, KEY, num_paths=48, **arguments)


def write(kaem, path, found, options):
    """A report of what was found before; its text, and what `report` returned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["numpyro_kaem.reading.report"], "find", lambda *_, **__: found)
        doubts = report(kaem, path, **options)
    return path.read_text(encoding="utf-8"), doubts


@pytest.fixture(scope="module")
def written(kaem, options, found, tmp_path_factory):
    return write(kaem, tmp_path_factory.mktemp("report") / "report.html", found, options)


class Page(HTMLParser):
    """Elements with their attributes; an error where ends do not match beginnings."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


# The page -------------------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_asks_nothing_of_any_server(written):
    text, _ = written
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert text.startswith("<!DOCTYPE html>") and len(ids) == len(set(ids)) and set(SECTIONS) <= set(ids)
    addresses = [a[name] for _, a in page.elements for name in ("src", "href", "data", "action", "srcset") if name in a]
    assert len(addresses) > 20
    assert [address for address in addresses if not address.startswith(("data:image/png;base64,", "data:,", "#"))] == []
    assert {address[1:] for address in addresses if address[0] == "#"} == set(SECTIONS)
    assert not re.search(
        r"https?:|//\w|url\(|@import|fetch|XMLHttp|WebSocket|import\(|eval\(", re.sub(r'"data:[^"]*"', "", text)
    )
    assert "default-src 'none'" in next(a["content"] for a in page.of("meta") if "http-equiv" in a)
    assert len(text) < 400_000


def test_pictures_have_words_and_sliders_have_labels(written):
    page = Page(written[0])
    assert all("alt" in image for image in page.of("img"))
    assert all("aria-label" in image or image.get("aria-hidden") == "true" for image in page.of("svg"))
    sliders = [attributes["id"] for attributes in page.of("input") if attributes["type"] == "range"]
    assert len(sliders) == 3 and sliders == [label["for"] for label in page.of("label")]
    assert len([a for a in page.of("button") if a["aria-label"].startswith("Play")]) == 3
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert page.of("html")[0]["lang"] == "en"


def test_what_a_user_writes_is_shown_and_not_run(written):
    text, _ = written
    assert "<script>alert" not in text
    assert "<title>Model &lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; friends</title>" in text


@pytest.mark.slow
def test_the_same_key_gives_the_same_file_and_another_one_another(kaem, options, written, tmp_path):
    report(kaem, tmp_path / "report.html", **options)
    again = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert again == written[0]
    report(kaem, tmp_path / "report.html", key=jax.random.key(1), **options)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") != again
    assert os.listdir(tmp_path) == ["report.html"]


def test_the_card_has_the_numbers_of_the_page(kaem, options, found, written, tmp_path):
    (card, told), (page, told_before) = write(kaem, tmp_path / "card.md", found, options), written
    assert told == told_before and card.startswith(r"# Model \<script\>")
    numbers = re.findall(r"[\d.,]+ ± [\d.,]+", card)
    assert len(numbers) > 12 and [number for number in numbers if number not in page] == []
    assert [doubt.title for doubt in told if doubt.title not in card] == []
    rows = [line for line in card.splitlines() if line.startswith("|")]
    # Every table has as many columns in each row: pipes of a text do not make cells.
    tables = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    assert rows and all(
        len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1 for table in tables
    )


def test_nothing_says_whose_machine_it_is(written):
    import getpass
    import platform

    for private in (os.path.expanduser("~"), os.getcwd(), platform.node()):
        assert len(private) < 4 or private not in written[0]
    assert f"{getpass.getuser()}/" not in written[0]


# Figures --------------------------------------------------------------------------------------------------------------


def test_effects_are_those_of_a_linear_generator_and_paths_go_through_the_quantiles(kaem, found):
    (component,) = found.components
    prior = kaem.prior.base_dist
    shares = np.asarray(prior.variance) * (WEIGHTS**2).sum(axis=1)
    shares /= shares.sum()
    assert [c.name for c in component.coordinates] == ["z[1]", "z[0]", "z[2]"]
    for c, number in zip(component.coordinates, (1, 0, 2), strict=True):
        assert c.total == pytest.approx(shares[number], abs=0.01) and c.first_order == pytest.approx(c.total, abs=0.01)
        z = prior.icdf(jnp.linspace(0.02, 0.98, 11)[:, None])
        assert np.allclose(c.z, z[:, number], atol=1e-4)
        middle = jnp.broadcast_to(prior.icdf(jnp.full(3, 0.5)), (11, 3)).at[:, number].set(z[:, number])
        assert np.allclose(c.path, pictures(middle), atol=1e-3)
        # Variance by pixel, of pixels that it acts on.
        expected = np.asarray(prior.variance)[number] * pictures(jnp.eye(3)[number]) ** 2
        assert np.allclose(c.map, expected, atol=0.05)
        area = np.trapezoid(c.density.learned, c.density.z)
        assert area == pytest.approx(1.0, abs=0.01)
        inside = dist.Normal(0.0, 1.0).log_prob(c.density.z)
        assert np.allclose(c.density.reference, np.exp(inside), atol=1e-4)


def test_spreads_of_posteriors_are_one_minus_what_data_say(kaem, found):
    # z[2] is never seen; of z[1] posteriors have a variance of about 1 / (1 + 40 / 4), and so of ranks of 0.01.
    spread = found.posteriors.spread
    assert spread["z[2]"] > 0.9 and spread["z[1]"] < 0.2
    assert spread["z[1]"] < spread["z[0]"] < spread["z[2]"]


def test_scores_are_those_of_the_model_itself(kaem, options, found):
    # Of two coordinates, each in its own half of the pixels, by quadrature; of the data that were scored.
    held_out = options["held_out"][np.random.default_rng(0).permutation(120)[:100]]
    nodes = np.linspace(-6.0, 6.0, 241)
    prior = np.asarray(kaem.prior.base_dist.log_prob(jnp.asarray(nodes)[:, None]))
    log_likelihood = 0.0
    for pixels, weight, column in (
        (held_out.reshape(-1, 20)[:, :10], 1.0, 0),
        (held_out.reshape(-1, 20)[:, 10:], 2.0, 1),
    ):
        given = -0.5 * ((pixels[:, None] - weight * nodes[:, None]) / NOISE) ** 2 - math.log(
            NOISE * math.sqrt(2 * math.pi)
        )
        joint = given.sum(-1) + prior[:, column]
        log_likelihood = log_likelihood + np.logaddexp.reduce(joint, axis=1) + math.log(nodes[1] - nodes[0])
    score = found.scores["log_likelihood"]
    assert score.value == pytest.approx(log_likelihood.mean(), abs=0.1)
    assert score.std_error == pytest.approx(log_likelihood.std() / 10.0, rel=0.1)
    assert "draws_per_second" not in found.scores


def test_the_share_of_near_draws_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(0)
    train, draws, held_out = (rng.normal(size=(n, 3)) for n in (60, 50, 40))
    near = nearest(draws, train, held_out)
    distances = [np.sqrt(((some[:, None] - train) ** 2).mean(-1)) for some in (draws, held_out)]
    assert np.array_equal(near.index, distances[0].argmin(1))
    assert np.allclose(near.distance, distances[0].min(1), rtol=1e-5)
    statistic = mannwhitneyu(near.other, near.distance).statistic
    assert near.share == pytest.approx(statistic / (50 * 40))
    assert near.share_error == pytest.approx(math.sqrt(91 / (12 * 50 * 40)))
    assert near.is_held_out and np.array_equal(near.closest, np.argsort(near.distance)[:12])


def test_draws_like_data_are_as_near_as_data_and_copies_are_nearer():
    rng = np.random.default_rng(1)
    train, draws, held_out = (rng.normal(size=(n, 4)) for n in (300, 400, 500))
    for other in (held_out, None):
        near = nearest(draws, train, other)
        assert abs(near.share - 0.5) < 6 * near.share_error and abs(near.copies - 0.05) < 6 * near.copies_error
        copied = nearest(train[:100], train, other)
        assert copied.share == 1.0 and copied.copies == 1.0 and np.all(copied.distance == 0.0)
        far = nearest(draws + 9.0, train, other)
        assert far.share == 0.0 and far.copies == 0.0
    # Of data that are compared with each other none is its own neighbour.
    assert nearest(draws, train).other.min() > 0.0
    assert nearest(train, train, train).share == 0.5


def test_distances_are_taken_in_parts(monkeypatch):
    rng = np.random.default_rng(2)
    train, draws = rng.normal(size=(30, 2)), rng.normal(size=(25, 2))
    whole = nearest(draws, train)
    monkeypatch.setattr("numpyro_kaem.reading.memorisation._AT_ONCE", 70)
    parts = nearest(draws, train)
    assert np.array_equal(whole.index, parts.index) and np.array_equal(whole.other, parts.other)


@pytest.mark.parametrize("bad", [np.full((3, 2), np.nan), np.zeros((3, 5)), np.zeros((0, 2))])
def test_data_that_cannot_be_compared_are_refused(bad):
    with pytest.raises(ValueError, match="draws"):
        nearest(bad, np.zeros((4, 2)))


# What to distrust -----------------------------------------------------------------------------------------------------


def titles(found, **changes):
    return {doubt.title for doubt in doubts(dataclasses.replace(found, **changes))}


def test_of_a_good_model_only_the_idle_coordinate_is_told(found):
    assert titles(found) <= {
        "Coordinates without effect",
        "Posteriors that are the prior",
        "Importance sampling does not reach",
    }
    told = {doubt.title: doubt for doubt in doubts(found)}["Coordinates without effect"]
    assert "z[2]" in told.text and "z[0]" not in told.text and "z[1]" not in told.text and not told.is_grave


def test_each_trouble_is_told_where_it_is_and_only_there(found):
    before, history = titles(found), found.history
    good = {"value": -10.0, "std_error": 0.5}
    near = found.nearest
    copied = dataclasses.replace(near, distance=np.zeros_like(near.distance))
    some = dataclasses.replace(near, distance=np.where(np.arange(len(near.distance)) % 4, near.distance, 0.0))
    scores = found.scores | {"log_likelihood": SimpleNamespace(**good)}
    whole = dataclasses.replace(found.components[0], additive=0.4)
    cases = {
        "Not trained": {"is_trained": False},
        "Steps that were not finite": {"history": history | {"non_finite_steps": np.array([0, 0, 2, 0])}},
        "Trained for too long": {"history": history | {"held_out_log_likelihood": np.array([-10.0, -13.0])}},
        "Overfit": {"scores": scores, "train_log_likelihood": (-7.0, 0.5)},
        "Draws copy training data": {"nearest": copied},
        "Coordinates act together": {"components": (whole,)},
        "Few data were scored": {"scores": found.scores | {"num_data": 19}},
        "Few training data": {"num_train": 199},
        "Few held-out data": {"num_held_out": 99},
        "No training data": {"num_train": None, "nearest": None, "train_log_likelihood": None},
        "No held-out data": {"num_held_out": None, "scores": None},
        "Few effective draws from posteriors": {
            "posteriors": dataclasses.replace(found.posteriors, ess=np.full(64, 19.0))
        },
    }
    for title, changes in cases.items():
        assert title not in before
        assert titles(found, **changes) - before == {title}, title
    assert "Draws copy training data" in titles(found, nearest=some)
    low = found.scores | {"effective_sample_size": Score(12.0)}
    assert "Importance sampling does not reach" in titles(found, scores=low)
    high = found.scores | {"effective_sample_size": Score(101.0)}
    assert "Importance sampling does not reach" not in titles(found, scores=high)
    # Just below what is told.
    assert titles(found, scores=scores, train_log_likelihood=(-7.3, 0.5)) == before
    assert titles(found, history=history | {"held_out_log_likelihood": np.array([-12.5, -13.0])}) == before
    is_grave = [doubt.is_grave for doubt in doubts(dataclasses.replace(found, is_trained=False))]
    assert is_grave[0] and is_grave == sorted(is_grave, reverse=True)


@pytest.mark.slow
def test_a_model_that_draws_its_training_data_is_found_out(data, options, tmp_path):
    table = jnp.asarray(data[:32])

    def copying(z):
        place = jnp.clip(jnp.floor(32 * dist.Normal(0.0, 1.0).cdf(z[..., 0])), 0, 31).astype(int)
        return table[place]

    copies = KAEM(dist.Normal(jnp.zeros(2), 1.0), copying, "normal", noise=0.01)
    told = report(copies, tmp_path / "copies.html", **options | {"x": data[:32]})
    assert "Draws copy training data" in {doubt.title for doubt in told}
    assert "In <b>100.0" in (tmp_path / "copies.html").read_text(encoding="utf-8")


# Other models ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_mixture_is_read_by_components_the_likely_ones_first(tmp_path):
    prior = ClusterPrior(jax.random.key(3), 3, 2, basis=BASIS)
    prior = eqx.tree_at(lambda prior: prior.logits, prior, jnp.log(jnp.array([0.2, 0.5, 0.3])))
    kaem = model(prior, lambda z: z @ np.ones((2, 6), np.float32))
    told = report(kaem, tmp_path / "clusters.html", num_paths=3)
    text = (tmp_path / "clusters.html").read_text(encoding="utf-8")
    Page(text)
    assert re.findall(r"<b>Component (\d)</b>, (\d+%)", text) == [("1", "50%"), ("2", "30%"), ("0", "20%")]
    assert text.count('type="range"') == 6 and text.count("<details") == 3
    assert {doubt.title for doubt in told} >= {"No training data", "No held-out data"}
    for needed in ("hand in <code>held_out=</code>", "hand in <code>x=</code>"):
        assert needed in text
    report(kaem, tmp_path / "clusters.md", num_paths=3)
    assert "### Component 1, 50% of draws" in (tmp_path / "clusters.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_categories_are_texts_and_their_places_are_mapped(tmp_path):
    weights = np.zeros((2, 4, 3), np.float32)
    weights[0, 0, 1], weights[1, 3, 2] = 4.0, 4.0
    kaem = model(
        learned(2).to_event(1),
        lambda z: jnp.einsum("...d,dij->...ij", z, weights),
        "categorical",
        shape=(4,),
        num_categories=3,
    )
    report(kaem, tmp_path / "words.html", show=lambda datum: "".join("a<c"[i] for i in datum))
    text = (tmp_path / "words.html").read_text(encoding="utf-8")
    page = Page(text)
    items = re.findall(r"<li[^>]*>([^<]{4,16})</li>", text)
    assert any("&lt;" in item for item in items) and "<img" not in text
    assert len([a for a in page.of("li") if a.get("class") == "step"]) == 22
    report(kaem, tmp_path / "numbers.html")
    assert re.search(r"<li>[012] [012] [012] [012]</li>", (tmp_path / "numbers.html").read_text(encoding="utf-8"))


def test_a_prior_that_cannot_be_read_is_told_and_all_else_is_there(tmp_path):
    prior = dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.5, 1.0]]))
    told = report(model(prior, lambda z: z @ np.ones((2, 6), np.float32)), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "The prior cannot be read by coordinates" in text and "MultivariateNormal" in text
    assert {a["id"] for _, a in page.elements if "id" in a} >= set(SECTIONS) and 'type="range"' not in text
    assert "Coordinates without effect" not in {doubt.title for doubt in told}


# How data are shown ---------------------------------------------------------------------------------------------------


def read_png(content):
    """Pixels of a picture that `png` has written, by the format's rules, and that its checksums hold."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, parts = 8, {}
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        assert struct.unpack(">I", content[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + data)
        parts[kind], at = data, at + 12 + size
    width, height, bits, colour = struct.unpack(">IIBB", parts[b"IHDR"][:10])
    assert bits == 8
    channels = {0: 1, 2: 3}[colour]
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, 1 + width * channels)
    pixels, above = [], np.zeros(width * channels, np.uint8)
    for way, *row in rows:
        above = np.array(row, np.uint8) + (above if way == 2 else 0)
        pixels.append(above)
    return np.array(pixels).reshape((height, width, 3) if channels == 3 else (height, width))


@pytest.mark.parametrize("shape", [(7, 5), (4, 6, 3), (1, 1)])
def test_pictures_are_png_files(shape):
    smooth = np.cumsum(np.ones(shape, np.uint8), axis=0, dtype=np.uint8)
    for pixels in (np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8), smooth):
        assert np.array_equal(read_png(png(pixels)), pixels)


def drawn(shown):
    import base64

    return read_png(base64.b64decode(shown.content.removeprefix("data:image/png;base64,")))


def test_data_are_drawn_by_their_shape_and_range():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (3, 4, 5))
    assert np.array_equal(drawn(Display(bits)(bits[:2])), 255 - 255 * np.concatenate(bits[:2], axis=1))
    bytes_ = rng.integers(0, 256, (3, 4, 5, 3))
    bytes_[0, 0, 0, 0] = 255
    assert np.array_equal(drawn(Display(bytes_)(bytes_[1:2])), bytes_[1])
    two_channels = rng.random((3, 4, 5, 2))
    assert drawn(Display(two_channels)(two_channels[:1])).shape == (4, 10)
    flat = rng.random((3, 20))
    assert drawn(Display(flat, lambda datum: datum.reshape(4, 5))(flat[:2])).shape == (4, 10)
    assert Display(flat)(flat[:2]).kind == "line" and len(Display(flat)(flat[:2]).content) == 2
    assert Display(rng.integers(0, 9, (3, 4)), is_text=True)(np.array([[1, 2, 3, 4]])).content == ("1 2 3 4",)
    heat = drawn(Display(bits).heat(np.array([[0.0, 1.0]]), 1.0))
    assert heat[0, 0].sum() > 700 and heat[0, 1].sum() < 200


def test_a_line_goes_from_left_to_right_through_its_numbers():
    assert line([0.0, 0.5, 1.0]) == "M2.0 58.0L50.0 30.0L98.0 2.0"
    assert line([0.5]) == "M2.0 30.0L98.0 30.0"
    assert line(np.zeros(5_000)).count("L") == 199


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "report.pdf"}, ValueError, r"path must end in \.html, for a page, or \.md"),
        ({"path": "report"}, ValueError, r"path must end in"),
        ({"path": "no/such/folder/report.html"}, ValueError, "folder that there is"),
        ({"x": np.zeros((10, 3))}, ValueError, "x must have a row for each datum, of shape"),
        ({"held_out": np.zeros((10, 5, 3))}, ValueError, "held_out must have a row"),
        ({"x": np.full((10, 5, 4), np.inf)}, ValueError, "x must be finite"),
        ({"held_out": np.zeros((3, 5, 4))}, ValueError, "held_out must have at least 4 data, got 3"),
        ({"show": "image"}, TypeError, "show must be a function"),
        ({"key": 0}, TypeError, "key must be"),
        ({"num_scored": 1}, ValueError, "num_scored must be a whole number of at least 2"),
        ({"num_paths": 0}, ValueError, "num_paths must be"),
        ({"kaem": "digits.kaem"}, TypeError, "kaem must be a KAEM, but a str"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_computed(kaem, arguments, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    with pytest.raises(error, match=message):
        report(**{"kaem": kaem, "path": "report.html"} | arguments)
    assert time.perf_counter() - start < 5 and os.listdir(tmp_path) == []


def test_a_model_whose_draws_are_not_finite_is_named(tmp_path):
    kaem = model(dist.Normal(jnp.zeros(2), 1.0), lambda z: jnp.log(z) @ np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"of 500 draws are infinite or NaN"):
        report(kaem, tmp_path / "report.html")
    assert os.listdir(tmp_path) == []


def test_without_jinja2_it_is_told_what_to_install(kaem, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'numpyro_kaem\[reading\]'"):
        report(kaem, "report.html")


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium without a window, and without a request of its own."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        f"disable-component-update disable-sync user-data-dir={tmp_path_factory.mktemp('chromium')}"
    ).split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield driver
    driver.quit()


@pytest.mark.slow
def test_a_slider_that_is_moved_by_keys_changes_the_picture(browser, written, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(written[0], encoding="utf-8")
    browser.get(path.as_uri())
    slider, canvas = (browser.find_element("css selector", f".player {what}") for what in ("input", "canvas"))
    output = browser.find_element("css selector", ".player output")
    read = "return arguments[0].toDataURL()"
    seen, said = [browser.execute_script(read, canvas)], [output.text]
    for key in ("\ue014", "\ue014", "\ue011"):  # right, right, home
        slider.send_keys(key)
        seen.append(browser.execute_script(read, canvas))
        said.append(output.text)
    assert len(set(seen)) == len(set(said)) == 4
    button = browser.find_element("css selector", ".player button")
    button.send_keys(" ")  # by the keyboard, too
    time.sleep(0.6)
    assert output.text not in said[-1:]
    assert browser.get_log("browser") == []
