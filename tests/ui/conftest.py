"""A real window in a process of its own, and a headless Chromium to press its buttons."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 120_000  # ms; the machine may be busy with other tests


class Window:
    """The program as a person starts it. `stop` and `start` are closing it and opening it again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "window.log"

    def start(self, *options: str, environment: dict[str, str] | None = None) -> str:
        self.log.write_text("", encoding="utf-8")
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "app.py"), "--no-browser", "--port", "0", *options],
                cwd=self.folder, stdout=output, stderr=output, env=os.environ | (environment or {}),
            )  # fmt: skip
        for _ in range(600):
            said = self.log.read_text(encoding="utf-8")
            if found := re.search(r"http://[\d.]+:\d+/?", said):
                return found[0].rstrip("/")
            if self.process.poll() is not None:
                raise RuntimeError(said)
            time.sleep(0.2)
        raise TimeoutError(said)

    def stop(self, how: int = signal.SIGKILL) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    found = Window(tmp_path_factory.mktemp("窗 window"))
    found.address = found.start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def browser():
    path = next((path for path in BROWSERS if Path(path).is_file()), None) or shutil.which("chromium")
    if path is None:
        pytest.skip("NO CHROMIUM: the window was not tested in a browser (apt-get install -y chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


class Page:
    """A page of the window with the few words the tests need."""

    def __init__(self, browser, address: str) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.page.set_default_timeout(PATIENCE)
        self.foreign: list[str] = []
        self.page.on("request", lambda request: self._note(request.url))
        self.page.on("dialog", lambda dialog: dialog.accept())
        self.address = address
        self.open()

    def _note(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.foreign.append(url)

    def open(self) -> None:
        self.page.goto(self.address)
        self.page.wait_for_selector("[data-live][data-mark]")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()
        self.page.wait_for_timeout(300)

    def field(self, form: str, option: str):
        return self.page.locator(f"#{form}--{option} textarea, #{form}--{option} input").first

    def type(self, form: str, option: str, text: str) -> None:
        """Fill a field and leave it, as a person does."""
        self.field(form, option).fill(text)
        self.field(form, option).blur()
        self.page.wait_for_timeout(150)

    def press(self, selector: str) -> None:
        self.page.locator(selector).first.click()

    def see(self, selector: str, text: str = ""):
        found = self.page.locator(selector).filter(has_text=text) if text else self.page.locator(selector)
        found.first.wait_for()
        return found.first


@pytest.fixture(scope="module")
def page(browser, window):
    return Page(browser, window.address)


@pytest.fixture(autouse=True)
def quiet_playwright():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
