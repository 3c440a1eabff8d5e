"""Runs in a real browser while they grow: the list, curves, logs and completions of `grpo-hpc view`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from grpo_hpc.observe.completions import CompletionLog, member
from grpo_hpc.observe.events import EventLog
from grpo_hpc.observe.sinks import MetricSinks
from grpo_hpc.runs.run_dir import RunDir
from tests.browser.conftest import NAMELESS
from tests.browser.recordings import completions_of, metrics_of, record, row


@pytest.fixture
def runs(tmp_path: Path) -> list[RunDir]:
    odd = record(tmp_path, "other", steps=20, rate=0.2).path.rename(tmp_path / "an&other <b>")
    found = [record(tmp_path, "one", steps=20), RunDir(odd)]
    for run in found:
        (run.path / "attempt_1" / "rank_0.log").write_text("the first line\n")
    return found


@contextmanager
def viewing(folder: Path) -> Iterator[str]:
    """Where the command shows ``folder``."""
    command = [sys.executable, "-u", "-m", "grpo_hpc.cli", "view", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
        assert "ssh -N -L" in server.stdout.read()


@pytest.fixture
def address(tmp_path: Path, runs: list[RunDir]) -> Iterator[str]:
    with viewing(tmp_path) as found:
        yield found


def wait(driver: Chrome, condition: str) -> None:
    WebDriverWait(driver, 30).until(lambda seen: seen.execute_script(f"return {condition}"), condition)


def text_of(driver: Chrome, selector: str) -> str:
    return driver.execute_script("return document.querySelector(arguments[0])?.textContent", selector)


def test_a_run_grows_while_it_is_looked_at(runs: list[RunDir], address: str, chromium: Chrome) -> None:
    chromium.get_log("browser")
    chromium.get(address)
    wait(chromium, "document.querySelectorAll('tbody tr').length === 2")
    assert "20 of" in text_of(chromium, "tbody tr:last-child")
    assert chromium.execute_script(NAMELESS) == []
    chromium.find_element(By.LINK_TEXT, "one").click()
    wait(chromium, "document.querySelectorAll('.card').length === 8")
    wait(chromium, "document.querySelector('.log').textContent === 'the first line'")
    readout = '[data-metric="completions/mean_length"] .readout'
    wait(chromium, f"document.querySelector('{readout}').textContent === '120'")

    sinks, events = MetricSinks(runs[0].metrics), EventLog(runs[0].events)
    for step in (21, 22):
        values = metrics_of(step, 0.1) | {"mask/new": step}
        sinks.log(step, values)
        events.metrics(step, values)
    text = "<img src=x onerror=\"document.title = 'taken'\">"
    CompletionLog(runs[0].completions).write(21, [member([*completions_of(21), row(9, 0, text)])])
    with (runs[0].path / "attempt_1" / "rank_0.log").open("a") as file:
        file.write(f"{text}\x1b[31m\n")

    wait(chromium, f"document.querySelector('{readout}').textContent === '122'")
    wait(chromium, """!!document.querySelector('[data-metric="mask/new"]')""")
    assert chromium.execute_script(NAMELESS) == []
    assert "step 22 of" in text_of(chromium, ".head")
    chromium.execute_script("document.querySelector('.log').scrollIntoView()")
    wait(chromium, f"document.querySelector('.log').textContent.includes({text + '␛[31m'!r})")
    chromium.execute_script("document.getElementById('step').value = 21")
    chromium.execute_script("document.getElementById('step').dispatchEvent(new Event('change'))")
    wait(chromium, "document.querySelectorAll('.card').length === 9")
    assert chromium.title == "one"
    assert chromium.execute_script("return document.images.length") == 0
    assert chromium.get_log("browser") == []


def test_marked_runs_lie_over_each_other(address: str, chromium: Chrome) -> None:
    chromium.get_log("browser")
    chromium.get(address)
    for box in WebDriverWait(chromium, 30).until(lambda seen: seen.find_elements(By.CSS_SELECTOR, "tbody input")):
        box.click()
    chromium.execute_script("return ask()")  # the list is drawn again, with marks and focus as they were
    wait(chromium, "document.activeElement.dataset.key === 'mark one' && document.activeElement.checked")
    chromium.find_element(By.LINK_TEXT, "look at these 2 together").click()
    wait(chromium, "document.querySelectorAll('[data-metric=\"reward/mean\"] .curve').length === 2")
    assert [part.strip() for part in text_of(chromium, ".legend").split("  ") if part.strip()] == [
        "an&other <b>",
        "one",
    ]
    assert chromium.get_log("browser") == []


def test_a_page_whose_server_has_gone_says_so(tmp_path: Path, runs: list[RunDir], chromium: Chrome) -> None:
    with viewing(runs[0].path) as address:
        chromium.get(address)
        wait(chromium, "!!document.querySelector('.log')")
        assert chromium.title == "one", "one run needs no list"
    wait(chromium, "!document.querySelector('[role=status]').hidden")
    assert "does not answer" in text_of(chromium, "[role=status]")
    chromium.get("about:blank")
    chromium.get_log("browser")
