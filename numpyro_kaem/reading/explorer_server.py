"""`explore`: a page in a notebook, or served to the browsers of this machine."""

from __future__ import annotations

import asyncio
import errno
import queue
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from typing import Any

from jaxtyping import PRNGKeyArray

from numpyro_kaem.checks import check_count
from numpyro_kaem.reading.explorer import Explorer

_ANY = ("0.0.0.0", "::")


class ExplorerServer:
    """A page that is served by a thread of this process, until it is stopped or the process ends.

    Attributes:
        url: where it is.
        port: of it.
    """

    def __init__(self, make_page: Callable[[], Any], port: int, address: str, title: str):
        started: queue.Queue = queue.Queue()
        self._thread = threading.Thread(
            target=_serve, args=(make_page, port, address, title, started), name="explorer", daemon=True
        )
        self._thread.start()
        self._server = started.get()
        if isinstance(self._server, BaseException):
            raise self._server
        self.port = self._server.port
        host = "localhost" if address in _ANY else address
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def wait(self) -> None:
        """Return when the page is stopped. Ctrl-C stops it: call this at the end of a script."""
        try:
            while self._thread.is_alive():
                self._thread.join(0.2)
        except KeyboardInterrupt:
            self.stop()

    def stop(self) -> None:
        """End the page."""
        if self._thread.is_alive():
            self._server.io_loop.add_callback(self._server.io_loop.stop)
            self._thread.join()

    def __repr__(self) -> str:
        return f"ExplorerServer({self.url}{'' if self._thread.is_alive() else ', stopped'})"


def explore(
    kaem: Any,
    *,
    x: Any = None,
    key: PRNGKeyArray | None = None,
    port: int = 0,
    address: str = "127.0.0.1",
    show: bool = True,
    browser: bool = True,
    display: Callable | None = None,
    title: str = "KAEM explorer",
) -> Any:
    """A page to play with: handles on the quantiles of all coordinates, and live what the generator makes of them.

    In a notebook the page is what a cell shows. Elsewhere a thread of this process serves it to the browsers of this
    machine, and asks nothing of any other server:

    - Every coordinate has its learned density, with its reference in grey, and a handle. A `ClusterPrior` is read one
      cluster at a time.
    - Buttons draw one or all coordinates anew, and compute the effects of all: the page then begins with the greatest.
    - A datum of `x` is encoded, by a draw from its posterior, and becomes another one along the distribution functions.
    - The latent is saved as JSON, or as an array of NumPy.

    Args:
        kaem: a trained `KAEM`.
        x: data to encode, held-out ones for example, one datum a row; None for none.
        key: JAX random key of effects and posteriors; None for `jax.random.key(0)`.
        port: at which the page is served; 0 for any that is free.
        address: of the network interface. With "0.0.0.0" all who reach this machine see the page.
        show: False for the page as a Panel object, which is not served: for applications that are made of it.
        browser: whether to open one.
        display: from what the generator makes, an array, to what is shown instead: an array or a text. Two axes, and
            three with channels, are shown as a picture, categories in a row as a text, other numbers as a line.
        title: of the page.

    Returns:
        An `ExplorerServer`, with `url`, `stop()` and `wait()`; in a notebook, and with show=False, a Panel object.

    Raises:
        ImportError: without Panel: `pip install 'numpyro_kaem[explorer]'`.
        TypeError: for what is no KAEM, and no key.
        ValueError: for a prior whose coordinates depend on each other, data of another shape, a port out of range.
        OSError: for a port that is in use, and an address that is not of this machine.

    Example:
        ```python
        import jax
        from numpyro_kaem import KAEM, explore

        kaem = KAEM.create(jax.random.key(0), (8, 8), latent_size=3, likelihood="bernoulli", hidden_sizes=(16,))
        page = explore(kaem.at(kaem.params), browser=False)
        assert page.url.startswith("http://127.0.0.1:")
        page.stop()
        ```
    """
    try:
        from numpyro_kaem.reading.explorer_page import Page
    except ImportError as error:
        raise ImportError(f"explore needs Panel ({error}): pip install 'numpyro_kaem[explorer]'") from error
    if check_count("port", port, 0) > 65_535:
        raise ValueError(f"port must be at most 65535, got {port}")
    is_served = show and not _is_notebook()
    if is_served:
        _check_port(port, address)
    explorer = Explorer(kaem, x, key, display)
    explorer.warm_up()
    if not is_served:
        import panel

        panel.extension()
        return Page(explorer, title).view()
    server = ExplorerServer(lambda: Page(explorer, title).view(), port, address, title)
    if browser:
        webbrowser.open(server.url)
    return server


def _serve(make_page: Callable[[], Any], port: int, address: str, title: str, started: queue.Queue) -> None:
    """Serve a page in a loop of events of this thread."""
    from panel.io.server import get_server

    asyncio.set_event_loop(asyncio.new_event_loop())
    try:
        # Of pages from other places none may talk to it, unless whoever reaches the machine is meant to.
        origin = "*" if address in _ANY else None
        server = get_server({"/": make_page}, port=port, address=address, title=title, websocket_origin=origin)
        server.start()
    except OSError as error:
        started.put(_explained(error, port, address))
        return
    except BaseException as error:
        started.put(error)
        return
    started.put(server)
    server.io_loop.start()
    server.stop()


def _check_port(port: int, address: str) -> None:
    """Raise the error of a port that cannot be had, before anything is compiled."""
    try:
        family, *_, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise _explained(error, port, address) from error


def _explained(error: OSError, port: int, address: str) -> OSError:
    if error.errno == errno.EADDRINUSE:
        text = f"port {port} of {address} is in use: give another one, or port=0 for any that is free"
    elif error.errno in (errno.EACCES, errno.EPERM):
        text = f"port {port} of {address} is not allowed to this user: give one above 1023, or port=0"
    else:
        text = f"a page cannot be served at address {address!r}, port {port}: {error.strerror or error}"
    return OSError(error.errno, text)


def _is_notebook() -> bool:
    """Whether the code runs in a kernel of Jupyter."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return bool(shell) and hasattr(shell, "kernel")
