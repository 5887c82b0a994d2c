"""The reports of the Indiana University collection (OpenI), with what human coders found in them.

::

    python -m cohort.label openi --archive NLMCXR_reports.tgz --out DIR      (or the folder of its XML files)

Population: 3,955 reports of as many patients of two hospital systems in Indiana, about 7,470 images, names replaced by
XXXX. The torchxrayvision package ships the archive as ``torchxrayvision/data/NLMCXR_reports.tgz``. Labels: MeSH terms
that two coders with medical training gave each report (``MeSH/major``). Licence: CC BY-NC-ND 4.0, so neither reports
nor tables made here may be passed on. Citation: Demner-Fushman et al., JAMIA 23:304 (2016).

Writes ``reports.csv`` (report_id, split, text) and ``truth.csv`` (report_id, split, a column per finding; 1, 0 or empty
for unknown). ``split`` halves the reports by a hash of their ids: rules and prompts may be tuned on ``dev``, a score is
worth something on ``test``.

How far the terms can be trusted as labels: coders named what the report calls abnormal, history and doubt sometimes
included, and a term that is missing means "not coded", which is read as absent. ``TERMS`` is our mapping; what lies
between two labels is unknown (``UNKNOWN``: borderline cardiomegaly, a blunted angle). Findings without terms have no
column. Reports coded "No Indexing" have no labels at all.
"""

import re
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from cohort.errors import TailfillError
from cohort.stage import Stage, hash_bytes, hash_folder, write_atomically

LUNG = r"(/[^/]+)*/(lung|base|bases|apex|lingula|(upper|middle|lower) lobe|right|left|bilateral)\b.*"
TERMS: dict[str, str] = {
    "Adenopathy": r"lymph nodes/.*(enlarged|prominent).*|lymphadenopathy.*|.*/lymph nodes/.*enlarged.*",
    "Aortic Enlargement": r"aorta(, thoracic)?/.*(enlarged|dilat|prominent|ectatic).*|aortic aneurysm.*",
    "Atelectasis": r"pulmonary atelectasis.*",
    "Azygos Lobe": r"lung/azygos lobe.*|azygos lobe.*",
    "Bulla": r"blister.*|bullous emphysema.*",
    "Calcification of the Aorta": r"(calcinosis|atherosclerosis)(/.*)?/(aorta|aorta, thoracic)\b.*",
    "COPD": r"pulmonary disease, chronic obstructive.*",
    "Cardiomegaly": r"cardiomegaly.*|cardiac shadow/.*enlarged.*|heart/.*enlarged.*",
    "Clavicle Fracture": r"fractures, bone/.*clavicle.*",
    "Consolidation": r"consolidation.*",
    "Edema": r"pulmonary edema.*|pulmonary congestion.*|heart failure.*",
    "Emphysema": r"(pulmonary |bullous )?emphysema.*",
    "Enlarged Cardiomediastinum": r"mediastinum/.*(enlarged|prominent|wide).*",
    "Enlarged PA": r"pulmonary artery/.*(enlarged|prominent|dilat).*",
    "Fibrosis": rf"cicatrix{LUNG}|cicatrix|(pulmonary )?fibrosis.*",
    "Fracture": r"fractures, bone.*",
    "Granuloma": r"(calcified )?granuloma.*|granulomatous disease.*",
    "Hernia": r"hernia, (hiatal|diaphragmatic).*",
    "Hydropneumothorax": r"hydropneumothorax.*|hemopneumothorax.*",
    "ILD": r"lung diseases, interstitial.*|(markings|opacity)/.*(interstitial|reticular).*",
    "Infiltration": r"infiltrate.*",
    "Kyphosis": r"kyphosis.*",
    "Lung Cavity": r"cavitation.*",
    "Lung Opacity": rf"(opacity|airspace disease|infiltrate|consolidation)\b.*|density{LUNG}",
    "Mass": rf"mass{LUNG}|mass",
    "Mediastinal Shift": r"(shift|mediastinum/.*shift|trachea/.*(deviat|shift)).*",
    "Nodule": rf"nodule{LUNG}|nodule",
    "Osteopenia": r"bone diseases, metabolic.*|osteoporosis.*",
    "Pleural Effusion": r"pleural effusion.*|hydropneumothorax.*|hemo(pneumo)?thorax.*",
    "Pleural Thickening": r"thickening/.*pleura.*|pleura/.*thick.*",
    "Pneumomediastinum": r"mediastinal emphysema.*|pneumomediastinum.*",
    "Pneumonia": r"pneumonia.*",
    "Pneumoperitoneum": r"pneumoperitoneum.*",
    "Pneumothorax": r"pneumothorax.*|hydropneumothorax.*|hemopneumothorax.*",
    "Pulmonary Hypertension": r"hypertension, pulmonary.*",
    "Rib Fracture": r"fractures, bone/.*\bribs?\b.*",
    "Scoliosis": r"scoliosis.*",
    "Subcutaneous Emphysema": r"subcutaneous\s+emphysema.*",
    "Support Devices": r"(catheters, indwelling|implanted medical device|medical device|tube, inserted|stents)\b.*",
    "Tortuous Aorta": r"aorta(, thoracic)?/.*tortuous.*",
    "Tuberculosis": r"tuberculosis.*",
    "No Finding": r"normal",
    "Normal": r"normal",
}
"""Finding to the terms, lower case, heading and qualifiers joined by ``/``, that mean it."""
UNKNOWN: dict[str, str] = {
    "Cardiomegaly": r"cardiomegaly/borderline.*|cardiac shadow/.*borderline.*",
    "Pleural Effusion": r"costophrenic angle/.*blunted.*",
    "Tuberculosis": r"granulomatous disease.*",
    "Support Devices": r"surgical instruments.*|foreign bodies.*|spinal fusion.*|sutures.*",
    "Fracture": r"deformity.*", "Rib Fracture": r"deformity/.*rib.*",
}
"""Finding to the terms that leave it open, where no term means it."""
PARTS = ("FINDINGS", "IMPRESSION")


