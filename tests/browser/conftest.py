"""Debian's Chromium without a window, started once, and pages of runs opened in it from the disk."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser.recordings import ROOT

NAMELESS = """
const named = (one) => one.labels?.length || one.getAttribute('aria-label') || one.textContent.trim();
const wanted = 'input, select, button, a, summary, svg[role=img], [tabindex]:not(tr)';
const unnamed = [...document.querySelectorAll(wanted)].filter((one) => !one.closest('[hidden]') && !named(one));
return unnamed.map((one) => one.outerHTML.slice(0, 200));
"""
"""What can be used or seen, and has no name for somebody who hears the page."""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chrome]:
    subprocess.run([ROOT / "tools" / "browser" / "install.sh"], check=True)
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService("/usr/bin/chromedriver"))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def opened(chromium: Chrome) -> Iterator[Callable[[Path], Chrome]]:
    """Opens a page and waits for its sections; at the end nothing may have been said in the console."""

    def go(page: Path) -> Chrome:
        chromium.get(page.absolute().as_uri())
        WebDriverWait(chromium, 30).until(lambda seen: seen.execute_script("return !!document.querySelector('nav a')"))
        return chromium

    chromium.get_log("browser")
    yield go
    said = chromium.get_log("browser")
    chromium.get("about:blank")
    assert said == []
