"""Which programs read a LoRA, form by form.

Every answer was measured (diffusers 0.36.0 to 0.42.1 and ComfyUI's own code of January 2026 on a small
model, musubi-tuner 0.3.4) or read in the program's source; the tests hold the golden files to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from zimage_gui.engine.inspect_lora import LUMINA_WIDTH, Anatomy, Module, peft_strength
from zimage_gui.engine.inspect_report import Answer, Verdict

_CONVERT = "convert-lora makes a form that it reads"
_NUMBERS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
# ComfyUI's names of what diffusers calls all_x_embedder and all_final_layer.
_FUSED_ENDS = ("x_embedder", "final_layer")
_SILENT = "it loads without an error and does nothing"

# (prefix, factors) -> without and with alpha tensors, as diffusers 0.42.1 answers for split names.
_SINCE_37, _SINCE_39 = "from version 0.37 on", "from version 0.39 on"
_DIFFUSERS: dict[tuple[str, str], tuple[tuple[Answer, str], tuple[Answer, str]]] = {
    ("lora_unet_", "down/up"): (("yes", _SINCE_39), ("yes", f"{_SINCE_37} (0.37 drops adaLN)")),
    ("transformer.", "A/B"): (("yes", ""), ("no", "it refuses alpha tensors under these names")),
    ("diffusion_model.", "A/B"): (
        ("yes", "all versions but 0.37"),
        ("yes", f"{_SINCE_37}; 0.36 ignores the alpha"),
    ),
    ("diffusion_model.", "down/up"): (("yes", "measured with 0.42"), ("yes", "")),
    ("diffusion_model.", ".default"): (("yes", "all versions but 0.37"), ("yes", "measured with 0.42")),
    ("", "A/B"): (("no", _SILENT), ("yes", f"{_SINCE_37}; 0.36 ignores the alpha")),
    ("", "down/up"): (("no", _SILENT), ("yes", "measured with 0.42")),
    ("", ".default"): (("yes", "measured with 0.42"), ("yes", "measured with 0.42")),
}


def lora_verdicts(found: Anatomy) -> tuple[Verdict, ...]:
    if not found.summary.modules:
        reason = "none of its tensors belongs to Z-Image"
        return tuple(
            Verdict(program, "no", reason)
            for program in ("ComfyUI", "diffusers", "musubi-tuner", "z-image-burn", "here")
        )
    if found.summary.width == LUMINA_WIDTH:
        reason = "it is made for Lumina-Image 2.0, not for Z-Image"
        return (Verdict("here", "no", reason),)
    return (
        Verdict("ComfyUI", *_comfyui(found)),
        Verdict("diffusers", *_diffusers(found)),
        Verdict("musubi-tuner", *_musubi(found)),
        Verdict("z-image-burn", *_burn(found)),
        Verdict("here", *_here(found)),
    )


def _faults(found: Anatomy) -> str:
    """Why nothing reads the whole file, whatever its dialect."""
    if found.summary.halves:
        return f"{found.summary.halves} modules lack a factor"
    if found.summary.mismatches:
        return "factors of different sizes do not fit one model"
    return ""


def _count(some: int, found: Anatomy) -> str:
    return f"{some} of {len(found.modules)} modules"


def _comfyui(found: Anatomy) -> tuple[Answer, str]:
    if found.summary.halves:
        return "no", f"{_faults(found)}: it stops with an error"
    if fault := _faults(found):
        return "partly", f"{fault}: it logs an error and leaves them out"
    read = [module for module in found.modules if _comfyui_maps(module)]
    if not read:
        return "no", f"it knows none of these names and only logs it; {_CONVERT}"
    if len(read) < len(found.modules):
        lost = _lost(found.modules, read)
        return "partly", f"it reads {_count(len(read), found)} and drops {lost}; {_CONVERT}"
    if any("magnitude" in module.parts for module in found.modules):
        return "partly", "it ignores the DoRA magnitudes and applies a plain LoRA"
    if any("dora_scale" in module.parts for module in found.modules):
        return "partly", "it normalises DoRA by the unchanged weight, so the picture differs a little"
    if found.summary.unknown:
        return "partly", f"it drops {len(found.summary.unknown)} tensors that belong to no module"
    if found.header_alpha and not found.has_alpha:
        strength = peft_strength(found)
        if strength is None:
            return "partly", f"it does not read the alphas in the header; {_CONVERT}"
        if strength != 1:
            return "partly", f"it does not read the alpha in the header: set its strength to {strength:g}"
    return "yes", ""


def _comfyui_maps(module: Module) -> bool:
    if ".lora_a" in module.suffixes or module.spelling == "odd":
        return False
    if module.prefix == "diffusion_model.":
        return True
    if module.prefix == "lora_unet_":
        return module.spelling != "split"
    return module.prefix in ("transformer.", "", "lycoris_") and module.spelling != "fused"


def _lost(modules: Sequence[Module], read: Sequence[Module]) -> str:
    names = {module.name for module in modules} - {module.name for module in read}
    return "the attention (q, k, v, out)" if all("attention" in name for name in names) else "the others"


def _style(found: Anatomy) -> str:
    suffixes = set().union(*(module.suffixes for module in found.modules)) - {".alpha"}
    if any(".default" in suffix for suffix in suffixes):
        return ".default"
    return "down/up" if ".lora_down.weight" in suffixes else "A/B"


def _diffusers(found: Anatomy) -> tuple[Answer, str]:
    if fault := _faults(found):
        return "no", f"{fault}: it refuses the file"
    if found.summary.unknown:
        return (
            "no",
            f"{len(found.summary.unknown)} tensors belong to no module: it refuses them or loads a part",
        )
    if found.rust:
        return "no", f"{_SILENT}; {_CONVERT}"
    if len(found.prefixes) > 1:
        return "no", "names of several forms are mixed"
    (prefix,) = found.prefixes
    if found.kind == "LoHa":
        return "no", "it refuses LoHa"
    if found.kind == "LoKr":
        return _diffusers_lokr(prefix, found)
    fused = any(module.spelling == "fused" for module in found.modules)
    if any("magnitude" in module.parts for module in found.modules):
        plain = prefix == "transformer." and not fused and not found.has_alpha
        return ("yes", "") if plain else ("no", "it reads DoRA magnitudes only under transformer. names")
    answer, because = _diffusers_fused(prefix, found) if fused else _diffusers_split(prefix, found)
    if answer == "yes" and any("dora_scale" in module.parts for module in found.modules):
        return "partly", "it drops the DoRA magnitudes without a word and applies a plain LoRA"
    return answer, because


def _diffusers_lokr(prefix: str, found: Anatomy) -> tuple[Answer, str]:
    alpha = found.has_alpha
    if any("lokr_w1_a" in module.parts for module in found.modules):
        return "no", "it does not read a LoKr whose first factor is stored in two (lokr_w1_a and lokr_w1_b)"
    if prefix == "diffusion_model." or (prefix == "transformer." and not alpha) or (prefix == "" and alpha):
        return "yes", "from version 0.42 on"
    return "no", f"it refuses LoKr under these names; {_CONVERT}"


def _diffusers_fused(prefix: str, found: Anatomy) -> tuple[Answer, str]:
    ends = [module for module in found.modules if module.name.startswith(_FUSED_ENDS)]
    if prefix == "lora_unet_" and _style(found) == "down/up" and len(ends) == len(found.modules):
        return "no", f"it refuses these names of the embedder and the final layer; {_CONVERT}"
    if prefix == "lora_unet_" and _style(found) == "down/up" and ends:
        return "partly", f"it drops {_count(len(ends), found)}: the embedder and the final layer; {_CONVERT}"
    if prefix == "lora_unet_" and _style(found) == "down/up":
        return "yes", "from version 0.42 on; older ones drop the fused qkv"
    if prefix == "diffusion_model." and not found.has_alpha:
        return "no", f"it loads without an error, but wrong: the fused qkv is lost; {_CONVERT}"
    return "no", f"it refuses the fused qkv under these names; {_CONVERT}"


def _diffusers_split(prefix: str, found: Anatomy) -> tuple[Answer, str]:
    known = _DIFFUSERS.get((prefix, _style(found)))
    if known is None:
        loud = found.has_alpha or prefix in ("transformer.", "lora_unet_")
        return "no", f"it does not know these names: {'it refuses them' if loud else _SILENT}; {_CONVERT}"
    answer, because = known[found.has_alpha]
    if answer == "yes" and prefix == "transformer." and found.header_alpha:
        return "yes", "from version 0.40 on; older ones stop when only a part of the network is trained"
    return answer, because if answer == "yes" else f"{because}; {_CONVERT}"


def _musubi(found: Anatomy) -> tuple[Answer, str]:
    if fault := _faults(found):
        return "no", fault
    native = [
        module
        for module in found.modules
        if module.prefix == "lora_unet_"
        and module.spelling in ("split", "both")
        and not any("lora_A" in suffix for suffix in module.suffixes)
    ]
    to_native = "convert-lora --target default makes its names"
    if not native:
        return "no", f"it only warns and goes on without effect; {to_native}"
    if len(native) < len(found.modules):
        return "partly", f"it reads {_count(len(native), found)} and only warns of the others; {to_native}"
    if found.kind == "DoRA":
        return "partly", "it ignores the DoRA magnitudes"
    if found.summary.unknown:
        return "partly", f"it only warns of {len(found.summary.unknown)} tensors that belong to no module"
    return "yes", ""


def _burn(found: Anatomy) -> tuple[Answer, str]:
    if not found.rust:
        return "no", f"{_SILENT}: it reads only the form of z-image-train"
    if not found.sidecar:
        return "no", "the .lora.json sidecar with rank and alpha is not beside it"
    return ("no", fault) if (fault := _faults(found)) else ("yes", "with the .lora.json beside it")


def _here(found: Anatomy) -> tuple[Answer, str]:
    if fault := _faults(found):
        return "no", fault
    if found.summary.unknown:
        return "no", f"{len(found.summary.unknown)} tensors belong to no module of Z-Image"
    if sum(len(module.targets) for module in found.modules) != found.summary.modules:
        return "no", "some modules are changed twice, under two names"
    if odd := sorted(found.dtypes - _NUMBERS):
        return "no", f"it holds tensors of the type {', '.join(odd)}"
    if found.strength_fault:
        return "no", found.strength_fault
    if found.rust and not found.sidecar:
        return "no", "its strength is in the .lora.json sidecar, which is not beside it"
    return "yes", ""
