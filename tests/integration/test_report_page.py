"""The report in a real browser: what one sees and clicks, in both themes, without any error."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from report_run import N, config_of, measured, with_measured, write_run
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from bi_ray.report.page import write_page
from bi_ray.report.source import Source
from bi_ray.report.summary import summarize_runs

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE, NARROW = (1400, 900), (390, 844)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.fail(
            "the report is tested in a real browser: install chromium and chromedriver, "
            "or run `make browser`"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    config, small = config_of(), config_of(arms=["vanilla"])
    runs = tuple(folder / f"seed_{seed}" for seed in (0, 1))
    for seed, run in enumerate(runs):
        write_run(run, config, seed)
    write_run(folder / "young", small, 5, problems=6, stages=("eval_sft",))
    summary = with_measured(summarize_runs(config, runs), measured(config))
    study = Source("study", config, runs, summary)
    young_run = folder / "young"
    young = Source("young", small, (young_run,), summarize_runs(small, [young_run]))
    return study, young


@pytest.fixture(scope="module")
def page(sources, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    write_page(file, sources[:1])
    return file


def look(browser, page, size=WIDE, dark=False):
    """Open the page in a window of that size; returns when all charts are drawn."""
    width, height = size
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # of an earlier page
    browser.get(page.as_uri())
    wait(
        browser,
        "return [...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))",
    )


def wait(browser, script):
    WebDriverWait(browser, 20, 0.05).until(lambda _: browser.execute_script(script), script)


def assert_clean(browser, page):
    """The console is empty, and the page itself was the only request."""
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in urls
    assert [
        url
        for url in urls
        if url.partition("#")[0] != page.as_uri() and not url.startswith("data:")
    ] == []


def click(browser, selector):
    element = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element
    )
    element.click()


def choose(browser, name, value):
    Select(browser.find_element(By.NAME, name)).select_by_value(value)


def shown(browser, chart):
    """The y values of a chart's traces by name, as plotly has drawn them."""
    script = (
        "return document.getElementById('chart-' + arguments[0]).data.map((t) => [t.name, t.y])"
    )
    return dict(browser.execute_script(script, chart))


def rows(browser):
    return browser.find_elements(By.CSS_SELECTOR, "#list > li")


def count(browser):
    text = browser.find_element(By.ID, "count").text
    return int(re.match(r"[\d,]+", text)[0].replace(",", ""))


def brightness(browser, selector, of="background-color"):
    color = browser.find_element(By.CSS_SELECTOR, selector).value_of_css_property(of)
    return sum(map(int, re.findall(r"\d+", color)[:3])) / 3


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_looks_right_and_nothing_is_wrong_in_the_console(browser, page, size, dark):
    look(browser, page, size, dark)
    assert (brightness(browser, "body") < 60) == dark
    # charts follow the theme
    assert (brightness(browser, "#chart-groups .xtick text", "fill") > 128) == dark
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    for plot in browser.find_elements(By.CSS_SELECTOR, ".plot .main-svg"):
        assert plot.size["width"] <= size[0] - 30
    gain = browser.find_element(By.CSS_SELECTOR, "#result tbody tr:nth-child(3) td:nth-of-type(4)")
    assert gain.is_displayed()
    assert gain.location["x"] + gain.size["width"] <= size[0]
    # Text that is too long would extend beyond its section.
    too_wide = (
        "[...document.querySelectorAll('main > section')]"
        ".filter((s) => s.scrollWidth > s.clientWidth)"
    )
    assert browser.execute_script(f"return {too_wide}.map((section) => section.id)") == []
    assert_clean(browser, page)


def test_the_answer_and_the_tables_agree_with_the_data(browser, page, sources):
    look(browser, page)
    summary = sources[0].summary
    difference = summary.difference_of_gains[0].difference
    heading = browser.find_element(By.TAG_NAME, "h1").text
    assert f"{100 * abs(difference.value):.1f} points" in heading
    assert ("no difference beyond chance" in heading) == (difference.sign == 0)
    table = browser.find_element(By.CSS_SELECTOR, "#result table").text
    for row in summary.table:
        assert f"{100 * row.rl.accuracy.value:.1f}" in table
        assert f"{100 * row.gain.value:+.1f}".replace("-", "−") in table
    bars = browser.find_elements(By.CSS_SELECTOR, "#chart-histogram-1 .bars .point")
    assert len(bars) == N + 1
    heights = [bar.size["height"] for bar in bars]
    counts = summary.readiness["bridge"].accuracy.histogram
    assert [height / heights[0] for height in heights] == pytest.approx(
        [c / counts[0] for c in counts], abs=0.03
    )


