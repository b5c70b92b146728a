"""One of two processes: short trainings one after the other. What it saw of each goes to a file."""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_project import finetune_config, lora_config

from zimage_gui.engine.shards import Shards
from zimage_gui.engine.train import run
from zimage_gui.errors import UserError
from zimage_gui.events import Event, NullRun, Sample, Step, Validation, Warning
from zimage_gui.model.rows import kept

KINDS = {"lora": lora_config, "full": finetune_config}


class Measured(NullRun):
    """Looks at what a process keeps of weights that are shared out: numbers of weights and optimizer state."""

    kept: tuple[int, int] | None = None

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, Step) and event.step == 2:
            gc.collect()
            for shards in (one for one in gc.get_objects() if type(one) is Shards):
                states = shards._optimizer.state.values()  # type: ignore[union-attr]
                tensors = [one for state in states for one in state.values() if torch.is_tensor(one)]
                own = [kept(weight).numel() for weight in shards._weights.values()]
                self.kept = sum(own), sum(tensor.numel() for tensor in tensors)


def seen(project: Path, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Numbers of a run, and its results' names."""
    events = Measured(project / "run")
    error, results = "", []
    try:
        results = run(KINDS[kind](project, **options), events)
    except UserError as problem:
        error = str(problem)
    return {
        "losses": [event.loss for event in events.events if isinstance(event, Step)],
        "norms": [event.grad_norm for event in events.events if isinstance(event, Step)],
        "validated": [event.loss for event in events.events if isinstance(event, Validation)],
        "pictures": [event.path for event in events.events if isinstance(event, Sample)],
        "warnings": [event.text for event in events.events if isinstance(event, Warning)],
        "kept": events.kept,
        "results": [path.name for path in results],
        "error": error,
    }


def main(project: Path, plan: Path) -> None:
    found = {}
    for name, (kind, options, port) in json.loads(plan.read_text(encoding="utf-8")).items():
        os.environ["MASTER_PORT"] = str(port)
        found[name] = seen(project, kind, options)
    out = project / f"seen{os.environ['RANK']}.json"
    out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
