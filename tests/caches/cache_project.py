"""A dataset folder with its two cache commands, for tests."""

from pathlib import Path

from PIL import Image
from safetensors import safe_open

from zimage_gui.config.cache import CacheLatentsConfig, CacheTextConfig
from zimage_gui.engine import cache_latents, cache_text
from zimage_gui.events import NullRun

MUSUBI = Path(__file__).parents[1] / "data" / "musubi"
VAE, TEXT_ENCODER = MUSUBI / "models/vae.safetensors", MUSUBI / "models/text_encoder.safetensors"


class Project:
    """A dataset folder with its two cache commands; `made` counts the files that a run wrote anew."""

    def __init__(self, folder):
        self.folder, self.cache = folder / "images", folder / "cache"
        self.options = {
            "dataset": self.folder,
            "cache_directory": self.cache,
            "resolution": 128,
            "device": "cpu",
            "num_workers": 2,
        }
        self.vae, self.text_encoder = VAE, TEXT_ENCODER
        self.watched = NullRun(folder)

    def picture(self, name, size=(64, 64), caption="a star", colour="red"):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(path)
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    def latents(self, **options):
        config = CacheLatentsConfig(**self.options, vae=self.vae, **options)
        return self._run(cache_latents, config)

    def texts(self, **options):
        config = CacheTextConfig(
            **self.options, text_encoder=self.text_encoder, tokenizer=MUSUBI / "tokenizer", **options
        )
        return self._run(cache_text, config)

    def _run(self, command, config):
        before = self._files()
        self.watched.events.clear()
        command.run(config, self.watched)
        return sorted(name for name, stamp in self._files().items() if before.get(name) != stamp)

    def _files(self):
        folder = Path(self.options.get("cache_directory", self.folder))
        return {
            path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.glob("*.safetensors")
        }

    @property
    def told(self):
        return "\n".join(event.text for event in self.watched.events if hasattr(event, "text"))


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()