def test_the_theme_can_be_switched_and_the_charts_follow(browser, page):
    look(browser, page)
    bar = "#chart-histogram-0 .bars .point:nth-child(2) path"
    before, blue = (
        brightness(browser, "#chart-curves .xtick text", "fill"),
        brightness(browser, bar, "fill"),
    )
    click(browser, "#theme")
    wait(browser, "return document.getElementById('theme').getAttribute('aria-pressed') === 'true'")
    assert brightness(browser, "body") < 60
    assert brightness(browser, "#chart-curves .xtick text", "fill") > before
    assert brightness(browser, bar, "fill") > blue + 20  # the arms' colors too
    browser.find_element(By.ID, "theme").send_keys(Keys.ENTER)  # also by the keyboard
    assert brightness(browser, "body") > 200
    assert_clean(browser, page)


def test_the_estimator_the_quantity_and_the_metric_can_be_switched(browser, page, sources):
    look(browser, page)
    influence = sources[0].summary.readiness["bridge"].influence

    def expect(estimator, quantity):
        means = [getattr(group, quantity) for group in influence[estimator].groups]
        groups = [mean.value for mean in means if mean is not None]
        assert shown(browser, "groups")["bridge"] == pytest.approx(groups, rel=1e-3)
        points = browser.find_elements(
            By.CSS_SELECTOR, "#chart-groups .scatterlayer .trace:nth-child(2) .point"
        )
        assert len(points) == len(groups)
        assert shown(browser, "behaviors")["bridge"] == pytest.approx(
            [row.dj.value for row in influence[estimator].behaviors], rel=1e-3
        )
        line = browser.find_elements(By.CSS_SELECTOR, f"[data-when='estimator={estimator}']")
        assert all(row.is_displayed() for row in line)
        assert (
            len(browser.find_elements(By.CSS_SELECTOR, "[data-when]:not([hidden])"))
            == len(line)
            == 2
        )

    expect("sum", "dj")
    click(browser, "[name=estimator][value=mean] + span")
    expect("mean", "dj")
    click(browser, "[name=quantity][value=k_plus] + span")
    expect("mean", "k_plus")
    # The numbers under the chart change with it.
    click(browser, "[data-numbers=groups] summary")
    last_row = "document.querySelectorAll('[data-numbers=groups] tbody tr:last-child td')"
    wait(browser, f"return {last_row}.length")
    browser.find_element(By.CSS_SELECTOR, "[name=estimator][value=mean]").send_keys(Keys.ARROW_LEFT)
    expect("sum", "k_plus")
    last = influence["sum"].groups[-1].k_plus
    name, at, value, low, high = browser.execute_script(
        f"return [...{last_row}].map((c) => c.textContent)"
    )
    assert (name, at) == ("bridge", f"{N}/{N}")
    assert [float(number) for number in (value, low, high)] == pytest.approx(
        [last.value, last.low, last.high], rel=1e-2
    )
    click(browser, "[name=during][value=change] + span")
    assert "bridge, realized" in shown(browser, "during")
    choose(browser, "metric", "rl.entropy")
    assert shown(browser, "curves")["bridge"][-1] == pytest.approx(0.2 - 0.003 * 30, abs=0.01)
    assert (
        browser.find_element(By.CSS_SELECTOR, "#chart-curves .ytitle").text
        == "entropy, nats per token"
    )
    assert_clean(browser, page)


