"""`convert` and `merge` on a 12.3 GB checkpoint with the real shapes, beside copying the same file: wall time and memory."""

import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from zimage_gui.model.sizes import TransformerConfig
from zimage_gui.model.tensor_files import RawEntry, write_raw
from zimage_gui.model.transformer import ZImageTransformer

ROOT = Path(__file__).parents[2]
HEADER = "| | wall | copy before and after | ratio to copying | processor time (copy, ratio) | peak anonymous memory | written |\n|---|---|---|---|---|---|---|"
SECTION = "## Converting a 12.3 GB model"
TEXT = """{section}

Measured by

    python -m tests.benchmarks convert --write

on {when}: {machine}. A checkpoint with the real shapes ({tensors} tensors, bf16, {size:.2f} GB, random numbers) is converted by the
command itself in a process of its own, and copied (`cp`, then fsync, for our results are synced too) before and after it; the
ratio is to the mean of the two copies. The source is taken out of the page cache before each. Wall time includes starting Python and torch, and reading every byte
of the result back. Load of the machine while measuring: {load} on {cores} cores.

{table}

Looking into the file: `inspect` reads the header in {inspect:.3f} s ({inspect_command:.2f} s as a command, Python's start included). Goals: at
most 1.3 times a copy, below 500 MB anonymous memory (of which torch itself takes 150), inspect below 0.5 s.
"""


@dataclass(frozen=True)
class Measured:
    """Seconds of wall and processor time; peak anonymous memory in MB; bytes written."""

    wall: float
    processor: float
    memory: float
    written: int


def synthesise(path: Path, layers: int) -> int:
    """A split checkpoint with the real widths; the bytes of each tensor are a window of one random buffer."""
    with torch.device("meta"):
        model = ZImageTransformer(TransformerConfig(n_layers=layers))
    noise = (torch.randn(1 << 21, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    window = memoryview(noise.view(torch.uint8).numpy())

    def chunks(count: int) -> Iterator[memoryview]:
        while count:
            yield window[: min(count, len(window))]
            count -= min(count, len(window))

    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    entries = [
        RawEntry(name, "BF16", shape, partial(chunks, 2 * math.prod(shape)))
        for name, shape in sorted(shapes.items())
    ]
    write_raw(path, entries, {"format": "pt"})
    return len(entries)


def synthesise_lora(path: Path, layers: int, rank: int = 16) -> None:
    """A LoRA on the seven matrices of every layer, as ai-toolkit names it."""
    wide = {
        "feed_forward.w1": (10240, 3840),
        "feed_forward.w3": (10240, 3840),
        "feed_forward.w2": (3840, 10240),
    }
    sizes = {f"attention.{name}": (3840, 3840) for name in ("to_q", "to_k", "to_v", "to_out.0")} | wide
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(layers):
        for name, (rows, columns) in sizes.items():
            stem = f"diffusion_model.layers.{layer}.{name}"
            tensors[f"{stem}.lora_A.weight"] = (
                torch.randn(rank, columns, generator=generator) * 0.01
            ).bfloat16()
            tensors[f"{stem}.lora_B.weight"] = (
                torch.randn(rows, rank, generator=generator) * 0.01
            ).bfloat16()
    save_file(tensors, path)


def measure(command: list[str], output: Path) -> Measured:
    """Runs a command to its end, its anonymous memory looked at fifty times a second."""
    started = time.perf_counter()
    peak = 0
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        while True:
            peak = max(peak, _anonymous(child.pid))
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.02)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            raise RuntimeError(log.read().decode())
    written = sum(file.stat().st_size for file in ([output] if output.is_file() else output.iterdir()))
    return Measured(wall, usage.ru_utime + usage.ru_stime, peak / 1000, written)


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (OSError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def forget(path: Path) -> None:
    """Takes a file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def commands(source: Path, lora: Path, folder: Path) -> dict[str, tuple[list[str], Path]]:
    convert = [sys.executable, "-m", "zimage_gui", "convert", str(source)]
    merge = [
        sys.executable,
        "-m",
        "zimage_gui",
        "merge",
        "--dit",
        str(source),
        "--lora_weight",
        str(lora),
        "--output",
    ]
    outputs = {
        "split → fused": "fused.safetensors",
        "split → .bpk": "model.bpk",
        "bf16 → f16, split": "f16.safetensors",
    }
    extra = {"bf16 → f16, split": ["--dtype", "f16", "--layout", "diffusers"]}
    found = {
        name: ([*convert, str(folder / file), *extra.get(name, [])], folder / file)
        for name, file in outputs.items()
    }
    merged = folder / "merged.safetensors"
    return found | {"LoRA of rank 16 merged, split → fused": ([*merge, str(merged)], merged)}


def run(folder: Path, layers: int, say: Callable[[str], None]) -> str:
    """The section of docs/benchmarks.md. Needs three times the checkpoint's size on the disk of `folder`."""
    source, lora = folder / "base.safetensors", folder / "lora.safetensors"
    tensors = synthesise(source, layers)
    synthesise_lora(lora, layers)
    copied = folder / "copy"
    copy_command = ["sh", "-c", f"cp '{source}' '{copied}' && sync '{copied}'"]
    loads = [os.getloadavg()[0]]

    def timed(command: list[str], output: Path) -> Measured:
        forget(source)
        found = measure(command, output)
        loads.append(os.getloadavg()[0])
        shutil.rmtree(output) if output.is_dir() else output.unlink()
        return found

    copies = [timed(copy_command, copied)]
    say(f"copy: {copies[-1].wall:.1f} s, {copies[-1].processor:.1f} s of processor time")
    rows = []
    for name, (command, output) in commands(source, lora, folder).items():
        ours = timed(command, output)
        copies.append(timed(copy_command, copied))
        before, after = copies[-2:]
        ratio = ours.wall / statistics.mean([before.wall, after.wall])
        copying = statistics.mean([before.processor, after.processor])
        rows.append(
            f"| {name} | {ours.wall:.1f} s | {before.wall:.1f} s, {after.wall:.1f} s | **{ratio:.2f}** "
            f"| {ours.processor:.1f} s ({copying:.1f} s, {ours.processor / copying:.2f}) "
            f"| {ours.memory:.0f} MB | {ours.written / 1e9:.2f} GB |"
        )
        say(rows[-1])
    looked, command_wall = _inspect(source)
    return TEXT.format(
        section=SECTION, when=time.strftime("%Y-%m-%d"), tensors=tensors, size=source.stat().st_size / 1e9,
        machine=f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
        load=f"{min(loads):.1f} to {max(loads):.1f}", cores=os.cpu_count(), table="\n".join([HEADER, *rows]),
        inspect=looked, inspect_command=command_wall,
    )  # fmt: skip


def _inspect(source: Path) -> tuple[float, float]:
    from zimage_gui.model.recognise import recognise

    forget(source)
    started = time.perf_counter()
    assert recognise(source).kind == "transformer"
    looked = time.perf_counter() - started
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "zimage_gui", "inspect", str(source)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return looked, time.perf_counter() - started


def main(where: Path | None, layers: int, page: Path | None) -> None:
    """Measures in a folder of its own below `where`, which is removed; writes the section into `page`."""
    with tempfile.TemporaryDirectory(dir=where) as name:
        text = run(Path(name), layers, lambda line: print(line, flush=True))
    print(text)
    if page is not None:
        from page import put_section  # beside this file, which a test imports from elsewhere

        put_section(page, SECTION, text)
