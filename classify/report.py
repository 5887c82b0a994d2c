"""The report: one page that says what synthetic images bought, for whom, at what cost, and what that cannot say.

::

    python -m classify.report --config C

Reads the tables and stamps of a finished run and writes RUN/report/report.html (one file: no script, no network, light
and dark, desktop, phone and paper) and report.md (the same numbers for a terminal or a pull request). Equal inputs give
equal bytes. It computes no result of its own; what it shows stands in the tables named below each chapter. At its end
it prints the verdict, the table of groups and the page's path, also when there is nothing left to do. Both files
contain images of patients in the cohort's train split: share them as you would share the cohort.
"""

import logging
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2

from classify.pages.accounts import cost_chapter, curves_chapter, scarcity_chapter, settings_chapter
from classify.pages.amounts import amount_chapters
from classify.pages.blocks import Chapter, plain
from classify.pages.cautions import control_chapters, drawn_chapters, signature_chapters, top_cautions
from classify.pages.evidence import Evidence, load_evidence, report_inputs
from classify.pages.limits import limits
from classify.pages.originality import originality_chapters
from classify.pages.results import delta_chapter, fidelity_chapter, headline, metrics_chapter, verdict_chapter
from classify.pages.samples import samples_chapter
from classify.pages.subgroups import subgroup_chapters
from classify.pages.summary import summary
from cohort.config import parse
from cohort.errors import TailfillError, run_command
from cohort.stage import Stage, write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the page shows."""

    title: str = "What the synthetic radiographs bought"
    """Heading of the page."""
    n_samples: int = 6
    """Images per class and kind (real, kept, dropped) on the contact sheets. 1 to 24."""
    max_classes: int = 12
    """Tail classes with a contact sheet, the rarest first. 1 or more."""
    picture_px: int = 128
    """Width and height of a picture in pixels; larger pictures make a larger file. 32 to 512."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for a value out of range."""
        for name, low, high in (("n_samples", 1, 24), ("max_classes", 1, 1000), ("picture_px", 32, 512)):
            if not low <= getattr(self, name) <= high:
                raise TailfillError(f"report.{name} is {getattr(self, name)}; wanted: {low} to {high}")


def chapters(evidence: Evidence, config: ReportConfig) -> list[Chapter]:
    """The report's chapters in their order."""
    return [
        verdict_chapter(evidence),
        delta_chapter(evidence),
        *control_chapters(evidence),
        *signature_chapters(evidence),
        scarcity_chapter(evidence),
        samples_chapter(evidence, n_samples=config.n_samples, max_classes=config.max_classes,
                        picture_px=config.picture_px),
        *drawn_chapters(evidence),
        fidelity_chapter(evidence),
        *originality_chapters(evidence, n_samples=config.n_samples, picture_px=config.picture_px),
        *amount_chapters(evidence),
        metrics_chapter(evidence),
        *subgroup_chapters(evidence),
        curves_chapter(evidence),
        cost_chapter(evidence),
        settings_chapter(evidence),
        Chapter(anchor="limits", title="What this cannot say", points=tuple(limits(evidence)),
                sources=("comparison/comparison.parquet", "*/_stage.json")),
    ]


def render(evidence: Evidence, config: ReportConfig) -> dict[str, str]:
    """File name to text of both forms of the report. Names and prompts are escaped in each."""
    return lay_out({
        "title": config.title, "verdict": str(evidence.verdict["verdict"]), "headline": headline(evidence),
        "chapters": chapters(evidence, config), "run": evidence.run.folder.name,
        "source": str(evidence.cohort_extra.get("source") or "unnamed source"),
        "n_images": len(evidence.cohort.frame), "n_patients": int(evidence.cohort.frame["patient_id"].nunique()),
        "cautions": top_cautions(evidence.cohort_extra),
    })


def lay_out(shown: dict[str, Any]) -> dict[str, str]:
    """File name to text: the chapters of a page in both templates, which say what they read.

    ``shown``: title, verdict, headline (value, interval, what, support), chapters, run, source, n_images, n_patients,
    cautions (sentences above all else).
    """
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=lambda name: name is not None and "html" in name,
    )
    pages.filters |= {"md": plain, "capitalize_first": lambda text: text[:1].upper() + text[1:]}
    return {name: pages.get_template(f"{name}.j2").render(shown) for name in ("report.html", "report.md")}


def write_report(evidence: Evidence, config: ReportConfig, stage: Stage) -> None:
    """Make both files and the stamp; everything is read and drawn before the first byte is written."""
    files = render(evidence, config) | {"summary.txt": summary(evidence, stage.folder / "report.html")}
    stage.begin()
    for name, text in files.items():
        write_atomically(stage.folder / name, text.encode("utf-8"))
    stage.finish(outputs=list(files), counts={"chapters": len(chapters_of(files))}, extra={"verdict": evidence.verdict})
    log.info("report: %s: open %s", evidence.verdict["verdict"], stage.folder / "report.html")


def chapters_of(files: dict[str, str]) -> list[str]:
    """The anchors of the chapters that a rendered page holds."""
    return re.findall(r'<section id="([a-z]+)"', files["report.html"])


def main() -> None:
    """``python -m classify.report``."""
    options = parse("report", ReportConfig, doc=__doc__)
    run, config = options.run, options.section
    stage = Stage("report", run.folder / "report", config={**asdict(config), "seed": run.seed},
                  inputs=report_inputs(run))
    if options.dry_run:
        sys.stdout.write(stage.describe() + "\n")
        return
    if stage.is_complete():
        log.info("report: complete, nothing to do")
    else:
        write_report(load_evidence(run), config, stage)
    sys.stdout.write((stage.folder / "summary.txt").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_command(main)
