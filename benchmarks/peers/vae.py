"""Variational and importance-weighted autoencoders, with a normal prior.

D. Kingma and M. Welling, Auto-encoding variational Bayes, ICLR 2014; Y. Burda, R. Grosse and R. Salakhutdinov,
Importance weighted autoencoders, ICLR 2016.
"""

from numpyro.infer import RenyiELBO, TraceMeanField_ELBO

from benchmarks.peers.contestants import Contestant, make, normal, trials


def build(key, task, setting):
    """A normal prior with an encoder."""
    return make(key, task, normal(task), encoder=True)


VAE = Contestant("VAE", build, lambda setting: {TraceMeanField_ELBO(): 1.0}, trials(None, None))
# The number of draws of the bound is tuned.
IWAE = Contestant("IWAE", build, lambda setting: {RenyiELBO(num_particles=int(setting.own)): 1.0}, trials(5, 3))
