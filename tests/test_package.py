"""The package as a whole: its names, what importing it does and costs, and which way its modules depend."""

import ast
import importlib.metadata
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
    "BSpline",
    "Barker",
    "Chebyshev",
    "DeepKAPrior",
    "EllipticalSlice",
    "FitResult",
    "Fourier",
    "GaussLegendre",
    "ICDFReparam",
    "ImportanceMLE",
    "ImportanceSampling",
    "IntervalCensoredPrior",
    "KAMixture",
    "KAN",
    "KAPrior",
    "Ladder",
    "Langevin",
    "LatentGaussian",
    "LatentModel",
    "LeftCensoredPrior",
    "MALA",
    "MLP",
    "PCNL",
    "ParallelTempering",
    "Posterior",
    "RBF",
    "RSWAF",
    "RightCensoredPrior",
    "TemperedSMC",
    "Trapezoid",
    "TruncatedPrior",
    "ULA",
    "UnivariateEnergy",
    "Wavelet",
    "adapt_svi_grid",
    "compare_evidence",
    "energy_module",
    "fit",
    "kernels",
    "pairwise_log_likelihood",
]

# Each module may import from those before it, never from those after it. The generators build on the energies
# alone, and arviz.py converts what the posterior samplers return.
ASIDE = ["arviz", "generators"]
LAYERS = [
    "checks",
    "compiler_options",
    "fingerprint",
    "given_data",
    "interrupts",
    "rounding",
    "grids",
    "entry_points",
    "bases",
    "grid_adaptation",
    "energies",
    "quadrature",
    "cut_panels",
    "cdf_table",
    "inverse_transform",
    "distributions",
    "energy_module",
    "convolutions",
    "staging",
    "programs",
    "model_structure",
    "model_fingerprint",
    "scans",
    "row_program",
    "self_check",
    "latent_model",
    "pairwise",
    "sharded_inputs",
    "checkpoint_arrays",
    "checkpoint_manifest",
    "checkpoints",
    "posterior",
    "kernels",
    "objectives",
    "training",
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


def sources(layer):
    """Return the source files of a layer: one module, or all of a subpackage."""
    path = PACKAGE / f"{layer}.py"
    return [path] if path.exists() else sorted((PACKAGE / layer).glob("*.py"))


def is_module(name):
    """Tell whether a dotted name begins with a module of the package, below the root."""
    first = name.split(".")[1:2]
    return bool(first) and bool(sources(first[0]))


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


@pytest.mark.parametrize("heavy", ["arviz", "orbax", "matplotlib", "sklearn", "xarray", "flax"])
def test_import_does_not_load(heavy):
    assert run_python(f"import sys, numpyro_kaem; print('{heavy}' in sys.modules)") == "False"


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


def test_every_module_has_a_place():
    modules = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert modules == {"__init__", *LAYERS, *ASIDE}


@pytest.mark.parametrize("layer", LAYERS)
def test_modules_depend_in_one_direction(layer):
    later = LAYERS[LAYERS.index(layer) + 1 :]
    paths = sources(layer)
    assert paths, f"no module numpyro_kaem/{layer}"
    wrong = {
        (path.name, name)
        for path in paths
        for name in imported_modules(path)
        if name.split(".")[0] == "numpyro_kaem" and set(name.split(".")[1:2]) & set(later)
    }
    assert wrong == set()


def test_no_module_imports_from_the_package_root():
    # The root imports everything, so an import from it would point both ways.
    wrong = [
        (path.name, name)
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
        for name in imported_modules(path)
        if name.split(".")[0] == "numpyro_kaem" and not is_module(name)
    ]
    assert wrong == []


def test_generators_know_only_bases_and_energies():
    wrong = [
        (path.name, name)
        for path in sources("generators")
        for name in imported_modules(path)
        if name.split(".")[0] == "numpyro_kaem"
        and name.split(".")[1] not in {"checks", "bases", "energies", "generators"}
    ]
    assert wrong == []


def test_nothing_below_the_seam_knows_numpyro_handlers():
    below = LAYERS[: LAYERS.index("staging")]
    paths = [path for layer in below for path in sources(layer)]
    wrong = [(p.name, n) for p in paths for n in imported_modules(p) if n.startswith("numpyro.handlers")]
    assert wrong == []


def test_nothing_below_posterior_knows_blackjax():
    below = LAYERS[: LAYERS.index("posterior")]
    paths = [path for layer in below for path in sources(layer)]
    wrong = [(p.name, n) for p in paths for n in imported_modules(p) if n.split(".")[0] == "blackjax"]
    assert wrong == []


def test_only_arviz_py_imports_arviz():
    knows = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0].startswith("arviz") for name in imported_modules(path))
    }
    assert knows == {"arviz.py"}


def test_installed_metadata_asks_for_every_third_party_import():
    try:
        requires = importlib.metadata.requires("numpyro_kaem")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("numpyro_kaem is on the path but not installed")
    runtime = {r.split(">")[0].strip().lower() for r in requires if "extra ==" not in r}
    runtime |= {"orbax"} if "orbax-checkpoint" in runtime else set()
    used = {name.split(".")[0] for path in PACKAGE.rglob("*.py") for name in imported_modules(path)}
    parts_of_arviz, optional = {"arviz_stats", "pandas", "xarray"}, {"clu", "sklearn", "tensorboardX"}
    assert used - set(sys.stdlib_module_names) - {"numpyro_kaem"} - parts_of_arviz - optional <= runtime
