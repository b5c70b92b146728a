"""From a dataset to everything the trainer needs of it: both caches filled, and the index of what is in them.

Knows the two cache commands' work. Must not know training.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from zimage_gui.config.training import TrainingConfig
from zimage_gui.engine.cache_files import CacheItem, Kind, open_cache, with_captions
from zimage_gui.engine.cache_latents import encode_latents, latent_work
from zimage_gui.engine.cache_run import Encoding, Prepared, model_path, prepare, worker_count
from zimage_gui.engine.cache_text import encode_texts, text_work
from zimage_gui.engine.dataset.plan import CachedItem, CachedText, DatasetIndex
from zimage_gui.engine.dataset.scan import shown_name
from zimage_gui.engine.dataset.sources import sources_of, validation_sources
from zimage_gui.engine.devices import release_memory
from zimage_gui.engine.masks import make_masks
from zimage_gui.errors import UserError, raise_if_any
from zimage_gui.events import Run
from zimage_gui.model.vae import VaeConfig
from zimage_gui.model.weights import model_problems, transformer_config_of, vae_config_of


def ensure_caches(config: TrainingConfig, run: Run) -> DatasetIndex:
    """Fill what is missing or stale of `config`'s dataset and return the index of all usable items.

    Encoders are loaded only when needed and freed again. The VAE runs in fp32 and the text encoder in bf16,
    whatever the training's precision; files made in another precision are used. Pictures that cannot be
    used are warned about and left out; cache files of other pictures are never deleted here. Raises
    UserError when nothing is left or an encoder that is needed is not named, Interrupted when a stop was
    asked for.
    """
    workers = worker_count(None)
    vae = Encoding(_found(config, "vae"), config.device, "no", workers=workers, compare_precision=False)
    text = Encoding(
        _found(config, "text_encoder"),
        config.device,
        "bf16",
        tokenizer=config.tokenizer,
        workers=workers,
        compare_precision=False,
        fp8=config.fp8_llm,
    )
    raise_if_any(model_problems(vae=vae.model, text_encoder=text.model))
    trained = sources_of(config, config.batch_size)
    prepared = prepare((*trained, *validation_sources(config)), run, workers)
    latents, texts = latent_work(prepared, vae, run), text_work(prepared, text, run)
    raise_if_any([*latents.problems(), *texts.problems()])
    with_latents = set(encode_latents(latents, run))
    release_memory()
    with_texts = set(encode_texts(texts, run))
    release_memory()
    usable = [item for item in prepared.items if item in with_latents and item in with_texts]
    if not usable:
        raise UserError.one("dataset", "", "no picture could be encoded", "See the warnings above")
    if config.dit is not None:
        check_width(usable, transformer_config_of(config.dit).cap_feat_dim)
    masks = make_masks(usable, run)
    vae_config = vae_config_of(vae.model) if vae.model is not None else VaeConfig()
    index = index_of(prepared, usable, vae_config, masks)
    return index.without_held_out(len(trained), config.validation_split)


def _found(config: TrainingConfig, part: str) -> Path | None:
    """The encoder's path; a models folder without it is no fault while every cache file is there."""
    try:
        return model_path(getattr(config, part), config.model_dir, part)
    except UserError:
        return None


def check_width(items: list[CacheItem], width: int) -> None:
    """Raise UserError when text features do not fit a transformer that takes `width` numbers per token."""
    texts = with_captions(items)
    widths = {item: open_cache(item.text_path, Kind.TEXT).tensor.shape[1] for item in texts}
    wrong = [item for item in texts if widths[item] != width]
    if wrong:
        found = sorted({widths[item] for item in wrong})
        rule = (
            f"{len(wrong)} text cache files have {found} numbers per token, but the transformer takes {width}"
        )
        remedy = "Another text encoder made them: set text_encoder to the one of this transformer"
        raise UserError.one("text_encoder", shown_name(wrong[0].text_path), rule, remedy)


def index_of(
    prepared: Prepared, usable: list[CacheItem], vae: VaeConfig, masks: Mapping[CacheItem, Path]
) -> DatasetIndex:
    """The index of items whose cache files exist; reads their headers only."""
    sources = prepared.report.sources
    numbers = {source: number for number, source in enumerate(sources)}
    items = tuple(_cached(item, numbers[item.picture.source], masks.get(item)) for item in usable)
    return DatasetIndex(items, vae.shift_factor, vae.scaling_factor, sources)


def _cached(item: CacheItem, number: int, mask: Path | None) -> CachedItem:
    source = item.picture.source
    plain, *others = [_text(variant) for variant in with_captions([item])]
    dropped = source.caption_dropout_rate > 0 and bool(others)
    empty = others.pop() if dropped else None  # the empty caption is the last of `Picture.captions`
    return CachedItem(
        key=item.key,
        picture=item.picture.path,
        latent_path=item.latent_path,
        text_path=item.text_path,
        bucket=item.picture.bucket,
        latent_shape=item.latent_shape,
        tokens=plain.tokens,
        caption=plain.caption,
        num_repeats=source.num_repeats,
        batch_size=source.batch_size,
        source=number,
        other_texts=tuple(others),
        empty=empty,
        dropout=source.caption_dropout_rate if empty else 0.0,
        flipped_path=replace(item, flipped=True).latent_path if source.flip_aug else None,
        mask_path=mask,
    )


def _text(item: CacheItem) -> CachedText:
    tokens = open_cache(item.text_path, Kind.TEXT).tensor.shape[0]
    return CachedText(item.text_path, tokens, item.caption)
