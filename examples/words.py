# %% [markdown]
# # Words, letter by letter
#
# A model of English words: latents with learned densities, and a transformer that writes a word from them letter by
# letter. Such a decoder knows the letters before, and may not need the latents at all. Whether it uses them is
# measured, in nats a word; how it is brought to do so, and what it costs; new words, and words between two words.

# %%
import os
import re
from importlib.resources import files
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from numpyro.infer import Trace_ELBO
from numpyro.primitives import Messenger

from numpyro_kaem import KAEM, ImportanceSampling, SequenceDecoder, fit

smoke = os.environ.get("NUMPYRO_KAEM_SMOKE") == "1"  # a few seconds, to see that everything runs
outputs = Path("outputs")
outputs.mkdir(exist_ok=True)

# %% [markdown]
# ## Data
#
# The package xkcdpass (BSD license) ships word lists as plain text. The list "legacy" comes from Alan Beale's 12Dicts,
# which he released to the public domain. Of it, words of 3 to 10 small letters; a tenth is held out. Token 0 ends a
# word, and what follows it is padding, without a part in the likelihood.

# %%
lines = (files("xkcdpass") / "static" / "legacy").read_text().split()
words = sorted({word for word in lines if re.fullmatch("[a-z]{3,10}", word)})
words = [str(word) for word in np.random.default_rng(2).permutation(words)]
length, end = 11, 0


def tokens_of(words):
    return np.array([[ord(letter) - 96 for letter in word] + [end] * (length - len(word)) for word in words])


def written(tokens):  # what is behind the end is the end again
    return ["".join(chr(96 + token) for token in row if token != end) for row in np.asarray(tokens)]


train_words, held_out_words = words[4_000:], words[:4_000]
train, held_out = tokens_of(train_words), tokens_of(held_out_words)
if smoke:
    train, held_out = train[:400], held_out[:400]
print(f"{len(train_words):,} words to train by, {len(held_out_words):,} held out:", *held_out_words[:8])

# %% [markdown]
# ## Model
#
# Eight latents. The decoder sees them at every position, and the letters before; the encoder, which `encoder=True`
# makes, sees the whole word. Training is by the evidence lower bound (ELBO): what the decoder says of a word, minus
# what the latents say of it, the divergence of the encoder's posterior from the prior.

# %%
latent_size = 8
decoder = SequenceDecoder(
    jax.random.key(0), latent_size, vocabulary_size=27, length=length, width=32, num_layers=1, end_token=end
)
untrained = KAEM.create(
    jax.random.key(1), (length,), latent_size=latent_size, likelihood="categorical", generator=decoder, encoder=True
)
num_epochs, batch_size = (1, 200) if smoke else (5, 200)
steps = num_epochs * (len(train) // batch_size)
by_bound = {
    "objective": Trace_ELBO(),
    "optimizer": optax.adam(optax.cosine_decay_schedule(3e-3, steps, alpha=0.03)),
    "num_epochs": num_epochs,
    "batch_size": batch_size,
    "progress": False,
}
plain = untrained.fit(jax.random.key(2), train, **by_bound)

# %% [markdown]
# A decoder learns which letter follows which before an encoder says anything of use. What the latents say then costs
# more than it brings, the encoder falls silent, and there it stays: posterior collapse. A remedy is a price that rises
# (Bowman et al. 2016): first the latents cost a tenth, then all. `kaem.model` and `kaem.guide` are a NumPyro model and
# guide, and a handler of three lines sets the price; `at` takes the parameters back into the KAEM.


# %%
class Priced(Messenger):
    def process_message(self, message):
        if message["type"] == "sample" and message["name"] == "z":
            message["scale"] = 0.1


result = fit(
    jax.random.key(3),
    lambda x: Priced(untrained.model)(x),
    train,
    guide=lambda x: Priced(untrained.guide)(x),
    objective=Trace_ELBO(),
    optimizer=optax.adam(3e-3),
    num_epochs=1 if smoke else 3,
    batch_size=batch_size,
    progress=False,
)
cheap = untrained.at(result.params | result.guide_params)
kaem = cheap.fit(jax.random.key(4), train, **by_bound)

# %% [markdown]
# ## Do the latents say anything?
#
# $\mathrm{E}_{p(z \mid x)} \log p(x \mid z) - \log p(x)$ is the divergence of posterior from prior: the nats that the
# latents say of a word. Beside it, the held-out score, in bits a character with the end of the word for one; how
# many of 2,000 drawn words are words, and how many are words that were not trained by.

# %%
num_scored, known, unseen = 40 if smoke else 400, set(words), set(held_out_words)
characters = np.mean([len(word) + 1 for word in held_out_words[:num_scored]])
models = {"ELBO": plain, "latents at a tenth": cheap, "then ELBO": kaem}
table, posteriors, drawn = {}, {}, {}
for name, model in models.items():
    posterior = model.posterior(jax.random.key(5), held_out[:num_scored], ImportanceSampling(500, progress=False))
    posteriors[name] = posterior.resample(jax.random.key(6), 50)
    drawn[name] = written(model.sample(jax.random.key(7), 2_000))
    said = posteriors[name].log_likelihood.mean(1) - posterior.log_evidence
    table[name] = {
        "log-likelihood, nats a word": f"{posterior.log_evidence.mean():.2f}",
        "  its standard error": f"{posterior.log_evidence.std() / num_scored**0.5:.2f}",
        "bits a character": f"{-posterior.log_evidence.mean() / characters / np.log(2):.2f}",
        "effective sample size of 500, median": f"{np.median(posterior.ess):.0f}",
        "the latents say, nats a word": f"{said.mean():.2f}",
        "draws that are words": f"{np.mean([word in known for word in drawn[name]]):.1%}",
        "  and were not trained by": f"{np.mean([word in unseen for word in drawn[name]]):.2%}",
    }
print(f"{'':38}" + "".join(f"{name:>20}" for name in models))
for row in table["ELBO"]:
    print(f"{row:38}" + "".join(f"{column[row]:>20}" for column in table.values()))

# %% [markdown]
# By the bound alone the latents say next to nothing. At a tenth of the price they hold the word, and importance
# sampling has no draws left: the true score of that model is better than the one in the table. Trained on from there
# by the bound, the latents keep a part of what they held, and the score is about that of the model that has collapsed.
# It is the decoder that makes the score; that latents are used does not show in it.

# %% tags=["checks"]
assert smoke or float(table["then ELBO"]["the latents say, nats a word"]) > 2
assert smoke or float(table["then ELBO"]["the latents say, nats a word"]) > 3 * float(
    table["ELBO"]["the latents say, nats a word"]
)

# %% [markdown]
# ## New words
#
# Each is an exact draw from the prior, written letter by letter.

# %%
for name in models:
    print(f"{name}:", *drawn[name][:12])

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=[1, 2], layout="constrained")
for offset, label, shown in ((-0.2, "held-out words", held_out_words), (0.2, "drawn words", drawn["then ELBO"])):
    lengths = np.bincount([len(word) for word in shown], minlength=length + 1)[: length + 1]
    letters = np.array([sum(word.count(chr(97 + letter)) for word in shown) for letter in range(26)])
    left.bar(np.arange(length + 1) + offset, lengths / lengths.sum(), 0.4, label=label)
    right.bar(np.arange(26) + offset, letters / letters.sum(), 0.4)
