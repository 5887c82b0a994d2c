"""The ``prepare`` section: which dataset, where its files lie, and what is done about what its labels leave open.

Each source uses some of the keys (``USES``); one that it does not use is refused rather than ignored.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from cohort.config import path
from cohort.errors import TailfillError, nearest
from cohort.phantom.settings import PhantomConfig
from cohort.sources.phantom import PHANTOM_VERSION
from cohort.vocabulary.labels import LABEL_SPACES, OWN

SPACES: dict[str, tuple[str, ...]] = {
    "nih": ("nih_14", "nih_cxr_lt"), "csv": ("nih_14", *(name for name in LABEL_SPACES if name != "nih_14"), OWN),
    "cxr-lt": ("cxr_lt_2024", "cxr_lt_2024_gold", "cxr_lt_2024_unseen", "cxr_lt_2023"), "chexpert": ("chexpert",),
    "mimic": ("chexpert",), "padchest": ("padchest",),
    "vindr": ("vindr",), "dicom": (OWN, *LABEL_SPACES), "images": (OWN, *LABEL_SPACES), "merge": (OWN, *LABEL_SPACES),
    "phantom": ("nih_14",),
}
"""The label spaces that a source's labels can be read as, its default first."""
FILES = ("root", "label_space", "check", "laterals", "on_bad")
DRAWN = ("val_fraction", "test_fraction", "seed")
USES: dict[str, tuple[str, ...]] = {
    "nih": ("csv", "labels", *FILES, *DRAWN), "csv": ("csv", "columns", *FILES, *DRAWN),
    "cxr-lt": ("labels", "year", "task", "patients", "metadata", *FILES),
    "chexpert": ("labels", "uncertain", "unmentioned", *FILES, *DRAWN),
    "mimic": ("labels", "uncertain", "unmentioned", "patients", *FILES, *DRAWN),
    "padchest": ("csv", "physicians_only", *FILES, *DRAWN), "vindr": ("labels", "readers", *FILES, *DRAWN),
    "dicom": ("csv", "columns", *FILES, *DRAWN), "images": ("columns", *FILES, *DRAWN),
    "merge": ("cohorts", "label_space"), "phantom": ("phantom",),
}
"""The keys that a source uses, beside ``source``."""
HASHED = ("csv", "labels", "patients", "metadata", "cohorts")
"""Keys of files and folders that enter a fingerprint by their content."""


