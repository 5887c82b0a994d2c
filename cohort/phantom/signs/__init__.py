"""Each finding as its radiographic sign: how it changes the chest's shape, and what it adds to the shadow."""

from cohort.phantom.signs.air import AIR_LEAKS
from cohort.phantom.signs.bones import BONES
from cohort.phantom.signs.devices import SUPPORT
from cohort.phantom.signs.mediastinum import MEDIASTINUM
from cohort.phantom.signs.nodules import NODULES
from cohort.phantom.signs.opacities import OPACITIES
from cohort.phantom.signs.pleura import PLEURA
from cohort.phantom.signs.sign import Sign
from cohort.phantom.signs.volume import VOLUME

SIGNS: dict[str, Sign] = {**PLEURA, **OPACITIES, **VOLUME, **NODULES, **MEDIASTINUM, **BONES, **AIR_LEAKS, **SUPPORT}
"""The sign of each finding that can be seen, by its label."""
