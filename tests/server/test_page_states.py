"""The page in its further states: late responses, faults, deleted images, and the numbers that it promises."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from helpers import serving
from pages import begin_run, drawn, problems
from PIL import Image, ImageChops

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow


def delayed(page, path, holds):
    """Requests to `path` whose body `holds` wait until the returned function is called."""
    waiting = []

    def handle(route):
        if holds(route.request.post_data_json or {}):
            waiting.append(route)
        else:
            route.continue_()

    page.route(path, handle)

    def release():
        for route in waiting:
            route.continue_()
        page.wait_for_timeout(500)

    return release


def generate(page, count=None):
    """Generate images with the settings of the page."""
    if count:
        page.locator("#count").fill(str(count))
    page.locator("#status").evaluate("line => (line.textContent = '')")
    page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, count or 4)


# ---------------------------------------------------------------- late responses


def test_a_late_step_does_not_replace_the_selected_one(page):
    page.get_by_role("button", name="Inspect", exact=True).click()
    page.locator("#look-steps").fill("5")
    page.get_by_role("button", name="Inspect image").click()
    told = page.locator("#attention-told")
    told.filter(has_text="Step 3").wait_for()
    release = delayed(page, "**/v1/inspect", lambda body: body["step"] == 0)
    page.locator("#way button").nth(0).click()
    page.locator("#way button").nth(4).click()
    told.filter(has_text="Step 5").wait_for()
    release()
    assert told.inner_text().startswith("Step 5")
    assert page.locator("#way button[aria-pressed=true]").inner_text() == "5"


def test_a_late_inspection_is_not_shown_under_the_name_of_another_model(page):
    page.get_by_role("button", name="Inspect", exact=True).click()
    release = delayed(page, "**/v1/inspect", lambda body: True)
    page.get_by_role("button", name="Inspect image").click()
    page.locator("#model").select_option("plain")
    release()
    assert page.locator("#look-empty").is_visible()
    assert page.locator("#status").inner_text() == ""


def test_a_second_grid_replaces_the_first(page):
    page.get_by_role("button", name="Compare", exact=True).click()
    release = delayed(page, "**/generations", lambda body: body["seeds"] == 7)
    page.locator("#grid-seed").fill("7")
    page.get_by_role("button", name="Generate grid").click()
    page.locator("#grid-seed").fill("8")
    page.get_by_role("button", name="Generate grid").click()
    page.get_by_role("status").filter(has_text="2 rows generated").wait_for()
    release()
    assert page.locator("#table tr").count() == 3
    assert page.get_by_role("columnheader").nth(0).inner_text() == "class ant, seed 8"


def test_a_grid_is_canceled_and_a_rejected_one_leaves_the_last(page):
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator("#grid-classes").fill("zebra")
    page.get_by_role("button", name="Generate grid").click()
    page.locator("#status.wrong").filter(has_text='unknown class "zebra"').wait_for()
    assert page.locator("#grid-empty").is_visible()
    page.locator("#grid-classes").fill("bee")
    page.get_by_role("button", name="Generate grid").click()
    page.get_by_role("status").filter(has_text="2 rows generated").wait_for()
    assert page.locator("#status.wrong").count() == 0
    delayed(page, "**/generations", lambda body: True)
    page.get_by_role("button", name="Generate grid").click()
    page.get_by_role("status").filter(has_text="Generating row 1 of 2").wait_for()
    page.locator("#grid-cancel").click()
    page.get_by_role("status").filter(has_text="Canceled").wait_for()
    assert page.locator("#grid-cancel").is_disabled()
    assert page.locator("#table tr").count() == 3
    page.wrong.clear()  # the browser notes the rejected request


# ---------------------------------------------------------------- faults


def test_a_service_that_does_not_respond_is_named(page):
    page.route("**/generations", lambda route: route.abort())
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#status.wrong").filter(has_text="The service does not respond.").wait_for()
    page.route("**/v1/runs/*", lambda route: route.abort())
    page.get_by_role("button", name="Runs").click()
    page.locator("#run-told.wrong").filter(has_text="The service does not respond.").wait_for()
    page.unroute("**/v1/runs/*")
    page.locator("#run-told:not(.wrong)").filter(has_text="800 of 110,000 images").wait_for()
    page.wrong.clear()


def test_without_a_model_the_runs_are_shown_and_nothing_can_be_generated(browser, tmp_path):
    begin_run(tmp_path / "going")
    wrong = []
    with serving(tmp_path / "going") as address:
        page = browser.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.locator("#run-told").filter(has_text="800 of 110,000 images").wait_for()
        for view, button in (("Images", "Generate"), ("Inspect", "Inspect image"), ("Compare", "Generate grid")):
            page.get_by_role("button", name=view, exact=True).click()
            page.get_by_role("status").filter(has_text="No model is served").wait_for()
            assert page.get_by_role("button", name=button, exact=True).is_disabled()
            page.keyboard.press("Control+Enter")
        assert problems(page) == []
        page.close()
    assert wrong == []


# ---------------------------------------------------------------- history


def test_deleted_images_leave_the_stage(page):
    generate(page, 3)
    assert page.locator("#current figcaption").all_inner_texts() == [
        "class ant, seed 0",
        "class bee, seed 1",
        "class cow, seed 2",
    ]
    page.locator("#current button").nth(1).click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Close").click()
    names = ["class ant, seed 0", "class cow, seed 2"]
    assert page.locator("#current figcaption").all_inner_texts() == names
    assert [image.get_attribute("alt") for image in page.locator("#history img").all()] == names[::-1]
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Clear history").click()
    page.locator("#current img[alt='example: class cow']").wait_for()
    assert page.locator("#stage-title").inner_text() == "Examples (seed 0)"


def test_settings_without_a_field_are_kept_from_a_png(page, address, tmp_path):
    asked = {"model": "small", "label": 1, "seed": 6, "schedule": "cosine", "guidance_rescale": 0.5, "steps": 7}
    made = page.request.post(f"{address}/v1/images/generations", data=asked).json()["data"][0]
    page.evaluate("text => (window.made = text)", made["b64_json"])
    page.get_by_role("button", name="Runs").click()
    page.evaluate(
        """() => {
        const transfer = new DataTransfer();
        const content = Uint8Array.from(atob(window.made), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([content], "bee.png", { type: "image/png" }));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
    }"""
    )
    page.get_by_role("status").filter(has_text="Settings of bee.png").wait_for()  # the view of images is shown
    assert page.locator("#further-text").inner_text() == "Also: schedule cosine, guidance rescale 0.5"
    generate(page, 1)
    assert page.locator("#current img").get_attribute("src").split(",")[1] == made["b64_json"]
    page.get_by_role("button", name="Remove", exact=True).click()
    generate(page, 1)
    assert page.locator("#current img").get_attribute("src").split(",")[1] != made["b64_json"]


# ---------------------------------------------------------------- copied commands


def copied(page, name):
    page.locator("#copied").evaluate("place => (place.textContent = '')")
    page.get_by_role("button", name=f"Copy as {name}").click()
    page.locator("#copied").filter(has_text="Copied").wait_for()
    return page.evaluate("navigator.clipboard.readText()")


def image_of(folder):
    (file,) = [path for path in (folder / "image").glob("*.png") if path.name != "grid.png"]
    return Image.open(file).convert("L")


def run_copied(page, folder):
    """Run what the page copies in new folders; the images of Python, of the command, and of the HTTP response."""
    images = []
    with page.expect_download() as download:
        page.get_by_role("link", name="Download PNG").click()
    for name in ("Python", "command"):
        place = folder / name
        place.mkdir(parents=True)
        text = copied(page, name)
        for link in page.locator("#copied a").all():
            with page.expect_download() as file:
                link.click()
            file.value.save_as(place / file.value.suggested_filename)
        download.value.save_as(place / download.value.suggested_filename)
        words = ["-c", text] if name == "Python" else ["-m", *shlex.split(text), "--out", "image"]
        subprocess.run([sys.executable, *words], cwd=place, check=True)
        images.append(image_of(place))
    shown = subprocess.run(["sh", "-c", copied(page, "curl").replace("curl", "curl -s", 1)], capture_output=True)
    return [Image.open(download.value.path()).convert("L"), *images], json.loads(shown.stdout)["data"]


def assert_equal(images):
    for image in images[1:]:
        assert ImageChops.difference(images[0], image).getextrema()[1] <= 1


def test_copied_commands_generate_the_image(page, tmp_path):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="bee", exact=True).click()
    page.locator("#seed").fill("5")
    generate(page, 1)
    made = page.locator("#current img").get_attribute("src").split(",")[1]
    page.locator("#current button").click()
    images, data = run_copied(page, tmp_path / "class")
    assert_equal(images)
    assert data[0]["b64_json"] == made
    page.get_by_role("button", name="Use as init image").click()
    canvas = page.locator("#mask")
    canvas.click(position={"x": 40, "y": 40})
    page.locator("#seed").fill("9")
    generate(page, 1)
    page.locator("#current button").click()
    images, _ = run_copied(page, tmp_path / "mask")
    assert_equal(images)
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Remove image").click()
    page.get_by_text("Interpolate").click()
    page.locator("#to-label").select_option(label="cow")
    generate(page, 3)
    page.locator("#current button").nth(1).click()
    images, data = run_copied(page, tmp_path / "between")
    assert_equal(images)
    assert len(data) == 3


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1200, 800), (360, 700)])
def test_every_view_is_accessible(page, scheme, size):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": size[0], "height": size[1]})

    def check():
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert problems(page) == []

    check()  # examples
    for details in page.locator("#request details:visible > summary").all():
        details.click()
    generate(page)
    check()
    page.locator("#history button").first.click()
    check()
    page.get_by_role("button", name="Use as init image").click()
    generate(page, 1)
    check()  # init image and mask
    page.locator("#current button").click()
    check()  # result beside the init image
    page.keyboard.press("Escape")
    page.get_by_role("button", name="About strength").click()
    check()  # a tooltip
    page.keyboard.press("Escape")
    for model in ("text", "clips"):
        page.locator("#model").select_option(model)
        page.locator("#current img[alt^=example]").nth(1).wait_for()
        check()
    page.locator("#model").select_option("small")
    for view, button in (("Inspect", "Inspect image"), ("Compare", "Generate grid"), ("Runs", None)):
        page.get_by_role("button", name=view, exact=True).click()
        if button:
            check()  # empty
            page.get_by_role("button", name=button).click()
        page.locator("#attention-told:has-text('Step'), #table tr:nth-child(3), #preview").locator(
            "visible=true"
        ).wait_for()
        check()


SHIFTS = """() => {
    window.shifts = 0;
    const add = (entry) => (window.shifts += entry.hadRecentInput ? 0 : entry.value);
    new PerformanceObserver((list) => list.getEntries().forEach(add)).observe({ type: "layout-shift" });
}"""


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_the_cumulative_layout_shift_of_every_view_is_below_one_thousandth(page, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.locator("#current img[alt='example: class cow']").wait_for()
    page.evaluate(SHIFTS)
    page.get_by_text("More settings").click()
    page.locator("#steps").fill("100")  # so that images come long after the click
    for _ in range(2):
        generate(page)
    for view, button, done in (
        ("Inspect", "Inspect image", "12 steps"),
        ("Compare", "Generate grid", "2 rows generated"),
    ):
        page.get_by_role("button", name=view, exact=True).click()
        page.get_by_role("button", name=button).click()
        page.get_by_role("status").filter(has_text=done).wait_for()
    assert page.evaluate("window.shifts") < 0.001


def test_sixty_classes_respond_within_200_ms(page):
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # of the processor, not of a busy machine

    def seconds():
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(each["value"] for each in metrics if each["name"] == "TaskDuration")

    page.locator("#model").select_option("many")
    page.locator("#classes button").nth(59).wait_for()
    before = seconds()
    page.locator("#classes button").nth(30).click()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    assert page.locator("#classes button").nth(30).get_attribute("aria-pressed") == "true"
    assert seconds() - before < 0.2
    assert re.match("1 of 60", page.locator("#classes-hint").inner_text())
