"""Independent components: ICA beside scikit-learn's FastICA and Picard (extended), which python-picard has.

    python -m benchmarks.ica                                    a few settings and three seeds
    python -m benchmarks.ica --all --seeds 10                   every setting
    python -m benchmarks.ica --all --seeds 50 --only "6 x 5,000"
    python -m benchmarks.ica --all --only "sine, 32 x 10,000"   those whose name has the text in it

The Amari distance is 0 for sources found exactly, up to order, sign and scale. "Bound" is the least mean of it that a
method has whose densities are the true ones, as n grows (Cramer and Rao), over the best other method's. It is known
where densities have a finite Fisher information; elsewhere errors fall faster than 1 / sqrt(n). "Held-out" is the gain
of ICA in nats a row on new rows, over Picard's unmixing with (1) densities fitted to its sources as ICA fits its own,
so that the difference is due to the unmixing, and (2) the densities that its score functions imply, exp(-u^2 / 2) /
cosh(u) or exp(-u^2 / 2) cosh(u) with u = z / s, the better one and the best s for each source. Means over seeds +-
standard errors; large settings have at most 3 seeds. Seconds are medians; their ratio is the median of ratios within a
seed. On a busy machine they are those of threads that wait for each other, with every method: set
OPENBLAS_NUM_THREADS=1 there.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.timing import print_device, print_rows
from numpyro_kaem import ICA
from numpyro_kaem.separation.source_densities import SourceModel, TabulatedReference

NUM_INTERVALS = 16
FEW_SEEDS_FROM = 300_000  # numbers in a data set
KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "uniform": lambda rng, n: rng.uniform(-1.0, 1.0, n),
    "Laplace": lambda rng, n: rng.laplace(size=n),
    "two lumps": lambda rng, n: np.where(rng.random(n) < 0.4, -1.0, 1.0) + 0.3 * rng.normal(size=n),
    "skewed": lambda rng, n: np.where(rng.random(n) < 0.5, rng.gamma(2.0, size=n), rng.gamma(6.0, size=n)),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "sine": lambda rng, n: np.sin(rng.uniform(0.0, 2.0 * np.pi, n)),
}
PHOTOGRAPHS = ("astronaut", "camera", "moon", "brick", "grass")


def amari(unmixing: np.ndarray, mixing: np.ndarray) -> float:
    """The distance of unmixing @ mixing from a scaled permutation, between 0 and 1 (Amari et al. 1996)."""
    product, size = np.abs(unmixing @ mixing), len(mixing)
    over = (product / product.max(axis=1, keepdims=True)).sum() + (product / product.max(axis=0)).sum()
    return float((over - 2 * size) / (2 * size * (size - 1)))


def information(kind: str) -> float:
    """Fisher information about its place of a source of variance one, E psi^2 with psi = -d log p / dz."""
    if kind == "Laplace":
        return 2.0
    if kind != "two lumps":  # the density has an end where it jumps, or rises too fast
        return np.inf
    z, step = np.linspace(-4.0, 4.0, 10_001, retstep=True)
    left, right = (w * np.exp(-0.5 * ((z - at) / 0.3) ** 2) for w, at in ((0.4, -1.0), (0.6, 1.0)))
    density, slope = left + right, (left * (z + 1.0) + right * (z - 1.0)) / 0.3**2
    mass = step / (0.3 * np.sqrt(2.0 * np.pi))
    variance = np.sum(density * (z - 0.2) ** 2) * mass
    return float(np.sum(slope**2 / density) * mass * variance)


def bound(kinds: list[str], n: int) -> float:
    """The least mean Amari distance that is known from the Fisher informations k_q of the sources.

    The distance is the mean of |E_qr|, q != r, of unmixing @ mixing = 1 + E, whose variance is 1 / (k_q - 1 / k_r) / n
    at least.
    """
    k = np.array([information(kind) for kind in kinds])
    with np.errstate(divide="ignore"):
        deviation = 1.0 / np.sqrt(k[:, None] - 1.0 / k)
    return float(np.sqrt(2.0 / np.pi / n) * deviation[~np.eye(len(k), dtype=bool)].mean())


def photographs() -> np.ndarray:
    """Five photographs of 512 x 512 in grey, a column for each."""
    import skimage.data
    from skimage.color import rgb2gray

    images = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    return np.stack([(rgb2gray(image) if image.ndim == 3 else image / 255.0).ravel() for image in images], axis=1)


def draw(kinds: list[str], rng: np.random.Generator, n: int) -> np.ndarray:
    """Sources, a column for each."""
    return np.stack([KINDS[kind](rng, n) for kind in kinds], axis=1)


def settings(everything: bool) -> Iterator[tuple[str, list[str] | None, int, int]]:
    """Names, kinds of the sources or None for photographs, their number and the number of rows."""
    yield "photographs", None, len(PHOTOGRAPHS), 512 * 512
    mixed = list(KINDS)
    sizes = [(2, 1_000), (6, 5_000), (8, 10_000)]
    for size, n in [*sizes, (32, 10_000), (32, 100_000)] if everything else sizes:
        yield "all kinds" if size >= 6 else ", ".join(mixed[:size]), [mixed[q % 6] for q in range(size)], size, n
    for kind in KINDS:
        for size, n in [*sizes, (32, 10_000), (8, 100_000)] if everything else [(4, 5_000)]:
            yield kind, [kind] * size, size, n


def implied_log_density(train: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Held-out log-densities of sources (num_sources, n) by the densities that extended Infomax and Picard imply."""
    grid = np.linspace(-30.0, 30.0, 6_001)
    result = np.empty_like(held_out)
    for q, z in enumerate(train):
        best = -np.inf
        for sign in (-1.0, 1.0):

            def log_density(u, sign=sign):
                return -0.5 * u**2 + sign * np.logaddexp(u, -u)

            constant = np.log(np.sum(np.exp(log_density(grid))) * (grid[1] - grid[0]))
            for scale in np.geomspace(0.4, 2.5, 30):
                value = np.mean(log_density(z / scale)) - constant - np.log(scale)
                if value > best:
                    best, result[q] = value, log_density(held_out[q] / scale) - constant - np.log(scale)
    return result


