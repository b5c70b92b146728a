"""Other programs call Generate as docs/http.md shows: its code is run as it stands there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "http.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def said_by(code: str, window) -> str:
    """What the code prints when it is run against the window."""
    code = code.replace("http://127.0.0.1:7860", window.address)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return done.stdout.decode("utf-8")


def test_the_python_client_of_the_page_makes_and_cancels_pictures(window):
    first, picture, last = said_by(EXAMPLES[0], window).splitlines()
    assert (first.strip(), last) == ("finished", "stopped")
    seed, _, path = picture.partition(" ")
    assert seed == "1" and Path(path).is_file()


def test_the_plain_http_of_the_page_makes_pictures_and_fetches_them(window):
    lines = said_by(EXAMPLES[1], window).splitlines()
    assert [line.split()[0] for line in lines] == ["5", "6"]
    assert all(int(line.split()[1]) > 1000 for line in lines)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ('call("generate", {"prompt": "a", "infer_steps": "x"})', "must be a whole number"),
        ('call("generate", {"prompt": "a", "nonsense": 1})', "is not an option of generate"),
        ('call("generate", 3)', "must be a table"),
        ('call("generate", {"interactive": True})', "reads from a terminal"),
        ('call("cancel", "../..")', "False"),
    ],
)
def test_a_wrong_call_is_answered_with_a_sentence(window, call, words):
    functions = EXAMPLES[1].partition("\n\n\ndone")[0]
    code = f"{functions}\ntry:\n    print({call})\nexcept RuntimeError as error:\n    print(error)"
    assert words in said_by(code, window)


def test_the_endpoints_are_all_that_is_public(window):
    code = f"import urllib.request; print(urllib.request.urlopen('{window.address}/gradio_api/info').read().decode())"
    assert set(json.loads(said_by(code, window))["named_endpoints"]) == {"/generate", "/cancel"}
