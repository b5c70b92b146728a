"""Results that go to Hugging Face as they are saved, and states that come from there. Knows repositories and
events; must not know what is in a file.

An upload that fails is told and costs nothing else: the file is on this disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from zimage_gui.config.sharing_parts import hub_place
from zimage_gui.engine.trackers import secret_text
from zimage_gui.errors import UserError
from zimage_gui.events import Checkpoint, Event, Note, Run, Stage, Warning


class Uploads:
    """Uploads each checkpoint of a run. With `beside`, in a thread of its own, one after the other."""

    def __init__(self, api: Any, config: Any, run: Run) -> None:
        self._api, self._config, self._run = api, config, run
        self._thread = ThreadPoolExecutor(1, "upload") if config.async_upload else None
        self._waiting: list[tuple[Path, Future[None]]] = []

    def listen(self, event: Event) -> None:
        """A checkpoint is uploaded, a state only when that was asked for."""
        if not isinstance(event, Checkpoint):
            return
        if event.what == "state" and not self._config.save_state_to_huggingface:
            return
        path = Path(event.path)
        if self._thread is None:
            self._tell(path, self._try(path))
        else:
            self._waiting.append((path, self._thread.submit(self._send, path)))
            self._reap(wait=False)

    def close(self) -> None:
        """Wait for what is still under way."""
        self._reap(wait=True)
        if self._thread is not None:
            self._thread.shutdown()

    def _reap(self, *, wait: bool) -> None:
        left = []
        for path, future in self._waiting:
            if wait or future.done():
                error = future.exception()
                self._tell(path, error)
            else:
                left.append((path, future))
        self._waiting = left

    def _try(self, path: Path) -> BaseException | None:
        try:
            self._send(path)
        except Exception as error:  # a network may fail in any way
            return error
        return None

    def _send(self, path: Path) -> None:
        config = self._config
        place = str(PurePosixPath(config.huggingface_path_in_repo) / path.name)
        common = {
            "repo_id": config.huggingface_repo_id,
            "repo_type": config.huggingface_repo_type,
            "path_in_repo": place,
            "commit_message": f"{path.name} by zimage_gui",
        }
        if path.is_dir():
            self._api.upload_folder(folder_path=str(path), **common)
        else:
            self._api.upload_file(path_or_fileobj=str(path), **common)

    def _tell(self, path: Path, error: BaseException | None) -> None:
        repository = self._config.huggingface_repo_id
        if error is None:
            self._run.emit(Note(text=f"uploaded {path.name} to {repository}"))
        else:
            self._run.emit(Warning(text=f"{path} was not uploaded to {repository}: {error}"))


def api_of(config: Any) -> Any:
    """huggingface_hub's client, with the token of the options or else of the environment or its login."""
    from huggingface_hub import HfApi

    token = secret_text(config.huggingface_token) if config.huggingface_token else None
    return HfApi(token=token, endpoint=os.environ.get("HF_ENDPOINT"))


@contextmanager
def uploads_of(config: Any, run: Run) -> Iterator[dict[str, Callable[[Event], None]]]:
    """The listener that uploads, none without a repository. Raises UserError when the repository can neither
    be reached nor made: that is worth knowing before a night of training."""
    if not config.huggingface_repo_id:
        yield {}
        return
    api = api_of(config)
    private = config.huggingface_repo_visibility == "private"
    try:
        api.create_repo(
            config.huggingface_repo_id, repo_type=config.huggingface_repo_type, private=private, exist_ok=True
        )
    except Exception as error:
        rule = f"cannot be reached or made: {_first_line(error)}"
        remedy = "Check the name, the network and the token (HF_TOKEN), or leave it out and upload by hand"
        raise UserError.one("huggingface_repo_id", config.huggingface_repo_id, rule, remedy) from error
    uploads = Uploads(api, config, run)
    try:
        yield {"Hugging Face": uploads.listen}
    finally:
        uploads.close()


def fetch_state(config: Any, run: Run) -> Path:
    """The state that `huggingface_resume` names, in the run's folder. Raises UserError."""
    place = hub_place(config.huggingface_resume)
    assert place is not None  # the options were checked
    repository, folder, revision, kind = place
    run.emit(Stage(name="fetch_state", text=f"Fetching the state {folder} from {repository}"))
    try:
        target = api_of(config).snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=[f"{folder}/*"],
            local_dir=run.folder / "from_hub",
        )  # fmt: skip
    except Exception as error:
        rule = f"cannot be fetched: {_first_line(error)}"
        remedy = "Check the name, the network and the token (HF_TOKEN), or use resume with a folder here"
        raise UserError.one("huggingface_resume", config.huggingface_resume, rule, remedy) from error
    state = Path(target) / folder
    if not state.is_dir():
        rule = f"is not there: {repository} has no folder {folder} in {revision}"
        raise UserError.one("huggingface_resume", config.huggingface_resume, rule, "Check the name")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
