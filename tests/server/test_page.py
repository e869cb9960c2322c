"""The page as people use it, in a browser without a window."""

import base64
import io
import json
import re
import zipfile

import pytest
from pages import drawn, problems
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow


def test_classes_are_chosen_generated_and_remembered(page):
    page.locator("#classes img[src^=blob]").nth(2).wait_for()
    page.get_by_label("Search classes").fill("be")
    assert page.locator("#classes button:visible").count() == 1
    page.get_by_role("button", name="bee", exact=True).click()
    page.get_by_role("spinbutton", name="Images").fill("3")
    page.locator("#seed").fill("7")
    page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, 3)
    assert page.locator("#current img").nth(2).get_attribute("alt") == "class bee, seed 9"
    page.reload()
    page.locator("#history img").first.wait_for()
    assert page.locator("#history img").count() == 3
    page.locator("#history button").first.click()
    reported = page.locator("#detail-settings").inner_text()
    assert "seed" in reported
    assert "9" in reported
    with page.expect_download() as download:
        page.get_by_role("link", name="Download PNG").click()
    assert download.value.suggested_filename == "small-1-9.png"


def test_previews_form_and_a_generation_can_be_canceled(page):
    page.get_by_text("More settings").click()
    page.locator("#steps").fill("250")
    page.locator("#sampler").select_option("heun")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#current img[src]").first.wait_for()
    first = page.locator("#current img").first.get_attribute("src")
    page.wait_for_function("(first) => document.querySelector('#current img').src !== first", arg=first)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("status").filter(has_text="Canceled").wait_for()
    assert page.get_by_role("button", name="Generate", exact=True).is_enabled()
    assert page.locator("#history img").count() == 0


def test_examples_are_shown_on_arrival_and_the_latest_images_later(page):
    page.locator("#current img[alt='example: class cow']").wait_for()
    assert page.locator("#stage-title").inner_text() == "Examples (seed 0)"
    page.locator("#model").select_option("plain")
    page.locator("#current img[alt='example: image']").nth(3).wait_for()
    page.locator("#model").select_option("text")
    page.locator("#current img[alt='example: a blue apple']").wait_for()
    page.get_by_role("spinbutton", name="Images").fill("3")
    page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, 3)
    page.reload()
    page.locator("#current img[alt='example: class ant']").wait_for()
    page.locator("#model").select_option("text")
    page.locator("#current img[alt='a red apple, seed 2']").wait_for()
    assert page.locator("#stage-title").inner_text() == "Latest images"


def test_nothing_moves_while_images_are_generated(page):
    page.locator("#current img[alt='example: class cow']").wait_for()
    page.evaluate(
        """() => {
        window.moved = [];
        const note = (entry) => entry.sources.forEach(({ node }) => window.moved.push(node.outerHTML ?? String(node)));
        const outside = ({ sources }) => sources.some(({ node }) => !node?.parentElement?.closest("#history"));
        const all = (list) => list.getEntries().filter(outside).forEach(note);
        new PerformanceObserver(all).observe({ type: "layout-shift" });
    }"""
    )
    page.get_by_role("spinbutton", name="Images").fill("3")
    page.keyboard.press("Control+Enter")
    drawn(page, 3)
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#history img").nth(5).wait_for()
    assert page.evaluate("window.moved") == []


def test_thumbnails_wait_while_images_are_generated(page):
    page.get_by_text("More settings").click()
    page.locator("#steps").fill("250")
    page.get_by_role("spinbutton", name="Images").fill("4")  # long enough for all that follows on a busy machine
    for _ in range(2):
        page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("button", name="Cancel (1 waiting)").wait_for()
    page.locator("#model").select_option("many")
    page.locator("#classes button").nth(59).wait_for()
    page.wait_for_timeout(500)
    assert page.locator("#classes img[src]").count() == 0
    waiting = [url for url in page.asked if "model=many&" in url]
    assert len(waiting) == 1  # so that they take the connections of no other request
    page.get_by_role("button", name="Cancel (1 waiting)").click()
    page.locator("#classes img[src]").nth(59).wait_for(timeout=60_000)
    assert len([url for url in page.asked if "model=many&" in url]) == 60  # none was rejected


