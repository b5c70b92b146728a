"""What `generate` will make: the options turned into requests, and everything wrong with them found first.

Knows options, prompts and what must fit together. It must not know how pictures are made or saved.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zimage_gui.config.common import strengths
from zimage_gui.config.convert_model import MergeConfig
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.engine import merge_model
from zimage_gui.engine.devices import pick_device
from zimage_gui.engine.generator import LoraChoice, PictureRequest
from zimage_gui.engine.kernels import compile_problems, graph_problems
from zimage_gui.engine.latent_files import latent_problems
from zimage_gui.engine.model_files import ModelFiles, find_models
from zimage_gui.engine.preflight import swap_problems
from zimage_gui.engine.prompt_lines import PromptLine, read_prompt_file
from zimage_gui.engine.sampler import Sampling, sampling_of
from zimage_gui.engine.start_picture import start_problems
from zimage_gui.engine.wildcards import Wildcards
from zimage_gui.errors import Problem, UserError, raise_if_any
from zimage_gui.model.attention import use_backend
from zimage_gui.model.lora_files import fit_problems, linear_shapes, read_lora
from zimage_gui.model.transformer import ZImageTransformer
from zimage_gui.model.weights import model_problems, transformer_config_of

_STRENGTH = 0.6
"""Of a picture without a mask, as in diffusers."""
_PARTS = ("transformer", "vae", "text_encoder")


def needed_parts(config: GenerateConfig) -> tuple[str, ...]:
    """The models this needs, by part."""
    return ("vae",) if config.latent_path else _PARTS


def problems_of(
    config: GenerateConfig, models_are_loaded: bool = False, loras_are_on: bool = False
) -> list[Problem]:
    """Everything wrong with the options, without what costs time where models or LoRAs are known to be on."""
    if config.save_merged_model is not None:
        try:
            return config.problems() or merge_model.check(merging(config))
        except UserError as error:
            return list(error.problems)
    problems = config.problems()
    files, absent = find_models(config, *needed_parts(config))
    problems += absent
    looks: list[Callable[[], object]] = [
        lambda: raise_if_any(compile_problems(config, pick_device(config.device))),
        lambda: raise_if_any(graph_problems(config, pick_device(config.device))),
        partial(use_backend, config.attn_mode),
    ]
    for look in looks:
        try:
            look()
        except UserError as error:
            problems += error.problems
    requests, wrong = _all_requests(config)
    problems += wrong
    encodes = any(request.image_path is not None for request in requests)
    if not models_are_loaded or encodes:
        wanted = files if not config.latent_path else ModelFiles(None, files.vae, None)
        problems += model_problems(wanted.dit, wanted.vae, wanted.text_encoder, decoder_only=not encodes)
        if wanted.dit is not None and not any(problem.option == "dit" for problem in problems):
            problems += swap_problems(config, transformer_config_of(wanted.dit).n_layers)
    problems += latent_problems(config.latent_path)
    if loras_are_on or config.latent_path:
        return problems
    return problems + lora_problems(config, files.dit)


def _all_requests(config: GenerateConfig) -> tuple[list[PictureRequest], list[Problem]]:
    try:
        return requests_and_problems(config, prompts_of(config))
    except UserError as error:
        return [], list(error.problems)


def requests_and_problems(
    config: GenerateConfig, lines: Sequence[PromptLine]
) -> tuple[list[PictureRequest], list[Problem]]:
    """The pictures, and all that is wrong with the prompts and with the files they begin from."""
    wildcards = Wildcards(config.wildcards_dir)
    texts = {text for line in lines for text in (line.prompt, line.negative_prompt or config.negative_prompt)}
    wrong = [problem for text in sorted(texts) for problem in wildcards.problems(text)]
    wrong += problems_of_starts([_request(config, line, seed=0) for line in lines])
    try:
        return requests_of(config, lines), wrong
    except UserError as error:
        return [], [*wrong, *(problem for problem in error.problems if problem not in wrong)]


def problems_of_starts(requests: Sequence[PictureRequest]) -> list[Problem]:
    """What keeps the pictures to begin from, and the masks, from being used."""
    problems: list[Problem] = []
    for image, mask in dict.fromkeys((request.image_path, request.mask_path) for request in requests):
        if image is not None:
            problems += start_problems(image, mask)
        elif mask is not None:
            rule = "needs image_path: it says what of a picture is made anew"
            problems.append(Problem("mask_path", str(mask), rule, "Give image_path, or leave the mask out"))
    return problems


def merging(config: GenerateConfig) -> MergeConfig:
    """The options of `merge` that `save_merged_model` stands for. Raises UserError when there is no model."""
    files, absent = find_models(config, "transformer")
    raise_if_any(absent)
    return MergeConfig(
        dit=files.dit,
        lora_weight=config.lora_weight,
        lora_multiplier=config.lora_multiplier,
        include_patterns=config.include_patterns,
        exclude_patterns=config.exclude_patterns,
        output=config.save_merged_model,
        overwrite=config.overwrite,
    )


def lora_problems(config: GenerateConfig, dit: Path | None) -> list[Problem]:
    """Reads the LoRAs and compares them with the transformer's sizes, which cost a header."""
    problems: list[Problem] = []
    shapes = None
    for choice in lora_choices(config):
        try:
            file = read_lora(choice.path)
            if shapes is None and dit is not None:
                with torch.device("meta"):
                    shapes = linear_shapes(ZImageTransformer(transformer_config_of(dit)))
            problems += fit_problems(file.select(choice.include, choice.exclude), shapes or {})
        except UserError as error:
            problems += [problem for problem in error.problems if problem.option != "dit"]
    return problems


