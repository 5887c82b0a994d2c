"""How long a phantom radiograph takes: milliseconds per image on one thread, as ratios to two references.

Absolute times on a shared machine mean little, so every image is timed beside a fixed operation (a Gaussian blur) that
any two machines can be compared by. The rival to closed forms samples the rays of the same chest at 256 points; it is
spared the small parts and tests the seven largest solids only.

    OMP_NUM_THREADS=1 python scripts/bench/phantom.py [--images 20]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter

from cohort.phantom import radiograph
from cohort.phantom.build import SIDES, draw_build
from cohort.phantom.cases import draw_cases
from cohort.phantom.chest import cage, dome, heart, lung, mediastinum
from cohort.phantom.exam import Exam
from cohort.phantom.settings import PhantomConfig

SIZES = (64, 128, 256)
SAMPLES = 256
RIVAL_SIZE = 64


def sample_rays(exam: Exam, size: int) -> np.ndarray:
    """Share of the chest's part of every ray inside any of seven solids, float32 (n, n), from ``SAMPLES`` points."""
    build = draw_build(exam)
    beam = radiograph.make_beam(exam, build, size)
    paired = [solid for side in SIDES for solid in (lung(build, side)[0], dome(build, side))]
    rays = np.stack(np.broadcast_arrays(beam.u, beam.v, np.float32(1)), axis=-1) @ beam.ray.T.astype(np.float32)
    inside = np.zeros(rays.shape[:2], dtype=np.float32)
    for t in np.linspace(0.8, 1.0, SAMPLES, dtype=np.float32):
        points = t * rays + beam.spot.astype(np.float32)
        hit = np.zeros(inside.shape, dtype=bool)
        for solid in (cage(build), mediastinum(build), heart(build), *paired):
            offset = (points - solid.center.astype(np.float32)) @ solid.matrix.T.astype(np.float32)  # type: ignore[attr-defined]
            hit |= np.einsum("...i,...i->...", offset, offset) <= 1
        inside += hit
    return inside / SAMPLES


def milliseconds(work: Callable[[], object]) -> float:
    """Processor time of one call: what others do on the machine counts less than on the wall's clock."""
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began)


def main() -> None:
    """Time every size image by image, the reference in between."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20, help="images at each size, after one that is not counted")
    exams = [case.exam for case in draw_cases(PhantomConfig(images=parser.parse_args().images + 1))]
    noise = np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32)
    blur = partial(gaussian_filter, noise, 4.0)
    n_signs = statistics.mean(len(exam.signs) for exam in exams[1:])
    sys.stdout.write(f"{len(exams) - 1} exams of site A, {n_signs:.1f} findings each; median [range] of the ratio to a "
                     "Gaussian blur (4 px) of 512 x 512 float32\n")
    for size in SIZES:
        for name, chosen in (("as they come", exams), ("without findings", [replace(e, signs=()) for e in exams])):
            pairs = [(milliseconds(partial(radiograph.render, exam, size)), milliseconds(blur)) for exam in chosen][1:]
            ratios = [image / reference for image, reference in pairs]
            image, reference = (statistics.median(column) for column in zip(*pairs, strict=True))
            sys.stdout.write(f"{size:4} px, {name:16}: {image:5.1f} ms, blur {reference:4.1f} ms, ratio "
                             f"{statistics.median(ratios):5.2f} [{min(ratios):.2f} to {max(ratios):.2f}]\n")
    closed = min(milliseconds(partial(radiograph.line_integrals, exams[1], RIVAL_SIZE)) for _ in range(3))
    rival = milliseconds(partial(sample_rays, exams[1], RIVAL_SIZE))
    sys.stdout.write(f"{SAMPLES} samples on each ray, seven solids: {rival:.0f} ms; all line integrals in closed form: "
                     f"{closed:.1f} ms, {rival / closed:.0f} times as fast\n")


if __name__ == "__main__":
    main()
