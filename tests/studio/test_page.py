"""The page as people use it, in a browser without a window."""

import shutil

import pytest
from helpers import serving, smooth, tiny_pipeline

BROWSER = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="needs Debian's chromium"),
    pytest.mark.slow,
]
playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    pipe = smooth(tiny_pipeline())
    pipe.classes = ["ant", "bee", "cow"]
    pipe.config["sample"] = {"sampler": "ab4", "steps": 20, "guidance": 2.0}
    pipe.save(folder / "small")
    smooth(tiny_pipeline(classes=0)).save(folder / "plain")
    with serving(folder / "small", folder / "plain") as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--no-proxy-server"])
        yield running
        running.close()


@pytest.fixture
def page(browser, address):
    context = browser.new_context()
    page = context.new_page()
    page.wrong, page.asked = [], []
    page.on("console", lambda told: page.wrong.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    page.get_by_role("button", name="bee").wait_for()
    yield page
    assert page.wrong == []
    assert all(url.startswith((address, "data:", "blob:")) for url in page.asked)
    context.close()


def drawn(page, count):
    page.get_by_role("status").filter(has_text="pictures in").wait_for(timeout=20_000)
    assert page.locator("#current img").count() == count


def test_classes_are_chosen_drawn_and_remembered(page):
    page.locator("#classes img[src^=blob]").nth(2).wait_for()
    page.get_by_label("Search classes").fill("be")
    assert page.locator("#classes button:visible").count() == 1
    page.get_by_role("button", name="bee").click()
    page.get_by_role("spinbutton", name="Pictures").fill("3")
    page.get_by_label("First seed").fill("7")
    page.get_by_role("button", name="Draw").click()
    drawn(page, 3)
    assert page.locator("#current img").nth(2).get_attribute("alt") == "class bee, seed 9"
    page.reload()
    page.locator("#history img").first.wait_for()
    assert page.locator("#history img").count() == 3
    page.locator("#history button").first.click()
    told = page.locator("#detail-settings").inner_text()
    assert "seed" in told
    assert "9" in told
    with page.expect_download() as download:
        page.get_by_role("link", name="Download PNG").click()
    assert download.value.suggested_filename == "small-1-9.png"


def test_previews_form_and_a_drawing_can_be_cancelled(page):
    page.get_by_text("More").click()
    page.get_by_label("Steps").fill("250")
    page.get_by_label("Sampler").select_option("heun")
    page.get_by_role("button", name="Draw").click()
    page.locator("#current img").first.wait_for()
    first = page.locator("#current img").first.get_attribute("src")
    page.wait_for_function("(first) => document.querySelector('#current img').src !== first", arg=first)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("status").filter(has_text="Cancelled").wait_for()
    assert page.get_by_role("button", name="Draw").is_enabled()
    assert page.locator("#history img").count() == 0


def test_the_keyboard_is_enough(page):
    page.get_by_role("button", name="cow").focus()
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="cow").get_attribute("aria-pressed") == "true"
    page.get_by_label("First seed").focus()
    page.keyboard.press("Enter")
    drawn(page, 4)
    page.locator("#history button").first.focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()


def test_two_pictures_are_compared_and_settings_taken_over(page):
    page.get_by_role("spinbutton", name="Pictures").fill("2")
    page.get_by_role("button", name="Draw").click()
    drawn(page, 2)
    page.locator("#history button").first.click()
    page.get_by_role("button", name="Compare with another").click()
    page.locator("#history button").last.click()
    page.locator("#slider").fill("20")
    assert page.locator("#detail-picture").evaluate("e => e.style.getPropertyValue('--cut')") == "20%"
    assert page.locator("#detail-other").is_visible()
    page.get_by_role("button", name="Use its settings").click()
    assert page.get_by_role("spinbutton", name="Pictures").input_value() == "2"
    page.locator("#history button").first.click()
    page.get_by_role("button", name="Vary the seed").click()
    drawn(page, 2)
    assert page.locator("#history img").count() == 4


def test_a_model_without_classes_and_a_fault(page):
    page.get_by_label("Model").select_option("plain")
    page.locator("#classes-set").wait_for(state="hidden")
    page.get_by_role("button", name="Draw").click()
    drawn(page, 4)
    page.get_by_text("More").click()
    page.get_by_label("Guidance", exact=True).fill("3")
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("status").filter(has_text="guidance 3.0 on an unconditional model").wait_for()
    page.wrong.clear()  # the browser notes the refused request


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1200, 800), (360, 700)])
def test_nothing_serious_stands_in_the_way_of_anybody(page, scheme, size):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.get_by_role("button", name="Draw").click()
    drawn(page, 4)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert serious(page) == []
    page.locator("#history button").first.click()
    assert serious(page) == []


def serious(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")]
