"""Test-time augmentation: further copies of an image with the small distortions of training.

A copy is an image of its own, 8-bit grey like any other, so whatever reads images reads copies: also the backbone whose
features are kept, though a head trained on features of undistorted images has seen no such copy. The distortions are
functions of (seed, copy, place in the table) and nothing else: all arms and seeds see the same copies, on any number of
processes. Copy 0 is the image itself.

Not promised: that it helps. It averages over positions and exposures, of which a classifier that was trained with
distortions already knows.
"""

import numpy as np
import torch

from classify.slots import distort, distortions

BATCH = 256
"""Images distorted at once."""


def copy_of(images: np.ndarray, *, copy: int, seed: int, rows: np.ndarray) -> np.ndarray:
    """The ``copy``-th copy (0 on) of some images of a table: uint8 (n, size, size) -> uint8 (len(rows), size, size).

    ``images``: of the whole table; ``rows``: int (m,), the places in it. Grey values are rounded to whole numbers.
    """
    if copy == 0:
        return images[rows]
    draws = distortions(len(images), step=copy, seed=[seed])[rows]
    made = np.empty((len(rows), *images.shape[1:]), dtype=np.uint8)
    for start in range(0, len(rows), BATCH):
        part = slice(start, start + BATCH)
        grey = torch.from_numpy(np.array(images[rows[part]])).unsqueeze(1).float() / 255
        moved = distort(grey, torch.from_numpy(draws[part]))
        made[part] = (moved.squeeze(1) * 255).round().to(torch.uint8).numpy()
    return made
