"""Options that send a training's numbers and results elsewhere: TensorBoard, Weights & Biases, Hugging Face.

This module knows the options and the rules between them; it must not know how anything is written or sent.
Nothing is sent anywhere unless one of them asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from zimage_gui.config.schema import Options, When, option, show
from zimage_gui.errors import Problem

_LOGGED = When("log_with or logging_dir is set", lambda c: c.trackers)
_WANDB = When("log_with is wandb or all", lambda c: "wandb" in c.trackers)
_UPLOADED = When("huggingface_repo_id is set", lambda c: c.huggingface_repo_id)


class Logging(Options):
    logging_dir: Path | None = option(
        None,
        section="logging",
        label="Logging folder",
        help="Folder for TensorBoard's or Weights & Biases' files; each run gets a folder in it named by its "
        "time. Empty with log_with: the folder logs of the run.",
        path="out_folder",
        advanced=True,
    )
    log_with: Literal["tensorboard", "wandb", "all"] | None = option(
        None,
        section="logging",
        label="Log with",
        help="Who gets the numbers and pictures of the training beside this window. Empty: TensorBoard when "
        "a logging folder is given. wandb sends them to its servers unless WANDB_MODE is offline.",
        advanced=True,
    )
    log_prefix: str = option(
        "",
        section="logging",
        label="Folder prefix",
        help="Text before the time in the name of the run's folder.",
        advanced=True,
        matters=When("logging_dir is set", lambda c: c.logging_dir is not None),
    )
    log_tracker_name: str = option(
        "",
        section="logging",
        label="Tracker name",
        help="Name of the project in Weights & Biases and of the folder in TensorBoard. Empty: zimage.",
        advanced=True,
        matters=_LOGGED,
    )
    wandb_run_name: str = option(
        "",
        section="logging",
        label="Run name",
        help="Name of the run in Weights & Biases. Empty: the output name.",
        advanced=True,
        matters=_WANDB,
    )
    log_tracker_config: Path | None = option(
        None,
        section="logging",
        label="Tracker settings",
        help="TOML file whose table [wandb] holds further arguments of wandb.init, and whose table "
        "[tensorboard] those of TensorBoard's SummaryWriter, such as flush_secs.",
        path="file",
        advanced=True,
        matters=_LOGGED,
    )
    wandb_api_key: str = option(
        "",
        section="logging",
        label="W&B key",
        help="Key of Weights & Biases, or a file that holds it. Safer: the environment's WANDB_API_KEY.",
        secret=True,
        advanced=True,
        matters=_WANDB,
    )
    log_config: bool = option(
        False,
        section="logging",
        label="Log the options",
        help="Give the tracker the run's options too, without secrets and paths.",
        advanced=True,
        matters=_LOGGED,
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        """Who logs."""
        if self.log_with == "all":
            return ("tensorboard", "wandb")
        if self.log_with is not None:
            return (self.log_with,)
        return ("tensorboard",) if self.logging_dir is not None else ()

    def _logging_problems(self) -> list[Problem]:
        if self.trackers:
            return []
        names = ("log_prefix", "log_tracker_name", "wandb_run_name", "log_tracker_config", "log_config")
        rule, remedy = "needs log_with or logging_dir", "Set log_with, or leave it out"
        given = [name for name in names if getattr(self, name)]
        return [Problem(name, show(getattr(self, name)), rule, remedy) for name in given]


class Hub(Options):
    huggingface_repo_id: str = option(
        "",
        section="hub",
        label="Repository",
        help="Repository on Hugging Face, as owner/name, to which every saved file is uploaded. Empty: "
        "nothing is uploaded. It is made when it is not there.",
        advanced=True,
    )
    huggingface_repo_type: Literal["model", "dataset", "space"] = option(
        "model",
        section="hub",
        label="Repository kind",
        help="Kind of the repository.",
        advanced=True,
        matters=_UPLOADED,
    )
    huggingface_path_in_repo: str = option(
        "",
        section="hub",
        label="Folder in it",
        help="Folder in the repository.",
        advanced=True,
        matters=_UPLOADED,
    )
    huggingface_repo_visibility: Literal["private", "public"] = option(
        "private",
        section="hub",
        label="Visibility",
        help="Who can see a repository that is made.",
        advanced=True,
        matters=_UPLOADED,
    )
    huggingface_token: str = option(
        "",
        section="hub",
        label="Token",
        help="Token of Hugging Face, or a file that holds it. Safer: the environment's HF_TOKEN, or the "
        "login of huggingface_hub.",
        secret=True,
        advanced=True,
        matters=When(
            "huggingface_repo_id or huggingface_resume is set",
            lambda c: c.huggingface_repo_id or c.huggingface_resume,
        ),
    )
    save_state_to_huggingface: bool = option(
        False,
        section="hub",
        label="Upload states",
        help="Upload the states too, from which a run is resumed.",
        advanced=True,
        matters=_UPLOADED,
    )
    async_upload: bool = option(
        False,
        section="hub",
        label="Upload beside",
        help="Upload while the training goes on; the end of the run waits for what is still under way.",
        advanced=True,
        matters=_UPLOADED,
    )
    huggingface_resume: str = option(
        "",
        section="hub",
        label="Resume from the hub",
        help="State on Hugging Face to go on from: owner/repository/folder, and if needed :revision:kind "
        "behind it.",
        advanced=True,
    )
    resume_from_huggingface: bool = option(
        False,
        section="hub",
        label="resume is on the hub",
        help="The older spelling of huggingface_resume: `resume` names a place on Hugging Face.",
        advanced=True,
    )

    @classmethod
    def expand(
        cls, values: dict[str, Any], over_all: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], list[Problem]]:
        """With `resume_from_huggingface`, `resume` is no path."""
        said = (over_all or values).get("resume_from_huggingface", "")
        older = str(said).lower() in ("true", "1", "yes", "on")
        if older and values.get("resume"):
            values = {**values, "huggingface_resume": str(values["resume"]).replace("\\", "/")}
            del values["resume"]
        return super().expand(values, over_all)

    def _hub_problems(self) -> list[Problem]:
        found = []
        if self.huggingface_repo_id and not _is_repository(self.huggingface_repo_id):
            rule = "is not the name of a repository"
            remedy = "Write owner/name, each of letters, digits and the signs - . _"
            found.append(Problem("huggingface_repo_id", self.huggingface_repo_id, rule, remedy))
        if not self.huggingface_repo_id:
            rule, remedy = "needs huggingface_repo_id", "Give it, or leave this out"
            names = ("huggingface_path_in_repo", "save_state_to_huggingface", "async_upload")
            given = [name for name in names if getattr(self, name)]
            found += [Problem(name, show(getattr(self, name)), rule, remedy) for name in given]
        if self.huggingface_resume and hub_place(self.huggingface_resume) is None:
            rule = "does not say where the state is"
            remedy = "Write owner/repository/folder, or owner/repository/folder:revision:model"
            found.append(Problem("huggingface_resume", self.huggingface_resume, rule, remedy))
        if self.resume_from_huggingface and not self.huggingface_resume:
            rule, remedy = "needs resume", "Say with resume which state to go on from"
            found.append(Problem("resume_from_huggingface", "true", rule, remedy))
        return found


def _is_repository(name: str) -> bool:
    parts = name.split("/")
    plain = all(part and part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in parts)
    return len(parts) == 2 and plain and ".." not in name


def hub_place(text: str) -> tuple[str, str, str, str] | None:
    """(repository, folder in it, revision, kind) of owner/repository/folder[:revision[:kind]]."""
    place, *rest = text.split(":")
    owner, _, more = place.partition("/")
    name, _, folder = more.partition("/")
    revision, kind = (*rest, "", "")[:2]
    outside = any(part in ("", ".", "..") for part in folder.split("/"))
    if len(rest) > 2 or not _is_repository(f"{owner}/{name}") or outside:
        return None
    if kind not in ("", "model", "dataset", "space"):
        return None
    return f"{owner}/{name}", folder, revision or "main", kind or "model"
