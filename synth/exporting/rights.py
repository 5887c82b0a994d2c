"""Whose images a run has learnt from, and on what terms their owners gave them: what a card must say of them.

A generator trained on radiographs can reproduce them, so images and weights that leave are bound by what bound the
radiographs, as far as anybody knows. Tailfill decides nothing here: it says what the source's own header says, and asks
for a licence wherever it cannot know one. Only the phantom's images are nobody's, and Apache-2.0 as the code is.

Not promised: legal advice, or that terms have not changed since a source's file was written.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from classify.exporting.licences import check_licence
from cohort.errors import TailfillError
from cohort.pipeline import read_stamp

PHYSIONET = "PhysioNet Credentialed Health Data License"


@dataclass(frozen=True, kw_only=True)
class Rights:
    """The terms of one dataset, as its source's header in ``cohort/sources`` states them."""

    name: str
    licence: str
    citation: str
    passed_on: bool | None
    """Whether its images may be passed on: True, False, or None where only their owner knows."""
    agreement: bool = False
    """Whether each reader has to sign a data use agreement."""


UNKNOWN = Rights(name="a dataset of the user's own", licence="not known to Tailfill", citation="not known to Tailfill",
                 passed_on=None)
RIGHTS: dict[str, Rights] = {
    "nih": Rights(name="NIH ChestX-ray14", passed_on=None, citation="Wang et al., CVPR 2017",
                  licence="unrestricted use, as the NIH states, with acknowledgement of the NIH Clinical Center"),
    "cxr-lt": Rights(name="CXR-LT on MIMIC-CXR-JPG", licence=PHYSIONET, passed_on=False, agreement=True,
                     citation="Lin et al. 2025 (arXiv 2506.07984); Holste et al., Medical Image Analysis 2024; "
                              "Johnson et al. 2019 (MIMIC-CXR-JPG)"),
    "mimic": Rights(name="MIMIC-CXR-JPG", licence=PHYSIONET, passed_on=False, agreement=True,
                    citation="Johnson et al. 2019 (arXiv 1901.07042); Irvin et al. 2019"),
    "chexpert": Rights(name="CheXpert", licence="Stanford's research use agreement, no redistribution", passed_on=False,
                       agreement=True, citation="Irvin et al., AAAI 2019 (arXiv 1901.07031)"),
    "padchest": Rights(name="PadChest", licence="PadChest dataset research use agreement, no redistribution",
                       passed_on=False, agreement=True,
                       citation="Bustos et al., Medical Image Analysis 66:101797, 2020"),
    "vindr": Rights(name="VinDr-CXR", licence=f"{PHYSIONET} 1.5.0", passed_on=False, agreement=True,
                    citation="Nguyen et al., Scientific Data 9:429, 2022"),
    "phantom": Rights(name="Tailfill's phantom: radiographs of people who do not exist", licence="Apache-2.0",
                      citation="none needed", passed_on=True),
    "csv": UNKNOWN, "dicom": UNKNOWN, "images": UNKNOWN,
}
"""Source of a cohort, as in ``prepare.source``, to its terms; cohorts that were merged have those of their parts."""


def rights_of(cohort: Path) -> list[Rights]:
    """The terms of a prepared cohort's images, those of each part where it was merged; unknown where nobody says.

    Raises ``TailfillError`` for a broken stamp.
    """
    stamp = read_stamp(cohort)
    if stamp is None:
        return [UNKNOWN]
    source = str(stamp["config"].get("source") or stamp.get("extra", {}).get("source"))
    if source in RIGHTS:
        return [RIGHTS[source]]
    parts = [Path(entry["path"]) for entry in stamp["inputs"].values() if entry["kind"] == "stage"]
    found = [rights for part in parts for rights in rights_of(part)]
    return list(dict.fromkeys(found)) or [UNKNOWN]


def choose_licence(given: str | None, rights: Sequence[Rights], *, flag: str = "--licence") -> str:
    """The licence under which something leaves that was learnt from images under ``rights``.

    Raises ``TailfillError`` where it must be ``given`` and is not, or is no single line of text.
    """
    if given is not None:
        return check_licence(given, flag=flag)
    for right in rights:
        if right.passed_on is False:
            raise TailfillError(f"{right.name} ({right.licence}) does not allow its images to be passed on, and what a "
                                f"generator has learnt from them may fall under the same terms; wanted: {flag} with "
                                "the licence under which you may, after reading them")
        if right.passed_on is None:
            raise TailfillError(f"the terms of {right.name} say nothing of a licence for what is made from it "
                                f"({right.licence}); wanted: {flag} with one that its owner allows")
    return "apache-2.0"


def licence_of_card(folder: Path) -> str | None:
    """The ``license`` in the YAML header of a model folder's README.md, None where it has none."""
    file = folder / "README.md"
    if not file.is_file():
        return None
    found = re.match(r"---\n(.*?)\n---\n", file.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
    try:
        header = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return None
    licence = header.get("license") if isinstance(header, dict) else None
    name = header.get("license_name") if isinstance(header, dict) else None
    return str(name if licence == "other" and name else licence) if licence else None