def make_tables(archive: Path, folder: Path) -> None:
    """Write the reports and the coders' labels; raises ``TailfillError`` with nothing written for no such archive."""
    if not archive.exists():
        raise TailfillError(f"{archive}: no such archive or folder; wanted: NLMCXR_reports.tgz, or its XML files")
    stage = Stage("label-openi", folder, config={"terms": TERMS, "unknown": UNKNOWN} |
                  ({"archive": hash_folder(archive)} if archive.is_dir() else {}),
                  inputs={} if archive.is_dir() else {"archive": archive})
    if stage.is_complete():
        return
    records = sorted((read_report(content, where=name) for name, content in read_archive(archive)),
                     key=lambda record: str(record["report_id"]))
    if not records:
        raise TailfillError(f"{archive}: holds no XML file; wanted: the OpenI reports")
    frame = pd.DataFrame(records)
    stage.begin()
    for name, columns in (("reports.csv", ["report_id", "split", "text"]),
                          ("truth.csv", [*frame.columns.drop("text")])):
        write_atomically(folder / name, frame[columns].to_csv(index=False).encode())
    coded = frame[list(TERMS)].notna().any(axis=1)
    stage.finish(outputs=["reports.csv", "truth.csv"], extra={"licence": "CC BY-NC-ND 4.0"},
                 counts={"reports": len(frame), "coded": int(coded.sum()), "not_coded": int((~coded).sum())})


def read_archive(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each XML file of a tar archive, or of a folder."""
    if archive.is_dir():
        for file in sorted(archive.rglob("*.xml")):
            yield str(file), file.read_bytes()
        return
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.name.endswith(".xml") else None
                if stream is not None:
                    yield f"{archive}: {member.name}", stream.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise TailfillError(f"{archive}: is no readable tar archive: {error}") from error


def read_report(content: bytes, *, where: str) -> dict[str, object]:
    """Id, split, text under its headings, and a label per finding; raises ``TailfillError`` for another kind of XML."""
    try:
        root = ET.fromstring(content)
    except ET.ParseError as error:
        raise TailfillError(f"{where}: is no XML: {error}") from error
    uid = root.find("uId")
    if uid is None or not uid.get("id"):
        raise TailfillError(f"{where}: has no uId; wanted: a report of OpenI")
    parts = [(str(part.get("Label")), (part.text or "").strip()) for part in root.iter("AbstractText")]
    text = "\n\n".join(f"{label}: {words}" for label, words in parts if words)
    terms = [re.sub(r"\s+", " ", term.text or "").strip().lower() for term in root.iter("major")]
    split = "dev" if int(hash_bytes(str(uid.get("id")).encode())[:8], 16) % 2 else "test"
    return {"report_id": uid.get("id"), "split": split, "text": text, **code(terms)}


def code(terms: list[str]) -> dict[str, int | None]:
    """1, 0 or None per finding of ``TERMS`` from a report's MeSH terms in lower case."""
    if not terms or "no indexing" in terms:
        return dict.fromkeys(TERMS)
    found: dict[str, int | None] = {}
    for label, pattern in TERMS.items():
        opens = UNKNOWN.get(label)
        hits = [term for term in terms if re.fullmatch(pattern, term) and not (opens and re.fullmatch(opens, term))]
        is_open = opens is not None and any(re.fullmatch(opens, term) for term in terms)
        found[label] = 1 if hits else None if is_open else 0
    return found
