"""What stops or spoils a cache command: stops, kills, bad pictures, models that are none, folders without rights."""

import os
import subprocess
import sys
import time

import pytest
from cache_project import TEXT_ENCODER, VAE
from safetensors.torch import load_file, save_file

from zimage_gui.config.cache import CacheLatentsConfig
from zimage_gui.engine import cache_latents
from zimage_gui.errors import Interrupted, UserError
from zimage_gui.events import NullRun, Warning


def test_a_stop_keeps_what_is_done_and_the_next_run_goes_on(project):
    for name in "abcd":
        project.picture(f"{name}.png")
    project.watched.stop = False
    run = project.watched

    class StopsAfterTwo(NullRun):
        def stop_requested(self):
            return len(list(project.cache.glob("*.safetensors"))) >= 2

    project.watched = StopsAfterTwo(run.folder)
    with pytest.raises(Interrupted, match="2 of 4"):
        project.latents(batch_size=1)
    project.watched = run
    assert len(project.latents()) == 2


def test_bad_pictures_are_named_and_left_out(project):
    project.picture("good.png")
    torn = project.picture("torn.png", size=(300, 200))
    content = torn.read_bytes()
    torn.write_bytes(content[: len(content) - 40])
    assert project.latents() == ["good_0064x0064_zi.safetensors"]
    assert any(isinstance(event, Warning) and "torn.png" in event.text for event in project.watched.events)


def test_a_vae_that_gives_nan_is_named_and_nothing_is_written(project, tmp_path):
    project.picture("a.png")
    broken = load_file(VAE)
    broken["encoder.conv_in.weight"].fill_(float("nan"))
    save_file(broken, tmp_path / "nan.safetensors")
    project.vae = tmp_path / "nan.safetensors"
    with pytest.raises(UserError, match="no picture could be encoded"):
        project.latents()
    assert "undefined numbers" in project.told and not list(project.cache.glob("*.safetensors"))


def test_missing_models_and_folders_are_told_together_before_any_work(tmp_path):
    config = CacheLatentsConfig(dataset=tmp_path / "none", vae=tmp_path / "none.safetensors", device="cpu")
    with pytest.raises(UserError) as raised:
        cache_latents.run(config, NullRun(tmp_path))
    assert {problem.option for problem in raised.value.problems} == {"vae", "dataset"}


def test_a_transformer_given_as_vae_is_named(project, tmp_path):
    project.picture("a.png")
    project.vae = TEXT_ENCODER
    with pytest.raises(UserError, match="text encoder"):
        project.latents()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a user whom rights bind")
def test_a_cache_folder_that_cannot_be_written_is_told_before_the_encoder_is_loaded(project):
    project.picture("a.png")
    project.cache.mkdir(mode=0o500)
    with pytest.raises(UserError, match="cache_directory"):
        project.latents()


def test_a_killed_run_leaves_only_whole_files_and_the_next_one_does_the_rest(project):
    for number in range(30):
        project.picture(f"{number:02d}.png", size=(120, 120))
    words = [
        "cache-latents",
        "--dataset",
        project.folder,
        "--cache_directory",
        project.cache,
        "--resolution",
        "256",
    ]
    words += ["--vae", VAE, "--device", "cpu", "--runs_dir", project.folder.parent / "runs"]
    killed = subprocess.Popen(
        [sys.executable, "-m", "zimage_gui", *map(str, words)], stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while len(list(project.cache.glob("*.safetensors"))) < 3 and time.monotonic() < deadline:
            assert killed.poll() is None, "the command ended by itself"
            time.sleep(0.01)
    finally:
        killed.kill()
        killed.wait()
    whole = [path.name for path in project.cache.glob("*.safetensors")]
    assert 3 <= len(whole) < 30 and all(len(load_file(project.cache / name)) == 1 for name in whole)
    left = project.cache / ".torn.safetensors.999999999-0a0b0c0d.zimage-tmp"
    left.write_bytes(b"half")
    project.options |= {"resolution": 256}
    made = project.latents()
    assert len(made) == 30 - len(whole) and not set(made) & set(whole)
    assert len(list(project.cache.iterdir())) == 30