@dataclass(frozen=True, kw_only=True)
class CsvColumns:
    """Names of the columns; null takes the standard name where the file has it."""

    image_id: str | None = None
    """The image's id, unique; standard ``image_id``, else the path stands for it."""
    path: str | None = None
    """The image's path below root; standard ``path``, else the id stands for it."""
    findings: str | None = None
    """Labels joined by ``|``; standard ``findings``, else one column per label."""
    labels: tuple[str, ...] | None = None
    """The labels, for label_space ``own``; default: those of the label space."""
    patient_id: str | None = None
    """Standard ``patient_id``; without one each image stands for its own patient, and the stamp says so."""
    study_id: str | None = None
    """Standard ``study_id``."""
    view: str | None = None
    """PA, AP or lateral, in usual spellings; standard ``view``."""
    age: str | None = None
    """Years, or DICOM's 058Y; standard ``age``."""
    sex: str | None = None
    """M or F, in usual spellings; standard ``sex``."""
    split: str | None = None
    """train, val or test; standard ``split``. What the file leaves out is drawn by patient."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """The ``prepare:`` section."""

    source: Literal["nih", "cxr-lt", "chexpert", "mimic", "padchest", "vindr", "csv", "images", "dicom", "merge",
                    "phantom"] = "nih"
    """The dataset, by its layout; ``phantom`` makes the images, ``merge`` joins prepared cohorts."""
    root: str | None = path(None)
    """Folder of the images (``--images`` for short); none for ``phantom``, which writes them beside the table."""
    csv: str | None = path(None)
    """The label file; for ``nih`` and ``padchest`` the default is the release's own in root."""
    labels: str | None = path(None)
    """Folder of the release's label files; default: root."""
    columns: CsvColumns = field(default_factory=CsvColumns)
    """Names of the label file's columns; only for sources ``csv``, ``images`` and ``dicom``."""
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    """Patients, findings and machine; only for source ``phantom``, and all that counts there."""
    label_space: str | None = None
    """What the labels are mapped to; null for the source's own: ``own`` stands for those of columns.labels."""
    year: Literal[2023, 2024] = 2024
    """The release of CXR-LT."""
    task: Literal[1, 2, 3] = 1
    """CXR-LT 2024: 1 (40 labels), 2 (26 labels, gold test), 3 (five unseen labels beside the 40)."""
    patients: str | None = path(None)
    """MIMIC-IV's patients.csv: sex, and age at the study."""
    metadata: str | None = path(None)
    """MIMIC-CXR-JPG's metadata table, for the date of a study, without which the age is that of the anchor year."""
    uncertain: Literal["u-ignore", "u-ones", "u-zeros"] = "u-ignore"
    """What the CheXpert labeller's -1 becomes: unknown, 1 or 0 (Irvin et al. 2019)."""
    unmentioned: Literal["absent", "unknown"] = "absent"
    """What the CheXpert labeller's blank becomes; ``absent`` is the common reading (Irvin et al. 2019)."""
    readers: Literal["majority", "any"] = "majority"
    """VinDr-CXR's three readers of a training image: a finding is present when most, or when any, of them say so."""
    physicians_only: bool = False
    """PadChest: only the reports that physicians labelled by hand, 27 in 100; the others are set aside."""
    laterals: Literal["keep", "drop", "one_per_study"] = "keep"
    """Lateral images carry their study's labels: keep, set aside, or keep one image a study, frontal first."""
    check: Literal["decode", "exist", "none"] = "decode"
    """What is checked of the images: that each can be decoded, that its file exists, or nothing."""
    cohorts: tuple[str, ...] = path(())
    """For ``merge``: the folders of prepared cohorts, two or more."""
    val_fraction: float = 0.15
    """Share of the images outside test that validation takes where none is given; in (0, .5]."""
    test_fraction: float = 0.2
    """Share of the images outside validation that test takes where none is given; in (0, .5]."""
    seed: int = 0
    """Seed of the splits that are drawn; 0 or more."""
    on_bad: Literal["refuse", "skip"] = "refuse"
    """What to do with bad rows: refuse all, or write them to rejected.parquet and go on."""

    def __post_init__(self) -> None:
        without = {"phantom": "none, the images are made", "merge": "none, the cohorts have theirs"}
        if (self.root is None) != (self.source in without):
            wanted = without.get(self.source, "the folder of the images")
            raise TailfillError(f"prepare.root is {self.root!r} with source '{self.source}'; wanted: {wanted}")
        for name in ("val_fraction", "test_fraction"):
            if not 0 < getattr(self, name) <= 0.5:
                raise TailfillError(f"prepare.{name} is {getattr(self, name)}; wanted: above 0, .5 at most")
        if self.seed < 0:
            raise TailfillError(f"prepare.seed is {self.seed}; wanted: 0 or more")
        legal = list(SPACES[self.source])
        if self.label_space is not None and self.label_space not in legal:
            raise TailfillError(f"prepare.label_space is '{self.label_space}'{nearest(self.label_space, legal)}")
        for f in fields(self):
            if f.name not in ("source", *USES[self.source]) and getattr(self, f.name) != _default(f):
                raise TailfillError(f"prepare.{f.name} is {getattr(self, f.name)!r}; source '{self.source}' does not "
                                    "use it; wanted: its default")
        if self.year == 2023 and self.task != 1:
            raise TailfillError(f"prepare.task is {self.task} with year 2023; wanted: 1, the only one of that year")

    @property
    def space(self) -> str:
        """The name of the label space."""
        return self.label_space or SPACES[self.source][0]

    def settings(self) -> dict[str, object]:
        """What decides the cohort, the files apart, which enter by their hashes.

        important: a key at its default is left out unless it has always been written, so that cohorts keep their
        fingerprints when a source learns something new.
        """
        if self.source == "phantom":
            return {"source": "phantom", "version": PHANTOM_VERSION, "phantom": asdict(self.phantom)}
        always = {"source", "root", "label_space", "columns", "on_bad", *DRAWN}
        used = {"source", *USES[self.source]} - set(HASHED)
        content = asdict(self) | {"label_space": self.space}
        defaults = {f.name: _default(f) for f in fields(self)}
        return {key: value for key, value in content.items()
                if key in used and (key in always or value != defaults[key])}


def _default(f: Any) -> Any:
    return f.default_factory() if callable(f.default_factory) else f.default
