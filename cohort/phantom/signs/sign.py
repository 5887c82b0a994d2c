"""What a finding's sign is: two functions, either of which may be missing."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cohort.phantom.build import Build
from cohort.phantom.chest import Chest

Shape = Callable[[Build, float, np.random.Generator], None]
Draw = Callable[[Chest, float, np.random.Generator], None]


@dataclass(frozen=True, kw_only=True)
class Sign:
    """How a finding shows; both functions take severity (0 barely visible, 1 gross) and the finding's own generator.

    Both get it in the same state: what they draw first from it, such as the side, is the same.
    """

    shape: Shape | None = None
    """Changes the build before the chest is drawn."""
    draw: Draw | None = None
    """Adds to the drawn chest."""
