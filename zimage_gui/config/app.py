"""What a user may choose when the window or the demo is started. This module knows options, not gradio."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from pydantic import field_validator

from zimage_gui.config.schema import Options, option
from zimage_gui.config.toml_io import read_text
from zimage_gui.errors import Problem, UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
AUTH_VARIABLE = "ZIMAGE_GUI_AUTH"


class GuiConfig(Options):
    """Open the window."""

    command: ClassVar[str] = "gui"

    host: str = option(
        "127.0.0.1",
        section="window",
        label="Address",
        help="Network address to listen on. Anything but this machine itself needs a password.",
    )
    port: int = option(
        7860,
        section="window",
        label="Port",
        help="Port to listen on; the next free one is taken.",
        ge=0,
        le=65535,
    )
    listen: bool = option(
        False,
        section="window",
        label="Open to the network",
        help="Listen on all addresses (0.0.0.0), so that other machines reach the window. Needs a password.",
    )
    no_browser: bool = option(
        False, section="window", label="No browser", help="Do not open a browser at start."
    )
    auth: str | None = option(
        None,
        section="window",
        label="Password",
        help="user:password that the window asks for. Safer: the environment variable "
        "ZIMAGE_GUI_AUTH, or auth_file.",
        secret=True,
    )
    auth_file: Path | None = option(
        None,
        section="window",
        label="Password file",
        help="Text file whose lines are user:password.",
        path="file",
    )
    runs_dir: Path = option(
        Path("runs"),
        section="run",
        label="Runs folder",
        help="Folder whose runs are shown and in which new ones are made.",
        path="out_folder",
    )
    presets_dir: Path = option(
        Path("presets"),
        section="run",
        label="Presets folder",
        help="Folder in which the window keeps presets.",
        path="out_folder",
        advanced=True,
    )

    @field_validator("auth")
    @classmethod
    def _pair(cls, value: str | None) -> str | None:
        if value is not None and not all(value.partition(":")[::2]):
            raise ValueError("must be user:password")
        return value

    @property
    def address(self) -> str:
        return "0.0.0.0" if self.listen else self.host

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the window."""
        return self.address in LOOPBACK

    def problems(self) -> list[Problem]:
        found = []
        if self.listen and self.host not in ("0.0.0.0", "127.0.0.1"):
            found.append(Problem("listen", "true", f"excludes host {self.host}", "Leave out one of the two"))
        if not self.is_local and not (self.auth or self.auth_file or os.environ.get(AUTH_VARIABLE)):
            found.append(self._needs_password())
        return found

    def _needs_password(self) -> Problem:
        name, value = ("listen", "true") if self.listen else ("host", self.host)
        rule = "lets other machines start programs here, so it needs a password"
        remedy = f"Set {AUTH_VARIABLE}=user:password in the environment, or give auth_file or auth"
        return Problem(name, value, rule, remedy)

    def credentials(self) -> list[tuple[str, str]]:
        """(user, password) pairs the window asks for; empty: it asks for none. Raises UserError."""
        given = [self.auth or "", os.environ.get(AUTH_VARIABLE, "")]
        if self.auth_file is not None:
            given += read_text(self.auth_file, "auth_file").splitlines()
        pairs = [text.strip().partition(":")[::2] for text in given if text.strip()]
        if not all(user and password for user, password in pairs):
            remedy = f"See {self.auth_file or AUTH_VARIABLE}"
            raise UserError.one("auth", "", "must be user:password, one per line", remedy)
        if not pairs and not self.is_local:  # a password file may be empty
            raise UserError([self._needs_password()])
        return pairs


class DemoConfig(Options):
    """Write the demo project: a tiny model, pictures, captions and settings that work anywhere."""

    command: ClassVar[str] = "demo"
    positionals: ClassVar[tuple[str, ...]] = ("to",)

    to: Path | None = option(
        None,
        section="output",
        label="Folder",
        help="The folder to write the demo project to.",
        path="out_folder",
    )
    overwrite: bool = option(
        False,
        section="output",
        label="Overwrite",
        help="Write into a folder that holds files already.",
        advanced=True,
    )

    def problems(self) -> list[Problem]:
        return [] if self.to else [Problem("to", "", "is missing", "Give the folder to write to")]
