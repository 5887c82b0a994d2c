"""The report's chapter on fidelity: each encoder by itself, every metric in its table, distances drawn."""

import itertools
import types

import pandas as pd

from classify.pages.blocks import DASH, Chapter, Table
from classify.pages.results import FIDELITY_PLOTS, FIDELITY_SETS, FIDELITY_SHARES, fidelity_chapter

METRICS = ("KID", "FID", "precision", "recall", "density", "coverage")


def chapter_of(*kinds: str) -> Chapter:
    """The chapter about sets of these kinds: two names, every metric, two encoders, no value twice."""
    rows = [{"name": name, "set": kind, "metric": metric, "n_real": 60, "n_synthetic": 60, "encoder": encoder,
             "encoder_sha256": encoder * 64, "resize": "224 px", "spread": 0.01 if metric == "KID" else None,
             "value": None if metric == "FID" else value, "reason": "FID needs 500" if metric == "FID" else None}
            for value, (name, kind, metric, encoder) in enumerate(
                itertools.product(("all", "Hernia"), kinds, METRICS, "ab"))]
    cohort = types.SimpleNamespace(groups={"Hernia": "tail"})
    return fidelity_chapter(types.SimpleNamespace(fidelity=pd.DataFrame(rows), cohort=cohort))  # type: ignore[arg-type]


def test_shares_of_autoencoder_and_denoiser_are_shown_where_they_were_measured() -> None:
    plain, shared = chapter_of(*FIDELITY_SETS), chapter_of(*FIDELITY_SETS, *FIDELITY_SHARES)
    for chapter, heads in ((plain, []), (shared, list(FIDELITY_SHARES.values()))):
        for table in (block for block in chapter.blocks if isinstance(block, Table)):
            assert list(table.columns)[6:-2] == heads
            assert {len(row) for row in table.rows} == {len(table.columns)}
            recall = [row for row in table.rows if row[2] == "recall"]
            assert len({cell for row in recall for cell in row[3:-2]}) == 2 * (3 + len(heads))
        assert ("autoencoder" in chapter.words[0]) == bool(heads)


def test_two_encoders() -> None:
    chapter = chapter_of(*FIDELITY_SETS)
    tables = [block for block in chapter.blocks if isinstance(block, Table)]
    plots = [block for block in chapter.blocks if not isinstance(block, Table)]
    assert [table.title[-1] for table in tables] == ["a", "b"]
    for table in tables:
        assert [row[2] for row in table.rows] == [*METRICS] * 2
        assert {row[1] for row in table.rows if row[0] == "Hernia"} == {"tail"}
        assert all(DASH in row[3] for row in table.rows if row[2] == "FID")
    cells = {row[3:6] for table in tables for row in table.rows if row[2] == "recall"}
    assert len(cells) == 4  # no encoder's numbers stand in another's table
    assert [plot.title for plot in plots] == [f"KID to real training images, measured by {name}" for name in "ab"]
    assert set(FIDELITY_PLOTS) < set(METRICS)
    assert all(f"sha256 {name * 12}" in chapter.words[0] for name in "ab")