def test_samples_are_filtered(browser, page, sources):
    look(browser, page)
    every = count(browser)
    assert every == 2 * 2 * 2 * (80 + 160)
    assert len(rows(browser)) == 25
    click(browser, "#more")
    assert len(rows(browser)) == 50
    for name, value in {
        "arm": "bridge",
        "set": "test_id",
        "stage": "RL",
        "mode": "greedy",
        "seed": "1",
    }.items():
        choose(browser, name, value)
    assert count(browser) == 40
    file = sources[0].runs[1] / "eval_rl/bridge/test_id.jsonl"
    greedy = [
        row for row in map(json.loads, file.read_text().splitlines()) if row["mode"] == "greedy"
    ]
    for verdict, right in (("right", True), ("wrong", False)):
        choose(browser, "verdict", verdict)
        assert count(browser) == sum(row["right"] == right for row in greedy)
    choose(browser, "verdict", "")
    choose(browser, "trace", "invalid")
    assert count(browser) == sum(not row["trace_valid"] for row in greedy)
    choose(browser, "trace", "")
    choose(browser, "behavior", "reflection")
    assert count(browser) == sum(row["reflections"] > 0 for row in greedy)
    assert all("reflection" in row.text for row in rows(browser))
    choose(browser, "behavior", "")
    browser.find_element(By.NAME, "text").send_keys("TEST_ID-7\n")
    assert count(browser) == 1
    click(browser, "#filters [type=reset]")
    wait(browser, f"return document.getElementById('count').textContent.startsWith('{every:,}')")
    assert_clean(browser, page)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_sample_opens_with_its_behaviors_colored_and_its_first_wrong_line_marked(
    browser, page, sources, size
):
    look(browser, page, size)
    choose(browser, "behavior", "reflection")
    choose(browser, "trace", "invalid")
    choose(browser, "arm", "bridge")
    browser.find_element(By.NAME, "text").send_keys("</script>")
    assert count(browser) > 0
    click(browser, "#list li summary")
    wait(browser, "return document.querySelector('#list .body')")  # created when it is opened
    body = browser.find_element(By.CSS_SELECTOR, "#list .body")
    assert body.is_displayed()
    text = body.find_element(By.CSS_SELECTOR, ".response").get_attribute("textContent")
    assert "<img src=x onerror=" in text  # as text: the console would show if it had run
    assert body.find_elements(By.TAG_NAME, "img") == []
    reflection = body.find_element(By.CSS_SELECTOR, ".mark.reflection")
    assert "not known yet, wait, " in reflection.text
    assert reflection.value_of_css_property("background-color") != "rgba(0, 0, 0, 0)"
    wrong = body.find_element(By.CSS_SELECTOR, ".wrong").get_attribute("textContent")
    assert wrong in text
    assert "First fault:" in body.text
    assert "What is the value of" in body.text
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    # Every response to the same problem, from both arms and stages.
    answer = re.search(r"right answer: (\S+)", body.text)[1]
    click(browser, "#list .body .link")
    wait(
        browser, "return document.getElementById('count').textContent.includes('every response to')"
    )
    assert 4 <= count(browser) <= 2 * 2 * 9
    click(browser, "#list li:last-child summary")
    wait(browser, "return document.querySelector('#list li:last-child .body')")
    assert f"right answer: {answer}" in rows(browser)[-1].text
    assert_clean(browser, page)


def test_several_runs_are_shown_side_by_side(browser, sources, tmp_path):
    page = tmp_path / "comparison.html"
    write_page(page, sources)
    for size in (WIDE, NARROW):
        look(browser, page, size)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert (
            "Still missing: rl/vanilla, eval_rl/vanilla"
            in browser.find_element(By.ID, "answer").text
        )
        labels = [arm.text for arm in browser.find_elements(By.CSS_SELECTOR, ".tiles .arm")]
        assert labels == ["study: vanilla", "study: bridge", "young: vanilla"]
    choose(browser, "run", "young")
    assert count(browser) == 2 * (6 + 6 * N)
    choose(browser, "stage", "RL")
    assert count(browser) == 0
    assert_clean(browser, page)


def test_the_report_of_an_unfinished_run_names_what_is_missing(browser, tmp_path):
    config = config_of(arms=["vanilla"])
    write_run(tmp_path / "run", config, stages=())
    source = Source(
        "begun", config, (tmp_path / "run",), summarize_runs(config, [tmp_path / "run"])
    )
    page = tmp_path / "report.html"
    write_page(page, [source])
    look(browser, page)
    assert "No answer yet" in browser.find_element(By.TAG_NAME, "h1").text
    for section in ("result", "accuracy", "influence", "forecast", "samples"):
        assert "Nothing to show." in browser.find_element(By.ID, section).text
    assert_clean(browser, page)
