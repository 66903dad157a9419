"""NumPyro models as densities of one datum.

Each file imports from those above it and from earlier rooms only.

data: what callers pass as data, as arrays
staging: functions traced once and evaluated in part
structure: the sites, plates, masks and scales of a model
fingerprint: what is static of a model, and when that of two is the same program
rows: the model with its values, run on rows and read per row
dependence: what depends on what in a model, masks of latents included
self_check: two rows at once compared with each by itself
latent_model: `LatentModel`
pairwise: draws against data, as a matrix product where one is exact
"""

from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.models.pairwise import pairwise_log_likelihood

__all__ = ["LatentModel", "pairwise_log_likelihood"]