def lora_choices(config: GenerateConfig) -> list[LoraChoice]:
    """The LoRAs with their strengths; a strength that is not given is 1."""
    multipliers = strengths(config.lora_multiplier, len(config.lora_weight))
    return [
        LoraChoice(path, multiplier, config.include_patterns, config.exclude_patterns)
        for path, multiplier in zip(config.lora_weight, multipliers, strict=False)
    ]


def prompts_of(config: GenerateConfig) -> list[PromptLine]:
    """The prompt of the options, or those of the prompt file; those that are asked for are not known
    yet."""
    if config.latent_path or config.interactive:
        return []
    if config.from_file is not None:
        return read_prompt_file(config.from_file)
    return [PromptLine(config.prompt or "")]


def requests_of(config: GenerateConfig, lines: Sequence[PromptLine]) -> list[PictureRequest]:
    """One request per picture: what a line leaves open comes from the options. Without any seed each line
    gets a random one of 32 bits; further pictures of a line take the next seeds, and each makes the choices
    of its prompt by its own."""
    requests = []
    wildcards = Wildcards(config.wildcards_dir)
    for line in lines:
        given = line.seed if line.seed is not None else config.seed
        seed = secrets.randbits(32) if given is None else given
        first = _request(config, line, seed)
        for index in range(config.batch_count):
            own = (seed + index) % 2**63
            prompts = [wildcards.resolved(text, own) for text in (first.prompt, first.negative_prompt)]
            requests.append(replace(first, seed=own, prompt=prompts[0], negative_prompt=prompts[1]))
    return requests


def _request(config: GenerateConfig, line: PromptLine, seed: int) -> PictureRequest:
    height, width = config.image_size
    image = _beside(config.from_file, line.image_path) or config.image_path
    mask = _beside(config.from_file, line.mask_path) or config.mask_path
    return PictureRequest(
        prompt=line.prompt,
        negative_prompt=_first(line.negative_prompt, config.negative_prompt),
        height=_first(line.height, height),
        width=_first(line.width, width),
        steps=_first(line.steps, config.infer_steps),
        guidance_scale=_first(line.guidance_scale, config.guidance_scale),
        flow_shift=_first(line.flow_shift, config.flow_shift),
        seed=seed,
        cpu_noise=config.cpu_noise,
        sampling=sampling_of(
            line, Sampling(config.sampler, config.scheduler, config.cfg_truncation, config.cfg_normalization)
        ),
        image_path=image,
        mask_path=mask,
        strength=_first(_first(line.strength, config.strength), _STRENGTH if mask is None else 1.0),
    )


def _beside(prompt_file: Path | None, path: Path | None) -> Path | None:
    """A path in a prompt file counts from the file's folder where it exists there."""
    if path is None or prompt_file is None:
        return path
    near = prompt_file.parent / path
    return near if near.exists() else path


def batches(requests: Sequence[PictureRequest], most: int) -> list[list[PictureRequest]]:
    """Neighbours that differ in nothing but their seeds, at most so many together."""
    found: list[list[PictureRequest]] = []
    for request in requests:
        last = found[-1] if found else []
        if last and len(last) < most and replace(request, seed=last[0].seed) == last[0]:
            last.append(request)
        else:
            found.append([request])
    return found


def _first(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value
