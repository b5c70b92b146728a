"""Who may reach the window."""

import pytest

from zimage_gui.config.app import GuiConfig
from zimage_gui.config.build import build
from zimage_gui.errors import UserError


@pytest.fixture(autouse=True)
def no_password(monkeypatch):
    monkeypatch.delenv("ZIMAGE_GUI_AUTH", raising=False)


def test_this_machine_alone_needs_no_password():
    config = build(GuiConfig, {})
    assert config.address == "127.0.0.1" and config.is_local and config.credentials() == []


@pytest.mark.parametrize("values", [{"listen": True}, {"host": "0.0.0.0"}, {"host": "192.168.0.7"}])
def test_other_machines_need_a_password(values, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="needs a password"):
        build(GuiConfig, values)
    assert build(GuiConfig, {**values, "auth": "me:a:b"}).credentials() == [("me", "a:b")]
    monkeypatch.setenv("ZIMAGE_GUI_AUTH", "you:c")
    assert build(GuiConfig, values).credentials() == [("you", "c")]


def test_passwords_from_a_file(tmp_path):
    path = tmp_path / "who.txt"
    path.write_text("me:eins\n\nyou:zwei\n", encoding="utf-8")
    assert GuiConfig(auth_file=path).credentials() == [("me", "eins"), ("you", "zwei")]
    path.write_text("only a name\n", encoding="utf-8")
    with pytest.raises(UserError, match="user:password") as error:
        GuiConfig(auth_file=path).credentials()
    assert "only a name" not in str(error.value)


def test_a_password_is_not_repeated_in_a_refusal():
    with pytest.raises(UserError) as error:
        build(GuiConfig, {"auth": "no colon but secret", "listen": True, "host": "10.0.0.1"})
    assert "secret" not in str(error.value) and "excludes host" in str(error.value)