def test_a_rejected_or_broken_request_leaves_the_stage_as_it_is(page):
    page.locator("#current img[alt='example: class cow']").wait_for()
    examples = page.locator("#current").inner_html()
    page.evaluate("document.querySelector('#steps').removeAttribute('max')")
    page.get_by_text("More settings").click()
    page.locator("#steps").fill("300")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("status").filter(has_text="300 steps; give 1 to 250").wait_for()
    assert page.locator("#current").inner_html() == examples
    assert page.locator("#stage-title").inner_text() == "Examples (seed 0)"
    page.wrong.clear()  # the browser notes the rejected request

    broken = 'event: error\ndata: {"error": {"message": "it broke"}}\n\n'
    page.route("**/generations", lambda route: route.fulfill(body=broken, content_type="text/event-stream"))
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("status").filter(has_text="it broke").wait_for()
    assert page.locator("#current").inner_html() == examples
    page.locator("#model").select_option("plain")
    playwright.expect(page.locator("#status")).to_have_text("")


def test_images_of_one_model_do_not_appear_on_the_stage_of_another(page):
    page.get_by_text("More settings").click()
    page.locator("#steps").fill("250")
    page.locator("#sampler").select_option("heun")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#current img[src^='data:']").first.wait_for()
    page.locator("#model").select_option("plain")
    page.locator("#stage-title").filter(has_text="Examples").wait_for()
    page.get_by_role("status").filter(has_text="4 images in").wait_for(timeout=60_000)
    page.locator("#current img[alt='example: image']").nth(3).wait_for()
    assert page.locator("#history img").first.get_attribute("alt") == "class ant, seed 3"


def test_tooltips_are_beside_their_buttons(page):
    page.get_by_text("More settings").click()
    for name in ("samplers", "steps", "guidance"):
        button = page.get_by_role("button", name=f"About {name}")
        button.hover()
        at, box = button.bounding_box(), page.locator(".tip-text:popover-open").bounding_box()
        assert box["y"] - at["y"] - at["height"] == pytest.approx(8, abs=1)
        assert box["x"] == pytest.approx(at["x"], abs=1)
        page.locator("h1").hover()
        assert page.locator(".tip-text:popover-open").count() == 0
        button.focus()
        page.keyboard.press("Enter")
        assert page.locator(".tip-text:popover-open").is_visible()
        page.keyboard.press("Escape")


def test_empty_fields_show_the_defaults_of_the_model(page):
    page.get_by_text("More settings").click()

    def defaults():
        fields = [page.locator(f"#{name}").get_attribute("placeholder") for name in ("steps", "guidance")]
        return [page.locator("#sampler option").first.inner_text(), *fields]

    assert defaults() == ["ab4 (default)", "20 (default)", "2 (default)"]
    page.locator("#preset").select_option("draft")
    assert defaults() == ["From preset", "From preset", "2 (default)"]


def test_the_history_is_cleared_after_a_question(page):
    page.get_by_role("spinbutton", name="Images").fill("2")
    page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, 2)
    asked = []
    for decide, left in (("dismiss", 2), ("accept", 0)):
        page.once("dialog", lambda dialog, decide=decide: asked.append(dialog.message) or getattr(dialog, decide)())
        page.get_by_role("button", name="Clear history").click()
        playwright.expect(page.locator("#history img")).to_have_count(left)
    assert asked == ["Delete all 2 images of the history?"] * 2


def test_requests_wait_in_a_queue(page):
    page.get_by_text("More settings").click()
    page.locator("#steps").fill("250")
    for seed in ("10", "20", "30"):
        page.locator("#seed").fill(seed)
        page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("button", name="Cancel (2 waiting)").wait_for()
    page.locator("#history img").nth(11).wait_for(timeout=60_000)
    assert page.locator("#history img").first.get_attribute("alt") == "class ant, seed 33"
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("button", name="Cancel (1 waiting)").click()
    page.get_by_role("status").filter(has_text="Canceled").wait_for()
    page.wait_for_timeout(300)
    assert page.locator("#history img").count() == 12


