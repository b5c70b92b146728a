"""Headers of files too large to keep: the released model's names and shapes, with nothing behind them."""

import json
import math
import struct

BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I8": 1}
WIDTH, FFN, CAPTION = 3840, 10240, 2560


def split_transformer() -> dict[str, tuple[int, ...]]:
    """The 521 tensors of Z-Image in the diffusers layout."""
    shapes = {
        "all_x_embedder.2-1.weight": (WIDTH, 64), "all_x_embedder.2-1.bias": (WIDTH,),
        "all_final_layer.2-1.linear.weight": (64, WIDTH), "all_final_layer.2-1.linear.bias": (64,),
        "all_final_layer.2-1.adaLN_modulation.1.weight": (WIDTH, 256),
        "all_final_layer.2-1.adaLN_modulation.1.bias": (WIDTH,),
        "cap_embedder.0.weight": (CAPTION,), "cap_embedder.1.weight": (WIDTH, CAPTION), "cap_embedder.1.bias": (WIDTH,),
        "t_embedder.mlp.0.weight": (1024, 256), "t_embedder.mlp.0.bias": (1024,),
        "t_embedder.mlp.2.weight": (256, 1024), "t_embedder.mlp.2.bias": (256,),
        "x_pad_token": (1, WIDTH), "cap_pad_token": (1, WIDTH),
    }  # fmt: skip
    for group, count in (("layers", 30), ("noise_refiner", 2), ("context_refiner", 2)):
        for index in range(count):
            block = f"{group}.{index}."
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                shapes[f"{block}attention.{name}.weight"] = (WIDTH, WIDTH)
            shapes |= {f"{block}attention.norm_{name}.weight": (128,) for name in "qk"}
            shapes |= {
                f"{block}{name}.weight": (WIDTH,)
                for name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
            }
            shapes |= {f"{block}feed_forward.{name}.weight": (FFN, WIDTH) for name in ("w1", "w3")}
            shapes[f"{block}feed_forward.w2.weight"] = (WIDTH, FFN)
            if group != "context_refiner":
                shapes |= {
                    f"{block}adaLN_modulation.0.weight": (4 * WIDTH, 256),
                    f"{block}adaLN_modulation.0.bias": (4 * WIDTH,),
                }
    return shapes


def sparse(path, shapes, dtype="BF16", metadata=None):
    """A safetensors file with these tensors whose data are a hole: it takes no room on the disk."""
    entries, offset = {"__metadata__": metadata} if metadata else {}, 0
    for name, shape in shapes.items():
        kind = dtype if isinstance(dtype, str) else dtype.get(name, "BF16")
        end = offset + math.prod(shape) * BYTES[kind]
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + offset)
    return path


def gguf(tensors, metadata=(), version=3, extra=b""):
    """The bytes of a GGUF file: tensors {name: (shape, type number, bytes)}, metadata [(name, type, payload)]."""

    def text(value):
        data = value.encode() if isinstance(value, str) else value
        return struct.pack("<Q", len(data)) + data

    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for name, kind, payload in metadata:
        head += text(name) + struct.pack("<I", kind) + (text(payload) if kind == 8 else payload)
    offset = 0
    for name, (shape, kind, size) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", kind, offset)
        offset += -(-size // 32) * 32
    return head + bytes(-len(head) % 32) + bytes(offset) + extra
