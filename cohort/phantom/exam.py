"""What is known of one phantom radiograph before it is drawn: whose chest, what is wrong with it, on which machine.

``cases`` draws exams, ``radiograph`` turns one into an image. Everything random in an image follows from the seeds that
stand here: a patient's build from the patient's, a finding's side and place from its own (so that they persist from
study to study), positioning and noise from the exam's.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Site:
    """A hospital: its machine and its way of exposing. All images of a site share it."""

    name: str
    photons: float
    """Mean number of photons that reach a detector element of 128 px behind air; sets the quantum noise."""
    scatter: float
    """Scattered over primary radiation behind the middle of the chest, 0 to 1 (after the grid)."""
    blur_mm: float
    """Standard deviation of the detector's point spread, mm in the detector plane."""
    contrast: float
    """Slope of the display curve around its middle; 1 is neutral."""
    brightness: float
    """Shift of the display curve, in units of its full range; 0 is neutral."""
    zoom: float
    """Field of view relative to the standard 36 cm; above 1 the chest looks smaller."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A person; ``seed`` fixes the build."""

    patient_id: str
    sex: Literal["M", "F"]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A finding as it stands in one study."""

    label: str
    severity: float
    """0 (barely visible) to 1 (gross)."""
    seed: int
    """Fixes side, place and shape; the same in all studies of a patient."""


@dataclass(frozen=True, kw_only=True)
class Exam:
    """One image to draw."""

    image_id: str
    patient: Patient
    study_id: str
    site: Site
    view: Literal["PA", "AP"]
    age: float
    """Years at the study."""
    signs: tuple[Sign, ...]
    """The visible findings; empty for a normal chest."""
    seed: int
    """Fixes positioning, inspiration, exposure and noise of this image alone."""