def test_images_are_browsed_deleted_and_downloaded(page):
    page.get_by_role("spinbutton", name="Images").fill("3")
    page.get_by_role("button", name="Random seed").click()
    assert page.locator("#seed").input_value() != "0"
    page.locator("#seed").fill("7")
    page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, 3)
    page.locator("#current button").nth(1).click()
    title = page.locator("#detail-title")
    assert title.inner_text() == "class bee, seed 8"
    page.keyboard.press("ArrowRight")
    assert title.inner_text() == "class cow, seed 9"
    assert page.get_by_role("button", name="Next image").is_disabled()
    page.get_by_role("button", name="Previous image").click()
    page.get_by_role("button", name="Delete").click()
    playwright.expect(title).to_have_text("class ant, seed 7")
    page.get_by_role("button", name="Close").click()
    assert page.locator("#history img").count() == 2
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all (ZIP)").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert [name.split("-", 1)[1] for name in names] == ["small-2-9.png", "small-0-7.png"]
        with Image.open(archive.open(names[0])) as image:
            assert json.loads(image.info["ditlab"])["seed"] == 9
    page.reload()
    page.locator("#history img").nth(1).wait_for()
    assert page.locator("#history img").count() == 2


def test_a_png_gives_its_settings_back(page, tmp_path):
    page.get_by_role("button", name="cow", exact=True).click()
    page.get_by_text("More settings").click()
    page.locator("#steps").fill("9")
    page.locator("#sampler").select_option("heun")
    page.locator("#seed").fill("41")
    page.get_by_role("spinbutton", name="Images").fill("1")
    page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, 1)
    made = page.locator("#current img").get_attribute("src")
    (tmp_path / "cow.png").write_bytes(base64.b64decode(made.split(",")[1]))
    page.reload()
    page.get_by_role("button", name="bee", exact=True).wait_for()
    page.locator("#model").select_option("plain")
    page.locator("#settings-file").set_input_files(tmp_path / "cow.png")
    page.get_by_role("status").filter(has_text="Settings of cow.png").wait_for()
    assert page.locator("#model").input_value() == "small"
    assert page.get_by_role("button", name="cow", exact=True).get_attribute("aria-pressed") == "true"
    assert [page.locator(f"#{field}").input_value() for field in ("seed", "steps", "sampler")] == ["41", "9", "heun"]
    page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, 1)
    assert page.locator("#current img").get_attribute("src") == made

    Image.new("L", (20, 10), 200).save(tmp_path / "gray.png")
    data = base64.b64encode((tmp_path / "gray.png").read_bytes()).decode()
    page.evaluate(
        """(data) => {
        const transfer = new DataTransfer();
        const content = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([content], "gray.png", { type: "image/png" }));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
    }""",
        data,
    )
    page.get_by_role("status").filter(has_text="gray.png is the init image; it holds no settings of ditlab").wait_for()
    assert page.locator("#mask").is_visible()
    page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, 1)
    page.locator("#current button").click()
    assert page.locator("#slider-text").inner_text() == "Left: the result. Right: the init image."
    assert page.locator("#detail-other").is_visible()


def test_the_theme_is_chosen_and_kept(page):
    page.emulate_media(color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_label("Theme").select_option("dark")
    assert page.evaluate(background) != light
    page.reload()
    assert page.get_by_label("Theme").input_value() == "dark"
    assert page.evaluate(background) != light


def test_the_keyboard_is_enough(page):
    page.get_by_role("button", name="cow", exact=True).focus()
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="cow", exact=True).get_attribute("aria-pressed") == "true"
    page.locator("#seed").focus()
    page.keyboard.press("Enter")
    drawn(page, 4)
    page.locator("#history button").first.focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()