left.set(xticks=range(0, length, 2), xlabel="letters of a word", ylabel="share")
left.legend()
right.set(xticks=range(26), xticklabels="abcdefghijklmnopqrstuvwxyz", xlabel="letter")
figure.savefig(outputs / "words.png", dpi=120)

# %% [markdown]
# ## What the latents hold
#
# Words that are written from one posterior draw of a held-out word, several times:

# %%
for name, model in models.items():
    print(f"{name}:")
    for number in range(4):
        z = jnp.tile(posteriors[name].latents["z"][number, 0], (6, 1))
        print(f"  {held_out_words[number]:12}", *written(model.parts.generator.sample(jax.random.key(8), z)))

# %% [markdown]
# Posterior means of held-out words, in the plane in which they differ most, by the length of the word. Nobody has told
# the model of lengths: where latents are used, one direction of them is it.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for ax, name in zip(axes, ("ELBO", "then ELBO"), strict=True):
    means = posteriors[name].latents["z"].mean(1)
    center = means - means.mean(0)
    plane = center @ np.linalg.svd(center, full_matrices=False)[2][:2].T
    points = ax.scatter(*plane.T, c=[len(word) for word in held_out_words[:num_scored]], s=14)
    ax.set(title=name, xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
figure.colorbar(points, ax=axes, label="letters")
figure.savefig(outputs / "words_latents.png", dpi=120)

# %% [markdown]
# From one word to another: the most probable letters along a straight line between a posterior draw of each. Where
# latents were cheap they hold the word itself, more or less; at the full price they hold its kind, and the decoder
# makes up the rest.

# %%
for name in ("latents at a tenth", "then ELBO"):
    print(f"{name}:")
    for start, stop in ((0, 1), (2, 3), (4, 5)):
        z = posteriors[name].latents["z"][[start, stop], 0]
        line = np.linspace(z[0], z[1], 7)
        steps_between = written(models[name].parts.generator.most_probable(jnp.asarray(line)))
        print(f"  ({held_out_words[start]})", *steps_between, f"({held_out_words[stop]})")

# %% [markdown]
# ## The table of scores
#
# Importance sampling from the encoder has draws enough here, and scores. Distances are between held-out and drawn words
# by how often the hundred most frequent pairs of letters are in them. The bits per dimension are bits a character.

# %%
pairs = train[:, :-1] * 27 + train[:, 1:]
frequent = np.argsort(-np.bincount(pairs[train[:, :-1] != end], minlength=27 * 27))[:100]


def letter_pairs(tokens):
    found = tokens[:, :-1] * 27 + tokens[:, 1:]
    return np.stack([np.bincount(row, minlength=27 * 27)[frequent] for row in found])


scorer = ImportanceSampling(500, guide=kaem.guide, guide_params=kaem.guide_params, progress=False)
print(kaem.evaluate(jax.random.key(9), held_out, scorer, num_scored=num_scored // 2, features=letter_pairs))
