"""Command lines printed by the two older programs, with only the program's name and the paths changed."""

import re
import shlex
from pathlib import Path

import pytest

from zimage_gui.config import older_programs
from zimage_gui.config.argv import parse
from zimage_gui.config.build import build, finish, gather, names_of, read
from zimage_gui.config.foreign import ELSEWHERE
from zimage_gui.config.idle import idle_options
from zimage_gui.config.registry import COMMANDS
from zimage_gui.errors import UserError


def config_of(line: str):
    command, *words = shlex.split(line.replace("\\\n", " "))
    cls = COMMANDS[command]
    parsed = parse(cls, words)
    assert not parsed.problems, [problem.sentence() for problem in parsed.problems]
    found = read(cls, parsed.given, None)
    config = finish(cls, [found])
    assert not idle_options(config)
    return config, found.notes


def test_latent_cache():
    config, _ = config_of("cache-latents --dataset_config path/to/toml --vae path/to/vae_model")
    assert config.vae == Path("path/to/vae_model").absolute()
    config, notes = config_of(
        "cache-latents --dataset_config d.toml --vae v --vae_dtype fp16 --device cuda --batch_size 4 --num_workers 2"
        " --skip_existing --keep_cache --console_width 80 --disable_cudnn_backend"
    )
    assert config.skip_existing and config.keep_cache and len(notes) == 1


def test_text_cache():
    config, _ = config_of(
        "cache-text --dataset_config path/to/toml --text_encoder path/to/text_encoder --batch_size 16"
    )
    assert config.batch_size == 16


LORA = r"""
train-lora --num_cpu_threads_per_process 1 --mixed_precision bf16 \
    --dit path/to/dit_model \
    --vae path/to/vae_model \
    --text_encoder path/to/text_encoder \
    --dataset_config path/to/toml \
    --sdpa --mixed_precision bf16 \
    --timestep_sampling shift --weighting_scheme none --discrete_flow_shift 2.0 \
    --optimizer_type adamw8bit --learning_rate 1e-4 --gradient_checkpointing \
    --max_data_loader_n_workers 2 --persistent_data_loader_workers \
    --network_module networks.lora_zimage --network_dim 32 \
    --max_train_epochs 16 --save_every_n_epochs 1 --seed 42 \
    --output_dir path/to/output_dir --output_name name-of-lora
"""


def test_lora_training():
    config, notes = config_of(LORA)
    assert (config.network_dim, config.max_train_epochs, config.seed) == (32, 16, 42)
    assert (config.attn_mode, config.mixed_precision, config.optimizer_type) == ("torch", "bf16", "adamw8bit")
    assert config.output_dir == Path("path/to/output_dir").absolute() and config.output_name == "name-of-lora"
    assert [note.split()[0] for note in notes] == [
        "num_cpu_threads_per_process",
        "persistent_data_loader_workers",
    ]


def test_inference():
    config, _ = config_of(
        'generate --dit path/to/dit_model --vae path/to/vae_model --text_encoder path/to/text_encoder --prompt "A cat"'
        " --image_size 1024 768 --infer_steps 25 --flow_shift 3.0 --guidance_scale 0.0 --attn_mode torch"
        " --save_path path/to/save/dir --seed 1234 --lora_multiplier 1.0 --lora_weight path/to/lora.safetensors"
    )
    assert config.image_size == (1024, 768) and config.prompt == "A cat" and config.guidance_scale == 0
    assert config.lora_weight == (
        Path("path/to/lora.safetensors").absolute(),
    ) and config.lora_multiplier == (1.0,)


def test_conversion():
    config, _ = config_of("convert-lora --input a.safetensors --output b.safetensors --target other")
    assert config.target == "other"
    config, _ = config_of("convert-lora a.safetensors b.safetensors --lokr_rank 32")
    assert config.lokr_rank == 32 and config.target is None
    config, _ = config_of(
        "ema-lora a.safetensors b.safetensors --no_sort --sigma_rel 0.2 --output_file c.safetensors"
    )
    assert [path.name for path in config.path] == ["a.safetensors", "b.safetensors"] and config.no_sort
    config, _ = config_of("convert-lora a.safetensors b.safetensors --reverse")
    assert config.reverse and config.output == Path("b.safetensors").absolute()


FINETUNE = r"""
finetune --dit path/to/dit_model --vae path/to/vae_model --text_encoder path/to/text_encoder \
    --dataset_config path/to/toml \
    --sdpa --mixed_precision bf16 --gradient_checkpointing \
    --optimizer_type adafactor --learning_rate 1e-6 --fused_backward_pass \
    --optimizer_args "relative_step=False" "scale_parameter=False" "warmup_init=False" \
    --max_grad_norm 0 --lr_scheduler constant_with_warmup --lr_warmup_steps 10 \
    --max_data_loader_n_workers 2 --persistent_data_loader_workers \
    --max_train_epochs 16 --save_every_n_epochs 1 --seed 42 \
    --output_dir path/to/output_dir --output_name name-of-model
"""


def test_finetuning():
    more = " --full_bf16 --mem_eff_save --disable_numpy_memmap --block_swap_optimizer_patch_params"
    config, notes = config_of(FINETUNE + more)
    assert config.fused_backward_pass and config.full_bf16 and config.stochastic_rounding
    assert [note.split()[0] for note in notes] == [
        "persistent_data_loader_workers", "mem_eff_save", "disable_numpy_memmap", "block_swap_optimizer_patch_params",
    ]  # fmt: skip
    assert config.optimizer_args == ("relative_step=False", "scale_parameter=False", "warmup_init=False")
    assert (config.learning_rate, config.max_grad_norm, config.lr_warmup_steps) == (1e-6, 0, 10)


