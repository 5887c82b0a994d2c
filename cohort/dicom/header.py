"""What a table may know of a DICOM file, and nothing else.

The reader is asked for the tags in ``TAGS`` alone, so that names, birth dates, addresses and the like are not even in
memory. A patient's id may be a hospital number: only its hash is kept, the same for the same id. Pixels are not read.

Not promised: anonymity. Text burned into the image is warned about where the header admits it; a rare face of a disease
or a hash of a short number can still lead back to a person.
"""

from dataclasses import dataclass
from pathlib import Path

from cohort.errors import TailfillError
from cohort.stage import hash_bytes

TAGS = ("SOPInstanceUID", "StudyInstanceUID", "PatientID", "PatientSex", "PatientAge", "ViewPosition", "Modality",
        "BurnedInAnnotation")
MODALITIES = ("CR", "DX", "RG", "RF", "XA", "OT", "")
"""Projection radiography, film that was scanned, and headers that do not say; a CT is none."""
SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".csv", ".txt", ".json")
"""Suffixes of files that are not looked into for DICOM's mark."""
PREAMBLE = 128
"""Bytes before the mark ``DICM`` (DICOM PS3.10)."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The tags of one file as text, empty where the file has none."""

    image_id: str
    study_id: str
    patient_id: str
    """Hash of the file's PatientID, empty where it has none."""
    sex: str
    age: str
    view: str
    burned_in: bool
    """The header says that the image holds text that may identify the patient."""


def is_dicom(path: Path) -> bool:
    """By its suffix or, where that says nothing, by the mark in its 129th byte."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or suffix in PICTURES:
        return suffix in SUFFIXES
    try:
        with path.open("rb") as stream:
            return stream.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
    except OSError:
        return False


def hash_patient(patient_id: str) -> str:
    """What stands for a patient in a table: the same for the same id, 16 hex digits."""
    return hash_bytes(f"patient {patient_id}".encode())[:16]


def read_header(path: Path) -> Header:
    """The header of one file; raises ``TailfillError`` when it is no DICOM, has no id, or is no radiograph."""
    from pydicom import dcmread  # important: not at the top, pixels of other files need none of it
    from pydicom.errors import InvalidDicomError

    try:
        found = dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
        text = {tag: str(found.get(tag) or "").strip() for tag in TAGS}
    except (OSError, InvalidDicomError, AttributeError, ValueError, KeyError, EOFError) as error:
        raise TailfillError(f"cannot be read as DICOM: {error}") from error
    if not text["SOPInstanceUID"]:
        raise TailfillError("has no SOPInstanceUID, which would be its id")
    if text["Modality"] not in MODALITIES:
        raise TailfillError(f"has modality '{text['Modality']}'; wanted: {', '.join(filter(None, MODALITIES))}")
    patient = text["PatientID"]
    return Header(image_id=text["SOPInstanceUID"], study_id=text["StudyInstanceUID"],
                  patient_id=hash_patient(patient) if patient else "", sex=text["PatientSex"],
                  age=text["PatientAge"], view=text["ViewPosition"],
                  burned_in=text["BurnedInAnnotation"].upper() == "YES")
