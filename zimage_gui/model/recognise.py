"""What a file is, said from its name and header alone.

Knows the marks of the families and formats a user of Z-Image meets. Must not know torch, and reads no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from zimage_gui.errors import UserError
from zimage_gui.model.burn_names import is_burn
from zimage_gui.model.checkpoint import Checkpoint, open_checkpoint, part_folder
from zimage_gui.model.families import family_of
from zimage_gui.model.fp8_names import FP8, fp8_parts
from zimage_gui.model.keymaps import prefix_of

Shapes = Mapping[str, tuple[int, ...]]

USABLE = ("transformer", "vae", "text_encoder")
Z_IMAGE_CAPTION_DIM = 2560


@dataclass(frozen=True)
class Recognised:
    """What a path holds.

    kind: one of `USABLE`, or "all_in_one", "lora", "omni", "controlnet", "pixel", "lumina2", "other_model",
    "sd_vae", "quantised", "gguf", "pickle", "latent_cache", "text_cache", "latent", "state" (of a training),
    "unknown".
    layout: "diffusers" or "comfy" (transformer), "diffusers" or "ldm" (VAE), "hub" (text encoder), "burn" for
    each of them with the names of a .bpk, else "".
    prefix: what stands before the tensors' names. sentence: all of it in words, for the user.
    """

    kind: str
    layout: str
    prefix: str
    sentence: str
    checkpoint: Checkpoint | None = None


def recognise(path: Path, option: str = "file", part: str | None = None) -> Recognised:
    """Names what a file or folder is; `part` picks that subfolder of a whole hub folder.

    Raises UserError when it is missing, cut off or malformed; an unknown but sound file is kind "unknown".
    """
    place = part_folder(path, part) if part else path
    foreign = by_first_bytes(place) if place.is_file() else None
    if foreign is not None:
        return foreign
    if place.is_dir() and not any(place.glob("*.safetensors*")) and not any(place.glob("*.bpk")):
        inner = [name for name in USABLE if (place / name).is_dir()]
        if inner:
            rule = f"is a whole model folder (with {', '.join(inner)})"
            raise UserError.one(option, path, rule, "Name the part, for example its transformer folder")
    checkpoint = open_checkpoint(place, option)
    return recognise_checkpoint(checkpoint)


def recognise_checkpoint(checkpoint: Checkpoint, *, opened: bool = False) -> Recognised:
    """The same for a checkpoint whose headers are read already; opened: one that `opens_fp8` took
    apart."""
    shapes = checkpoint.shapes
    quantised = None if opened else _quantised(checkpoint)
    for test in (_adapter, _cache, _controlnet):
        found = test(shapes, checkpoint)
        if found is not None:
            return found
    parts = [part for part in USABLE if prefix_of(shapes, part) is not None]
    if not parts:
        return _other(shapes, checkpoint, quantised)
    found = _plain(shapes, checkpoint, parts)
    if quantised is None:
        return found
    kind = "quantised" if found.kind in (*USABLE, "all_in_one") else found.kind
    return replace(found, kind=kind, sentence=f"{found.sentence}, stored as {quantised}")


def _plain(shapes: Shapes, checkpoint: Checkpoint, parts: list[str]) -> Recognised:
    """What the names say, whatever the numbers are stored as."""
    if "transformer" in parts:
        return _transformer(shapes, checkpoint, parts)
    return _vae(shapes, checkpoint) if "vae" in parts else _text_encoder(shapes, checkpoint)


def by_first_bytes(path: Path) -> Recognised | None:
    """What is known of a file that is no safetensors file; None of any other."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError:
        return None
    if head.startswith(b"GGUF"):
        return Recognised("gguf", "", "", "a GGUF file (quantised for llama.cpp-style programs)")
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return Recognised(
            "pickle", "", "", "a PyTorch pickle (.ckpt, .pt, .pth), which can run code when opened"
        )
    return None


_ADAPTER_MARKS = re.compile(
    r"\.(lora_(a|b|A|B|up|down|magnitude_vector)\b|hada_w|lokr_w|dora_scale|oft_|diff(_b)?$)|^lora_unet_|^lycoris_"
)


def _adapter(shapes: Shapes, checkpoint: Checkpoint) -> Recognised | None:
    marked = [name for name in shapes if _ADAPTER_MARKS.search(name)]
    if not marked:
        return None
    kind = (
        "LoKr"
        if any("lokr_" in name for name in marked)
        else "LoHa"
        if any("hada_" in name for name in marked)
        else "LoRA"
    )
    return Recognised("lora", "", "", f"a {kind} with {len(shapes)} tensors, not a whole model", checkpoint)


def _cache(shapes: Shapes, checkpoint: Checkpoint) -> Recognised | None:
    if not shapes or len(shapes) > 64:
        return None
    if all(name.startswith("latents_") for name in shapes):
        return Recognised("latent_cache", "", "", "a latent cache file of a dataset", checkpoint)
    if all(name.startswith("varlen_") for name in shapes):
        return Recognised("text_cache", "", "", "a text cache file of a dataset", checkpoint)
    if set(shapes) == {"latent"}:
        return Recognised("latent", "", "", "a generated picture stored as a latent", checkpoint)
    return None


