"""The sources by name: what finds a source's label files, and what reads them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from cohort.preparing.settings import PrepareConfig
from cohort.sources import (
    chexpert,
    csv_folder,
    cxr_lt,
    dicom_folder,
    image_folder,
    mimic,
    nih,
    padchest,
    phantom,
    vindr,
)
from cohort.sources.rows import SourceTable
from cohort.vocabulary import merging

Finder = Callable[[PrepareConfig, Path], dict[str, Path]]
Reader = Callable[[PrepareConfig, Path, Mapping[str, Path]], SourceTable]


@dataclass(frozen=True)
class Source:
    """A dataset's layout; its module says what it is."""

    find: Finder
    """The files and stages that it reads; they are hashed into the fingerprint."""
    read: Reader
    module: ModuleType


def _no_files(config: PrepareConfig, root: Path) -> dict[str, Path]:
    return {}


def _read_phantom(config: PrepareConfig, root: Path, files: Mapping[str, Path]) -> SourceTable:
    return phantom.read(config.phantom, root)


SOURCES: dict[str, Source] = {
    "nih": Source(nih.find_files, nih.read, nih),
    "cxr-lt": Source(cxr_lt.find_files, cxr_lt.read, cxr_lt),
    "chexpert": Source(chexpert.find_files, chexpert.read, chexpert),
    "mimic": Source(mimic.find_files, mimic.read, mimic),
    "padchest": Source(padchest.find_files, padchest.read, padchest),
    "vindr": Source(vindr.find_files, vindr.read, vindr),
    "csv": Source(csv_folder.find_files, csv_folder.read, csv_folder),
    "images": Source(image_folder.find_files, image_folder.read, image_folder),
    "dicom": Source(dicom_folder.find_files, dicom_folder.read, dicom_folder),
    "merge": Source(merging.find_files, merging.read, merging),
    "phantom": Source(_no_files, _read_phantom, phantom),
}
