"""Makes .bpk files of models the tests have in other layouts."""

from pathlib import Path

import torch

from zimage_gui.burnpack import BpkEntry, fresh_param_id, read_bpk_header, write_bpk
from zimage_gui.cbor import encode
from zimage_gui.model.burn_names import Record, burn_records
from zimage_gui.model.checkpoint import Checkpoint, open_checkpoint
from zimage_gui.model.sources import sources_of
from zimage_gui.model.tensor_files import read_source, tensor_bytes

GOLDEN = Path(__file__).parents[1] / "data" / "burnpack"
REFERENCE = Path(__file__).parents[1] / "data" / "reference"
SINGLE = {
    "transformer": REFERENCE / "single" / "z_image_fused.safetensors",
    "vae": REFERENCE / "single" / "ae.safetensors",
    "text_encoder": REFERENCE / "single" / "qwen_3.safetensors",
}


def our_tensors(path: Path, part: str) -> dict[str, torch.Tensor]:
    """All tensors of a model under our names, in the dtype of the file."""
    checkpoint = open_checkpoint(path)
    return {name: _read(checkpoint, source) for name, source in sources_of(part, checkpoint.shapes).items()}


def _read(checkpoint: Checkpoint, source) -> torch.Tensor:
    place = checkpoint.places[source.name]
    with place.file.open("rb") as file:
        return read_source(file, place.info, source)


def write_model(source: Path, part: str, target: Path, *, only: str = "") -> Path:
    """`source` as a .bpk with burn's names; `only` keeps the tensors whose name starts with it."""
    tensors = {name: tensor for name, tensor in our_tensors(source, part).items() if name.startswith(only)}
    records = burn_records(part, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return write_bpk(target, [_entry(record, tensors) for record in records], {"format": "burnpack"})


def _entry(record: Record, tensors: dict[str, torch.Tensor]) -> BpkEntry:
    whole = torch.cat([tensors[part] for part in record.parts])
    turned = (whole.t() if record.transposed else whole).contiguous().view(record.shape)
    dtype = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[turned.dtype]
    return BpkEntry(record.name, dtype, record.shape, [tensor_bytes(turned)], fresh_param_id(record.name))


def as_written_by_burn_0_19(path: Path, target: Path) -> Path:
    """The same tensors as that version wrote them: same head, nothing aligned."""
    content, header = path.read_bytes(), read_bpk_header(path)
    table, data = {}, b""
    for name, tensor in header.tensors.items():
        raw = content[tensor.start : tensor.end]
        offsets = [len(data), len(data) + len(raw)]
        table[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    raw_table = encode({"tensors": dict(sorted(table.items()))})
    target.write_bytes(content[:6] + len(raw_table).to_bytes(4, "little") + raw_table + data)
    return target
