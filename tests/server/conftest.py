"""A service and a browser without a window, for the tests of the page."""

import shutil

import pytest
import text_net
from helpers import serving, smooth, tiny_pipeline
from pages import begin_run, clip_pipeline, text_pipeline

from ditlab.core.io import held

BROWSER = shutil.which("chromium")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    pipe = smooth(tiny_pipeline())
    pipe.classes = ["ant", "bee", "cow"]
    pipe.config["sample"] = {"sampler": "ab4", "steps": 20, "guidance": 2.0}
    pipe.save(folder / "small")
    smooth(tiny_pipeline(classes=0)).save(folder / "plain")
    smooth(tiny_pipeline(classes=60)).save(folder / "many")
    text_pipeline().save(folder / "text")
    clip_pipeline().save(folder / "clips")
    begin_run(folder / "going")
    begin_run(folder / "ended", images=300)
    names = ("small", "plain", "many", "text", "clips", "going", "ended")
    imported = f"--import={text_net.__file__}"
    with held(folder / "going"), serving(*(folder / name for name in names), imported) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("needs Debian's chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--no-proxy-server"])
        yield running
        running.close()


@pytest.fixture
def page(browser, address):
    context = browser.new_context()
    page = context.new_page()
    page.wrong, page.asked = [], []
    page.on("console", lambda reported: page.wrong.append(reported.text) if reported.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    page.locator("#classes button").nth(2).wait_for()
    yield page
    assert page.wrong == []
    assert all(url.startswith((address, "data:", "blob:")) for url in page.asked)
    context.close()
