"""The functions of the page on image files: what they make of files of every kind, and a stream of them."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_docs import blocks

from numpyro_kaem import KAEM, MLP, ImportanceMLE

PAGE = Path(__file__).parents[1] / "docs" / "your-own-images.md"


@pytest.fixture(scope="module")
def load_image():
    """The page's own function, from its source."""
    code = next(code for _, code in blocks(PAGE.read_text()) if "def load_image" in code)
    namespace = {"np": np, "Image": Image, "Path": Path}
    exec(code.split("\npaths = ")[0], namespace)
    return namespace["load_image"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_files_of_every_colour_mode_become_integers_of_one_shape(load_image, tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (20, 12), "red").convert(mode).save(path)
    for asked, channels in (("RGB", 3), ("L", 1)):
        image = load_image(path, 6, 8, asked)
        assert image.shape == (6, 8, channels) and image.dtype == np.uint8
    if mode in ("RGB", "RGBA", "P", "CMYK"):
        np.testing.assert_allclose(load_image(path, 6, 8)[3, 4], [255, 0, 0], atol=1)


def test_what_is_transparent_is_white_whatever_colour_is_under_it(load_image, tmp_path):
    pixels = np.full((8, 8, 4), (255, 0, 0, 255), np.uint8)
    pixels[:, 4:] = 0, 0, 0, 0
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    indexed = Image.new("P", (8, 8), 0)
    indexed.putpalette([9, 9, 9])
    indexed.save(tmp_path / "indexed.png", transparency=0)
    image = load_image(tmp_path / "alpha.png", 8, 8)
    np.testing.assert_array_equal(image[:, :4], np.broadcast_to([255, 0, 0], (8, 4, 3)))
    np.testing.assert_array_equal(image[:, 4:], 255)
    np.testing.assert_array_equal(load_image(tmp_path / "indexed.png", 8, 8), 255)


def test_photographs_stand_upright_and_lose_both_ends_alike(load_image, tmp_path):
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, :10], pixels[:, 20:] = 100, 200
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.all(load_image(tmp_path / "turned.png", 10, 10, "L") == 0)
    wide = load_image(tmp_path / "turned.png", 10, 30, "L")[..., 0]
    np.testing.assert_array_equal(wide, pixels[::-1, ::-1])


def test_more_than_eight_bits_are_told(load_image, tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png has more than 8 bits a channel"):
        load_image(tmp_path / "deep.png")


@pytest.mark.parametrize(
    ("likelihood", "convert"),
    [
        ("8-bit", lambda images: images),
        ("normal", lambda images: images / 255.0),
        ("bernoulli", lambda images: images / 255.0 > 0.5),
    ],
)
def test_likelihoods_take_what_the_page_says(likelihood, convert):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1)).astype(np.uint8)
    kaem = KAEM.create(jax.random.key(0), (4, 4, 1), latent_size=2, likelihood=likelihood, hidden_sizes=(4,))
    assert kaem._check("x", convert(images)).shape == images.shape


@pytest.fixture(scope="module")
def files(load_image, tmp_path_factory):
    """Six images as an array, and the page's stream of batches of their files."""
    grain = pytest.importorskip("grain")
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).save(folder / f"{number}.png")
    paths = sorted(folder.glob("*.png"))

    def load(path):
        return load_image(path, 4, 4, "L")

    def stream(size):
        shuffled = grain.MapDataset.source(paths).seed(0).shuffle().repeat()
        return shuffled.map(load).batch(size, drop_remainder=True)

    return np.stack([load(path) for path in paths]), stream


def test_each_pass_of_a_stream_has_every_file_once_in_an_order_of_its_own(files):
    images, stream = files
    batches = iter(stream(3))
    first, second = (np.concatenate([next(batches), next(batches)]) for _ in range(2))
    assert not np.array_equal(first, second)
    for epoch in (first, second):
        np.testing.assert_array_equal(np.unique(epoch, axis=0), np.unique(images, axis=0))


@pytest.mark.slow
def test_a_stream_of_files_trains_like_an_array(files):
    images, stream = files
    generator = MLP(jax.random.key(0), 2, 16, (4,))
    kaem = KAEM.create(jax.random.key(1), (4, 4, 1), latent_size=2, likelihood="8-bit", generator=generator)
    # All files in one batch: there is no order.
    options = {"num_epochs": 2, "progress": False, "objective": ImportanceMLE(10)}
    of_stream = kaem.fit(jax.random.key(2), stream(6), steps_per_epoch=1, **options)
    of_array = kaem.fit(jax.random.key(2), images, batch_size=6, **options)
    np.testing.assert_allclose(of_stream.history["loss"], of_array.history["loss"], rtol=1e-5)
