"""The main job through the real buttons: a dataset, a LoRA, a stop, a resume, a picture, and nothing lost on the way."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser


def newest_run(window, command: str) -> Path:
    return sorted((window.folder / "runs").glob(f"2*_{command}*"))[-1]


def status(run: Path) -> dict:
    return json.loads((run / "status.json").read_text(encoding="utf-8"))


def test_the_window_opens_on_the_demo_project(page, window):
    assert page.page.title() == "Z-Image studio"
    assert (window.folder / "demo_project" / "dataset.toml").is_file()
    assert page.field("train-lora", "dit").input_value().endswith("z_image_demo.safetensors")
    width, shown = page.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= shown


def test_the_head_and_the_watched_run_stay_in_sight_where_the_form_is_long(page):
    places = "['#zg-head', '#train-lora-start'].map((one) => document.querySelector(one).getBoundingClientRect().top)"
    page.page.evaluate("scrollTo(0, 600)")
    page.page.wait_for_function("scrollY > 500")
    head, button = page.page.evaluate(places)
    page.page.evaluate("scrollTo(0, 0)")
    assert head == 0 and head < button < 200


def test_the_dataset_is_shown_and_a_caption_is_edited(page, window):
    page.tab("Dataset")
    page.press("#dataset-look")
    page.see("#dataset-grid .zg-card")
    assert page.page.locator("#dataset-grid .zg-card").count() >= 16
    area = page.page.locator("#dataset-grid textarea").first
    area.fill("a red 星 <b>zorb</b>")
    area.blur()
    page.see("#dataset-grid [data-part=state]", "saved")
    first = sorted((window.folder / "demo_project" / "dataset").glob("*.txt"))[0]
    assert first.read_text(encoding="utf-8") == "a red 星 <b>zorb</b>"
    page.press("#dataset-use")
    page.see("#dataset-answer .zg-notice", "is set in")
    page.tab("Cache")
    assert page.field("cache-latents", "dataset_config").input_value().endswith("dataset.toml")
    assert page.field("cache-latents", "batch_size").input_value() == ""  # the encoder's, not the dataset's


def test_a_wrong_value_is_told_beside_its_field_and_goes_when_it_is_right(page):
    page.tab("LoRA Train")
    page.type("train-lora", "learning_rate", "abc")
    page.see("#train-lora--learning_rate .zg-error", "must be a number")
    page.press("#train-lora-start")
    page.see("#train-lora-problems .zg-notice", "Learning rate: abc: must be a number of at least 0")
    page.type("train-lora", "learning_rate", "5e-4")
    page.page.wait_for_selector("#train-lora--learning_rate .zg-error", state="detached")


def test_what_is_set_and_does_nothing_is_noted_beside_its_field_and_stops_nothing(page):
    page.tab("LoRA Train")
    page.type("train-lora", "max_train_epochs", "2")
    note = "#train-lora--max_train_steps .zg-note"
    page.see(note, "has no effect here. Matters when max_train_epochs is empty")
    page.press("#train-lora-check")
    page.see("#train-lora-problems .zg-notice.zg-warn", "Set, and without effect:")
    page.see("#train-lora-answer .zg-notice", "Ready to train")
    page.type("train-lora", "max_train_epochs", "")
    page.page.wait_for_selector(note, state="detached")
    page.page.wait_for_selector("#train-lora-problems .zg-notice", state="detached")


def test_beside_a_dataset_file_the_folders_options_say_that_it_says_them(page):
    page.tab("LoRA Train")
    file = page.field("train-lora", "dataset_config").input_value()
    for option in ("resolution", "num_repeats"):
        page.see(f"#train-lora--{option}", "set in the dataset file")
    page.type("train-lora", "dataset_config", "")
    page.page.wait_for_function(
        "!document.querySelector('#train-lora--resolution').innerText.includes('file says')"
    )
    page.type("train-lora", "dataset_config", file)
    page.see("#train-lora--resolution", "set in the dataset file")


def test_values_survive_a_refresh_and_a_second_browser(page, browser, window):
    (window.folder / "one.txt").write_text("a red zorb --w 64 --h 64 --s 2 --d 1\n", encoding="utf-8")
    values = {
        "max_train_steps": "4000",
        "network_dim": "4",
        "sample_prompts": "one.txt",
        "sample_every_n_steps": "2000",
    }
    for option, value in values.items():
        page.type("train-lora", option, value)
    page.page.wait_for_timeout(500)
    page.open()
    assert {option: page.field("train-lora", option).input_value() for option in values} == values

    other = type(page)(browser, window.address)
    assert other.field("train-lora", "network_dim").input_value() == "4"
    other.page.close()


def test_a_training_is_watched_survives_the_window_and_is_stopped_and_saved(page, window):
    page.press("#train-lora-start")
    page.see("#train-lora-curves svg")
    page.see("#train-lora-samples img")
    run = newest_run(window, "train-lora")
    window.stop()
    page.page.wait_for_selector("body.zg-lost", state="attached")
    assert status(run)["outcome"] is None
    page.address = window.address = window.start()
    page.open()
    page.see("#train-lora-status", "Step")
    page.see("#zg-head", "zorb")
    page.press("#train-lora-status [data-action=stop]")
    page.see("#train-lora-status .zg-badge", "stopped and saved")
    assert status(run)["outcome"] == "stopped"
    assert [path for path in status(run)["results"] if path.endswith(".safetensors")]


def test_a_resumed_training_that_is_killed_is_shown_failed_with_its_last_lines(page, window):
    page.press("#train-lora-status [data-action=resume]")
    page.see("#train-lora-status .zg-badge", "running")
    page.see("#train-lora-status .zg-fact", "Step")
    run = newest_run(window, "train-lora")
    os.kill(status(run)["pid"], signal.SIGKILL)
    killed = time.monotonic()
    page.see("#train-lora-status .zg-badge", "failed")
    assert time.monotonic() - killed < 5
    page.see("#train-lora-status .zg-log", "Training")


def test_a_resumed_training_ends_and_its_lora_makes_a_picture(page, window):
    page.type("train-lora", "max_train_steps", "3")
    page.type("train-lora", "sample_every_n_steps", "3")
    page.press("#train-lora-start")
    page.see("#train-lora-status .zg-badge", "finished")
    page.press("#train-lora-status [data-action=generate]")
    page.see("#generate-start")
    for option, value in {
        "infer_steps": "2",
        "batch_count": "1",
        "image_size": "64 x 64",
        "prompt": "a red zorb",
    }.items():
        page.type("generate", option, value)
    page.page.wait_for_timeout(300)
    page.press("#generate-start")
    page.see("#generate-gallery img")
    made = newest_run(window, "generate")
    assert "zorb" in (made / "config.toml").read_text(encoding="utf-8").split("lora_weight")[1][:200]
    (picture,) = (made / "samples").glob("*.png")
    page.type("generate", "prompt", "something else")
    page.press("text=Read settings back from a picture")
    page.page.set_input_files("#generate-drop input[type=file]", str(picture))
    page.see("#generate-answer .zg-notice", "are in the form")
    page.page.wait_for_timeout(500)
    assert page.field("generate", "prompt").input_value() == "a red zorb"


def test_a_file_is_looked_into_and_converted(page, window):
    page.tab("Convert")
    lora = sorted((window.folder / "demo_project" / "output").glob("*.safetensors"))[0]
    page.page.locator("#convert-file textarea, #convert-file input").first.fill(str(lora))
    page.press("#convert-inspect")
    page.see("#convert-report .zg-notice", "LoRA")
    page.see("#convert-report .zg-verdicts tr", "ComfyUI")
    page.see("#convert-plan-convert-lora .zg-notice", f"Writes {lora.stem}_universal.safetensors")
    page.press("#convert-start")
    page.see("#convert-status .zg-badge", "finished")
    assert lora.with_name(f"{lora.stem}_universal.safetensors").is_file()
    page.press("#convert-status [data-action=look]")
    page.see("#convert-report .zg-notice", "_universal.safetensors")


def test_a_model_is_offered_what_fits_it_and_becomes_a_burnpack_file(page, window):
    page.tab("Convert")
    model = (
        window.folder / "demo_project" / "models" / "comfy" / "diffusion_models" / "z_image_demo.safetensors"
    )
    page.page.locator("#convert-file textarea, #convert-file input").first.fill(str(model))
    page.press("#convert-inspect")
    page.see("#convert-choice label", "Merge LoRAs into it")
    page.type("convert", "output", str(model.with_suffix(".bpk")))
    page.see("#convert-plan-convert .zg-notice", "Writes z_image_demo.bpk")
    page.press("#convert-start")
    page.see("#convert-status .zg-notice", "all read back equal")
    assert model.with_suffix(".bpk").stat().st_size > 0.9 * model.stat().st_size
    page.press("#convert-start")
    page.see("#convert--output .zg-error", "exists already")
    page.page.locator("#convert--overwrite input").check()
    page.see("#convert-plan-convert .zg-notice", "it will be replaced")
    assert not page.page.locator("#convert--prefix").is_visible()
    page.page.locator("#convert-advanced input").check()
    page.page.locator("#convert--prefix").wait_for()
    page.page.locator("#convert-advanced input").uncheck()


def test_a_lora_is_copied_to_comfyui_and_the_folder_is_remembered(page, window):
    comfy = window.folder / "Comfy UI"
    (comfy / "models" / "loras").mkdir(parents=True)
    page.tab("Convert")
    lora = sorted((window.folder / "demo_project" / "output").glob("*_universal.safetensors"))[0]
    page.page.locator("#convert-file textarea, #convert-file input").first.fill(str(lora))
    page.press("#convert-inspect")
    page.see("#convert-copy")
    page.page.locator("#convert-comfy textarea, #convert-comfy input").first.fill(str(comfy))
    page.press("#convert-copy")
    page.see("#convert-copied .zg-notice", "was copied")
    assert (comfy / "models" / "loras" / lora.name).read_bytes() == lora.read_bytes()
    page.open()
    page.tab("Convert")
    page.page.locator("#convert-file textarea, #convert-file input").first.fill(str(lora))
    page.press("#convert-inspect")
    page.see("#convert-copy")
    assert page.page.locator("#convert-comfy textarea, #convert-comfy input").first.input_value() == str(
        comfy
    )


def test_no_page_ever_asked_another_host(page):
    page.tab("Runs")
    page.see("#runs-table p")
    page.tab("Models")
    page.press("#models-check")
    page.see("#models-answer .zg-notice")
    page.see("#models-answer .zg-badge", "here: yes")
    assert page.foreign == []


def test_a_picture_in_the_making_is_shown_skipped_and_cancelled(page, window):
    page.tab("Generate")
    values = {"infer_steps": "1000", "batch_count": "2", "image_size": "128 x 128", "seed": "5"}
    for option, value in values.items():
        page.type("generate", option, value)
    page.page.locator("#generate--sampler input").first.click()
    page.page.get_by_role("option", name="heun", exact=True).click()
    page.page.wait_for_timeout(300)
    page.press("#generate-start")
    page.see("#generate-making img")
    run = newest_run(window, "generate")
    page.press("#generate-making [data-action=skip]")
    page.page.wait_for_function("document.querySelector('#generate-making img') !== null")
    deadline = time.monotonic() + 60
    while "Skipped" not in (run / "events.jsonl").read_text(encoding="utf-8"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    page.see("#generate-making img")
    page.press("#generate-status [data-action=stop]")
    page.see("#generate-status .zg-badge", "stopped")
    page.page.wait_for_selector("#generate-making img", state="detached")
    assert not list((run / "samples").glob("*.png"))
    assert 'sampler = "heun"' in (run / "config.toml").read_text(encoding="utf-8")
