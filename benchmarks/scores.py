"""How far distances between samples and data are off at small n, and whether their errors are honest.

Real and generated samples are normal, so that the distance is known: in d dimensions both standard normal ("equal"), or
generated ones with mean 0.2 and variance 1.5 ("wider"), or with variances 1 / i ("decaying", equal). Printed for n
samples of each set, over 40 repetitions: the error of the plain Frechet distance; mean error and spread of the usual
regression on 1 / n (15 random subsets, from a third of the samples to all); mean error and spread of
`frechet_distance`, its stated error, and the spread of (value - truth) / stated error, which is one if that is honest.
Then the same for `kernel_distance`, relative to its error.

Run with `python -m benchmarks.scores`; it takes about a minute.
"""

import warnings

import numpy as np

from numpyro_kaem import frechet_distance, kernel_distance

REPETITIONS = 40
CASES = [
    ("equal", 8, 100),
    ("equal", 64, 400),
    ("wider", 8, 100),
    ("wider", 64, 400),
    ("decaying", 100, 200),
    ("decaying", 100, 50),
    ("equal", 64, 100),
]


def plain(x, y):
    """The textbook value, without what else `frechet_distance` computes."""
    roots = [np.linalg.qr(z - z.mean(0), mode="r") / (len(z) - 1) ** 0.5 for z in (x, y)]
    trace = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum() - 2 * trace


def regression(rng, x, y):
    sizes = np.linspace(len(x) / 3, len(x), 15).astype(int)
    values = [plain(rng.permutation(x)[:size], rng.permutation(y)[:size]) for size in sizes]
    return np.polyfit(1 / sizes, values, 1)[1]


def draw(rng, kind, size, n):
    x, y = rng.normal(size=(2, n, size))
    if kind == "wider":
        return x, 0.2 + 1.5**0.5 * y
    scale = np.arange(1, size + 1) ** -0.5 if kind == "decaying" else 1.0
    return x * scale, y * scale


def truths(kind, size):
    """Frechet distance; kernel distance, from moments of first to third order, which are tensors of i.i.d. elements."""
    if kind != "wider":
        return 0.0, 0.0
    mean, variance = 0.2, 1.5
    off, diagonal = mean**2, mean**2 + variance - 1
    second = size * diagonal**2 + size * (size - 1) * off**2
    all_equal, two_equal = mean**3 + 3 * mean * variance, mean**3 + mean * variance
    third = size * all_equal**2 + 3 * size * (size - 1) * two_equal**2 + size * (size - 1) * (size - 2) * mean**6
    return size * (mean**2 + (variance**0.5 - 1) ** 2), 3 * mean**2 + 3 * second / size**2 + third / size**3


def main():
    warnings.simplefilter("ignore", UserWarning)  # of too few samples
    print(f"{'law':>9} {'d':>4} {'n':>5} {'truth':>6} {'plain':>7} | {'regression':>16} |", end="")
    print(f" {'frechet_distance':>16} {'stated':>7} {'honest':>7} | {'kernel_distance':>15} {'honest':>7}")
    for kind, size, n in CASES:
        truth, kernel_truth = truths(kind, size)
        rng = np.random.default_rng(0)
        rows = []
        for _ in range(REPETITIONS):
            x, y = draw(rng, kind, size, n)
            frechet, kernel = frechet_distance(x, y), kernel_distance(x, y)
            off = kernel.value - kernel_truth
            rows.append(
                (
                    frechet.plain - truth,
                    regression(rng, x, y) - truth,
                    frechet.value - truth,
                    frechet.std_error,
                    off / kernel.std_error,
                )
            )
        of_plain, of_regression, of_value, stated, of_kernel = np.array(rows).T
        score = np.sqrt(np.mean((of_value / stated) ** 2))
        print(
            f"{kind:>9} {size:>4} {n:>5} {truth:>6.2f} {of_plain.mean():>7.2f} | "
            f"{of_regression.mean():>7.3f} +- {of_regression.std():>5.3f} | {of_value.mean():>7.3f} +- "
            f"{of_value.std():>5.3f} {np.median(stated):>7.3f} {score:>7.2f} | {of_kernel.mean():>15.2f} "
            f"{np.sqrt(np.mean(of_kernel**2)):>7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
