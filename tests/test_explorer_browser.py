"""The explorer's page in a browser: handles, keys, buttons; nothing wrong in the console, nothing from elsewhere."""

import json
import shutil
import time
from urllib.parse import urlparse

import jax
import numpy as np
import pytest

from numpyro_kaem import KAEM, BSpline
from numpyro_kaem.reading.explorer_server import explore

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OPTIONS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --window-size=1280,1000"""
# Parts of the page lie in shadow trees. Of all that a selector finds in any of them:
FIND = """
const found = [];
const look = root => {
  found.push(...root.querySelectorAll(arguments[0]));
  for (const element of root.querySelectorAll("*")) if (element.shadowRoot) look(element.shadowRoot);
};
look(document);
return found;
"""
# The innermost element that has the focus.
FOCUS = (
    "let e = document.activeElement; while (e.shadowRoot && e.shadowRoot.activeElement) e = e.shadowRoot.activeElement;"
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("panel")
    options = {"latent_size": 2, "hidden_sizes": (), "num_components": 3, "basis": BSpline(4, 3, (-3.0, 3.0))}
    kaem = KAEM.create(jax.random.key(1), (4, 5), likelihood="bernoulli", prior="cluster", encoder=True, **options)
    server = explore(kaem, x=np.random.default_rng(0).random((4, 4, 5)) < 0.5, browser=False)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def driver(server, tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in [*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def logs(driver):
    """Lines of the console, and addresses that were asked for, so far: reading empties the browser's own."""
    return {"console": [], "requests": []}


@pytest.fixture
def page(server, driver, logs):
    """The page, opened anew, with its cards."""
    read(driver, logs)
    logs["requests"].clear()  # of the browser's own first page
    driver.get(server.url)
    wait_for(lambda: len(find(driver, ".card")) == 2)
    yield driver
    read(driver, logs)


def read(driver, logs):
    logs["console"] += driver.get_log("browser")
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            logs["requests"].append(message["params"]["request"]["url"])
        elif message["method"] == "Network.webSocketCreated":
            logs["requests"].append(message["params"]["url"])


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "the page did not change"
        time.sleep(0.05)
    return value


def find(driver, selector):
    return driver.execute_script(FIND, selector)


def read_all(driver, selector, what):
    """At one moment: elements that were found may be gone a moment later."""
    return driver.execute_script(FIND.replace("return found", f"return found.map(e => e.{what})"), selector)


def texts(driver, selector):
    return read_all(driver, selector, "innerText")


def button(driver, name):
    return next(element for element in find(driver, "button") if element.text == name)


def pixels(driver):
    """What is to be seen where the picture is."""
    return find(driver, ".frame.image")[0].screenshot_as_png


def numbers(driver):
    return texts(driver, ".numbers")


def drag(driver, element, offset):
    from selenium.webdriver import ActionChains

    ActionChains(driver).click_and_hold(element).move_by_offset(offset, 0).release().perform()


def test_a_handle_that_is_dragged_changes_the_picture(page):
    pixels_before, numbers_before = pixels(page), numbers(page)
    drag(page, find(page, ".knob")[0], 60)
    wait_for(lambda: pixels(page) != pixels_before)
    after = numbers(page)
    assert after[0] != numbers_before[0] and after[1] == numbers_before[1]
    assert float(after[0].split()[-1]) > 0.6


def test_a_slider_is_reached_and_moved_by_keys(page):
    from selenium.webdriver import ActionChains, Keys

    before = pixels(page)
    for _ in range(40):
        ActionChains(page).send_keys(Keys.TAB).perform()
        label = page.execute_script(f"{FOCUS} return e.getAttribute('aria-label')")
        if label == "z[0], probability below":
            break
    assert label == "z[0], probability below"
    ActionChains(page).send_keys(*[Keys.ARROW_RIGHT] * 10).perform()
    wait_for(lambda: pixels(page) != before)
    assert page.execute_script(f"{FOCUS} return e.getAttribute('aria-valuetext')").endswith("quantile 0.600")
    ActionChains(page).send_keys(Keys.END).perform()
    wait_for(lambda: numbers(page)[0].endswith("0.999"))


def test_everything_that_takes_the_focus_has_a_name(page):
    for element in find(page, "button, input, select"):
        if element.is_displayed():
            assert element.accessible_name, element.get_attribute("outerHTML")


def test_coordinates_are_drawn_anew_one_or_all(page):
    before, picture = numbers(page), pixels(page)
    find(page, ".again")[1].click()
    one = wait_for(lambda: (now := numbers(page)) != before and now)
    assert one[0] == before[0]
    button(page, "Resample all").click()
    wait_for(lambda: all(a != b for a, b in zip(numbers(page), one, strict=True)))
    wait_for(lambda: pixels(page) != picture)


def test_another_cluster_has_other_densities_and_another_picture(page):
    from selenium.webdriver.support.ui import Select

    curves, before = read_all(page, ".learned", "getAttribute('d')"), pixels(page)
    select = Select(next(e for e in find(page, "select") if "Cluster" in e.text))
    other = next(option.text for option in select.options if not option.is_selected())
    select.select_by_visible_text(other)
    wait_for(lambda: read_all(page, ".learned", "getAttribute('d')") != curves)
    wait_for(lambda: pixels(page) != before)


@pytest.mark.slow
def test_data_are_encoded_and_morphed_and_effects_have_maps(page):
    before = numbers(page)
    button(page, "Encode a").click()
    wait_for(lambda: any("Datum 0 by importance sampling" in text for text in texts(page, "[role=status]")))
    at_a = wait_for(lambda: (now := numbers(page)) != before and now)
    button(page, "Encode b").click()
    slider = wait_for(lambda: [e for e in find(page, ".named .slider") if e.is_enabled()])[0]
    wait_for(lambda: numbers(page) != at_a)
    at_b = numbers(page)
    drag(page, slider, 1)  # a press in the middle takes it there
    wait_for(lambda: numbers(page) not in (at_a, at_b))
    button(page, "Compute effects").click()
    wait_for(lambda: len(find(page, "img.map")) == 2)
    assert all(text.startswith("effect ") for text in texts(page, ".effect"))


def test_nothing_was_wrong_in_the_console_and_nothing_came_from_elsewhere(page, server, logs):
    read(page, logs)
    assert [entry for entry in logs["console"] if entry["level"] == "SEVERE"] == []
    hosts = {urlparse(url).netloc for url in logs["requests"] if urlparse(url).scheme in ("http", "https", "ws", "wss")}
    assert hosts == {f"127.0.0.1:{server.port}"}
