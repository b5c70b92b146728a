"""The command `convert`: a transformer, VAE or text encoder into another layout or number format.

Knows options and what is said about the result. It must not know tensor names or bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zimage_gui.burnpack import is_bpk
from zimage_gui.config.convert_model import ConvertConfig, ModelOutput
from zimage_gui.engine.convert_bpk import BpkPlan, plan_bpk, write_bpk_plan
from zimage_gui.engine.convert_model_output import output_problems
from zimage_gui.engine.convert_model_plan import Plan, format_problems, is_folder, layout_of, make_plan
from zimage_gui.engine.convert_model_scales import refuse_lost_scales
from zimage_gui.engine.convert_model_source import WORDS, ModelSource, open_model
from zimage_gui.engine.convert_model_write import write_plan
from zimage_gui.errors import Problem, UserError, raise_if_any, tried
from zimage_gui.events import Note, Run
from zimage_gui.model.keymaps import Shape
from zimage_gui.model.sizes import SizeError
from zimage_gui.model.weights import WholeModel, raise_misfit, whole_model
from zimage_gui.model.whole_shapes import squeezed, whole_names

PARTS = {"transformer": "transformer", "autoencoder": "vae", "text-encoder": "text_encoder"}
_LAYOUT_WORDS = {
    ("diffusers", "transformer"): "diffusers layout (split q, k, v)",
    ("diffusers", "vae"): "diffusers layout",
    ("diffusers", "text_encoder"): "hub layout",
    ("comfy", "transformer"): "ComfyUI layout (fused qkv)",
    ("comfy", "vae"): "ldm layout (ae.safetensors)",
    ("comfy", "text_encoder"): "hub and ComfyUI layout",
}


def check(config: ConvertConfig) -> list[Problem]:
    """Everything that keeps the model from being converted; reads headers, writes nothing."""
    problems = config.problems()
    if config.input is not None and config.output is not None:
        tried(lambda: plan_of(config), problems)
    elif config.output is not None:
        problems += early_problems(config, config.output, [])
    return problems


def run(config: ConvertConfig, run: Run) -> list[Path]:
    """Converts one model, verifies it by reading it back, and says what was done."""
    raise_if_any(config.problems())
    plan = plan_of(config)
    for note in plan.notes:
        run.emit(Note(text=note))
    if isinstance(plan, BpkPlan):
        written = write_bpk_plan(plan, run)
        text = (
            f"{len(plan.entries)} tensors written to {plan.output.name} as burn has them; all read back equal"
        )
        run.emit(Note(text=text))
        return written
    if config.dtype != "keep":
        refuse_lost_scales(plan.source)
    written = write_plan(plan, run)
    run.emit(Note(text=sentence(plan)))
    return written


def plan_of(config: ConvertConfig) -> Plan | BpkPlan:
    """What `run` would write. Raises UserError for everything that keeps it from that."""
    assert config.input is not None and config.output is not None  # `problems` has seen to it
    path, output = config.input, config.output
    problems = early_problems(config, output, [path])
    part = PARTS[config.model_type] if config.model_type else None
    if is_bpk(path) and output.suffix.lower() == ".bpk" and config.layout in (None, "burn"):
        plan: Plan | BpkPlan | None = tried(lambda: plan_bpk(config, path, output, part), problems)
        files: Sequence[Path] = (path,)
    else:
        source = tried(lambda: open_model(path, "input", part), problems)
        plan = tried(lambda: checked_plan(source, config, output), problems) if source else None
        files = source.checkpoint.files if source else ()
    if plan is not None:
        found = output_problems(output, files, config.overwrite, plan.bytes, folder=plan.folder)
        problems += (one for one in found if one not in problems)
    raise_if_any(problems)
    assert plan is not None  # else there were problems
    return plan


def early_problems(config: ModelOutput, output: Path, sources: Sequence[Path]) -> list[Problem]:
    """What is wrong with the output whatever the model is: it is named beside what is wrong with that."""
    problems = format_problems(config, output)
    layout = tried(lambda: layout_of(config, output), problems)
    if layout is not None:
        folder = is_folder(layout, output)
        problems += output_problems(output, sources, config.overwrite, 0, folder=folder)
    return problems


def checked_plan(source: ModelSource, config: ModelOutput, output: Path) -> Plan:
    """A plan for a source that is a whole model; raises UserError naming what is missing otherwise."""
    model = _whole(source)
    _refuse_misfit(source, model)
    settings = dict(source.checkpoint.settings_of(source.part)) or model.settings
    return make_plan(source, config, output, model.shapes, settings, told=_told_by_tensors(source, model))


def _told_by_tensors(source: ModelSource, model: WholeModel) -> bool:
    """Whether a program that sees the tensors alone takes the network for what it is."""
    if not source.checkpoint.settings_of(source.part):
        return True
    try:
        return whole_model(source.part, source.shapes(), {}).settings == model.settings
    except SizeError:
        return False


def _whole(source: ModelSource) -> WholeModel:
    checkpoint = source.checkpoint
    shapes = source.shapes()
    # The ae.bpk of z-image-burn is a decoder alone.
    if source.part == "vae" and not any(name.startswith("encoder.") for name in shapes):
        found = {name: _as_linear(name, shape) for name, shape in shapes.items()}
        return WholeModel(found, {})
    try:
        return whole_model(source.part, shapes, checkpoint.settings_of(source.part))
    except SizeError as error:
        # Its sizes run nowhere (a test model's, say), but names alone say how to lay it out.
        if set(shapes) == whole_names(source.part, shapes):
            return WholeModel({name: _as_linear(name, shape) for name, shape in shapes.items()}, {})
        remedy = "Download the model again, or choose another file"
        raise UserError.one(checkpoint.option, checkpoint.path, str(error), remedy) from error


def _as_linear(name: str, shape: Shape) -> Shape:
    """The attention's projections are 1x1 convolutions in some layouts."""
    return shape[:2] if ".attentions." in name and len(shape) == 4 else shape


def _refuse_misfit(source: ModelSource, model: WholeModel) -> None:
    shapes = source.shapes()
    raise_misfit(
        source.checkpoint,
        missing=sorted(set(model.shapes) - set(shapes)),
        unexpected=sorted(source.sources[name].name for name in set(shapes) - set(model.shapes)),
        misshaped=[
            f"{name} is {list(shape)}, needed {list(model.shapes[name])}"
            for name, shape in sorted(shapes.items())
            if name in model.shapes and squeezed(shape) != squeezed(model.shapes[name])
        ],
        wrong_dtype=[],
    )


def sentence(plan: Plan) -> str:
    """What was written, in words."""
    layout = _LAYOUT_WORDS.get((plan.layout, plan.source.part), "burn layout (z-image-train)")
    dtypes = " and ".join(sorted({tensor.dtype for tensor in plan.tensors}))
    files = f", {len(plan.files)} files" if len(plan.files) > 1 else ""
    what = f"{WORDS[plan.source.part]}: {len(plan.tensors)} tensors in the {layout}, {dtypes}"
    size = f"{plan.bytes / 1e9:.2f} GB" if plan.bytes >= 1e9 else f"{plan.bytes / 1e6:.2f} MB"
    return f"{what}, {size}{files} written to {plan.output.name}; all read back equal"