def held_out_scores(unmixing: np.ndarray, x: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """Mean log-likelihoods of new rows: with learned densities, and with those that Picard implies."""
    mean = x.mean(axis=0)
    unmixing = unmixing / ((x - mean) @ unmixing.T).std(axis=0)[:, None]
    train, held_out = unmixing @ (x - mean).T, unmixing @ (new - mean).T
    reference = TabulatedReference()
    model = SourceModel(train, reference, NUM_INTERVALS)
    densities, volume = model.densities(model.fit(model.bins(train))), np.linalg.slogdet(unmixing)[1]
    learned, implied = densities.log_prob(held_out, reference), implied_log_density(train, held_out)
    return float(learned.sum(axis=0).mean() + volume), float(implied.sum(axis=0).mean() + volume)


def methods(seed: int) -> dict[str, Callable[[], object]]:
    """Estimators by name."""
    from picard import Picard
    from sklearn.decomposition import FastICA

    return {
        "ICA": lambda: ICA(num_intervals=NUM_INTERVALS, random_state=seed),
        "logcosh": lambda: FastICA(fun="logcosh", whiten="unit-variance", max_iter=1_000, random_state=seed),
        "exp": lambda: FastICA(fun="exp", whiten="unit-variance", max_iter=1_000, random_state=seed),
        "Picard": lambda: Picard(extended=True, random_state=seed),
    }


def of_seed(kinds: list[str] | None, size: int, n: int, seed: int) -> dict[str, np.ndarray]:
    """Amari distance, seconds, and of ICA the held-out gains over Picard."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(size, size))
    if kinds is None:
        pixels = photographs()
        held_out = rng.permutation(len(pixels)) % 8 == 0
        sources, new = pixels[~held_out], pixels[held_out]
    else:
        sources, new = draw(kinds, rng, n), draw(kinds, rng, n)
    scale = sources.std(axis=0)
    x, new, result, fitted = sources / scale @ mixing.T, new / scale @ mixing.T, {}, {}
    for name, make in methods(seed).items():
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted[name] = make().fit(x)
        result[name] = np.array([amari(fitted[name].components_, mixing), time.perf_counter() - start])
    ours, (learned, implied) = fitted["ICA"].score(new), held_out_scores(fitted["Picard"].components_, x, new)
    result["gain"] = np.array([ours - learned, ours - implied])
    return result


def with_error(mean: float, values: np.ndarray, digits: int) -> str:
    """A number and the standard error of the mean of values, where there is more than one."""
    error = f" +- {values.std(ddof=1) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{error}"


def ratio_with_error(values: np.ndarray, others: np.ndarray) -> str:
    """A ratio of means and its standard error, from the pairs."""
    ratio = values.mean() / others.mean()
    return with_error(ratio, (values - ratio * others) / others.mean(), 2)


def main(seeds: int = 3, everything: bool = False, only: str = "") -> None:
    """Print a row for every setting whose name, number and rows have the text in them."""
    ICA(random_state=0).fit(draw(["uniform", "Laplace"], np.random.default_rng(0), 500))
    header = ("sources", "number", "rows", "seeds", "ICA", "FastICA logcosh", "FastICA exp", "Picard", "ICA / best")
    header += ("bound / best", "held-out (1)", "held-out (2)", "seconds", "/ Picard's")
    print_rows("Amari distances", header, [])
    for name, kinds, size, n in settings(everything):
        if only not in f"{name}, {size} x {n:,}":
            continue
        count = seeds if n * size < FEW_SEEDS_FROM else min(seeds, 3)
        results = [of_seed(kinds, size, n, seed) for seed in range(count)]
        distance, seconds = (
            {method: np.array([result[method][at] for result in results]) for method in methods(0)} for at in (0, 1)
        )
        best = min([method for method in distance if method != "ICA"], key=lambda method: distance[method].mean())
        gains = np.array([result["gain"] for result in results])
        lowest = 0.0 if kinds is None else bound(kinds, n)
        row = (
            name,
            f"{size}",
            f"{n:,}",
            f"{count}",
            *(f"{distance[method].mean():.4f}" for method in distance),
            ratio_with_error(distance["ICA"], distance[best]),
            f"{lowest / distance[best].mean():.2f}" if lowest > 0.0 else "",
            *(with_error(gain.mean(), gain, 3) for gain in gains.T),
            f"{np.median(seconds['ICA']):.2f}",
            f"{np.median(seconds['ICA'] / seconds['Picard']):.1f}",
        )
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--all", action="store_true", help="more sizes")
    parser.add_argument("--only", default="", help="text in the settings, such as 'two lumps, 6 x 5,000'")
    arguments = parser.parse_args()
    print_device()
    main(arguments.seeds, arguments.all, arguments.only)
