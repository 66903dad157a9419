"""The package as a whole: its names, what importing it does and costs, and which way its modules depend."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpyro
import pytest

import numpyro_kaem

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "numpyro_kaem"

PUBLIC_NAMES = [
    "AutoregressiveCategorical",
    "BSpline",
    "Barker",
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
    "HeldOut",
    "ICA",
    "ICDFReparam",
    "ImportanceMLE",
    "ImportanceSampling",
    "Interpolation",
    "IntervalCensoredPrior",
    "KAEM",
    "KAMixture",
    "KAN",
    "KANFormula",
    "KAPrior",
    "Ladder",
    "Langevin",
    "LatentGaussian",
    "LatentModel",
    "LeftCensoredPrior",
    "LookupTable",
    "MALA",
    "MLP",
    "PCNL",
    "ParallelTempering",
    "Posterior",
    "RBF",
    "RSWAF",
    "RightCensoredPrior",
    "Score",
    "SequenceDecoder",
    "SequenceEncoder",
    "TemperedSMC",
    "Trapezoid",
    "Traversal",
    "TruncatedPrior",
    "ULA",
    "UnivariateEnergy",
    "Wavelet",
    "adapt_svi_grid",
    "centered_prior",
    "compare_evidence",
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

# Each room may import from those before it, never from those after it. The order of the files of a room is that of
# the docstring of its __init__.py. checks.py is before all, and all are before the package's own __init__.py
# and __main__.py.
ROOMS = [
    "checks",
    "_numerics",
    "_compilation",
    "energies",
    "_densities",
    "_fitting",
    "distributions",
    "measurements",
    "generators",
    "models",
    "_checkpoints",
    "posterior",
    "kernels",
    "objectives",
    "training",
    "metrics",
    "separation",
    "reading",
    "kaem",
]


def run_python(code):
    """Run code in a fresh interpreter and return what it prints."""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def imported_modules(path):
    """Return the dotted names of all that a source file imports when it runs, at its top or later."""
    package = path.parent.relative_to(ROOT).parts
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def is_package(name):
    """Tell whether a dotted name is of this package or below it."""
    return name.split(".")[0] == "numpyro_kaem"


def sources(room):
    """Return the source files of a room: one module, or all of a folder."""
    path = PACKAGE / f"{room}.py"
    return [path] if path.exists() else sorted((PACKAGE / room).glob("*.py"))


def files_in_order(room):
    """Return the names of a room's files, from its docstring, and last its __init__."""
    if (PACKAGE / f"{room}.py").exists():
        return [room]
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    return [f"{room}.{name}" for name in re.findall(r"^(\w+): ", docstring, re.MULTILINE)] + [room]


ORDER = [name for room in ROOMS for name in files_in_order(room)]


def file_of(name):
    """Return the file, as in ORDER, in which a dotted name below the package lies."""
    parts = name.split(".")[1:]
    return next(".".join(parts[:end]) for end in (2, 1) if ".".join(parts[:end]) in ORDER)


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_public_name_is_importable_and_listed(name):
    assert name in numpyro_kaem.__all__
    assert getattr(numpyro_kaem, name).__doc__


def test_all_lists_no_name_that_does_not_exist():
    assert [name for name in numpyro_kaem.__all__ if not hasattr(numpyro_kaem, name)] == []


@pytest.mark.parametrize("module", [numpyro, numpyro.infer, numpyro.distributions])
def test_a_star_import_hides_no_name_of_numpyro(module):
    assert set(numpyro_kaem.__all__) & set(module.__all__) == set()


def test_a_star_import_leaves_numpyro_its_kernels():
    namespace = {}
    exec("from numpyro.infer import *\nfrom numpyro_kaem import *", namespace)
    assert namespace["NUTS"] is numpyro.infer.NUTS
    assert namespace["HMC"] is numpyro.infer.HMC
    assert namespace["kernels"] is numpyro_kaem.kernels


@pytest.mark.parametrize("name", numpyro_kaem.kernels.__all__)
def test_kernels_have_one_namespace_and_the_old_names(name):
    kernel = getattr(numpyro_kaem.kernels, name)
    assert issubclass(kernel, numpyro_kaem.posterior.Kernel)
    assert kernel is getattr(numpyro_kaem, name) is getattr(numpyro_kaem.posterior, name)


