"""`demo --to DIR`: write the demo project, a tiny model with real file layouts, pictures and settings.

Knows the project's folder layout and the shipped copy of the model. Must not know how it was trained.
ComfyUI's files are converted from the hub folder, so that the package holds every weight once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zimage_gui.config.app import DemoConfig
from zimage_gui.demo.pictures import write_known, write_zorbs
from zimage_gui.errors import Problem, UserError
from zimage_gui.events import Note, Run, Stage
from zimage_gui.files import atomic_write, unwritten

DATA = Path(__file__).parent / "data"
TRANSFORMER_FILE = "diffusion_models/z_image_demo.safetensors"
TEXT_ENCODER_FILE = "text_encoders/qwen_demo.safetensors"
VAE_FILE = "vae/ae.safetensors"
MARK = Path("models/hub/model_index.json")
WEIGHTS = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
OWN_FOLDERS = ("cache", "cache/zorbs", "cache/known", "output")
SETTINGS = ("dataset.toml", "train_lora.toml", "prompts.txt")


def check(config: DemoConfig) -> list[Problem]:
    """A folder with other things in it is refused; one that holds the demo already is completed."""
    if config.to is None:
        return config.problems()
    folder = config.to.expanduser()
    if folder.exists() and not folder.is_dir():
        return [Problem("to", str(folder), "is a file", "Give the name of a new folder")]
    strange = folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file()
    if strange and not config.overwrite:
        remedy = "Choose an empty or new folder, or add --overwrite to write into this one"
        return [Problem("to", str(folder), "holds other files", remedy)]
    return []


def run(config: DemoConfig, run: Run) -> list[Path]:
    """Write the project; returns its folder. Files that are there already stay, but for `overwrite`."""
    problems = check(config)
    if problems or config.to is None:
        raise UserError(problems)
    folder = config.to.expanduser().absolute()
    run.emit(Stage(name="demo", text=f"Writing the demo project to {folder}"))
    try:
        written = write_project(folder, overwrite=config.overwrite)
    except OSError as error:
        raise unwritten(error, folder, "to") from error
    run.emit(
        Note(text=f"{written} files written. Next: python -m zimage_gui train-lora {folder / SETTINGS[1]}")
    )
    return [folder]


def write_project(folder: Path, overwrite: bool = False) -> int:
    """Write what is missing (or all of it) and return the number of files written.

    The hub folder's model_index.json comes last of all: it marks a whole project.
    """
    written = 0
    for name, content in _files(folder, overwrite):
        atomic_write(folder / name, content)
        written += 1
    for name, write in (("dataset", write_zorbs), ("regularization", write_known)):
        if overwrite or not (folder / name).is_dir():
            written += 2 * write(folder / name)
    for name in OWN_FOLDERS:  # a relative path in a TOML means "beside it" only where it exists
        (folder / name).mkdir(parents=True, exist_ok=True)
    if overwrite or not (folder / MARK).is_file():
        atomic_write(folder / MARK, (DATA / MARK.name).read_bytes())
        written += 1
    return written


def _files(folder: Path, overwrite: bool) -> Iterator[tuple[str, bytes]]:
    def wanted(name: str) -> bool:
        return overwrite or not (folder / name).is_file()

    for path in sorted(DATA.rglob("*")):
        relative = path.relative_to(DATA)
        name = (Path("models/hub") / relative).as_posix()
        if path.is_file() and len(relative.parts) > 1 and wanted(name):
            yield name, path.read_bytes()
    comfy = Path("models/comfy")
    conversions = {TRANSFORMER_FILE: fused_transformer, VAE_FILE: ldm_vae, TEXT_ENCODER_FILE: text_encoder}
    for file, make in conversions.items():
        if wanted(name := (comfy / file).as_posix()):
            yield name, make()
    # Only the real vocabulary is bundled with the program; this one must lie beside its text encoder.
    if wanted(name := (comfy / TEXT_ENCODER_FILE).with_name("tokenizer.json").as_posix()):
        yield name, (DATA / "tokenizer" / "tokenizer.json").read_bytes()
    for name in SETTINGS:
        if wanted(name):
            yield name, (Path(__file__).parent / "settings" / name).read_bytes()


def fused_transformer() -> bytes:
    """The shipped transformer as ComfyUI's single file: queries, keys and values in one tensor."""
    import torch
    from safetensors.torch import load_file, save

    from zimage_gui.model.keymaps import fused_parts

    state = load_file(DATA / WEIGHTS["transformer"])
    fused = {name: torch.cat([state[part] for part in parts]) for name, parts in fused_parts(state).items()}
    return save(fused)


def ldm_vae() -> bytes:
    """The shipped autoencoder as `ae.safetensors`: ldm names, attention as 1x1 convolutions."""
    from safetensors.torch import load_file, save

    from zimage_gui.model.keymaps import ldm_vae_name

    state = load_file(DATA / WEIGHTS["vae"])
    levels = len({name.split(".")[2] for name in state if name.startswith("encoder.down_blocks.")})
    tensors = {}
    for name, tensor in state.items():
        is_projection = ".attentions." in name and tensor.dim() == 2
        tensors[ldm_vae_name(name, levels)] = (
            tensor[:, :, None, None].contiguous() if is_projection else tensor
        )
    return save(tensors)


def text_encoder() -> bytes:
    """The shipped text encoder with the prefix that ComfyUI's `qwen_3_4b.safetensors` has."""
    from safetensors.torch import load_file, save

    state = load_file(DATA / WEIGHTS["text_encoder"])
    return save({f"model.{name.removeprefix('model.')}": tensor for name, tensor in state.items()})
