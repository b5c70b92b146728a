"""LoRA files: everything other rooms need to read, check, apply and write them, under one name.

Knows nothing of its own; the work is in `lora_read`, `lora_merge`, `lora_write`, `lora_entries`,
`lora_dialects`.
"""

from zimage_gui.model.lora_entries import Dora, Entry, LoHa, LoKr, LowRank
from zimage_gui.model.lora_merge import AppliedLora, LoraStack, linear_shapes, merge_lora, merged_weights
from zimage_gui.model.lora_read import LoraFile, fit_problems, read_lora
from zimage_gui.model.lora_write import original_alphas, verify_lora, write_lora

__all__ = [
    "AppliedLora",
    "Dora",
    "Entry",
    "LoHa",
    "LoKr",
    "LoraFile",
    "LoraStack",
    "LowRank",
    "fit_problems",
    "linear_shapes",
    "merge_lora",
    "merged_weights",
    "original_alphas",
    "read_lora",
    "verify_lora",
    "write_lora",
]
