"""Hashes of a file in the forms people compare: what model sites show, and what trainers write into headers.

Reads every byte of the file, in pieces. It must not know what is in it beyond where its tensors begin.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from zimage_gui.engine.inspect_report import FileReport
from zimage_gui.engine.inspect_text import plain
from zimage_gui.errors import UserError
from zimage_gui.events import Progress, Run

_CHUNK = 8 << 20


def with_hashes(report: FileReport, run: Run | None) -> FileReport:
    """The report with the SHA-256 of its file; of safetensors also that of the tensors without the header,
    which sd-scripts writes into it. run: is told the progress."""
    if not report.path.is_file():
        raise UserError.one("hash", report.path, "needs one file", "Name the file itself")
    total = report.path.stat().st_size
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    with open(report.path, "rb") as file:
        safetensors = report.format == "safetensors"
        begin = 8 + int.from_bytes(file.read(8), "little") if safetensors else total
        file.seek(0)
        done = 0
        while chunk := file.read(_CHUNK):
            whole.update(chunk)
            tensors.update(memoryview(chunk)[max(0, begin - done) :])
            done += len(chunk)
            if run is not None and total > _CHUNK:
                run.emit(Progress(done=done, total=total, unit="bytes"))
    digest = whole.hexdigest()
    hashes = {"SHA-256": digest, "AutoV2": digest[:10].upper()}
    if safetensors:
        hashes["AutoV3"] = tensors.hexdigest()[:12].upper()
        hashes |= _stated(report.metadata.get("sshs_model_hash", ""), tensors.hexdigest())
    return replace(report, hashes=hashes)


def _stated(text: str, digest: str) -> dict[str, str]:
    """The hash in the header, and whether it is that of the tensors."""
    if not text:
        return {}
    word = (
        "that of these tensors" if text.lower().removeprefix("0x") == digest else "not that of these tensors"
    )
    return {"sshs_model_hash": f"{plain(text, 64)} ({word})"}
