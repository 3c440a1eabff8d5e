"""The page of a run in a real browser: right values, filters, runs over each other, nothing executed from its data."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from grpo_hpc.cli import main
from grpo_hpc.runs.run_dir import RunDir
from grpo_hpc.runs.sweep import FILE
from tests.browser.conftest import NAMELESS
from tests.browser.recordings import completions_of, record, row

Open = Callable[[Path], Chrome]


def write(page: Path, *runs: RunDir | Path, more: tuple[str, ...] = ()) -> Path:
    """Write the page of some runs with the command."""
    paths = [str(run.path if isinstance(run, RunDir) else run) for run in runs]
    with pytest.raises(SystemExit) as ended:
        main(["report", *paths, "-o", str(page), *more])
    assert ended.value.code == 0
    return page


def texts(driver: Chrome, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((found) => found.textContent)"
    return driver.execute_script(script, selector)


def wait(driver: Chrome, condition: str) -> None:
    WebDriverWait(driver, 20).until(lambda seen: seen.execute_script(f"return {condition}"))


def chart(driver: Chrome, metric: str) -> WebElement:
    found = driver.find_element(By.CSS_SELECTOR, f'figure[data-metric="{metric}"]')
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    wait(driver, f"""!!document.querySelector('figure[data-metric="{metric}"] .curve')""")
    return found


def control(driver: Chrome, name: str) -> WebElement:
    found = driver.find_element(By.ID, name)
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
    return found


def readout(figure: WebElement) -> str:
    return figure.find_element(By.CSS_SELECTOR, ".readout").text


def test_curves_show_their_values(tmp_path: Path, opened: Open) -> None:
    driver = opened(write(tmp_path / "page.html", record(tmp_path, steps=40)))
    figure = chart(driver, "reward/mean")
    assert readout(figure) == f"{1 - math.exp(-4):.4g}", "the newest value"

    picture = figure.find_element(By.TAG_NAME, "svg")
    ActionChains(driver).move_to_element(picture).perform()  # the middle of the picture: a little left of the steps'
    wait(driver, "document.querySelectorAll('.tip:not([hidden])').length")
    step = int(readout(figure).rpartition(" ")[2])
    assert 15 < step < 25
    assert readout(figure) == f"{1 - math.exp(-0.1 * step):.4g} at step {step}"
    assert f"step {step}" in figure.find_element(By.CSS_SELECTOR, ".tip").text
    assert texts(driver, '[data-metric="kl"] .readout') == [f"{1e-4 * step:.4g} at step {step}"], (
        "all follow the cursor"
    )

    picture.send_keys(Keys.END, Keys.ARROW_LEFT)
    wait(driver, """document.querySelector('[data-metric="reward/mean"] .readout').textContent.includes('step 39')""")
    assert len(chart(driver, "loss").find_elements(By.CSS_SELECTOR, ".lost")) == 1, "the step whose loss was not finite"
    assert "learning rate 1.00e-6" in " ".join(texts(driver, ".still span")), "what never changes needs no chart"


def test_scale_smoothing_zoom_and_filter(tmp_path: Path, opened: Open) -> None:
    driver = opened(write(tmp_path / "page.html", record(tmp_path, steps=40)))
    figure = chart(driver, "loss")
    plain = figure.find_element(By.CSS_SELECTOR, ".curve").get_attribute("d")
    control(driver, "log").click()
    assert figure.find_element(By.CSS_SELECTOR, ".curve").get_attribute("d") != plain
    assert {"0.1", "1"} <= {tick.text for tick in figure.find_elements(By.CSS_SELECTOR, ".tick")}
    control(driver, "log").click()

    control(driver, "smoothing").send_keys(Keys.END)
    assert figure.find_elements(By.CSS_SELECTOR, ".raw")
    control(driver, "smoothing").send_keys(Keys.HOME)

    picture = chart(driver, "loss").find_element(By.TAG_NAME, "svg")
    ActionChains(driver).move_to_element(picture).click_and_hold().move_by_offset(80, 0).release().perform()
    figure.find_element(By.TAG_NAME, "svg").send_keys(Keys.HOME)
    wait(driver, """document.querySelector('[data-metric="loss"] .readout').textContent.includes(' at ')""")
    assert 15 < int(readout(figure).rpartition(" ")[2]) < 25, "the first step of those that are left"

    driver.find_element(By.ID, "filter").send_keys("LENGTH")
    assert [one.text for one in driver.find_elements(By.CSS_SELECTOR, "figcaption button") if one.is_displayed()] == [
        "length"
    ]


def test_time_plan_and_starts(tmp_path: Path, opened: Open) -> None:
    driver = opened(write(tmp_path / "page.html", record(tmp_path, steps=40)))
    stack = driver.find_element(By.CSS_SELECTOR, ".stack")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", stack)
    stack.send_keys(Keys.ARROW_LEFT)
    (said,) = texts(driver, "#time output")
    assert said.startswith("step 39: 9.5 s = sync 0.5 s + rollout 4.0 s") and said.endswith("other 0.8 s")

    planned = {line.split()[0]: line.split()[1:] for line in rows_of(driver, "#plan .pair > :first-child table")}
    seconds, measured, ratio = map(float, planned["rollout"])
    assert measured == 4.0
    assert ratio == pytest.approx(4.0 / seconds, rel=0.1)
    assert rows_of(driver, "#plan .pair > :last-child table")[-1].split()[2] == "60.4"
    assert any("had 120 tokens" in line and "--like" in line for line in texts(driver, "#plan li"))
    assert driver.execute_script(NAMELESS) == []
    assert "success" in rows_of(driver, "#starts table")[1]


def rows_of(driver: Chrome, selector: str) -> list[str]:
    return [row.text for row in driver.find_elements(By.CSS_SELECTOR, f"{selector} tr")]


def test_completions_are_filtered(tmp_path: Path, opened: Open) -> None:
    run = record(tmp_path, steps=40)
    driver = opened(write(tmp_path / "page.html", run, more=("--all-completions", "--completions", "16")))
    assert texts(driver, "#completions output") == ["16 of 16 completions on this page, 4 prompts"]
    driver.find_element(By.ID, "low").send_keys("0.5")
    assert len(texts(driver, ".card")) == 4
    assert "reward1advantage+1.5exact_number1short0.5" in texts(driver, ".card")[0]
    driver.find_element(By.ID, "groups").click()
    assert len(texts(driver, ".card")) == 16
    driver.find_element(By.ID, "groups").click()
    driver.find_element(By.ID, "low").send_keys(*[Keys.BACKSPACE] * 3)
    Select(driver.find_element(By.ID, "finish")).select_by_value("length")
    assert len(texts(driver, ".card")) == 4
    Select(driver.find_element(By.ID, "finish")).select_by_value("")

    Select(driver.find_element(By.ID, "step")).select_by_value("21")  # only in the files beside the page
    wait(driver, "document.querySelectorAll('.card').length === 8")
    driver.find_element(By.ID, "text").send_keys("ANSWER IS 2")
    assert texts(driver, ".card pre mark") == ["answer is 2"] * 2
    assert all("step 21: the answer is 2" in text for text in texts(driver, ".card pre"))
    for wanted, left in (("train:0", 4), ("user", 0)):  # a prompt's name, and what nobody said
        driver.find_element(By.ID, "text").clear()
        driver.find_element(By.ID, "text").send_keys(wanted)
        assert len(texts(driver, ".card")) == left


def test_completions_without_a_reward_are_outside_of_every_bound(tmp_path: Path, opened: Open) -> None:
    rows = [row(0, 0, "none", None), row(0, 1, "naught", 0.0), row(0, 2, "one", 1.0)]
    driver = opened(write(tmp_path / "page.html", record(tmp_path, steps=1, completions=rows)))
    for bound, value, left in (("low", "0", ["naught", "one"]), ("high", "0.5", ["naught"])):
        driver.find_element(By.ID, bound).send_keys(value)
        assert texts(driver, ".card pre") == left


def test_what_ends_completions_beside_the_page_can_be_chosen(tmp_path: Path, opened: Open) -> None:
    more = ("--all-completions", "--completions", "0")
    driver = opened(write(tmp_path / "page.html", record(tmp_path, steps=1), more=more))
    Select(driver.find_element(By.ID, "step")).select_by_value("1")
    wait(driver, "document.querySelectorAll('.card').length === 8")
    Select(driver.find_element(By.ID, "finish")).select_by_value("length")
    assert len(texts(driver, ".card")) == 2


DOT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def numbers(kind: str, *values: int) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}{kind}", *values)).decode()


def test_tokens_turns_and_images(tmp_path: Path, opened: Open) -> None:
    values = {"bytes": numbers("H", 4, 4, 2, 0), "engine": numbers("h", -10, -6000, -1200, 0)}
    values |= {"trainer": numbers("h", -10, -6693, -507, 0), "entropy": numbers("h", 0, 3000, 1200, 0)}
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in (DOT, "http://192.0.2.1/x.png", "x.svg")]
    turns = [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]},
        {"role": "tool", "content": "<b>42</b>"},
        {"role": "assistant", "content": "It is 42."},
    ]
    rows = [
        row(0, 0, "The 😀 .", by_token=values, messages=[{"role": "user", "content": parts}]),
        row(
            0, 1, "It is 42.", turns=turns, by_token=values | {"text": "Add 42. .."}, environment_failure="timeout: 9 s"
        ),
        row(0, 2, "not its own", by_token=values),
        row(0, 3, "no values at all", by_token={"bytes": "%", "engine": 3}),
    ]
    driver = opened(write(tmp_path / "page.html", record(tmp_path, steps=1, completions=rows)))
    assert texts(driver, ".prompt img, .prompt summary") == ["", "image_url", "image_url", "tool calls", "tool"]
    wait(driver, "document.images[0].naturalWidth === 1")
    assert texts(driver, ".card .bad") == ["the environment failed: timeout: 9 s"]
    assert texts(driver, ".card:nth-child(2) pre")[-2:] == ["<b>42</b>", "It is 42."]

    Select(driver.find_element(By.ID, "colour")).select_by_value("likelihood")
    card, other = ".card:nth-child(1) .tokens span", ".card:nth-child(2) .tokens span"
    assert texts(driver, other) == ["Add ", "42. ", "..", ""], "of all turns"
    spans = driver.find_elements(By.CSS_SELECTOR, card)
    assert [span.get_property("textContent") for span in spans] == ["The ", "😀", " .", ""]
    assert [span.get_attribute("class") for span in spans] == ["", "up5", "up1", ""]
    assert spans[1].get_attribute("title") == "log-probability -6, trainer -6.693, ratio 0.5001, entropy 3"
    assert "recorded in 2 of 4 completions" in texts(driver, "#completions .keys")[0]
    Select(driver.find_element(By.ID, "colour")).select_by_value("ratio")
    spans = driver.find_elements(By.CSS_SELECTOR, card)
    assert [span.get_attribute("class") for span in spans] == ["", "down5", "up5", ""]
    Select(driver.find_element(By.ID, "colour")).select_by_value("entropy")
    spans = driver.find_elements(By.CSS_SELECTOR, card)
    assert [span.get_attribute("class") for span in spans] == ["", "up5", "up2", ""]


HOSTILE = [
    "</script><script>document.title = 'taken'</script><!--",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "one\x00two\x1b[31mthree\rfour\u2028five\u0085six",
    "\u202egnp.exe\u202c \u05e9\u05dc\u05d5\u05dd \u200f!",
    "x" * 1_000_000,
    '"}]}; document.title = "taken"; //',
    "half of a pair: \ud83d",
]


def test_hostile_completions_do_nothing(tmp_path: Path, opened: Open) -> None:
    rows = [row(0, at, text, prompt_id=text[:80], finish_reason=text[:20]) for at, text in enumerate(HOSTILE)]
    rows[0] |= {"failures": {HOSTILE[0]: HOSTILE[1]}, "messages": [{"role": HOSTILE[0], "content": HOSTILE[1]}]}
    run = record(tmp_path, "demo", steps=3, completions=rows)
    with run.metrics.open("a") as file:
        file.write(json.dumps({"step": 3, "time": 1, f"rewards/{HOSTILE[0]}/mean": 1.0}) + "\n")
    for more in ((), ("--all-completions",)):
        driver = opened(write(tmp_path / "page.html", run, more=more))
        if more:
            Select(driver.find_element(By.ID, "step")).select_by_value("1")
            wait(driver, "document.querySelectorAll('.card').length === 7 && !!document.querySelector('.card button')")
        said = texts(driver, ".card > pre, .card > div > pre")
        assert said[:2] == HOSTILE[:2]
        assert said[2] == "one␀two␛[31mthree␍four\u2028fiveU+0085six"
        assert said[3] == "U+202Egnp.exeU+202C \u05e9\u05dc\u05d5\u05dd U+200F!"
        assert len(said[4]) <= 12_100, "a long text is unfolded when somebody asks"
        assert driver.title == "demo"
        assert driver.execute_script("return document.images.length") == 0
        assert driver.execute_script(NOTHING_STICKS_OUT)
    driver.find_element(By.CSS_SELECTOR, ".card button").click()
    assert len(texts(driver, ".card > div > pre")[0]) == 1_000_000


def test_nothing_but_our_script_runs(tmp_path: Path, chromium: Chrome) -> None:
    """What gets around every care for text is stopped by the page's policy."""
    chromium.get(write(tmp_path / "page.html", record(tmp_path, steps=2)).as_uri())
    chromium.execute_script("document.body.innerHTML = '<img src=x onerror=\"document.title = 1\">'")
    WebDriverWait(chromium, 20).until(lambda seen: "Content Security Policy" in str(seen.get_log("browser")))
    assert chromium.title == "demo"


