"""From a chest to the picture on the screen: beam, scatter, quanta, detector, display.

Primary photons follow Beer-Lambert, exp(-integral of attenuation along the ray), averaged over each detector element;
scattered ones add a smooth veil in proportion to what reaches the surroundings; their sum is counted with Poisson
noise, blurred by the detector, and shown as its logarithm through an S-shaped display curve, bones bright, with the
slow variations of exposure flattened as clinical processing does (Bushberg et al., *The Essential Physics of Medical
Imaging*).
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from cohort.phantom.build import Build, draw_build
from cohort.phantom.chest import Chest, draw_soft_parts
from cohort.phantom.exam import Exam
from cohort.phantom.projection import Beam, Map, rotation
from cohort.phantom.signs import SIGNS
from cohort.phantom.skeleton import draw_bones

FIELD_CM = 36.0
"""Height and width of the field on the detector; a 35 x 43 cm cassette seen through a square crop."""
DISTANCE_CM = {"PA": 180.0, "AP": 105.0}
"""From focal spot to detector: 180 cm at the wall stand, about 1 m at the bedside."""
BACKING_CM = 13.5
"""From the middle of the chest to the detector."""
FLATTENING = 0.5
"""Share of the slow variations of density that the display takes away; chosen by eye."""


def make_beam(exam: Exam, build: Build, size: int) -> Beam:
    """Rays for an image of ``size`` px, finer than the detector's elements by ``oversampling(size)``."""
    bedside = exam.view == "AP"
    front = -1.0 if bedside else 1.0  # a PA beam meets the back first; the chest faces the detector
    source = np.array([0.0, 1.0, front * (BACKING_CM - DISTANCE_CM[exam.view])])
    moment = np.random.default_rng([exam.seed, 21])
    width = FIELD_CM * exam.site.zoom * (1.09 if bedside else 1.0) * moment.normal(1.0, 0.02)
    n = size * oversampling(size)
    steps = ((np.arange(n) + 0.5) / n - 0.5) * width
    across, down = moment.normal(0, 0.6, 2)
    return Beam(
        source=source, plane=front * BACKING_CM, u=(steps + across).astype(np.float32)[None, :],
        v=(-steps + down - 0.8).astype(np.float32)[:, None],
        pose=rotation(about_x=build.turn[0] * -front, about_y=build.turn[1], about_z=build.turn[2]),
    )


def oversampling(size: int) -> int:
    """Rays per pixel and axis: at least 256 rays across the field, and 2 per pixel up to 256 px."""
    return max(256 // size, 2 if size <= 256 else 1)


def line_integrals(exam: Exam, size: int) -> Map:
    """Attenuation integrated along every ray, without unit, float32 (n, n) with n = size * oversampling(size)."""
    build = draw_build(exam)
    for sign in exam.signs:
        shape = SIGNS[sign.label].shape
        if shape is not None:
            shape(build, sign.severity, np.random.default_rng([sign.seed, 31]))
    beam = make_beam(exam, build, size)
    chest = Chest(build, beam)
    draw_soft_parts(chest, np.random.default_rng([exam.patient.seed, 22]))
    draw_bones(chest)
    for sign in exam.signs:
        draw = SIGNS[sign.label].draw
        if draw is not None:
            draw(chest, sign.severity, np.random.default_rng([sign.seed, 31]))
    return np.maximum(chest.finish(), 0) * beam.lengths()


def expose(integrals: Map, exam: Exam, size: int) -> Map:
    """Signal per detector element relative to air, float32 (size, size), above 0."""
    n = oversampling(size)
    primary = np.exp(-integrals).reshape(size, n, size, n).mean(axis=(1, 3))
    rng = np.random.default_rng([exam.seed, 41])
    exposure = exam.site.photons * float(np.exp(rng.normal(0, 0.25))) * (0.6 if exam.view == "AP" else 1.0)
    veil = _smooth(primary, sigma=0.11 * size)
    veil *= exam.site.scatter * float(np.exp(rng.normal(0, 0.15))) * (1.3 if exam.view == "AP" else 1.0)
    quanta = (primary + veil) * np.float32(exposure * (128 / size) ** 2)
    # with so many quanta a Poisson number is a normal one
    counted = quanta + np.sqrt(quanta) * rng.standard_normal(quanta.shape, dtype=np.float32)
    sigma = exam.site.blur_mm / 10 / FIELD_CM * size
    signal: Map = gaussian_filter(np.maximum(counted, 1.0), sigma) / np.float32(exposure * (128 / size) ** 2)
    return signal


def display(signal: Map, exam: Exam) -> NDArray[np.uint8]:
    """The signal as a grey picture, uint8, bones bright."""
    density = -np.log(np.maximum(signal, 1e-5))
    size = density.shape[0]
    density = density - np.float32(FLATTENING) * _smooth(density, sigma=0.12 * size)
    middle = density[size // 6:-size // 5:2, size // 6:-size // 6:2]  # where the lungs and the heart are
    low, high = np.quantile(middle, (0.03, 0.97))
    rng = np.random.default_rng([exam.seed, 51])
    x = (density - low) / max(float(high - low), 1e-3)
    slope, center = 3.2 * exam.site.contrast * rng.normal(1, 0.05), 0.62 - exam.site.brightness + rng.normal(0, 0.025)
    curve = 1 / (1 + np.exp(-slope * (x - center)))
    bottom, top = (1 / (1 + np.exp(-slope * (end - center))) for end in (-0.35, 1.25))
    return np.clip((curve - bottom) / (top - bottom) * 255 + 0.5, 0, 255).astype(np.uint8)


@cache
def keep_memory() -> None:
    """Free a large array once, so that glibc from then on reuses memory that it would return to the system.

    Else every temporary array comes back as pages to be zeroed, which takes a fifth of the time. It changes no pixel.
    """
    np.empty(16 * 2**20, dtype=np.uint8)


def render(exam: Exam, size: int = 128) -> NDArray[np.uint8]:
    """The radiograph of ``exam``: uint8 (size, size), size a multiple of 32 from 64 to 512."""
    keep_memory()
    return display(expose(line_integrals(exam, size), exam, size), exam)


def _smooth(image: Map, *, sigma: float) -> Map:
    """A wide Gaussian blur (px), on a coarse grid."""
    size = image.shape[0]
    step = max(size // 32, 1)
    coarse = image.reshape(size // step, step, size // step, step).mean(axis=(1, 3))
    blurred = gaussian_filter(coarse, sigma / step, mode="nearest")
    smooth: Map = zoom(blurred, step, order=1, mode="nearest", grid_mode=True)
    return smooth
