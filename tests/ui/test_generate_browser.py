"""The Generate tab through its real buttons: a queue, a grid, with and without LoRA, the gallery, settings read back."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from zimage_gui.files import read_header

pytestmark = pytest.mark.browser


def runs(window) -> list[Path]:
    return sorted((window.folder / "runs").glob("2*_generate*"))


def pictures(window) -> list[Path]:
    return sorted((window.folder / "runs").glob("*/samples/*.png"))


def wait_for(found, seconds: float = 120):
    end = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return answer


@pytest.fixture(scope="module")
def lora(window) -> Path:
    """A strong LoRA of the demo's first block."""
    models = window.folder / "demo_project" / "models" / "comfy" / "diffusion_models"
    name = "layers.0.feed_forward.w1"
    wide, narrow = read_header(models / "z_image_demo.safetensors").tensors[f"{name}.weight"].shape
    numbers = np.random.default_rng(0)
    path = window.folder / "强 strong.safetensors"
    parts = {"lora_A": (4, narrow), "lora_B": (wide, 4)}
    save_file(
        {
            f"diffusion_model.{name}.{part}.weight": numbers.normal(size=shape).astype(np.float32)
            for part, shape in parts.items()
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def tab(page):
    page.tab("Generate")
    for option, value in {
        "infer_steps": "2",
        "batch_count": "1",
        "image_size": "64 x 64",
        "prompt": "a {red|blue} zorb 猫",
        "seed": "3",
    }.items():
        page.type("generate", option, value)
    return page


def test_clicks_queue_up_and_one_is_taken_back(tab, window):
    tab.type("generate", "infer_steps", "1000")
    for _ in range(3):
        tab.press("#generate-start")
        tab.page.wait_for_timeout(400)
    tab.see("#generate-waiting caption", "2 requests waiting")
    tab.see("#generate-waiting td", "a {red|blue} zorb 猫")
    tab.press("#generate-waiting [data-action=dequeue]")
    tab.see("#generate-waiting caption", "1 request waiting")
    tab.press("#generate-waiting [data-action=dequeue]")
    tab.page.wait_for_selector("#generate-waiting table", state="detached")
    tab.see("#generate-making img")
    tab.press("#generate-status [data-action=stop]")
    tab.see("#generate-status .zg-badge", "stopped")
    assert pictures(window) == []
    tab.type("generate", "infer_steps", "2")


def test_a_grid_is_made_and_its_sheet_is_shown(tab, window):
    tab.press("text=Grid and comparison")
    tab.press("#generate-axes >> text=Seed")
    tab.press("#generate-axes >> text=Steps")
    tab.page.wait_for_timeout(600)
    assert tab.field("generate", "grid_x").input_value() == "seed=1..4"
    tab.type("generate", "grid_x", "seed=1, 2")
    tab.type("generate", "grid_y", "infer_steps=1, 2")
    tab.press("#generate-start")
    tab.see("#generate-sheet img.zg-sheet")
    tab.see("#generate-gallery .zg-pages", "5 pictures")
    (sheet,) = [path for path in pictures(window) if "_grid_" in path.name]
    with Image.open(sheet) as image:
        assert image.width > 2 * 64
    tab.type("generate", "grid_x", "seed=a")
    tab.see("#generate--grid_x .zg-error", "seed")
    for axis in ("grid_x", "grid_y"):
        tab.type("generate", axis, "")


def test_a_stopped_grid_goes_on(tab, window):
    tab.type("generate", "grid_x", "infer_steps=1, 1000")
    tab.press("#generate-start")
    tab.page.wait_for_timeout(1000)
    run = wait_for(lambda: runs(window)[-1])
    assert "infer_steps=1, 1000" in (run / "config.toml").read_text("utf-8")
    wait_for(lambda: list((run / "samples").glob("*.png")))
    tab.press("#generate-status [data-action=stop]")
    tab.see("#generate-sheet [data-action=goon]").click()
    wait_for(lambda: runs(window)[-1] != run)
    tab.see("#generate-status .zg-badge", "running")
    tab.see("#generate-making img")
    tab.press("#generate-status [data-action=stop]")
    tab.see("#generate-status .zg-badge", "stopped")
    said = (runs(window)[-1] / "events.jsonl").read_text("utf-8")
    assert "1 of 2 pictures are there already" in said
    tab.type("generate", "grid_x", "")


def test_with_and_without_lora_lie_under_the_slider(tab, window, lora):
    box = tab.page.locator("#generate-lora-0 input").first
    box.fill(str(lora))
    box.press("Enter")
    tab.page.wait_for_timeout(500)
    tab.press("#generate-compare")
    tab.see("#generate-slider img")
    made = [path.name for path in pictures(window) if "LoRA" in path.name]
    assert len(made) == 2
    shown = tab.page.locator("#generate-slider img")
    assert shown.count() >= 2
    assert len({shown.nth(index).get_attribute("src") for index in range(2)}) == 2
    tab.press("#generate-note [data-action=close]")
    tab.page.wait_for_selector("#generate-slider img", state="detached")
    for number in (1, 2):
        tab.page.locator("#generate-gallery [data-action=wipe]").nth(number).click()
        tab.see("#generate-note", "Now press Wipe" if number == 1 else "Close the slider")
    tab.see("#generate-slider img")


def test_the_gallery_searches_marks_and_deletes(tab, window):
    search = tab.page.locator("[data-gallery=query]")
    search.fill("without-lora")
    tab.see("#generate-gallery .zg-pages", "1 picture found")
    tab.press("#generate-gallery [data-action=favourite]")
    tab.see("#generate-gallery [data-action=plain]")
    search.fill("")
    tab.press("[data-gallery=favourites]")
    tab.see("#generate-gallery .zg-pages", "1 picture found")
    before = len(pictures(window))
    tab.press("#generate-gallery [data-action=delete]")
    tab.see("#generate-gallery .zg-empty", "No picture is like that")
    assert len(pictures(window)) == before - 1
    tab.press("[data-gallery=favourites]")
    tab.see("#generate-gallery .zg-pages", f"{before - 1} pictures")


def test_a_picture_of_the_gallery_and_a_dropped_one_fill_the_form(tab, window):
    tab.type("generate", "prompt", "something else")
    tab.press("#generate-gallery .zg-card [data-action=picture]")
    tab.see("#generate-answer .zg-notice", "are in the form")
    tab.page.wait_for_timeout(500)
    assert tab.field("generate", "prompt").input_value() in ("a red zorb 猫", "a blue zorb 猫")
    tab.press("text=Read settings back from a picture")
    Image.new("RGB", (8, 8)).save(window.folder / "plain.png")
    tab.page.set_input_files("#generate-drop input[type=file]", str(window.folder / "plain.png"))
    tab.see("#generate-answer .zg-notice", "no settings")
    (sheet,) = [path for path in pictures(window) if "_grid_" in path.name][:1]
    tab.page.set_input_files("#generate-drop input[type=file]", str(sheet))
    tab.see("#generate-answer .zg-notice", sheet.name)
    tab.page.wait_for_timeout(500)
    assert tab.field("generate", "grid_x").input_value() == "seed=1, 2"
    (window.folder / "broken.png").write_bytes(sheet.read_bytes()[:200])
    tab.page.set_input_files("#generate-drop input[type=file]", str(window.folder / "broken.png"))
    tab.see("text=is not a picture that can be read")
    tab.page.wait_for_selector("#generate-answer .zg-notice", state="detached")