def test_runs_over_each_other(tmp_path: Path, opened: Open) -> None:
    """A sweep of four points, one of them damaged, and one further run."""
    points = [record(tmp_path, f"s-{k}", steps=20, rate=0.05 * (k + 1), changed=[f"lr={k + 1}e-6"]) for k in range(4)]
    entries = [{"run": run.path.name, "values": {"optimizer.lr": (k + 1) * 1e-6}} for k, run in enumerate(points)]
    (tmp_path / FILE).write_text(json.dumps({"keys": ["optimizer.lr"], "points": entries}))
    points[3].run_file.write_text("{")
    driver = opened(write(tmp_path / "page.html", tmp_path, record(tmp_path / "other", "s-0", steps=30, rate=0.3)))
    assert [line.split()[0] for line in rows_of(driver, "#runs table")][1:] == [
        f"{tmp_path.name}/s-0",
        "s-1",
        "s-2",
        "other/s-0",
    ]
    assert "s-3 is left out" in texts(driver, ".note")[0]
    assert len(texts(driver, ".parallel path")) == 4
    figure = chart(driver, "reward/mean")
    assert len(figure.find_elements(By.CSS_SELECTOR, ".curve")) == 4
    figure.find_element(By.TAG_NAME, "svg").send_keys(Keys.HOME)
    wait(driver, "document.querySelectorAll('.tip:not([hidden])').length")
    shown = [f"{1 - math.exp(-rate):.4g}" for rate in (0.05, 0.1, 0.15, 0.3)]
    assert [bold.text for bold in figure.find_elements(By.CSS_SELECTOR, ".tip b")] == shown
    driver.find_element(By.CSS_SELECTOR, ".legend input").click()
    assert len(figure.find_elements(By.CSS_SELECTOR, ".curve")) == 3
    assert any(line.startswith("optimizer.lr") for line in rows_of(driver, "#file > .wide table"))