def test_two_images_are_compared_and_settings_copied(page):
    page.get_by_role("spinbutton", name="Images").fill("2")
    page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, 2)
    page.locator("#history button").first.click()
    page.get_by_role("button", name="Compare with another image").click()
    page.locator("#history button").last.click()
    page.locator("#slider").fill("20")
    assert page.locator("#detail-picture").evaluate("e => e.style.getPropertyValue('--cut')") == "20%"
    assert page.locator("#detail-other").is_visible()
    page.get_by_role("button", name="Use these settings").click()
    assert page.get_by_role("spinbutton", name="Images").input_value() == "2"
    page.locator("#history button").first.click()
    page.get_by_role("button", name="Variations").click()
    drawn(page, 2)
    assert page.locator("#history img").count() == 4


def test_a_model_without_classes_and_a_fault(page):
    page.locator("#model").select_option("plain")
    page.locator("#classes-set").wait_for(state="hidden")
    page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, 4)
    page.get_by_text("More settings").click()
    page.locator("#guidance").fill("3")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("status").filter(has_text="guidance 3 on an unconditional model").wait_for()
    page.wrong.clear()  # the browser notes the refused request


def test_an_image_is_masked_and_regenerated(page, tmp_path):
    Image.new("L", (20, 10), 200).save(tmp_path / "grey.png")
    page.get_by_text("Image-to-image and inpainting").click()
    page.locator("#picture").set_input_files(tmp_path / "grey.png")
    canvas = page.locator("#mask")
    canvas.wait_for()
    canvas.focus()
    for key in ("ArrowLeft", "ArrowUp", "Space"):
        page.keyboard.press(key)
    box = canvas.bounding_box()
    canvas.click(position={"x": 0.95 * box["width"], "y": 0.95 * box["height"]})
    page.get_by_label("Resample").fill("1")
    page.get_by_role("spinbutton", name="Images").fill("1")
    with page.expect_request("**/generations") as sent:
        page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, 1)
    mask = Image.open(io.BytesIO(base64.b64decode(sent.value.post_data_json["mask"]))).convert("L")
    assert [(i % 8, i // 8) for i, value in enumerate(mask.tobytes()) if value] == [(3, 3), (7, 7)]
    kept = page.locator("#current img").get_attribute("src")
    picture = Image.open(io.BytesIO(base64.b64decode(kept.split(",")[1]))).convert("L")
    assert sum(value != 200 for value in picture.tobytes()) <= 2
    page.get_by_role("button", name="Remove image").click()
    page.locator("#history button").first.click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download trajectory (GIF)").click()
    with Image.open(download.value.path()) as way:
        assert way.n_frames > 3
    page.locator("#history button").first.click()
    page.get_by_role("button", name="Use as init image").click()
    assert canvas.is_visible()


def test_an_interpolation_from_class_to_class(page):
    page.get_by_role("button", name="ant", exact=True).click()
    page.get_by_text("Interpolate").click()
    page.locator("#to-label").select_option(label="cow")
    page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, 4)
    assert page.locator("#current img").nth(1).get_attribute("alt") == "class ant to cow (33 %), seed 0"


def test_the_inside_is_shown(page):
    page.get_by_role("button", name="Inspect", exact=True).click()
    page.locator("#look-label").select_option(label="bee")
    page.locator("#look-steps").fill("5")
    page.get_by_role("button", name="Inspect image").click()
    reported = page.locator("#attention-told")
    reported.filter(has_text="Step 3, row 3 of 4, column 3 of 4").wait_for()
    page.locator("#attention").focus()
    page.keyboard.press("ArrowUp")
    reported.filter(has_text="row 2 of 4, column 3 of 4").wait_for()
    page.locator("#way button").last.click()
    reported.filter(has_text="Step 5, row 2 of 4").wait_for()
    page.locator("#layer").select_option("0")
    assert page.locator("#way img").count() == 5
    squares = page.locator("#changes rect")
    assert squares.count() == 2 * 4  # blocks, and steps after the first
    assert squares.first.locator("title").text_content().startswith("step 2, block 1: ")
    assert page.locator("#changes-legend text").all_text_contents()[2] == "0.0 %"
    assert re.fullmatch(r"[1-9]\d?\.\d %", page.locator("#attention-most").inner_text())


def test_settings_are_compared_in_a_grid(page):
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator("#grid-classes").fill("bee, cow")
    page.get_by_role("button", name="Add row").click()
    page.locator(".variant").nth(2).locator("summary").click()
    page.locator(".variant").nth(2).locator("[data-key=guidance]").fill("3")
    assert page.locator(".variant").nth(2).locator("summary").inner_text() == "Settings: guidance 3"
    page.locator(".variant").nth(0).locator("summary").click()
    page.locator(".variant").nth(0).get_by_role("button").click()
    page.get_by_role("button", name="Generate grid").click()
    page.get_by_role("status").filter(has_text="2 rows").wait_for()
    assert page.locator("#table img").count() == 8
    assert page.get_by_role("columnheader").nth(1).inner_text() == "class cow, seed 1"
    assert "ab4, 20 steps, guidance 3" in page.get_by_role("rowheader").nth(1).inner_text()
    first, second = (page.locator("#table img").nth(i).get_attribute("src") for i in (0, 4))
    assert first != second


def test_prompts_are_typed_read_from_a_file_and_interpolated(page, tmp_path):
    page.locator("#model").select_option("text")
    prompts = page.locator("#prompts")
    prompts.wait_for(state="visible")
    assert prompts.get_attribute("placeholder") == "a red apple\na blue apple"
    assert not page.locator("#classes-set").is_visible()
    prompts.fill("a red apple\nblue")
    page.locator("#negative").fill("apple")
    page.get_by_role("spinbutton", name="Images").fill("2")
    page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, 2)
    assert page.locator("#current img").nth(1).get_attribute("alt") == "blue, seed 1"
    assert problems(page) == []
    page.locator("#history button").first.click()
    reported = page.locator("#detail-settings").inner_text()
    assert "negative prompt" in reported
    prompts_before = prompts.input_value()
    prompts.evaluate("field => (field.value = '')")
    page.get_by_role("button", name="Use these settings").click()
    assert prompts.input_value() == prompts_before
    assert page.locator("#negative").input_value() == "apple"

    file = tmp_path / "prompts.txt"
    file.write_text("red\n\n a blue apple \n")
    page.locator("#prompts-file").set_input_files(file)
    playwright.expect(prompts).to_have_value("red\na blue apple")
    prompts.fill("red")
    page.locator("#way-set summary").click()
    page.locator("#to-prompt").fill("blue")
    page.get_by_role("spinbutton", name="Images").fill("3")
    page.get_by_role("button", name="Generate", exact=True).click()
    drawn(page, 3)
    assert page.locator("#current img").nth(1).get_attribute("alt") == "red to blue (50 %), seed 0"

    prompts.fill("a purple apple")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("status").filter(has_text='unknown word "purple"').wait_for()
    page.wrong.clear()
    page.get_by_role("button", name="Inspect", exact=True).click()
    page.locator("#look-prompt").fill("blue")
    page.get_by_role("button", name="Inspect image").click()
    page.get_by_role("status").filter(has_text="12 steps").wait_for()


