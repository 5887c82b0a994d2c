"""What is ordinary in a cohort decides from where on two pictures are one."""

import numpy as np
import pandas as pd
import pytest

from cohort.checking import resemblance
from cohort.checking.images import LEAST_NCC, least_ncc
from cohort.checking.reading import SIDE, STEPS, Readings


def readings_of(alike: float, *, n: int = 120, twins: int = 0) -> Readings:
    """Smooth random pictures that correlate with one another by about ``alike``; the first ``twins`` are copied."""
    rng = np.random.default_rng(0)
    fields = np.kron(rng.normal(size=(n + 1, SIDE // 8, SIDE // 8)), np.ones((8, 8)))
    shown = np.sqrt(alike) * fields[-1] + np.sqrt(1 - alike) * fields[:-1]
    shown[n // 2:n // 2 + twins] = shown[:twins]
    details = np.clip(np.rint(shown * STEPS), -127, 127).astype(np.int8)
    return Readings(details=details, sha256=np.array([str(at) for at in range(n)]), contrast=np.full(n, 200.0),
                    errors=np.full(n, ""))


def frame_of(n: int) -> pd.DataFrame:
    return pd.DataFrame({"patient_id": [f"p{at}" for at in range(n)]})


def test_where_patients_differ_the_threshold_stays_and_where_they_are_alike_it_rises() -> None:
    assert least_ncc(frame_of(120), readings_of(0.3)) == LEAST_NCC
    high = least_ncc(frame_of(120), readings_of(0.93))
    assert 0.94 < high < 1


def test_copies_of_fewer_than_half_of_the_images_hardly_move_it() -> None:
    plain, copied = (least_ncc(frame_of(120), readings_of(0.93, twins=twins)) for twins in (0, 20))
    assert copied == pytest.approx(plain, abs=0.02)
    assert copied < 1


def test_a_patients_own_images_and_a_few_images_say_nothing() -> None:
    alike = readings_of(0.93)
    assert not len(resemblance.ordinary(alike.details, usable=alike.usable, groups=np.zeros(120, dtype=np.intp)))
    few = readings_of(0.93, n=resemblance.FEWEST - 1)
    assert least_ncc(frame_of(resemblance.FEWEST - 1), few) == LEAST_NCC
    none = resemblance.ordinary(alike.details, usable=np.zeros(120, dtype=bool), groups=np.arange(120))
    assert resemblance.threshold_above(none) == -1