def test_version_is_the_one_of_pyproject_citation_and_changelog():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert numpyro_kaem.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_import_leaves_jax_configuration_alone():
    code = """
import jax
before = dict(jax.config.values)
import numpyro
between = dict(jax.config.values)
import numpyro_kaem
after = dict(jax.config.values)
print(sorted(name for name in after if after[name] != between.get(name, after[name])))
"""
    assert run_python(code) == "[]"


def test_import_starts_no_jax_backend():
    # A backend that starts on import comes too early for numpyro.set_host_device_count and jax.distributed.
    code = "import numpyro_kaem, jax; print(jax._src.xla_bridge.backends_are_initialized())"
    assert run_python(code) == "False"


HEAVY = ["arviz", "orbax", "matplotlib", "sklearn", "sympy", "xarray", "flax", "jinja2", "panel", "bokeh"]


@pytest.mark.parametrize("heavy", HEAVY)
def test_import_does_not_load(heavy):
    later = [name for name in numpyro_kaem.__all__ if name != "ICA"]
    assert (
        run_python(f"import sys; from numpyro_kaem import {', '.join(later)}; print('{heavy}' in sys.modules)")
        == "False"
    )


def test_rooms_that_train_and_read_are_imported_when_they_are_asked_for():
    code = """
import sys, numpyro_kaem
loaded = lambda: [room for room in numpyro_kaem._LATER if f"numpyro_kaem.{room}" in sys.modules]
print(loaded(), "optax" in sys.modules)
print(numpyro_kaem.fit is numpyro_kaem.training.fit, loaded())
print(hasattr(numpyro_kaem, "no_such_name"), loaded())
from numpyro_kaem import KAEM
print(KAEM is numpyro_kaem.kaem.KAEM, "separation" in loaded())
"""
    assert run_python(code).splitlines() == ["[] False", "True ['training']", "False ['training']", "True False"]


@pytest.mark.slow
def test_import_costs_under_a_second_beyond_numpyro():
    code = """
import time
import numpyro
start = time.perf_counter()
import numpyro_kaem
print(time.perf_counter() - start)
"""
    assert min(float(run_python(code)) for _ in range(3)) < 1.0


def test_every_file_has_a_place():
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    names = {".".join(path.parts).removesuffix(".__init__") for path in paths}
    assert names == {"__init__", "__main__", *ORDER}
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("name", ORDER)
def test_files_depend_in_one_direction(name):
    path = PACKAGE / f"{name.replace('.', '/')}.py"
    path = path if path.exists() else path.with_suffix("") / "__init__.py"
    imported = [file_of(other) for other in imported_modules(path) if is_package(other)]
    assert [other for other in imported if ORDER.index(other) >= ORDER.index(name)] == []


def knowing(module, rooms=ROOMS):
    """Return the files of rooms that import a module whose name begins so."""
    paths = [path for room in rooms for path in sources(room)]
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in paths
        if any(name.startswith(module) for name in imported_modules(path))
    }


def test_generators_know_only_energies():
    names = {
        name.split(".")[1] for path in sources("generators") for name in imported_modules(path) if is_package(name)
    }
    assert names <= {"checks", "energies", "generators"}


def test_nothing_below_models_knows_numpyro_s_handlers():
    assert knowing("numpyro.handlers", ROOMS[: ROOMS.index("models")]) == set()
    assert knowing("numpyro.handlers") != set()


def test_nothing_below_posterior_knows_blackjax():
    assert knowing("blackjax", ROOMS[: ROOMS.index("posterior")]) == set()
    assert knowing("blackjax") != set()


def test_one_file_knows_arviz():
    assert knowing("arviz") == {"posterior/arviz.py"}


def test_installed_metadata_asks_for_every_third_party_import():
    try:
        requires = importlib.metadata.requires("numpyro_kaem")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("numpyro_kaem is on the path but not installed")
    runtime = {r.split(">")[0].strip().lower() for r in requires if "extra ==" not in r}
    runtime |= {"orbax"} if "orbax-checkpoint" in runtime else set()
    used = {name.split(".")[0] for path in PACKAGE.rglob("*.py") for name in imported_modules(path)}
    parts_of_arviz = {"arviz_stats", "pandas", "xarray"}
    optional = {
        "clu",
        "flatbuffers",
        "flax",
        "jinja2",
        "matplotlib",
        "panel",
        "param",
        "sklearn",
        "sympy",
        "tensorboardX",
    }
    assert used - set(sys.stdlib_module_names) - {"numpyro_kaem"} - parts_of_arviz - optional <= runtime