def test_a_text_model_is_compared_with_a_class_model(page):
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator(".variant").nth(1).locator("[data-key=model]").select_option("text")
    page.locator("#grid-classes").fill("bee")
    page.locator("#grid-prompts").fill("a red apple\na blue apple")
    page.locator("#grid-count").fill("2")
    page.get_by_role("button", name="Generate grid").click()
    page.get_by_role("status").filter(has_text="2 rows").wait_for()
    assert page.locator("#table figcaption").all_inner_texts() == [
        "class bee",
        "class bee",
        "a red apple",
        "a blue apple",
    ]
    assert page.get_by_role("columnheader").nth(1).inner_text() == "seed 1"
    assert problems(page) == []


def test_a_run_is_watched(page):
    page.get_by_role("button", name="Runs").click()
    page.locator("#run-told").filter(has_text="800 of 110,000 images, about 36 min left").wait_for()
    page.locator("#preview").wait_for()
    assert page.locator("#curves figcaption").all_inner_texts() == ["Loss", "Learning rate", "Images per second"]
    assert "now 0.125" in page.locator("#curves svg").first.get_attribute("aria-label")
    page.locator("#run").select_option("ended")
    page.locator("#run-told").filter(has_text="300 of 110,000 images, stopped").wait_for()


def test_a_late_response_is_not_shown_under_the_name_of_another_run(page):
    def delay(route):
        page.wait_for_timeout(600)
        route.continue_()

    page.get_by_role("button", name="Runs").click()
    page.locator("#run-told").filter(has_text="800 of").wait_for()
    page.route("**/v1/runs/ended*", delay)
    page.locator("#run").select_option("ended")
    page.locator("#run").select_option("going")
    page.wait_for_timeout(1500)
    assert "800 of 110,000" in page.locator("#run-told").inner_text()


