"""Values that fit each option, for tests that walk over all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from zimage_gui.config.schema import Option, Options, options_of

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_names = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters='<>:"/\\|?*. '),
    min_size=1,
    max_size=20,
)
_pairs = st.lists(
    st.builds("{}={}".format, st.sampled_from(["betas", "eps", "weight_decay"]), _texts.filter(str.strip)),
    max_size=3,
)
_windows = st.sampled_from(
    [r"C:\models\x.safetensors", r"D:\Bilder mit Leerzeichen\n", "\\\\server\\share\\模型", "/tmp/a'b\"c"]
)
_paths = st.one_of(_windows, _texts.filter(lambda text: text and "\0" not in text)).map(Path)
_patterns = st.lists(st.sampled_from([r".*attention.*", r"layers\.[0-9]+\..*", "ä|漢"]), max_size=3).map(
    tuple
)

_axes = st.sampled_from([None, "seed=1,2", "lora=off,on", "prompt=a 'b'|漢 c", r"dit=C:\a b.safetensors|b"])

SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:3"]),
    "gpus": st.sampled_from(["", "1", "3", "0,2"]),
    "output_name": _names.filter(lambda name: name.lower() not in ("con", "prn", "aux", "nul")),
    "caption_extension": st.sampled_from([".txt", ".caption", ".文字"]),
    "resolution": st.tuples(
        st.integers(1, 512).map(lambda n: 16 * n), st.integers(1, 512).map(lambda n: 16 * n)
    ),
    "image_size": st.tuples(
        st.integers(1, 64).map(lambda n: 16 * n), st.integers(1, 64).map(lambda n: 16 * n)
    ),
    "width": st.none(),  # becomes image_size
    "height": st.none(),
    "optimizer_args": _pairs.map(tuple),
    "lr_scheduler_args": _pairs.map(tuple),
    "network_args": st.just(()),  # becomes other options
    "grid_x": _axes,
    "grid_y": _axes,
    "grid_z": _axes,
    "include_patterns": _patterns,
    "exclude_patterns": _patterns,
    "prune": _patterns,
    "train_patterns": _patterns,
    "freeze_patterns": _patterns,
    "network_reg_dims": st.lists(
        st.sampled_from([".*w[12]=4", r"layers\.\d{1,2}\..*=32", "ä=1"]), max_size=3
    ).map(tuple),
    "network_reg_lrs": st.lists(st.sampled_from([".*w1=1e-5", ".*=0.5", "ä=0"]), max_size=3).map(tuple),
    "lokr_factor": st.one_of(st.just(-1), st.integers(1, 100_000)),
    "gradient_checkpointing_fraction": st.sampled_from(["1", "0", "0.25", "auto"]),
    "metadata_reso": st.sampled_from(["", "1024", "1024,768", "512x512"]),
    "lr_warmup_steps": st.one_of(st.integers(0, 10_000), st.floats(0, 0.99)),
    "lr_decay_steps": st.one_of(st.integers(0, 10_000), st.floats(0, 0.99)),
    "prefix": st.sampled_from([None, "", "model.diffusion_model.", "模型."]),
    "auth": st.none(),  # a secret: never written
    "wandb_api_key": st.just(""),  # as above
    "huggingface_token": st.just(""),
}


def value_of(known: Option) -> st.SearchStrategy[Any]:
    if known.name in SPECIAL:
        return SPECIAL[known.name]
    if known.name == "output":
        return _names.map(lambda name: Path(f"{name}.safetensors"))
    single = _single(known)
    if known.many:
        return st.lists(single, max_size=4).map(tuple)
    return st.one_of(st.none(), single) if known.optional else single


def _single(known: Option) -> st.SearchStrategy[Any]:
    low, high = (bound[0] if bound else None for bound in (known.low, known.high))
    if known.kind == "bool":
        return st.booleans()
    if known.kind == "choice":
        return st.sampled_from(known.choices)
    if known.kind == "int":
        top = None if high is None else int(high) - (not known.high[1])
        return st.integers(
            None if low is None else int(low) + (not known.low[1]),
            2**53 if top is None else min(top, 2**63 - 1),
        )
    if known.kind == "float":
        return st.floats(
            low,
            high,
            exclude_min=bool(known.low and not known.low[1]),
            exclude_max=bool(known.high and not known.high[1]),
            allow_nan=False,
            allow_infinity=False,
        )
    return _paths if known.kind == "path" else (_texts.filter(bool) if known.optional else _texts)


def configs(cls: type[Options]) -> st.SearchStrategy[Options]:
    return st.fixed_dictionaries(
        {}, optional={name: value_of(known) for name, known in options_of(cls).items()}
    ).map(lambda values: cls(**values))
