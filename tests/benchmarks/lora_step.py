"""One LoRA step here and with diffusers' transformer and peft, on the same weights, inputs and adapters."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from alternate import Comparison, compare

from zimage_gui.engine.loader import Batch
from zimage_gui.engine.methods import LoraMethod
from zimage_gui.engine.objective import Objective, draw, sample_sigmas
from zimage_gui.engine.optimizers import build_optimizer
from zimage_gui.engine.schedules import ScheduleSpec, build_schedule
from zimage_gui.engine.trainer import LoopSettings, Trainer
from zimage_gui.events import NullRun
from zimage_gui.model.lora import LoraSpec, attach_lora
from zimage_gui.model.transformer import TransformerConfig, ZImageTransformer

CONFIG = TransformerConfig(dim=256, n_layers=6, n_heads=2, cap_feat_dim=256)
RANK, LATENT, TEXT, SEED = 16, 64, 64, 5
TARGETS = r"layers\.\d+\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123])"
_RATE = 1e-4


def _weights() -> dict[str, torch.Tensor]:
    model = ZImageTransformer(CONFIG)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.05, generator=generator)
    return model.state_dict()


def _batch(size: int) -> Batch:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(size, 16, LATENT, LATENT, generator=generator)
    captions = [torch.randn(TEXT, CONFIG.cap_feat_dim, generator=generator) for _ in range(size)]
    return Batch(latents, captions, ["x"] * size, list(range(size)))


def ours(weights: dict[str, torch.Tensor], batch: Batch, dtype: torch.dtype, checkpointing: bool) -> Trainer:
    model = ZImageTransformer(CONFIG)
    model.load_state_dict(weights)
    model = model.to(dtype)
    method = LoraMethod(model, attach_lora(model, LoraSpec(dim=RANK), seed=3))
    optimizer = build_optimizer("AdamW", [], _RATE, method.parameters())
    schedule = build_schedule(ScheduleSpec(), optimizer, 100)
    settings = LoopSettings(SEED, 100, 1, gradient_checkpointing=checkpointing)
    trainer = Trainer(
        method, optimizer, schedule, Objective(), settings, NullRun(Path(tempfile.gettempdir()))
    )
    model.train()
    return trainer


class Theirs:
    """The core of diffusers' training script: ZImageTransformer2DModel, a peft adapter, AdamW, clipping."""

    def __init__(self, weights: dict[str, torch.Tensor], dtype: torch.dtype, checkpointing: bool) -> None:
        from diffusers import ZImageTransformer2DModel
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        self.model = ZImageTransformer2DModel(
            dim=CONFIG.dim, n_layers=CONFIG.n_layers, n_refiner_layers=CONFIG.n_refiner_layers, n_heads=CONFIG.n_heads,
            n_kv_heads=CONFIG.n_heads, cap_feat_dim=CONFIG.cap_feat_dim, axes_dims=list(CONFIG.axes_dims),
            axes_lens=[1536, 512, 512],
        )  # fmt: skip
        self.model.load_state_dict(weights)
        self.model.requires_grad_(False)
        self.model.to(dtype)
        self.model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
        cast_training_params([self.model], dtype=torch.float32)
        if checkpointing:
            self.model.enable_gradient_checkpointing()
        self.model.train()
        self.dtype = dtype
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=_RATE)

    def loss(self, batch: Batch, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        mixed = (1 - sigma.view(-1, 1, 1, 1)) * batch.latents + sigma.view(-1, 1, 1, 1) * noise
        images = [sample.unsqueeze(1).to(self.dtype) for sample in mixed]
        captions = [caption.to(self.dtype) for caption in batch.captions]
        with torch.autocast("cpu", self.dtype, enabled=self.dtype is not torch.float32):
            output = self.model(images, 1 - sigma, captions, return_dict=False)[0]
        prediction = torch.stack(list(output)).squeeze(2).float()
        return torch.nn.functional.mse_loss(-prediction, noise - batch.latents)

    def step(self, batch: Batch, noise: torch.Tensor, sigma: torch.Tensor) -> None:
        self.loss(batch, noise, sigma).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _same_adapters(
    trainer: Trainer, theirs: Theirs
) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """Start both from the same adapters; returns our and their parameter of each place."""
    pairs = {}
    own = trainer.method.named_parameters()
    generator = torch.Generator().manual_seed(4)
    for name, parameter in theirs.model.named_parameters():
        if ".lora_" not in name:
            continue
        path, _, kind = name.partition(".lora_")
        mine = own[f"{path}.lora_{'down' if kind.startswith('A') else 'up'}"]
        with torch.no_grad():
            mine.normal_(0, 0.02, generator=generator)
            parameter.copy_(mine)
        pairs[f"{path}.{kind}"] = (mine, parameter)
    assert len(pairs) == len(own)
    return pairs


def parity(dtype: torch.dtype, checkpointing: bool, size: int = 1) -> float:
    """Largest relative difference of loss and adapter gradients between the two."""
    weights, batch = _weights(), _batch(size)
    trainer, theirs = ours(weights, batch, dtype, checkpointing), Theirs(weights, dtype, checkpointing)
    pairs = _same_adapters(trainer, theirs)
    noise, sigma = _noise(batch)
    losses = trainer.passes.loss(batch, 0), theirs.loss(batch, noise, sigma)
    for loss in losses:
        loss.backward()
    mine, other = (loss.item() for loss in losses)
    worst = abs(mine - other) / abs(other)
    for one, two in pairs.values():
        assert one.grad is not None and two.grad is not None
        worst = max(worst, float((one.grad - two.grad).norm() / two.grad.norm()))
    return worst


def _noise(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    draws = draw(Objective(), SEED, 0, batch.indices, tuple(batch.latents.shape[1:]))
    return draws.noise, sample_sigmas(Objective(), draws, LATENT * LATENT // 4)


def race(dtype: torch.dtype, checkpointing: bool, size: int = 1, pairs: int = 9) -> Comparison:
    weights, batch = _weights(), _batch(size)
    trainer, theirs = ours(weights, batch, dtype, checkpointing), Theirs(weights, dtype, checkpointing)
    noise, sigma = _noise(batch)
    return compare(lambda: trainer.update([batch]), lambda: theirs.step(batch, noise, sigma), pairs)


def rows(pairs: int, dtypes: list[torch.dtype], say: Callable[[str], None]) -> list[str]:
    table = []
    for dtype in dtypes:
        for checkpointing in (False, True):
            name = f"LoRA step, {str(dtype).removeprefix('torch.')}, {'with' if checkpointing else 'without'} checkpointing"
            if dtype is torch.float32:
                say(f"{name}: loss and gradients agree to {parity(dtype, checkpointing):.1e}")
            table.append(race(dtype, checkpointing, pairs=pairs).row(name))
            say(table[-1])
    return table
