"""From a handle to the picture in the explorer, for a model as the quickstart's: on the server, and in a browser.

Parameters are random in place of trained ones, which makes no difference to times. Printed are milliseconds of a
hundred moves. "On the server" is from the message of a handle to the picture that is sent. "In the browser" is from the
event of a slider to the picture on the page, which needs Chromium, its driver and Selenium.
"""

import shutil
import tempfile
import time

import jax
import numpy as np

from benchmarks.timing import print_rows
from numpyro_kaem import KAEM
from numpyro_kaem.reading.explorer import Explorer
from numpyro_kaem.reading.explorer_server import explore

NUM_MOVES = 100
# Moves of the first slider, one after the other: each begins when the picture of the last one is there.
MOVES = """
const done = arguments[1];
const all = (selector, root = document) => [
  ...root.querySelectorAll(selector),
  ...[...root.querySelectorAll("*")].flatMap(e => e.shadowRoot ? all(selector, e.shadowRoot) : []),
];
const slider = all("input.slider")[0], picture = all(".frame img")[0], times = [];
const move = number => {
  if (number === arguments[0]) { done(times); return; }
  const start = performance.now();
  picture.addEventListener("load", () => requestAnimationFrame(() => {
    times.push(performance.now() - start);
    setTimeout(() => move(number + 1), 20);
  }), { once: true });
  slider.value = 0.02 + 0.96 * ((number * 37) % 100) / 100;
  slider.dispatchEvent(new Event("input"));
};
move(0);
"""


def main() -> None:
    """Print a table of times."""
    from numpyro_kaem.reading.explorer_page import Page

    options = {"latent_size": 10, "likelihood": "bernoulli", "hidden_sizes": (300, 300)}
    kaem = KAEM.create(jax.random.key(0), (28, 28), prior="cluster", **options)
    start = time.perf_counter()
    page = Page(Explorer(kaem), "Benchmark")
    seconds = time.perf_counter() - start
    times = []
    for number in range(NUM_MOVES + 1):
        start = time.perf_counter()
        page._moved([[number % 10, 0.02 + 0.96 * (number * 37 % 100) / 100]])
        times.append(1e3 * (time.perf_counter() - start))
    rows = [("on the server", *_row(times[1:]))]
    if shutil.which("chromium") and shutil.which("chromedriver"):
        rows.append(("in the browser", *_row(_in_browser(kaem))))
    print_rows("From a handle of the explorer to the picture, ms", ("where", "median", "95 percent", "longest"), rows)
    print(f"\nBefore the page is there: {seconds:.1f} s, most of it compilation.")


def _in_browser(kaem: KAEM) -> list[float]:
    from selenium import webdriver

    server = explore(kaem, browser=False)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder:
        for option in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder}"):
            options.add_argument(option)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            driver.set_script_timeout(120)
            driver.get(server.url)
            time.sleep(5)
            driver.execute_async_script(MOVES, 10)
            return driver.execute_async_script(MOVES, NUM_MOVES)
        finally:
            driver.quit()
            server.stop()


def _row(times: list[float]) -> tuple[str, ...]:
    return tuple(f"{value:.1f}" for value in (np.median(times), np.quantile(times, 0.95), max(times)))


if __name__ == "__main__":
    main()