def _controlnet(shapes: Shapes, checkpoint: Checkpoint) -> Recognised | None:
    if any(re.search(r"(^|\.)control_(layers|all_x_embedder|noise_refiner)\.", name) for name in shapes):
        return Recognised("controlnet", "", "", "a Z-Image ControlNet, not a base model", checkpoint)
    return None


# The most telling mark first: NVFP4 files, for example, also carry weight_scale and comfy_quant.
_QUANTISED_NAMES = (
    ("nunchaku 4-bit", r"\.qweight$"),
    ("bitsandbytes 4-bit or 8-bit", r"\.quant_state\.|\.(absmax|SCB)$"),
    ("NVFP4", r"\.weight_scale_2$"),
    ("ComfyUI tensors (comfy_quant)", r"\.comfy_quant$"),
    ("scaled fp8", r"\.(scale_weight|weight_scale)$|(^|\.)scaled_fp8$"),
)
_NARROW = ("I8", "U8", "F4", "F6_E2M3", "F6_E3M2")


def _quantised(checkpoint: Checkpoint) -> str | None:
    """The name of the quantisation a checkpoint is stored in, or None."""
    for label, pattern in _QUANTISED_NAMES:
        mark = re.compile(pattern)
        telling = next((name for name in checkpoint.places if mark.search(name)), None)
        if telling is not None:
            if label == "scaled fp8" and len(checkpoint.places[telling].info.shape) == 3:
                return "scaled fp8 in blocks, as musubi-tuner makes it"
            if "comfy_quant" in label:
                return f"{_comfy_quant(checkpoint)}ComfyUI tensors (comfy_quant)"
            return label
    packed = sorted(dtype for dtype in checkpoint.dtypes if dtype.startswith("QFloat"))
    if packed:
        return f"burn's quantised tensors ({', '.join(packed)})"
    if any(dtype.startswith("F8_") for dtype in checkpoint.dtypes):
        return "fp8"
    if "_quantization_metadata" in checkpoint.metadata:
        return "ComfyUI quantised tensors"
    infos = [place.info for place in checkpoint.places.values()]
    narrow = any(info.dtype in _NARROW and len(info.shape) > 1 for info in infos)
    return "4-bit or 8-bit integers" if narrow else None


_FP8_FILES = ("fp8", "scaled fp8", "ComfyUI tensors (comfy_quant)", "ComfyUI quantised")
_FLOATS = ("F64", "F32", "F16", "BF16")


def opens_fp8(found: Recognised) -> Checkpoint | None:
    """The weights and scales of a recognised fp8 checkpoint, taken apart; None when it is stored in any other
    way."""
    checkpoint = found.checkpoint
    stored = found.sentence.partition(" stored as ")[2]
    if found.kind != "quantised" or checkpoint is None or not stored.startswith(_FP8_FILES):
        return None
    places = checkpoint.places
    try:
        parts = fp8_parts({name: place.info for name, place in places.items()})
    except ValueError:
        return None
    plain = {name: places[name] for name in parts.plain}
    if any(place.info.dtype not in (*_FLOATS, *FP8) for place in plain.values()):
        return None
    scales = {weight: places[scale] for weight, scale in parts.scales.items()}
    return replace(checkpoint, places=plain, scales=scales)


def _comfy_quant(checkpoint: Checkpoint) -> str:
    if "I8" in checkpoint.dtypes:
        return "int8 "
    return "scaled fp8 " if any(dtype.startswith("F8_E") for dtype in checkpoint.dtypes) else ""


def _transformer(shapes: Shapes, checkpoint: Checkpoint, parts: list[str]) -> Recognised:
    prefix = prefix_of(shapes, "transformer") or ""
    bare = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
    burn = "cap_embedder.1.weight" not in bare
    telling = bare["cap_embedder_1.weight"][::-1] if burn else bare["cap_embedder.1.weight"]
    caption_dim = telling[-1] if telling else 0
    if "siglip_embedder.0.weight" in bare or "siglip_embedder.1.weight" in bare:
        return Recognised(
            "omni", "", prefix, "a Z-Image Omni or Edit model (it also reads pictures)", checkpoint
        )
    if any(name.startswith("dec_net.") for name in bare):
        return Recognised("pixel", "", prefix, "a pixel-space model derived from Z-Image", checkpoint)
    if "cap_pad_token" not in bare:
        family = (
            "a Lumina-Image 2.0 model"
            if caption_dim == 2304
            else "a relative of Z-Image without its pad tokens"
        )
        return Recognised("lumina2", "", prefix, family, checkpoint)
    fused = any(".attention.qkv." in name for name in bare)
    layout = "burn" if burn else "comfy" if fused else "diffusers"
    spelling = _SPELLINGS[layout]
    layers = len({name.split(".")[1] for name in bare if name.startswith("layers.")})
    sentence = (
        f"a Z-Image transformer in the {spelling} layout: {layers} layers, caption width {caption_dim}, "
        f"{_dtypes(checkpoint)}"
    )
    if len(parts) > 1:
        return Recognised("all_in_one", layout, prefix, sentence + ", together with other parts", checkpoint)
    return Recognised("transformer", layout, prefix, sentence, checkpoint)


