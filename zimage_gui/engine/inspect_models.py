"""Which programs read a model file, layout by layout, and what its surroundings say of it.

Knows what ComfyUI (2026), diffusers 0.42, musubi-tuner 0.3.4 and z-image-burn take; must not know how this
program loads, beyond what `recognise` answers, nor torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from zimage_gui.engine.inspect_report import Answer, Verdict
from zimage_gui.model.keymaps import prefix_of
from zimage_gui.model.recognise import USABLE, Recognised, opens_fp8
from zimage_gui.model.sizes import SizeError
from zimage_gui.model.sources import sources_of
from zimage_gui.model.whole_shapes import misfits, whole_shapes

_Told = tuple[Answer, str]
_FLOATS = {"F32", "F16", "BF16", "F64"}
_LONGEST_JSON = 100_000
_CONVERT = "convert writes a form that it reads"


@dataclass(frozen=True)
class Form:
    """How a model lies on disk."""

    part: str
    layout: str
    prefix: str
    sharded: bool
    with_config: bool
    bpk: bool
    legacy_bpk: bool
    decoder_only: bool
    dtypes: frozenset[str]

    @property
    def kind_is_dit(self) -> bool:
        return self.part in ("transformer", "all_in_one")


def form_of(found: Recognised, legacy_bpk: bool = False) -> Form:
    checkpoint = found.checkpoint
    assert checkpoint is not None  # forms are asked of models only
    return Form(
        found.kind,
        found.layout,
        found.prefix,
        len(checkpoint.files) > 1,
        bool(checkpoint.settings),
        checkpoint.files[0].suffix.lower() == ".bpk" or found.layout == "burn",
        legacy_bpk,
        found.kind == "vae" and found.prefix + "encoder.conv_in.weight" not in checkpoint.places,
        checkpoint.dtypes,
    )


def model_verdicts(found: Recognised, legacy_bpk: bool = False) -> tuple[Verdict, ...]:
    """One answer per program for a usable model; for a quantised or foreign one those that are known."""
    if found.kind in USABLE or found.kind == "all_in_one":
        form = form_of(found, legacy_bpk)
        if faults := part_faults(found):
            return tuple(Verdict(program, "no", faults) for program in _PROGRAMS)
        return (
            Verdict("ComfyUI", *_comfyui(form)),
            Verdict("diffusers", *_diffusers(form)),
            Verdict("musubi-tuner", *_musubi(form)),
            Verdict("z-image-burn", *_burn(form)),
            Verdict("here", *_here(form)),
        )
    if found.kind in ("quantised", "gguf"):
        return quantised_verdicts(found.sentence, here=opens_fp8(found) is not None)
    reason = {
        "lumina2": "it is a model of another family",
        "omni": "Omni and Edit models are not supported",
        "controlnet": "it is a ControlNet, not a base model",
        "pixel": "a pixel-space model is not supported",
        "pickle": "pickles can run code and are never opened",
        "sd_vae": "Z-Image needs the Flux VAE",
        "other_model": "it is not a part of Z-Image",
    }.get(found.kind)
    return (Verdict("here", "no", reason),) if reason else ()


_PROGRAMS = ("ComfyUI", "diffusers", "musubi-tuner", "z-image-burn", "here")


def part_faults(found: Recognised) -> str:
    """What the parts of a checkpoint lack, or have too much; empty when each is whole."""
    checkpoint = found.checkpoint
    assert checkpoint is not None  # asked of models only
    faults = []
    for part in USABLE:
        if prefix_of(checkpoint.places, part) is None:
            continue
        sources = sources_of(part, checkpoint.shapes)
        shapes = {name: one.shape_of(checkpoint.places[one.name].info.shape) for name, one in sources.items()}
        try:
            faults += misfits(shapes, whole_shapes(part, shapes, checkpoint.settings_of(part)))
        except SizeError as error:
            faults.append(f"it {error}")
    return "; ".join(faults)


def _comfyui(form: Form) -> _Told:
    if form.bpk:
        return "no", f"it does not know .bpk files; {_CONVERT}"
    if form.sharded:
        return "no", f"it loads single files only; {_CONVERT}"
    if form.kind_is_dit:
        if form.prefix not in ("", "model.diffusion_model."):
            return "no", f"it does not strip the prefix {form.prefix}; {_CONVERT}"
        if form.layout == "diffusers":
            return "partly", "versions of 2026 take split single files, older ones only fused qkv"
        return "yes", "as a checkpoint" if form.part == "all_in_one" else "in models/diffusion_models"
    if form.decoder_only:
        return "partly", "it decodes with it, but cannot encode pictures"
    if form.part == "text_encoder" and form.prefix != "model.":
        return "no", f"it expects names that begin with model.; {_CONVERT}"
    return "yes", "in models/vae" if form.part == "vae" else "in models/text_encoders"


def _diffusers(form: Form) -> _Told:
    if form.bpk:
        return "no", f"it does not know .bpk files; {_CONVERT}"
    if form.decoder_only:
        return "no", "it wants the encoder too"
    if form.part == "text_encoder":
        if form.prefix not in ("", "model."):
            return "no", f"transformers does not strip the prefix {form.prefix}"
        if form.with_config:
            return "yes", ""
        return "no", "transformers wants a folder with config.json; rename it model.safetensors beside one"
    if form.part == "vae":
        return _diffusers_vae(form)
    if form.layout == "diffusers" and form.with_config and form.prefix == "" and form.part == "transformer":
        return "yes", ""
    if form.sharded:
        return "no", f"shards need split names and a config.json; {_CONVERT}"
    if form.prefix == "" or (form.prefix == "model.diffusion_model." and form.layout == "comfy"):
        what = "the transformer of it, " if form.part == "all_in_one" else ""
        return "yes", f"{what}with ZImageTransformer2DModel.from_single_file"
    return "no", f"from_single_file stops at the prefix {form.prefix}; {_CONVERT}"


def _diffusers_vae(form: Form) -> _Told:
    if form.layout == "diffusers" and form.prefix == "":
        return (
            ("yes", "")
            if form.with_config
            else ("partly", "it needs the config.json of the vae folder beside it")
        )
    if form.layout == "ldm":
        return "partly", "AutoencoderKL.from_single_file reads it when config= names the Z-Image vae folder"
    return "no", f"it does not strip the prefix {form.prefix}"


def _musubi(form: Form) -> _Told:
    if form.bpk:
        return "no", f"it does not know .bpk files; {_CONVERT}"
    if form.part == "all_in_one" or (form.kind_is_dit and form.prefix):
        return "no", f"it does not strip the prefix {form.prefix}; {_CONVERT}"
    if form.decoder_only:
        return "no", "it encodes pictures, for which the encoder is missing"
    return "yes", "give it the first file of the set" if form.sharded else ""


def _burn(form: Form) -> _Told:
    if form.legacy_bpk:
        return "no", "written by burn 0.19, whose layout newer versions misread; convert writes it anew"
    if form.bpk:
        if form.layout != "burn":
            return "no", "its names are not those of burn's records"
        if form.decoder_only:
            return "partly", "it generates with it, but training needs the encoder"
        return "yes", ""
    if form.sharded:
        return "no", f"it loads single files only; {_CONVERT}"
    if form.part == "all_in_one":
        return "no", f"it does not strip prefixes; {_CONVERT}"
    wanted = {"transformer": ("comfy", ""), "vae": ("ldm", ""), "text_encoder": ("hub", "model.")}
    layout, prefix = wanted[form.part]
    if form.layout != layout:
        word = "fused qkv as ComfyUI has it" if layout == "comfy" else "the names of Flux's ae.safetensors"
        return "no", f"it wants {word}; {_CONVERT}"
    if form.prefix != prefix:
        return "no", f"its names must begin with {prefix or 'no prefix'}; {_CONVERT}"
    if form.decoder_only:
        return "partly", "it generates with it, but training needs the encoder"
    return "yes", ""


def _here(form: Form) -> _Told:
    odd = sorted(form.dtypes - _FLOATS)
    if odd:
        return "no", f"it holds tensors of the type {', '.join(odd)}"
    if form.decoder_only:
        return "partly", "it decodes, but pictures cannot be encoded with it"
    return "yes", ""


def quantised_verdicts(sentence: str, *, here: bool = False) -> tuple[Verdict, ...]:
    """What is known of a stored quantisation, from the words `recognise` names it with; here: whether this
    program opens it."""
    comfy: _Told = ("no", "it does not know this form")
    diffusers: _Told = ("no", "it does not read this form as it is")
    for word, told, other in _QUANTISED:
        if word in sentence:
            comfy, diffusers = told, other or diffusers
            break
    bf16 = f"train and generate want the bf16 file of the same model{_opened(sentence)}"
    return (
        Verdict("ComfyUI", *comfy),
        Verdict("diffusers", *diffusers),
        Verdict("musubi-tuner", "no", "it quantises bf16 files itself and refuses quantised ones"),
        Verdict(
            "z-image-burn",
            *(_BURN_QUANTISED if "burn's" in sentence else ("no", "it reads plain files only")),
        ),
        Verdict("here", "yes", "base_quant fp8 keeps it as it is, otherwise it is opened")
        if here
        else Verdict("here", "no", bf16),
    )


def _opened(sentence: str) -> str:
    return "; convert --dtype bf16 makes one of it" if "fp8" in sentence else ""


_BURN_QUANTISED: _Told = ("partly", "only the version of burn that wrote it unpacks the values rightly")
# A word of the sentence, ComfyUI's answer, and diffusers' where it is not the common one.
_QUANTISED: tuple[tuple[str, _Told, _Told | None], ...] = (
    ("GGUF", ("partly", "with the extension ComfyUI-GGUF"),
     ("partly", "from_single_file with a GGUF quantization config")),
    ("nunchaku", ("partly", "with the extension ComfyUI-nunchaku"), ("partly", "with the nunchaku package")),
    ("bitsandbytes", ("no", "it does not know this form"), ("yes", "as a folder with its config.json")),
    ("NVFP4", ("yes", "in versions of 2026, at full speed on Blackwell cards"), None),
    ("comfy_quant", ("yes", "in versions of 2026"), None),
    ("scaled fp8 in blocks", ("no", "its scales are per block, ComfyUI's per tensor"), None),
    ("scaled fp8", ("yes", ""), None),
    ("fp8", ("yes", ""), ("partly", "it casts the values up; scales are not known to it")),
    ("ComfyUI quantised", ("yes", "in versions of 2026"), None),
)  # fmt: skip


def base_hint(path: Path) -> str:
    """Turbo, Base and De-Turbo have the same tensors; the name or the scheduler beside them may tell."""
    name = f"{path.parent.name}/{path.name}".lower().replace("-", "_")
    told = next((word for mark, word in _NAME_MARKS if mark in name), "")
    shift = _scheduler_shift(path)
    words = [f"the name says {told}"] if told else []
    if shift is not None:
        kind = {3.0: "Turbo's", 6.0: "the base model's"}.get(shift, "neither Turbo's nor the base model's")
        words.append(f"the scheduler's shift {shift:g} is {kind}")
    same = "Turbo, Base and De-Turbo have the same tensors"
    return f"{same}; {' and '.join(words)}" if words else f"{same}: only where it came from tells"


_NAME_MARKS = (
    ("de_turbo", "De-Turbo"), ("deturbo", "De-Turbo"), ("turbo", "Turbo"), ("z_image_base", "Base"),
    ("z_image_bf16", "Base"), ("zimage_base", "Base"),
)  # fmt: skip


def _scheduler_shift(path: Path) -> float | None:
    folder = path if path.is_dir() else path.parent
    for place in (folder, folder.parent):
        file = place / "scheduler" / "scheduler_config.json"
        try:
            if not file.is_file() or file.stat().st_size > _LONGEST_JSON:
                continue
            shift = json.loads(file.read_text(encoding="utf-8")).get("shift")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        if isinstance(shift, int | float) and not isinstance(shift, bool):
            return float(shift)
    return None
