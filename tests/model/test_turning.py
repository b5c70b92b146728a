"""Matrices that are turned in chunks come out as the transpose, whatever their width, size and place in memory."""

import pytest
import torch

from zimage_gui.model.streaming import Scratch, turned

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8, torch.float8_e4m3fn)
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (3, 5), (300, 6), (141, 140), (7, 1000)])
def test_a_turned_matrix_is_the_transpose_bit_by_bit(dtype, rows, columns):
    noise = torch.randint(0, 256, (rows, (columns + 3) * dtype.itemsize), dtype=torch.uint8)
    scratch = Scratch()
    for first in (0, 1, 2):  # 2-byte numbers may begin in the middle of a pair
        matrix = noise.view(dtype)[:, first : first + columns]
        chunks = [matrix[: rows // 2], matrix[rows // 2 :]] if rows > 1 else [matrix]
        found = torch.cat(list(turned(chunks, rows, columns, scratch)))
        integers = INTEGERS[dtype.itemsize]
        assert torch.equal(found.view(integers), matrix.view(integers).t())