def test_a_run_that_has_not_begun(tmp_path: Path, opened: Open) -> None:
    run = record(tmp_path, steps=0, completions=[])
    run.metrics.unlink()
    driver = opened(write(tmp_path / "page.html", run))
    assert "No completions are recorded" in texts(driver, "#completions")[0]
    assert driver.find_elements(By.CSS_SELECTOR, "figure") == []


@pytest.fixture
def narrow_and_dark(chromium: Chrome) -> Iterator[None]:
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    yield
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


TOO_SMALL = """
const sizes = (text) => text.getBoundingClientRect().height;
return [...document.querySelectorAll('svg text')].filter((text) => sizes(text) > 0 && sizes(text) < 9).length;
"""
"""Texts of pictures that nobody can read."""
NOTHING_STICKS_OUT = "return document.documentElement.scrollWidth <= innerWidth"


@pytest.mark.usefixtures("narrow_and_dark")
def test_the_page_of_a_plan(tmp_path: Path, chromium: Chrome) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "qwen3_8b", "--html", str(tmp_path / "plan.html")])
    chromium.get_log("browser")
    chromium.get((tmp_path / "plan.html").as_uri())
    assert len(chromium.find_elements(By.TAG_NAME, "svg")) == 3
    chromium.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert chromium.execute_script(NOTHING_STICKS_OUT) and chromium.execute_script(TOO_SMALL) == 0
    assert chromium.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(21, 25, 29)"
    assert chromium.get_log("browser") == []


@pytest.mark.usefixtures("narrow_and_dark")
def test_a_long_run_in_a_narrow_dark_window(tmp_path: Path, opened: Open) -> None:
    run = record(tmp_path, steps=1000, more=60, completions=completions_of(1))
    page = write(tmp_path / "page.html", run)
    assert page.stat().st_size < 5e6
    driver = opened(page)
    assert chart(driver, "extra/59").is_displayed()
    assert driver.execute_script(NOTHING_STICKS_OUT) and driver.execute_script(TOO_SMALL) == 0
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(21, 25, 29)"
