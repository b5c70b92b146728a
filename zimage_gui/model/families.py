"""Other model families: told from the names and shapes of their tensors, so that a wrong file gets a name.

Knows the marks of foreign models, adapters and small files that lie beside Z-Image in a models folder. It
must not know Z-Image itself, nor torch, and reads no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

# Kind, sentence, marks that must all occur, searched in the names, one a line; the first hit wins. No mark
# may begin with `.*`: a hostile name of megabytes would take it for ever.
_FAMILIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("controlnet", "a ControlNet for Stable Diffusion or Flux, not for Z-Image",
     (r"(^control_model|^controlnet_|controlnet_cond_embedding|controlnet_blocks)\b",)),
    ("other_model", "an IP-Adapter, not a base model", (r"^(ip_adapter|image_proj)\.",)),
    ("other_model", "an AnimateDiff motion module", (r"\.motion_modules\.\d",)),
    ("other_model", "a Chroma model (a relative of Flux)", (r"\bdistilled_guidance_layer\.",)),
    ("other_model", "a HunyuanVideo model", (r"\btxt_in\.individual_token_refiner\.",)),
    ("other_model", "a Flux 2 model", (r"\bdouble_stream_modulation_img\.",)),
    ("other_model", "a Flux model (with guidance, as Flux dev)",
     (r"\bdouble_blocks\.\d+\.", r"\bguidance_in\.")),
    ("other_model", "a Flux model", (r"\bdouble_blocks\.\d+\.",)),
    ("other_model", "a Flux model in the diffusers layout", (r"\bsingle_transformer_blocks\.\d+\.",)),
    ("other_model", "a Stable Diffusion 3 model", (r"\bjoint_blocks\.\d+\.",)),
    ("other_model", "an AuraFlow model", (r"\bjoint_transformer_blocks\.\d+\.",)),
    ("other_model", "a Qwen-Image model",
     (r"\btransformer_blocks\.\d+\.attn\.add_q_proj\.", r"\btxt_norm\.")),
    ("other_model", "a Stable Diffusion 3 model in the diffusers layout",
     (r"\btransformer_blocks\.\d+\.attn\.add_q_proj\.",)),
    ("other_model", "an LTX-Video model", (r"\bpatchify_proj\.", r"\btransformer_blocks\.\d+\.")),
    ("other_model", "a Wan video model", (r"\bblocks\.\d+\.cross_attn\.", r"\bpatch_embedding\.")),
    ("other_model", "a Cosmos, Wan or Anima model", (r"\bblocks\.\d+\.(self_attn|cross_attn)\.",)),
    ("other_model", "a Qwen-Image, PixArt, Sana or similar transformer",
     (r"\btransformer_blocks\.\d+\.attn\d?\.",)),
    ("other_model", "a T5 text encoder", (r"\bencoder\.block\.\d+\.layer\.\d+\.SelfAttention\.",)),
    ("other_model", "a Qwen-VL model (it reads pictures)", (r"\bvisual\.(blocks|patch_embed)\.",)),
    ("other_model", "an image encoder (CLIP vision or SigLIP)",
     (r"\bvision_model\.encoder\.layers\.\d+\.",)),
    ("other_model", "a CLIP text encoder", (r"\btext_model\.encoder\.layers\.\d+\.",)),
    ("other_model", "a CLIP text encoder (OpenCLIP names)", (r"\btransformer\.resblocks\.\d+\.",)),
    ("sd_vae", "a video VAE (Wan, Qwen-Image), while Z-Image needs the Flux VAE",
     (r"\bdecoder\.(upsamples|middle)\.\d+\.",)),
    ("other_model", "a tiny preview autoencoder (TAESD)",
     (r"^(taesd_)?(encoder|decoder)\.(layers\.)?\d+\.conv\.",)),
    ("other_model", "an upscaler (ESRGAN and its like)",
     (r"^(model\.\d+\.sub\.\d+\.RDB|body\.\d+\.rdb\d|RRDB_trunk\.|conv_first\.|upsampler?\.\d)",)),
    ("other_model", "a textual inversion embedding", (r"^(emb_params|clip_[lg])$|^string_to_param",)),
    ("state", "the moments of an optimizer, a part of a training state",
     (r"exp_avg_sq|\.state1$|^optimizer\.",)),
    ("other_model", "a language model", (r"\blayers\.\d+\.(self_attn\.[qkv]_proj|mlp\.gate_proj)\.",)),
)  # fmt: skip

_UNET = re.compile(
    r"\b(input_blocks\.\d+\.|down_blocks\.\d+\.attentions\.\d+\.transformer_blocks\.)", re.MULTILINE
)
_CROSS = re.compile(r"attn2\.to_k\.weight$")
_UNETS = {768: "a Stable Diffusion 1.x model", 1024: "a Stable Diffusion 2.x model", 2048: "an SDXL model"}

_ADAPTERS = (
    ("Flux", r"(double_blocks|single_blocks|single_transformer_blocks)[._]\d"),
    ("Stable Diffusion 3", r"joint_blocks[._]\d"),
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](attn[._](add_|to_)|(img|txt)_m)"),
    ("SDXL", r"^lora_te[12]_|^lora_unet_(input|output|middle)_block|add_embedding"),
    ("Stable Diffusion", r"(down|up|mid|input|output)_blocks?[._]\d|^lora_te_text_model"),
    ("Wan or another video model", r"blocks[._]\d+[._](self_attn|cross_attn|attn\d)"),
    ("a language model", r"layers[._]\d+[._](self_attn|mlp)[._]"),
)


def family_of(shapes: Shapes) -> tuple[str, str] | None:
    """(kind, sentence) of a foreign file, or None. Kinds are those of `recognise`."""
    names = "\n".join(shapes)
    if _UNET.search(names):
        width = next((shapes[name][-1] for name in shapes if _CROSS.search(name) and shapes[name]), 0)
        return "other_model", _UNETS.get(width, "a Stable Diffusion model")
    for kind, sentence, marks in _FAMILIES:
        if all(re.search(mark, names, re.MULTILINE) for mark in marks):
            return kind, sentence
    return None


def adapter_family(names: Iterable[str]) -> str | None:
    """The family an adapter's names belong to, None when unknown."""
    joined = "\n".join(names)
    return next((family for family, mark in _ADAPTERS if re.search(mark, joined, re.MULTILINE)), None)