NUMBER = "#stage-player .number"


def choose_clips(page):
    page.locator("#model").select_option("clips")
    page.locator("#current img[alt='example: class right']").wait_for()


def generated_clips(page, count, frames=4):
    """Generate clips with the settings of the page."""
    if page.locator("#model").input_value() != "clips":
        choose_clips(page)
    page.locator("#count").fill(str(count))
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("status").filter(has_text=re.compile(f"{count} clips? in")).wait_for(timeout=20_000)
    page.locator(NUMBER).filter(has_text=f"/ {frames}").wait_for()
    assert page.locator("#current canvas").count() == count


def gray(address):
    """The gray levels of an image, from its data URL."""
    return Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("L").tobytes()


def frames_of(file):
    with Image.open(file) as clip:
        return [clip.convert("L").tobytes() for number in range(clip.n_frames) if clip.seek(number) is None]


def test_clips_play_in_a_loop_and_are_scrubbed(page):
    choose_clips(page)
    page.evaluate(
        """() => {
        window.moved = [];
        const note = (entry) => entry.sources.forEach(({ node }) => window.moved.push(node?.outerHTML));
        const outside = ({ sources }) => sources.some(({ node }) => !node?.parentElement?.closest("#history"));
        const all = (list) => list.getEntries().filter(outside).forEach(note);
        new PerformanceObserver(all).observe({ type: "layout-shift" });
    }"""
    )
    generated_clips(page, 2)
    assert page.evaluate("window.moved") == []
    for number in (3, 4, 1):  # it begins again after the last frame
        page.locator(NUMBER).filter(has_text=f"{number} / 4").wait_for()
    page.get_by_role("button", name="Pause").click()
    page.locator("#stage-player").get_by_label("Frame").fill("3")
    page.wait_for_timeout(400)
    assert page.locator(NUMBER).inner_text() == "3 / 4"
    shown = page.locator("#current canvas").first.evaluate("canvas => canvas.toDataURL()")
    assert page.locator("#current canvas").nth(1).get_attribute("aria-label") == "class right, seed 1"
    assert problems(page) == []
    page.locator("#current button").first.click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download PNG").click()
    frames = frames_of(download.value.path())
    assert (len(frames), gray(shown)) == (4, frames[2])
    detail = page.locator("#detail-player")
    detail.get_by_label("Frame").fill("2")
    assert detail.locator(".number").inner_text() == "2 / 4"
    assert gray(page.locator("#detail-clip").evaluate("canvas => canvas.toDataURL()")) == frames[1]
    detail.get_by_label("Frame").press("ArrowRight")  # scrubs, and does not open the next clip
    assert detail.locator(".number").inner_text() == "3 / 4"
    assert page.locator("#detail-title").inner_text() == "class left, seed 0"
    assert problems(page) == []
    page.get_by_role("button", name="Compare with another clip").click()
    page.locator("#history button").first.click()
    detail.locator(".number").filter(has_text="/ 4").wait_for()
    assert page.locator("#detail-other-clip").is_visible()
    assert page.locator("#slider-text").inner_text() == "Left: this clip. Right: the other clip."


def test_clips_do_not_start_by_themselves_if_motion_is_reduced(page):
    page.emulate_media(reduced_motion="reduce")
    generated_clips(page, 1)
    page.wait_for_timeout(600)
    assert page.locator(NUMBER).inner_text() == "1 / 4"
    page.locator("#history button").hover()
    assert page.locator("#history img").get_attribute("src").startswith("blob:")  # the first frame
    page.get_by_role("button", name="Play").click()
    page.locator(NUMBER).filter(has_text="3 / 4").wait_for()
    page.reload()
    page.locator("#model").select_option("clips")
    page.locator(NUMBER).filter(has_text="1 / 4").wait_for()
    assert page.get_by_role("button", name="Play").is_enabled()


