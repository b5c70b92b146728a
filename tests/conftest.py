"""One torch thread for every test: two busy threads slow each other several times on a shared machine. And no
deadlines for hypothesis's examples: how busy the machine is says nothing about the program."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
