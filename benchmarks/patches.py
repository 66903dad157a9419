"""Densities of 8 x 8 patches of photographs, in bits a pixel: independent components and others.

Data: six photographs that scikit-learn and scikit-image ship, as grey values v in 0 ... 255 (the luminance, rounded).
Models are fitted to patches of the left two thirds of each, and scored on patches of the right third, at random places.
Grey values are made continuous first and logarithms then taken: y = log(1 + v + u), with u uniform on [0, 1) and drawn
anew for every pixel of every patch. Each patch loses its mean (DC); the 63 numbers that are left are its coordinates in
an orthonormal basis of the patches of mean zero. Scores are minus log2 of the density of these, divided by 64 pixels.
The density of a logarithm is no code length, and the score may be negative; differences between models are bits a pixel
of any code that treats the mean alike.

All scores are exact but that of the overcomplete generator, which has noise: it is trained by chains, and scored by
tempered SMC on the first few held-out patches.

Run with `python -m benchmarks.patches`; `--quick` for far fewer patches and steps, too few for the order of the whole
run to show; `--models gaussian,mixture` for some of the models; `--images DIR` writes the pictures of the page "Patches
of photographs". RealNVP needs FlowJAX, which nothing else here does: where it is not installed, its row says so.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import matplotlib
import numpy as np
import scipy.stats
import skimage.data
from sklearn.datasets import load_sample_images

from benchmarks import patch_models
from benchmarks.patch_models import SIDE, SIZE
from benchmarks.timing import print_device, print_rows

NAMES = {
    "gaussian": "Gaussian",
    "laplace": "ICA, Laplace sources",
    "student": "ICA, Student-t sources of fitted degrees",
    "learned": "ICA, learned sources (`KAPrior` on StudentT(3))",
    "overcomplete": "learned sources, twice overcomplete, with noise",
    "mixture": "mixture of 200 Gaussians (scikit-learn)",
    "flow": "RealNVP, 8 affine layers (FlowJAX)",
}
PAIRS = (
    ("student", "laplace"),
    ("learned", "student"),
    ("overcomplete", "learned"),
    ("mixture", "learned"),
    ("flow", "mixture"),
)


def photographs():
    """Grey values of 0 ... 255, by name."""
    china, flower = load_sample_images().images
    colours = {"china": china, "flower": flower}
    for name in ("astronaut", "camera", "chelsea", "coffee"):
        colours[name] = getattr(skimage.data, name)()
    weights = np.array([0.2125, 0.7154, 0.0721])
    return {k: np.rint(v @ weights) if v.ndim == 3 else v.astype(float) for k, v in colours.items()}


def basis_without_mean():
    """Orthonormal patches of mean zero, the cosines but for the constant: shape (63, 64)."""
    at = np.arange(SIDE)
    cosines = np.cos(np.pi * np.outer(at, at + 0.5) / SIDE) * np.where(at == 0, 1.0, 2**0.5)[:, None] / SIDE**0.5
    return np.einsum("ai,bj->abij", cosines, cosines).reshape(SIDE**2, SIDE**2)[1:]


def patches(rng, pictures, size, first, last):
    """Patches of the columns from `first` to `last`, in shares of the width, as many of each picture: (size, 63)."""
    found = []
    for values in pictures:
        height, width = values.shape
        columns = rng.integers(int(first * width), int(last * width) - SIDE + 1, size // len(pictures))
        rows = rng.integers(0, height - SIDE + 1, size // len(pictures))
        windows = np.lib.stride_tricks.sliding_window_view(values, (SIDE, SIDE))
        found.append(windows[rows, columns].reshape(-1, SIDE**2))
    grey = rng.permutation(np.concatenate(found))
    return np.log1p(grey + rng.random(grey.shape)) @ basis_without_mean().T


def quartiles(sources):
    """Medians of the sources, and halves of their interquartile ranges."""
    low, middle, high = np.asarray(sources.icdf(jnp.array([[0.25], [0.5], [0.75]])))
    return middle, 0.5 * (high - low)


def draw_filters(file, mixing, order, num_columns):
    """The columns of a generator of patches as pictures, each with its own scale of greys."""
    import matplotlib.pyplot as plt

    tiles = (mixing.T @ basis_without_mean())[order].reshape(-1, SIDE, SIDE)
    tiles = tiles / np.abs(tiles).max((1, 2), keepdims=True)
    num_rows = len(tiles) // num_columns
    figure, axes = plt.subplots(
        num_rows, num_columns, figsize=(0.7 * num_columns, 0.7 * num_rows), layout="constrained"
    )
    for axis, tile in zip(axes.flat, tiles, strict=True):
        axis.imshow(tile, cmap="gray", vmin=-1, vmax=1)
        axis.axis("off")
    figure.savefig(file, dpi=80)


def draw_densities(file, student, sources, order):
    """Six of the learned densities beside families with the same quartiles."""
    import matplotlib.pyplot as plt

    middle, unit = quartiles(sources)
    z = np.linspace(-8.0, 8.0, 601)
    log_prob = np.asarray(sources.log_prob(jnp.asarray(middle + unit * z[:, None], jnp.float32))) + np.log(unit)
    degrees = float(np.median(np.exp(np.asarray(student.sources.log_df))))
    families = {
        f"Student-t, {degrees:.1f} degrees": (scipy.stats.t(degrees), "C1"),
        "Laplace": (scipy.stats.laplace(), "C2"),
        "normal": (scipy.stats.norm(), "0.6"),
    }
    figure, axes = plt.subplots(2, 3, figsize=(8, 4.4), layout="constrained", sharex=True, sharey=True)
    for axis, number in zip(axes.flat, np.linspace(0, SIZE - 1, 6).astype(int), strict=True):
        axis.plot(z, log_prob[:, order[number]], "C0", lw=2, label="learned")
        for name, (family, color) in families.items():
            scale = family.ppf(0.75)
            axis.plot(z, family.logpdf(z * scale) + np.log(scale), color, lw=0.9, label=name)
        axis.set(title=f"source {number + 1}", ylim=(-9.0, 0.5))
    axes[0, 0].legend(fontsize=7, loc="lower center")
    figure.supxlabel("source, in half interquartile ranges", fontsize=9)
    figure.supylabel("log-density", fontsize=9)
    figure.savefig(file, dpi=80)


def draw_pictures(folder, student, learned, params, unwhitening):
    """Filters and densities of the complete model, and filters of the overcomplete one, the strongest first."""
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    mixing, sources = np.linalg.inv(np.asarray(learned.unmixing)), learned.sources.distribution()
    strength = np.linalg.norm(unwhitening @ mixing, axis=0) * quartiles(sources)[1]
    draw_filters(folder / "patch_filters.png", unwhitening @ mixing, np.argsort(-strength), 9)
    draw_densities(folder / "patch_densities.png", student, sources, np.argsort(-strength))

    first = eqx.combine(params["first$params"], learned)
    others = eqx.combine(params["others$params"], learned.sources)
    mixing = unwhitening @ np.concatenate([np.linalg.inv(np.asarray(first.unmixing)), params["columns"]], axis=1)
    units = [quartiles(s.distribution())[1] for s in (first.sources, others)]
    strength = np.linalg.norm(mixing, axis=0) * np.concatenate(units)
    draw_filters(folder / "patch_filters_overcomplete.png", mixing, np.argsort(-strength), 14)


def print_evidence(posterior, noise, num_scored, num_particles):
    nats = np.asarray(posterior.log_evidence_std_error)
    bias = 0.5 * np.mean(nats**2) / (np.log(2.0) * SIDE**2)
    print(f"Tempered SMC, {num_scored} patches, {num_particles} particles: median ESS {np.median(posterior.ess):.0f};")
    print(f"standard error of a log-evidence {np.median(nats):.2f} nats (median), {nats.max():.2f} at most;")
    print(f"it falls short by half its variance, in the mean {bias:.4f} bits a pixel.")
    print(
        f"Noise of the overcomplete model, in standard deviations of the data: {noise.min():.4f} to {noise.max():.4f}."
    )


def gain(bits, name, other):
    """Bits a pixel that one model saves over another on the patches that both are scored on, and its standard error."""
    size = min(len(bits[name]), len(bits[other]))
    difference = bits[name][:size] - bits[other][:size]
    return difference.mean(), difference.std() / size**0.5


def print_scores(bits, asked, title):
    """The table, the best first, and differences by patch."""
    table = {name: gain(bits, name, "gaussian") for name in bits if name != "overcomplete"}
    if "overcomplete" in bits:
        # Of few patches, the difference to the complete model is known far better than the score itself.
        more, error = gain(bits, "overcomplete", "learned")
        table["overcomplete"] = table["learned"][0] + more, error
    gaussian = -bits["gaussian"].mean()
    rows = [
        (NAMES[name], f"{gaussian - more:.3f}", f"{more:.3f}", f"{error:.3f}")
        for name, (more, error) in sorted(table.items(), key=lambda item: -item[1][0])
    ]
    if "flow" in asked and "flow" not in bits:
        rows.append((NAMES["flow"], "FlowJAX is not installed", "", ""))
    print_rows(title, ("model", "bits a pixel", "gain over the Gaussian", "±"), rows)
    print()
    for one, other in PAIRS:
        if {one, other} <= set(bits):
            more, error = gain(bits, one, other)
            print(f"{NAMES[one]} less {NAMES[other]}, by patch: {more:.3f} ± {error:.3f}")


def parsed(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.patches")
    parser.add_argument("--quick", action="store_true", help="far fewer patches and steps")
    parser.add_argument("--models", default=",".join(NAMES), help="names with commas between them, by default all")
    parser.add_argument("--images", type=Path, help="folder to write the pictures to")
    options = parser.parse_args(arguments)
    options.models = options.models.split(",")
    if set(options.models) - set(NAMES):
        parser.error(f"--models must be of {','.join(NAMES)}, got {','.join(options.models)}")
    if options.images and not {"student", "learned", "overcomplete"} <= set(options.models):
        parser.error("--images needs the models student, learned and overcomplete")
    return options


def main(arguments=()):
    """Fit the models, and print a table."""
    options = parsed(arguments)
    quick, asked = options.quick, options.models
    num_train, num_held_out = (6_000, 1_200) if quick else (60_000, 12_000)
    num_scored, num_particles = (4, 20) if quick else (200, 200)

    rng, pictures = np.random.default_rng(0), list(photographs().values())
    x_train = patches(rng, pictures, num_train, 0.0, 2 / 3)
    x = patches(rng, pictures, num_held_out, 2 / 3, 1.0)
    mean = x_train.mean(0)
    values, vectors = np.linalg.eigh(np.cov(x_train.T, bias=True))
    unwhitening, whitening = (vectors * values**0.5) @ vectors.T, (vectors * values**-0.5) @ vectors.T
    x_train, x = ((rows - mean) @ whitening for rows in (x_train, x))

    bits, models, started = {}, {}, time.perf_counter()

    def score(name, log_prob):
        bits[name] = (log_prob + np.linalg.slogdet(whitening)[1]) / (np.log(2.0) * SIDE**2)
        print(f"{NAMES[name]}: fitted after {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)

    score("gaussian", patch_models.gaussian_log_prob(x))
    for name, sources in patch_models.all_sources().items():
        if name in asked or (name == "learned" and "overcomplete" in asked):
            models[name] = patch_models.fit_components(sources, x_train, 200 if quick else 3_000)
            score(name, patch_models.log_prob_of(models[name], x))
    if "mixture" in asked:
        score("mixture", patch_models.mixture_log_prob(x_train, x, 200, 2 if quick else 15))
    if "flow" in asked and importlib.util.find_spec("flowjax"):
        score("flow", patch_models.flow_log_prob(x_train, x, 20 if quick else 2_000))
    if "overcomplete" in asked:
        model = patch_models.twice_overcomplete(models["learned"])
        params = patch_models.fit_by_chains(model, x_train[: 1_000 if quick else 20_000], 1 if quick else 10)
        posterior = patch_models.evidence(model, params, x[:num_scored], num_particles)
        score("overcomplete", np.asarray(posterior.log_evidence, float))

    print_scores(bits, asked, f"{num_held_out:,} held-out patches of 8 x 8 pixels, {num_train:,} to train on")
    if "student" in models:
        df = np.exp(np.asarray(models["student"].sources.log_df))
        print(f"Degrees of the Student-t sources: {df.min():.2f} to {df.max():.2f}, median {np.median(df):.2f}.")
    if "overcomplete" in bits:
        print_evidence(posterior, np.asarray(params["noise"]), num_scored, num_particles)
    if options.images:
        draw_pictures(options.images, models["student"], models["learned"], params, unwhitening)


if __name__ == "__main__":
    print_device()
    main(sys.argv[1:])
