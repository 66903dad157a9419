"""KAEM: its priors, and the ways in which it is trained."""

from numpyro.infer import Trace_ELBO

from benchmarks.peers.contestants import Contestant, make, trials
from numpyro_kaem import BSpline, ImportanceMLE, Ladder, LangevinMLE, ThermodynamicMLE

# A cluster is a density of few data: it has few knots, which are a third of the cost of those of KAEM.create.
CLUSTERS = {"num_components": 20, "basis": BSpline(8, 3, (-3.0, 3.0))}


def _build(prior: str, encoder: bool):
    options = CLUSTERS if prior == "cluster" else {}
    return lambda key, task, setting: make(key, task, prior, encoder=encoder, **options)


def _importance(setting):
    return {ImportanceMLE(int(setting.own)): 1.0}


def _from_the_prior(setting):
    return {LangevinMLE(num_steps=int(setting.own), persistent=False, start="prior"): 1.0}


def _persistent(setting):
    return {LangevinMLE(num_steps=int(setting.own), persistent=True): 1.0}


def _from_an_encoder(setting):
    return {LangevinMLE(num_steps=int(setting.own), start="guide"): 1.0}


def _thermodynamic(setting):
    return {ThermodynamicMLE(Ladder.power(int(setting.own)), num_steps=3): 1.0}


def _amortised(setting):
    return {Trace_ELBO(): 1.0}


def _finished_by_chains(setting):
    """A bound until the encoder is good, and then chains that start from it."""
    return {Trace_ELBO(): 1.0 - setting.own, LangevinMLE(num_steps=1, start="guide", num_draws=5): setting.own}


def _contestant(name, prior, encoder, objectives, *own):
    return Contestant(f"KAEM {prior}, {name}", _build(prior, encoder), objectives, trials(*own), is_ours=True)


DRAWS, STEPS = (1_000, 300), (10, 20)
KAEMS = (
    _contestant("importance", "independent", False, _importance, *DRAWS),
    _contestant("importance", "mixture", False, _importance, *DRAWS),
    _contestant("importance", "cluster", False, _importance, *DRAWS),
    _contestant("Langevin from the prior", "independent", False, _from_the_prior, *STEPS),
    _contestant("persistent Langevin", "independent", False, _persistent, 5, 10),
    _contestant("Langevin from an encoder", "independent", True, _from_an_encoder, 2, 5),
    _contestant("thermodynamic", "independent", False, _thermodynamic, 4, 6),
    _contestant("amortised", "independent", True, _amortised, None, None),
    _contestant("amortised", "mixture", True, _amortised, None, None),
    _contestant("amortised", "cluster", True, _amortised, None, None),
    _contestant("amortised, then Langevin", "cluster", True, _finished_by_chains, 0.3, 0.5),
)
