"""The pages in a browser, wide and narrow: nothing is amiss, tables sort, the slider moves."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.report import check_page, evaluation_page, preview_page, runs_page, segmentation_page, training_page

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PAGES: dict[str, Callable[[], bytes]] = {
    "check": check_page.report,
    "training": training_page.report,
    "segmentation": segmentation_page.report,
    "evaluation": evaluation_page.report,
    "preview": preview_page.report,
    "runs": runs_page.report,
}

pytestmark = pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="no chromium and chromedriver on the PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each page in a file."""
    folder = tmp_path_factory.mktemp("pages")
    for name, report in PAGES.items():
        (folder / f"{name}.html").write_bytes(report())
    return folder


def show(browser: webdriver.Chrome, file: Path, width: int) -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(file.as_uri())


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_all_it_has_without_errors(browser: webdriver.Chrome, folder: Path, name: str, width: int) -> None:
    show(browser, folder / f"{name}.html", width)
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
    images = browser.find_elements(By.TAG_NAME, "img")
    assert images or name == "runs"
    assert all(image.get_property("complete") and image.get_property("naturalWidth") for image in images)
    root = browser.find_element(By.TAG_NAME, "html")
    assert root.get_property("scrollWidth") == root.get_property("clientWidth")


@pytest.mark.parametrize("name", PAGES)
def test_tables_sort_by_click_and_by_keyboard(browser: webdriver.Chrome, folder: Path, name: str) -> None:
    show(browser, folder / f"{name}.html", 1280)
    table = next(x for x in browser.find_elements(By.TAG_NAME, "table") if x.text.startswith(("Class", "Began")))
    place = 7 if name == "runs" else 2
    button = table.find_elements(By.CSS_SELECTOR, "th button")[place - 1]

    def column() -> list[float]:
        cells = table.find_elements(By.CSS_SELECTOR, f"td:nth-child({place})")
        return [float(cell.get_attribute("data-value") or "-1") for cell in cells]

    before = column()
    button.click()
    assert column() == sorted(before, reverse=True)  # those without a value, here -1, are last
    assert table.find_element(By.CSS_SELECTOR, "[aria-sort]").get_attribute("aria-sort") == "descending"
    button.send_keys(Keys.ENTER)
    known = sorted(value for value in before if value >= 0)
    assert column() == known + [-1.0] * (len(before) - len(known))
    assert table.find_element(By.CSS_SELECTOR, "[aria-sort]").get_attribute("aria-sort") == "ascending"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(("name", "masks"), [("training", (2, 1)), ("evaluation", (2, 1)), ("preview", (1, 2))])
def test_the_slider_uncovers_the_truth_or_the_new_mask_over_what_was_chosen(
    browser: webdriver.Chrome, folder: Path, name: str, masks: tuple[int, int], width: int
) -> None:
    show(browser, folder / f"{name}.html", width)
    sample = browser.find_element(By.CLASS_NAME, "sample")
    panels = [image.get_attribute("src") for image in sample.find_elements(By.CSS_SELECTOR, ".panel img")]
    under, over = sample.find_elements(By.CSS_SELECTOR, ".stage img")
    assert (under.get_attribute("src"), over.get_attribute("src")) == (panels[masks[0]], panels[masks[1]])
    sample.find_element(By.CSS_SELECTOR, "input[type=range]").send_keys(Keys.HOME)
    assert over.value_of_css_property("clip-path") == "inset(0px 0px 0px 0%)"
    sample.find_element(By.CSS_SELECTOR, "input[type=range]").send_keys(Keys.ARROW_RIGHT)
    assert over.value_of_css_property("clip-path") == "inset(0px 0px 0px 1%)"
    sample.find_element(By.CSS_SELECTOR, "input[value='0']").click()
    assert under.get_attribute("src") == panels[0]
