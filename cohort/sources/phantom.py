"""The phantom as a source: radiographs of people who do not exist, made here, their truth known.

Unlike other sources it has no files to read: it draws cases, and the images with them. Splits come with the patients,
and nothing can be a bad row.

Not promised: the same bytes with another Pillow or zlib, which write the PNGs.
"""

import io
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from PIL import Image
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from cohort.errors import TailfillError
from cohort.phantom.cases import Case, draw_cases
from cohort.phantom.exam import Exam
from cohort.phantom.prevalence import base_prevalence
from cohort.phantom.radiograph import render
from cohort.phantom.settings import PhantomConfig
from cohort.phantom.sites import CASE_MIXES
from cohort.sources.rows import SourceTable, to_frame
from cohort.stage import write_atomically
from cohort.vocabulary.labels import LabelSpace

PHANTOM_VERSION = 1
"""Raised whenever the same settings come to mean other cases or other pixels; part of the fingerprint."""
CHUNK = 16
"""Images that a process is given at a time."""


def read(config: PhantomConfig, root: Path) -> SourceTable:
    """The cohort's rows, their splits final, and what makes the images in ``root``."""
    cases = list(draw_cases(config))
    if not any(case.split == "train" for case in cases):
        raise TailfillError(f"phantom: none of the {len(cases)} images is in the split 'train'; wanted: more images, "
                            "or smaller val_share and test_share")
    space = LabelSpace(name="phantom", labels=config.labels)
    frame = to_frame({line: _record(case, config) for line, case in enumerate(cases)}, space)
    return SourceTable(files=[root], space=space, frame=frame, n_read=len(frame), patient_ids="given",
                       groups=config.groups, about=describe(config),
                       write_images=partial(write_images, [case.exam for case in cases], root, config.size))


def describe(config: PhantomConfig) -> dict[str, object]:
    """What a reader of the stamp must know: enrichment, case mix, noise, and what leaves no sign."""
    names = config.drawn + config.controls
    return {
        "site": config.site, "case_mix": asdict(CASE_MIXES[config.site]), "controls": list(config.controls),
        "enrichment": {"val": config.val_enrichment, "test": config.test_enrichment},
        "label_noise": config.label_noise, "noisy_splits": ["train", "val"] if config.label_noise else [],
        "prevalence": dict(zip(names, config.shares(names)[0].round(6).tolist(), strict=True)),
        "prevalence_at_site_A": {name: round(base_prevalence(name), 6) for name in names},
    }


def image_path(image_id: str) -> str:
    """Where an image lies below the root."""
    return f"images/{image_id}.png"


def write_images(exams: list[Exam], root: Path, size: int, *, processes: int) -> None:
    """Draw what is missing in ``root``, the same bytes with any number of ``processes``; safe to run again."""
    missing = [exam for exam in exams if not (root / image_path(exam.image_id)).is_file()]
    draw = partial(_write_image, root=root, size=size)
    bar = tqdm(total=len(exams), initial=len(exams) - len(missing), desc=f"draw at {size} px", unit="image",
               mininterval=1.0)
    with bar:
        if processes == 1 or len(missing) <= CHUNK:
            with threadpool_limits(1):
                for exam in missing:
                    bar.update(draw(exam))
            return
        # important: one thread each, or the threads of small products in two processes wait for each other
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
            for done in pool.map(draw, missing, chunksize=CHUNK):
                bar.update(done)


def _one_thread() -> None:
    """Limit what this module has loaded into a new process; the libraries must be there before."""
    threadpool_limits(1)


def _write_image(exam: Exam, *, root: Path, size: int) -> int:
    buffer = io.BytesIO()
    Image.fromarray(render(exam, size)).save(buffer, format="PNG")
    write_atomically(root / image_path(exam.image_id), buffer.getvalue())
    return 1


def _record(case: Case, config: PhantomConfig) -> dict[str, object]:
    exam = case.exam
    return {
        "image_id": exam.image_id, "root": "phantom", "path": image_path(exam.image_id),
        "patient_id": exam.patient.patient_id, "study_id": exam.study_id, "view": exam.view, "age": exam.age,
        "sex": exam.patient.sex, "split": case.split,
        **dict(zip(config.labels, case.labels.astype(int).tolist(), strict=True)),
    }
