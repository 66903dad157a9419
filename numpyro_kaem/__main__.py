"""Command line of the package: `python -m numpyro_kaem info` prints what a report of a problem should say."""

from __future__ import annotations

import argparse
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import jax
import jax.numpy as jnp

import numpyro_kaem

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; one that is not known ends in the usage and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m numpyro_kaem")
    about = "print versions, devices and precision, to be pasted into an issue"
    parser.add_argument("command", choices=["info"], help=about)
    parser.parse_args(arguments)
    print(info())


if __name__ == "__main__":
    main()