def test_the_second_programs_training():
    config, _ = config_of(
        "train --model-dir /path/to/models --dataset /path/to/data --output lora.safetensors --rank 32 --alpha 32"
        " --epochs 50 --lr 2e-4 --resolution 512 --save-every 100"
    )
    assert (config.network_dim, config.network_alpha, config.max_train_epochs) == (32, 32.0, 50)
    assert (config.learning_rate, config.resolution, config.save_every_n_steps) == (2e-4, (512, 512), 100)
    assert config.output == Path("lora.safetensors").absolute()


def test_the_second_programs_pictures():
    config, _ = config_of(
        'generate --model-dir /path/to/models --lora lora.safetensors --prompt "a fluffy cat wearing sunglasses"'
        " --output cat.png --width 768 --height 512 --steps 20"
    )
    assert config.image_size == (512, 768) and config.infer_steps == 20
    assert config.output == Path("cat.png").absolute() and config.lora_weight == (
        Path("lora.safetensors").absolute(),
    )


def test_the_second_programs_inspection():
    config, _ = config_of("inspect --input model.safetensors --limit 0")
    assert config.limit == 0


@pytest.mark.parametrize("entry", ELSEWHERE, ids=lambda entry: entry.name)
def test_what_a_launcher_has_to_be_told_is_refused_with_a_way_out(entry):
    for command in entry.commands:
        with pytest.raises(UserError, match="launcher") as error:
            build(COMMANDS[command], {entry.name: True if entry.takes == "switch" else "5"})
        (problem,) = (one for one in error.value.problems if one.option == entry.name)
        for name in re.findall(r"[a-z]+(?:_[a-z0-9]+)+", problem.remedy):
            assert any(name in names_of(COMMANDS[other]) for other in entry.commands), name


def test_several_processes_are_taken_and_several_machines_refused():
    """Those of accelerate's launcher, typed after our own command."""
    config, _ = config_of(LORA.replace("--num_cpu_threads_per_process 1", "--multi_gpu --num_processes 2"))
    assert config.processes_asked == 2
    with pytest.raises(UserError, match="other machines"):
        config_of(LORA.replace("--num_cpu_threads_per_process 1", "--num_machines 2"))
    config_of(LORA.replace("--num_cpu_threads_per_process 1", "--num_processes 1 --num_machines 1"))


def test_the_first_programs_other_pictures():
    """Its further options of inference, but for those that save memory."""
    models = "--dit d --vae v --text_encoder t --save_path s"
    config, notes = config_of(
        f"generate {models} --from_file prompts.txt --negative_prompt bad --cpu_noise --text_encoder_cpu --bell"
        " --output_type latent_images --no_metadata --device cuda --attn_mode sdpa --use_32bit_attention --lycoris"
        " --disable_numpy_memmap --embedded_cfg_scale 2.5 --include_patterns a --exclude_patterns b --lora_weight l"
    )
    assert config.text_encoder_cpu and config.attn_mode == "torch" and config.lora_multiplier == ()
    assert len(notes) == 4
    config, _ = config_of(f"generate {models} --interactive --guidance_scale 4 --vae_dtype bfloat16")
    assert config.interactive and config.vae_dtype == "bf16"
    config, _ = config_of(f"generate {models} --latent_path a_latent.safetensors b_latent.safetensors")
    assert len(config.latent_path) == 2


def test_accelerates_dynamo_options_are_those_of_compile() -> None:
    words = [
        "--dynamo_backend",
        "INDUCTOR",
        "--dynamo_mode",
        "max-autotune",
        "--dynamo_fullgraph",
        "--dynamo_dynamic",
    ]
    cls = COMMANDS["train-lora"]
    parsed = parse(cls, words)
    config, _ = gather(cls, [read(cls, parsed.given, None)])
    found = (config.compiled_with, config.compile_mode, config.compile_dynamic)
    assert found == ("inductor", "max-autotune", "true") and config.compile_fullgraph
    off, _ = gather(cls, [read(cls, [("dynamo_backend", "NO")], None)])
    assert off.compiled_with is None


def test_every_option_of_both_programs_has_its_line_and_none_is_forgotten():
    page = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
    found = list(older_programs.rows())
    assert len({row.name for row in found}) > 190
    for row in found:
        assert row.here != "forgotten" and f"| `{row.name}` |" in page, row


COMPARED = [
    (command, name, value)
    for program in (older_programs.FIRST, older_programs.SECOND)
    for command, words in program.items()
    for name, value in older_programs.defaults(words).items()
    if value is not None and names_of(COMMANDS[command]).get(name, (None, "a switch"))[1] is None
]


def test_every_default_that_differs_is_in_the_table_of_defaults():
    page = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
    table = page.partition("## Defaults that differ")[2].partition("\n## ")[0]
    assert len(COMPARED) > 150
    missing = []
    for command, name, value in COMPARED:
        cls = COMMANDS[command]
        known, _ = names_of(cls)[name]
        typed = {"off": "false"}.get(value, value.split(",") if known.count else value)
        same = known.default in (None, (), "", 0) if value == "" else cls(**{known.name: typed}) == cls()
        if not same and f"`{known.name}`" not in table:
            missing.append((command, name, value))
    assert not missing
