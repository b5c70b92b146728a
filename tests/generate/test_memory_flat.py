"""Many pictures in a row keep memory flat. `pytest -m slow -s` makes a hundred on the demo and prints the figures."""

import gc

import psutil
import pytest
import torch

from zimage_gui.demo.project import DATA
from zimage_gui.engine.generate import Resident

KINDS = ({}, {"guidance_scale": 2.0}, {"sampler": "heun"}, {"image_size": (32, 48)})


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_no_tensor_of_a_picture_outlives_it(options, run):
    resident = Resident()

    def pictures(first: int) -> int:
        for seed, changes in enumerate(KINDS, first):
            resident.run(options(seed=seed, infer_steps=2, **changes), run)
        return tensors_alive()

    pictures(0)  # loads models, fills caches of prompts and positions
    before = pictures(10)
    assert pictures(20) <= before  # other tests' tensors may go meanwhile
    resident.close()


@pytest.mark.slow
def test_a_hundred_pictures_of_the_demo_keep_memory_flat(options, run):
    resident, process, after = Resident(), psutil.Process(), {}
    for number in range(1, 101):
        resident.run(options(model_dir=DATA, image_size=(128, 128), infer_steps=20, seed=number), run)
        run.events.clear()
        if number in (20, 100):
            gc.collect()
            after[number] = process.memory_info().rss / 1e6
    print(f"\nresident memory: {after[20]:.0f} MB after 20 pictures, {after[100]:.0f} MB after 100")
    assert after[100] - after[20] < 20
