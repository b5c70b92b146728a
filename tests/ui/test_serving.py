"""Who may reach the window, what it serves, and that it holds no torch."""

import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from zimage_gui.config.app import GuiConfig
from zimage_gui.errors import UserError
from zimage_gui.ui.app import check_address, free_port, host_check
from zimage_gui.ui.desk import Desk

ROOT = Path(__file__).parents[2]


def answer(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_window_and_all_its_tabs_never_import_torch(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom zimage_gui.config.app import GuiConfig\n"
        "from zimage_gui.ui.app import build_app\nfrom zimage_gui.ui.desk import Desk\n"
        f"build_app(Desk(GuiConfig(), Path({str(tmp_path)!r})))\n"
        "print([name for name in ('torch', 'transformers', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=200, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("config", [GuiConfig(listen=True), GuiConfig(host="192.168.1.5")])
def test_other_machines_need_a_password(config, monkeypatch):
    monkeypatch.delenv("ZIMAGE_GUI_AUTH", raising=False)
    with pytest.raises(UserError, match="needs a password"):
        config.credentials()
    monkeypatch.setenv("ZIMAGE_GUI_AUTH", "me:secret:with colon")
    assert config.credentials() == [("me", "secret:with colon")]


def test_a_password_file_without_a_person_does_not_open_the_window(tmp_path):
    file = tmp_path / "users.txt"
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="needs a password"):
        GuiConfig(listen=True, auth_file=file).credentials()


def test_a_taken_port_gives_the_next_one():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) != port


def test_an_address_of_no_card_here_is_told_as_the_host(tmp_path):
    check_address("127.0.0.1")
    for address in ("192.0.2.7", "no such host"):
        with pytest.raises(UserError, match=f"host = {address}: is no address of this machine"):
            check_address(address)


def test_the_host_check_is_only_for_this_machine():
    assert host_check(GuiConfig()) and not host_check(GuiConfig(listen=True))


def test_only_the_windows_own_pictures_are_served(window):
    assert answer(window.address) == 200
    assert answer(window.address, Host="evil.example") == 400
    inside = [
        window.folder / "demo_project" / "dataset" / "01_red_on_black.png",
        window.folder / "runs" / ".window" / "drafts" / "train-lora.toml",
        window.folder / "demo_project" / "train_lora.toml",
        Path("/etc/passwd"),
    ]
    for file in inside:
        for route in ("gradio_api/file=", "file=", "static/"):
            assert answer(f"{window.address}/{route}{urllib.parse.quote(str(file))}") in (403, 404), file


def test_a_run_name_from_a_page_never_leaves_the_runs_folder(tmp_path):
    desk = Desk(GuiConfig(), tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (desk.runs_dir / "link").symlink_to(tmp_path / "elsewhere")
    (desk.runs_dir / "run").mkdir()
    assert desk.folder_of("run") == desk.runs_dir / "run"
    for name in (
        "",
        ".",
        "..",
        "../elsewhere",
        "..\\elsewhere",
        "/etc",
        "link",
        "run/../..",
        "a\0b",
        "missing",
    ):
        assert desk.folder_of(name) is None, name