def test_previews_of_clips_are_film_strips_and_the_history_plays(page):
    page.get_by_text("More settings").click()
    page.locator("#steps").fill("200")
    choose_clips(page)
    page.locator("#count").fill("1")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator("#current img[src^='data:']").wait_for()
    assert page.locator("#current img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 8]
    page.locator("#history button.clip").wait_for()
    image = page.locator("#history img")
    first = image.get_attribute("src")
    assert first.startswith("blob:")
    page.locator("#history button").hover()
    assert image.get_attribute("src").startswith("data:image/png")
    page.locator("h1").hover()
    assert image.get_attribute("src") == first


@pytest.mark.parametrize("name", ["mp4", "webp", "gif"])
def test_clips_are_downloaded_in_other_formats(page, name):
    if name == "mp4":
        pytest.importorskip("av")
    generated_clips(page, 2)
    page.locator("#current button").nth(1).click()
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Download {name}", exact=False).click()
    assert download.value.suggested_filename == f"clips-1-1.{name}"
    if name == "mp4":
        assert download.value.path().read_bytes()[4:8] == b"ftyp"
        return
    other = frames_of(download.value.path())
    with page.expect_download() as download:
        page.get_by_role("link", name="Download PNG").click()
    if name == "webp":
        assert other == frames_of(download.value.path())
    assert len(other) == 4


def test_given_frames_and_longer_clips(page, tmp_path):
    choose_clips(page)
    page.get_by_text("Given frames and length").click()
    Image.new("L", (40, 20), 200).save(tmp_path / "gray.png")
    page.locator("#given-first").set_input_files(tmp_path / "gray.png")
    page.locator("#given-first-image").wait_for()
    page.locator("#frames").fill("6")
    generated_clips(page, 1, frames=6)
    page.locator("#current button").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download PNG").click()
    frames = frames_of(download.value.path())
    assert (len(frames), set(frames[0])) == (6, {200})
    assert "image hash" in page.locator("#detail-settings").inner_text()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for button, words in (
        ("Python", 'given={0: Image.open("first.png")}, frames=6, overlap=2'),
        ("command", " --given 0=first.png --frames 6 --overlap 2"),
    ):
        page.get_by_role("button", name=f"Copy as {button}").click()
        page.locator("#copied").filter(has_text="Copied").wait_for()
        assert words in page.evaluate("navigator.clipboard.readText()")
        page.locator("#copied").evaluate("place => (place.textContent = '')")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Remove frames").click()
    assert not page.locator("#given-first-image").is_visible()
    page.locator("#history button").click()
    page.get_by_role("button", name="Use these settings").click()
    assert page.locator("#frames").input_value() == "6"
    assert page.locator("#given-first-image").is_visible()
    page.locator("#model").select_option("small")
    page.locator("#start-set").wait_for()
    assert not page.locator("#given-set").is_visible()


def test_equal_frames_that_a_file_merges_are_counted(page):
    frames = [Image.new("L", (4, 4), level) for level in (10, 10, 10, 90, 10)]
    content = io.BytesIO()
    frames[0].save(content, format="PNG", save_all=True, append_images=frames[1:], duration=125)
    with Image.open(content) as merged:
        assert merged.n_frames == 3
    read = """async (text) => {
        const { read } = await import("/clip.js");
        const { frames, milliseconds } = await read(text, { size: "5x4x4" });
        const pen = new OffscreenCanvas(4, 4).getContext("2d");
        const level = (frame) => (pen.drawImage(frame, 0, 0), pen.getImageData(1, 1, 1, 1).data[0]);
        return [frames.map(level), milliseconds];
    }"""
    assert page.evaluate(read, base64.b64encode(content.getvalue()).decode()) == [[10, 10, 10, 90, 10], 125]