_SPELLINGS = {
    "burn": "burn (z-image-train)",
    "comfy": "ComfyUI (fused qkv)",
    "diffusers": "diffusers (split q, k, v)",
}


def _dtypes(checkpoint: Checkpoint) -> str:
    return " and ".join(sorted(checkpoint.dtypes))


def _vae(shapes: Shapes, checkpoint: Checkpoint) -> Recognised:
    prefix = prefix_of(shapes, "vae") or ""
    decoder_in = shapes.get(prefix + "decoder.conv_in.weight", ())
    latents = decoder_in[1] if len(decoder_in) == 4 else 0
    ldm = any(name.startswith((prefix + "encoder.down.", prefix + "decoder.up.")) for name in shapes)
    layout = "burn" if is_burn(shapes) else "ldm" if ldm else "diffusers"
    beside = _beside_the_vae(shapes, prefix)
    if latents != 16 and beside is not None:
        return Recognised(beside[0], "", "", beside[1], checkpoint)
    if latents != 16:
        family = {4: "a Stable Diffusion VAE (4 latent channels)", 0: "a VAE without a 2-D decoder"}
        sentence = (
            family.get(latents, f"a VAE with {latents} latent channels")
            + "; Z-Image needs the Flux VAE with 16"
        )
        return Recognised("sd_vae", layout, prefix, sentence, checkpoint)
    alone = "" if prefix + "encoder.conv_in.weight" in shapes else "the decoder alone of "
    sentence = f"{alone}a Flux VAE (16 latent channels) in the {layout} layout, {_dtypes(checkpoint)}"
    sentence += f", in one file with {beside[1]}" if beside else ""
    return Recognised("vae", layout, prefix, sentence, checkpoint)


def _beside_the_vae(shapes: Shapes, prefix: str) -> tuple[str, str] | None:
    """The foreign model whose checkpoint brings this VAE along, as family_of tells it."""
    halves = (f"{prefix}encoder.", f"{prefix}decoder.")
    return family_of({name: shape for name, shape in shapes.items() if not name.startswith(halves)})


def _text_encoder(shapes: Shapes, checkpoint: Checkpoint) -> Recognised:
    prefix = prefix_of(shapes, "text_encoder") or ""
    width = shapes[prefix + "embed_tokens.weight"][-1] if shapes[prefix + "embed_tokens.weight"] else 0
    marks = ("self_attn.q_norm.weight", "self_attn.q_norm.gamma")
    if not any(name.startswith(prefix) and name.endswith(marks) for name in shapes):
        sentence = f"a language model of width {width} that is not Qwen3"
        return Recognised("other_model", "", prefix, sentence, checkpoint)
    layers = len({n[len(prefix) :].split(".")[1] for n in shapes if n.startswith(prefix + "layers.")})
    sentence = f"a Qwen3 text encoder: {layers} layers of width {width}, {_dtypes(checkpoint)}"
    return Recognised("text_encoder", "burn" if is_burn(shapes) else "hub", prefix, sentence, checkpoint)


def _other(shapes: Shapes, checkpoint: Checkpoint, quantised: str | None) -> Recognised:
    stored = f", stored as {quantised}" if quantised else ""
    family = family_of(shapes)
    if family is not None:
        return Recognised(family[0], "", "", family[1] + stored, checkpoint)
    example = f", for example {min(shapes)[:80]!r}" if shapes else ""
    return Recognised(
        "unknown", "", "", f"a file this program does not know ({len(shapes)} tensors{example})", checkpoint
    )


_REMEDIES = {
    "lora": "Give it as a LoRA (--lora_weight or --base_weights) and the base model here",
    "quantised": "Use the bf16 file of the same model",
    "gguf": "Use the bf16 safetensors file of the same model",
    "pickle": "Use the safetensors file of the same model",
    "sd_vae": "Use ae.safetensors (Flux) or the vae folder of Tongyi-MAI/Z-Image-Turbo",
}


def require(path: Path, part: str, option: str, *, fp8: bool = False) -> Recognised:
    """The recognised checkpoint of `part` at `path`; anything else is one UserError that names what it is.

    fp8: one that is stored as fp8 will do; its scales are apart then.
    """
    found = recognise(path, option, part)
    checkpoint = opens_fp8(found) if fp8 else None
    if checkpoint is not None:
        found = recognise_checkpoint(checkpoint, opened=True)
    wanted = {
        "transformer": "a Z-Image transformer",
        "vae": "a Flux VAE",
        "text_encoder": "a Qwen3 text encoder",
    }[part]
    if found.kind == part or (found.kind == "all_in_one" and part in _parts_of(found)):
        return found
    remedy = _REMEDIES.get(found.kind, f"Give {wanted} in this place")
    raise UserError.one(option, path, f"must be {wanted}, but this is {found.sentence}", remedy)


def _parts_of(found: Recognised) -> list[str]:
    shapes = found.checkpoint.shapes if found.checkpoint else {}
    return [part for part in USABLE if prefix_of(shapes, part) is not None]
