"""What `convert` refuses, in one sentence and with nothing written; and what happens when it is stopped."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import FUSED, HUB, MUSUBI, SINGLE, convert, sparse_text_encoder, tensors
from safetensors.torch import load_file, save_file

from zimage_gui.config.convert_model import ConvertConfig
from zimage_gui.engine.convert_model import check
from zimage_gui.engine.convert_model import run as convert_run
from zimage_gui.engine.convert_model_output import output_problems, whole
from zimage_gui.errors import Interrupted, UserError
from zimage_gui.events import NullRun
from zimage_gui.files import unwritten

ROOT = Path(__file__).parents[2]


def _broken(tmp_path, what):
    path = tmp_path / "in.safetensors"
    whole = load_file(FUSED)
    if what == "nonsense":
        path.write_bytes(os.urandom(1000))
    elif what == "truncated":
        path.write_bytes(FUSED.read_bytes()[:-100])
    elif what == "truncated bpk":
        bpk, _ = convert(FUSED, tmp_path / "whole.bpk")
        path = tmp_path / "in.bpk"
        path.write_bytes(bpk.read_bytes()[:-100])
        bpk.unlink()
    elif what == "a tensor missing":
        del whole["layers.0.feed_forward.w2.weight"]
        save_file(whole, path)
    elif what == "a tensor too many":
        save_file({**whole, "layers.0.feed_forward.w4.weight": torch.ones(2)}, path)
    elif what == "a shape wrong":
        whole["layers.0.feed_forward.w2.weight"] = torch.ones(64, 4)
        save_file(whole, path)
    elif what == "integers":
        save_file({**whole, "layers.0.feed_forward.w2.weight": torch.ones(64, 170, dtype=torch.int32)}, path)
    return path


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("nonsense", "is cut off, or not a safetensors file"),
        ("truncated", "is cut off"),
        ("truncated bpk", "is cut off"),
        ("a tensor missing", "1 tensor missing"),
        ("a tensor too many", "1 tensor unexpected"),
        ("a shape wrong", "of another shape"),
        ("integers", "stores 1 tensors as I32"),
    ],
)
def test_a_file_that_is_no_whole_model_is_named_and_refused(tmp_path, what, reason):
    source = _broken(tmp_path, what)
    for output in ("o.safetensors", "o.bpk", "o"):
        with pytest.raises(UserError, match=reason):
            convert(source, tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"input": MUSUBI / "lora" / "lora_raw.safetensors"}, "this is a LoRA.*convert-lora"),
        ({"model_type": "vae"}, "input.*must be a VAE, but this is a Z-Image transformer"),
        (
            {"input": SINGLE / "ae.safetensors", "model_type": "t"},
            "must be a transformer, but this is a Flux VAE",
        ),
        ({"input": MUSUBI / "cache" / "tiny64_zi_te.safetensors"}, "a text cache file"),
        ({"input": HUB}, "is a whole model folder"),
        ({"output": "o.ckpt"}, "ends in .ckpt"),
        ({"output": "o-00001-of-00003.safetensors"}, "one shard of several"),
        ({"output": "o.bpk", "layout": "comfy"}, "layout = comfy: does not go with"),
        ({"output": "o.safetensors", "layout": "burn"}, "layout = burn: does not go with"),
        ({"output": "o", "layout": "comfy"}, "layout = comfy: does not go with"),
        ({"output": "o.bpk", "dtype": "fp8_comfy"}, "does not go into a .bpk file"),
        ({"output": "o", "dtype": "fp8_blocks"}, "does not go into a diffusers folder"),
        ({"input": SINGLE / "ae.safetensors", "dtype": "fp8_comfy"}, "is not made for a VAE"),
        ({"output": "o.bpk", "prefix": "model."}, "whose names are fixed"),
        ({"input": None}, "input: is missing"),
        ({"output": None}, "output: is missing"),
    ],
)
def test_options_that_contradict_are_named_and_nothing_is_written(tmp_path, options, reason):
    given = {"input": FUSED, "output": "o.safetensors", **options}
    if given["output"]:
        given["output"] = tmp_path / given["output"]
    config = ConvertConfig(**given)
    with pytest.raises(UserError, match=reason):
        convert_run(config, NullRun(tmp_path))
    assert "\n".join(problem.sentence() for problem in check(config))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "stored", "dtype"),
    [
        (1e6, torch.bfloat16, "f16"),
        (1e39, torch.float64, "f32"),
        (3.4e38, torch.float32, "bf16"),
    ],
)
def test_numbers_that_the_format_cannot_hold_are_refused_with_their_name(tmp_path, number, stored, dtype):
    whole = {name: tensor.to(stored) for name, tensor in load_file(FUSED).items()}
    whole["layers.0.feed_forward.w2.weight"][0, 0] = number
    save_file(whole, tmp_path / "s.safetensors")
    with pytest.raises(UserError, match=r"cannot hold 1 numbers of layers.0.feed_forward.w2.weight"):
        convert(tmp_path / "s.safetensors", tmp_path / "o.safetensors", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_the_input_is_never_the_output_by_any_name(tmp_path, link):
    source = tmp_path / "s.safetensors"
    source.write_bytes(FUSED.read_bytes())
    link(source, tmp_path / "o.safetensors")
    (tmp_path / "sub").mkdir()
    for output in (source, tmp_path / "o.safetensors", tmp_path / "sub" / ".." / "s.safetensors"):
        with pytest.raises(UserError, match="is the input itself"):
            convert(source, output, overwrite=True)
    assert source.read_bytes() == FUSED.read_bytes()


def test_a_folder_is_not_replaced_by_what_comes_out_of_it_nor_with_foreign_files_in_it(tmp_path):
    folder, _ = convert(FUSED, tmp_path / "part")
    before = tensors(folder)
    with pytest.raises(UserError, match="is the folder in which the input lies"):
        convert(folder, folder, overwrite=True, dtype="f32")
    with pytest.raises(UserError, match="exists already"):
        convert(FUSED, folder)
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other things too \(diary.txt\)"):
        convert(FUSED, folder, overwrite=True)
    (folder / "diary.txt").unlink()
    convert(FUSED, folder, overwrite=True, dtype="f32")
    assert tensors(folder).keys() == before.keys()
    assert {tensor.dtype for tensor in tensors(folder).values()} == {torch.float32}
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_an_existing_file_stays_unless_overwrite_says_otherwise(tmp_path):
    output = tmp_path / "o.bpk"
    output.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already"):
        convert(FUSED, output)
    assert output.read_bytes() == b"mine"
    assert convert(FUSED, output, overwrite=True)[0].stat().st_size > 1_000_000


def test_missing_room_is_found_before_anything_is_written(tmp_path):
    sparse_text_encoder(tmp_path / "huge.safetensors", 10**11)
    with pytest.raises(UserError, match=r"needs \d+\.\d\d GB of free space"):
        convert(tmp_path / "huge.safetensors", tmp_path / "o.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["huge.safetensors"]


def test_the_room_counted_is_that_of_the_result(tmp_path):
    assert output_problems(tmp_path / "o", [], False, 10**9, folder=True, free=2 * 10**9) == []
    (problem,) = output_problems(tmp_path / "o", [], False, 10**9, folder=True, free=10**9)
    assert "needs 1.07 GB" in problem.sentence()


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EFBIG, "FAT32 at most 4 GB"), (errno.EIO, "(x)")],
)
def test_why_nothing_was_written_is_told_apart(number, words):
    assert words in str(unwritten(OSError(number, "x"), Path("o.bpk")))


@pytest.mark.parametrize("name", ["o.bpk", "o"])
def test_a_disk_that_takes_no_more_leaves_nothing_behind(tmp_path, name):
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\nfrom zimage_gui.cli import main\nsys.exit(main(sys.argv[1:]))"
    words = ["convert", str(FUSED), str(tmp_path / name)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written: the drive takes no file of this size" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="/sys takes no files, not even root's")
def test_a_folder_that_takes_no_files_is_named():
    with (
        pytest.raises(UserError, match=r"output = /sys/o\.bpk: cannot be written"),
        whole(Path("/sys/o.bpk"), False) as temp,
    ):
        temp.write_bytes(b"1")


def test_a_stop_leaves_nothing_behind(tmp_path):
    run = NullRun(tmp_path)
    run.stop = True
    with pytest.raises(Interrupted):
        convert_run(ConvertConfig(input=FUSED, output=tmp_path / "o"), run)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["o.safetensors", "o"])
def test_ctrl_c_ends_with_130_and_leaves_nothing_behind(tmp_path, name):
    source = tmp_path / "s.safetensors"
    sparse_text_encoder(source, 2**24)  # 2 GB: the signal comes long before the end
    words = [sys.executable, "-m", "zimage_gui", "convert", str(source), str(tmp_path / name)]
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as child:
        while len(list(tmp_path.iterdir())) == 1:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=120)
    assert child.returncode == 130
    assert errors.strip().endswith("Interrupted.") and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == [source]
