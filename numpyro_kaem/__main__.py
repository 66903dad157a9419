"""Command line of the package.

`python -m numpyro_kaem info` prints what a report of a problem should say; `python -m numpyro_kaem explore digits.kaem`
serves a page about a model.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import numpyro_kaem
from numpyro_kaem.reading.explorer_server import ExplorerServer, explore

PACKAGES = ["jax", "jaxlib", "numpyro", "blackjax", "equinox", "optax", "orbax-checkpoint", "arviz", "numpy", "scipy"]


def info() -> str:
    """Versions, devices and precision, a line each."""
    lines = {
        "numpyro_kaem": numpyro_kaem.__version__,
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        **{package: _version(package) for package in PACKAGES},
        **_devices(),
        "float64": "on" if jnp.result_type(float) == jnp.float64 else "off",
    }
    width = max(map(len, lines)) + 1
    return "\n".join(f"{f'{name}:':<{width}} {value}" for name, value in lines.items())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    try:
        backend = jax.default_backend()
        counts = Counter(device.device_kind for device in jax.devices())
    except RuntimeError as error:
        # A platform that does not start may be the very problem that is reported.
        return {"backend": f"does not start: {' '.join(str(error).split())}"}
    return {"backend": backend, "devices": ", ".join(f"{count} x {kind}" for kind, count in counts.items())}


def serve(model: str, data: str | None, port: int, address: str, browser: bool) -> ExplorerServer:
    """The explorer of a model in a file, with data from another.

    Raises:
        ValueError: for files that are not what they should be, and what `explore` raises it for.
        OSError: for files that cannot be read, and a port that is in use.
        ImportError: without Panel.
    """
    try:
        kaem = numpyro_kaem.KAEM.load(model)
    except ValueError as error:
        if "not of this package: give it" not in str(error):
            raise
        raise ValueError(f"{str(error).rstrip('.')}..., in Python: explore(KAEM.load(...))") from error
    x = None
    if data is not None:
        try:
            x = np.load(data, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{data!r} is no array that numpy.save has written: {error}") from error
        if not isinstance(x, np.ndarray):
            raise ValueError(f"{data!r} has several arrays: write the one of the data, by numpy.save")
    title = f"{Path(model).name}: KAEM explorer"
    return explore(kaem, x=x, port=port, address=address, browser=browser, title=title)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; one that is not known ends in the usage and exit code 2, one that cannot be done in a message."""
    parser = argparse.ArgumentParser(prog="python -m numpyro_kaem")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print versions, devices and precision, to be pasted into an issue")
    about = "serve a page with handles on the coordinates of a model, and what its generator makes of them"
    page = commands.add_parser("explore", help=about)
    page.add_argument("model", help="a file that KAEM.save has written")
    page.add_argument("--data", metavar="FILE.npy", help="data to encode, one a row, as numpy.save writes them")
    page.add_argument("--port", type=int, default=0, help="at which the page is served; by default one that is free")
    page.add_argument(
        "--address", default="127.0.0.1", help="of a network interface; 0.0.0.0 for all (default: %(default)s)"
    )
    page.add_argument("--no-browser", action="store_true", help="do not open a browser")
    given = parser.parse_args(arguments)
    if given.command == "info":
        print(info())
        return
    try:
        server = serve(given.model, given.data, given.port, given.address, not given.no_browser)
    except (ImportError, OSError, ValueError) as error:
        print(f"{parser.prog} explore: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(f"{given.model} is at {server.url} (Ctrl-C ends it)", flush=True)
    server.wait()


if __name__ == "__main__":
    main()
