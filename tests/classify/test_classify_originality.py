"""The chapter on copies and traces of origin: the least original pair first, as it matches; nulls with reasons."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from classify.pages import originality
from cohort.tables import Cohort

SIZE = 32


@pytest.fixture
def evidence(tmp_path: Path) -> SimpleNamespace:
    """Two images made, the second a mirrored copy of the one training image, dropped."""
    slope = np.tile(np.arange(SIZE, dtype=np.uint8) * 7, (SIZE, 1))
    (tmp_path / "images").mkdir()
    for name, pixels in (("real", slope), ("images/a", slope), ("images/b", slope[:, ::-1])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    frame = pd.DataFrame({"image_id": ["real"], "root": ["r"], "path": ["real.png"], "patient_id": ["p"],
                          "split": ["train"], "Hernia": [1]})
    cohort = Cohort(frame=frame, labels=["Hernia"], groups={"Hernia": "tail"}, roots={"r": tmp_path}, salt="s",
                    folder=tmp_path)
    return SimpleNamespace(
        cohort=cohort, run=SimpleNamespace(folder=tmp_path),
        synthetic=pd.DataFrame({"sample_id": ["a", "b"], "path": ["a.png", "b.png"], "keep": [True, False],
                                "reason": [None, "memorisation"]}),
        nearest=pd.DataFrame({"sample_id": ["a", "b"], "image_id": "real", "ncc": [0.5, 1.0], "score": [0.9, 0.01],
                              "flipped": [False, True]}),
        memorised=pd.DataFrame({"share": [0.75], "low": [0.1], "high": [0.9], "n": [2], "n_per_side": [1],
                                "if_all_copied": [1.0]}),
        probe=pd.DataFrame({"setting": ["carriers", "other"], "auroc": [0.9, np.nan], "ci_low": [0.8, np.nan],
                            "ci_high": [1.0, np.nan], "n_real": [20, 3], "n_synthetic": [20, 3],
                            "reason": [None, "3 real images"]}),
    )


def test_pairs_stand_in_the_order_of_their_scores_and_as_they_match(evidence: SimpleNamespace) -> None:
    (chapter,) = originality.originality_chapters(evidence, n_samples=6, picture_px=SIZE)  # type: ignore[arg-type]
    sheet, table = chapter.blocks
    made, nearest, *_ = sheet.strips[0].samples
    assert "dropped by memorisation: b" in made.caption
    assert "mirrored: real" in nearest.caption
    assert made.picture == nearest.picture
    assert table.rows[1][1].startswith("—")
    assert any("1 of 2 images made were dropped" in text for text in chapter.words)
    assert any("75.0 %" in text for text in chapter.words)


def test_a_run_that_has_looked_at_neither_has_no_chapter(evidence: SimpleNamespace) -> None:
    evidence.nearest, evidence.probe = pd.DataFrame(), pd.DataFrame()
    assert originality.originality_chapters(evidence, n_samples=6, picture_px=SIZE) == []  # type: ignore[arg-type]
