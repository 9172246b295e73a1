"""Headless Chromium for tests of pages, driven by Selenium with the installed chromedriver."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

BINARY, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


class Browser(webdriver.Chrome):
    """Chromium with the questions that tests ask. Selenium looks for nothing on the network."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(BINARY)
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("no_proxy", "localhost")  # where chromedriver listens
            super().__init__(options, webdriver.ChromeService(DRIVER))

    def resize(self, width: int, height: int = 800) -> None:
        """Set the size of the page, which may be narrower than the narrowest window."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        return self.execute_script(f"return {expression}")

    def press(self, key: str) -> None:
        """Press a key on whatever has the focus."""
        ActionChains(self).send_keys(key).perform()

    def click(self, css: str) -> None:
        """Click on an element."""
        self.find_element(By.CSS_SELECTOR, css).click()

    def type(self, css: str, text: str) -> None:
        """Type text into an element; for a file input, choose the file of that path."""
        self.find_element(By.CSS_SELECTOR, css).send_keys(text)

    def wait_for_text(self, css: str, words: str) -> str:
        """Wait until an element's text contains some words, and return the text."""

        def text(_: webdriver.Chrome) -> str | None:
            found = self.find_element(By.CSS_SELECTOR, css).text
            return found if words in found else None

        return WebDriverWait(self, 60).until(text, f"no {words!r} in {css}")

    def console(self) -> list[str]:
        """Return the console's new messages, such as errors and violations of the page's policy."""
        return [entry["message"] for entry in self.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the URLs that pages have requested since the last call, except data: URLs."""
        events: list[Any] = [
            json.loads(e["message"])["message"] for e in self.get_log("performance")
        ]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [e["request"]["url"] for e in sent if not e["request"]["url"].startswith("data:")]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One Chromium for all tests of a process; they take `browser`."""
    if not (BINARY and DRIVER):
        pytest.skip("needs chromium and chromedriver: apt-get install chromium-driver")
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """A new tab, with the logs empty."""
    first = chromium.current_window_handle
    chromium.switch_to.new_window("tab")
    chromium.console(), chromium.requests()
    yield chromium
    chromium.close()
    chromium.switch_to.window(first)
