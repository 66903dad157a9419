"""Kolmogorov-Arnold Energy Models in NumPyro: learned priors that are drawn exactly and can be read."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from numpyro_kaem import kernels
from numpyro_kaem._compilation.programs import clear_caches
from numpyro_kaem._numerics.quadrature import GaussLegendre, Trapezoid
from numpyro_kaem.distributions import (
    DeepKAPrior,
    DiscretizedLogistic,
    ICDFReparam,
    IntervalCensoredPrior,
    KAMixture,
    KAPrior,
    LeftCensoredPrior,
    LookupTable,
    RightCensoredPrior,
    TruncatedPrior,
    centered_prior,
)
from numpyro_kaem.energies import (
    RBF,
    RSWAF,
    Basis,
    BSpline,
    Chebyshev,
    Fourier,
    UnivariateEnergy,
    Wavelet,
    adapt_svi_grid,
    energy_module,
)
from numpyro_kaem.generators import (
    KAN,
    MLP,
    AutoregressiveCategorical,
    ConvDecoder,
    ConvEncoder,
    SequenceDecoder,
    SequenceEncoder,
)

# Not in __all__: NumPyro has kernels of these names, which a star-import would hide.
from numpyro_kaem.kernels import HMC as HMC
from numpyro_kaem.kernels import NUTS as NUTS
from numpyro_kaem.metrics import Distance, frechet_distance, kernel_distance
from numpyro_kaem.models import LatentModel, pairwise_log_likelihood
from numpyro_kaem.objectives import ImportanceMLE, LangevinMLE, Objective, ThermodynamicMLE, cyclic_schedule
from numpyro_kaem.posterior import (
    MALA,
    PCNL,
    ULA,
    Barker,
    EllipticalSlice,
    ImportanceSampling,
    Ladder,
    Langevin,
    LatentGaussian,
    ParallelTempering,
    Posterior,
    TemperedSMC,
    compare_evidence,
)

if TYPE_CHECKING:
    from numpyro_kaem.kaem import KAEM, ClusterPrior, DamagedFile, Evaluation, Score
    from numpyro_kaem.measurements import EmpiricalBayes, empirical_bayes
    from numpyro_kaem.reading import (
        Doubt,
        Effects,
        ExplorerServer,
        Formula,
        Interpolation,
        KANFormula,
        Traversal,
        effects,
        explore,
        formula,
        interpolate,
        modes,
        plot_densities,
        plot_effects,
        plot_evidence,
        plot_interpolation,
        plot_ladder,
        plot_reconstructions,
        plot_samples,
        plot_training,
        plot_traversals,
        report,
        traverse,
    )
    from numpyro_kaem.separation import ICA
    from numpyro_kaem.training import (
        Checkpointing,
        FitResult,
        GridAdaptation,
        HeldOut,
        IndexedBatch,
        TensorBoardLogger,
        TrainingFailed,
        fit,
    )

__version__ = "0.1.0"
__all__ = [
    "ICA",
    "KAEM",
    "KAN",
    "MALA",
    "MLP",
    "PCNL",
    "RBF",
    "RSWAF",
    "ULA",
    "AutoregressiveCategorical",
    "BSpline",
    "Barker",
    "Basis",
    "Chebyshev",
    "Checkpointing",
    "ClusterPrior",
    "ConvDecoder",
    "ConvEncoder",
    "DamagedFile",
    "DeepKAPrior",
    "DiscretizedLogistic",
    "Distance",
    "Doubt",
    "Effects",
    "EllipticalSlice",
    "EmpiricalBayes",
    "Evaluation",
    "ExplorerServer",
    "FitResult",
    "Formula",
    "Fourier",
    "GaussLegendre",
    "GridAdaptation",
    "HeldOut",
    "ICDFReparam",
    "ImportanceMLE",
    "ImportanceSampling",
    "IndexedBatch",
    "Interpolation",
    "IntervalCensoredPrior",
    "KAMixture",
    "KANFormula",
    "KAPrior",
    "Ladder",
    "Langevin",
    "LangevinMLE",
    "LatentGaussian",
    "LatentModel",
    "LeftCensoredPrior",
    "LookupTable",
    "Objective",
    "ParallelTempering",
    "Posterior",
    "RightCensoredPrior",
    "Score",
    "SequenceDecoder",
    "SequenceEncoder",
    "TemperedSMC",
    "TensorBoardLogger",
    "ThermodynamicMLE",
    "TrainingFailed",
    "Trapezoid",
    "Traversal",
    "TruncatedPrior",
    "UnivariateEnergy",
    "Wavelet",
    "adapt_svi_grid",
    "centered_prior",
    "clear_caches",
    "compare_evidence",
    "cyclic_schedule",
    "effects",
    "empirical_bayes",
    "energy_module",
    "explore",
    "fit",
    "formula",
    "frechet_distance",
    "interpolate",
    "kernel_distance",
    "kernels",
    "modes",
    "pairwise_log_likelihood",
    "plot_densities",
    "plot_effects",
    "plot_evidence",
    "plot_interpolation",
    "plot_ladder",
    "plot_reconstructions",
    "plot_samples",
    "plot_training",
    "plot_traversals",
    "report",
    "traverse",
]

# Rooms that are imported when a name of theirs is asked for: they train, keep and read what the others make, and take
# as long to import. Names are looked for in this order.
_LATER = ["training", "reading", "kaem", "measurements", "separation"]

# ICA stands on scikit-learn, which is optional: a star-import asks for it only where it can be had.
if importlib.util.find_spec("sklearn") is None:
    __all__.remove("ICA")


def __getattr__(name: str) -> Any:
    """Import what is not imported with the package: a later room, or the one that has this name."""
    if name in _LATER:
        return importlib.import_module(f"{__name__}.{name}")
    for room in _LATER if name in {*__all__, "ICA"} else []:
        module = importlib.import_module(f"{__name__}.{room}")
        if name in module.__all__:
            globals()[name] = getattr(module, name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All names, those that are imported when they are asked for among them."""
    return sorted({*globals(), *__all__})
