"""Tables that a report can do without: absent they are empty, damaged they are an error."""

from pathlib import Path

import pandas as pd
import pytest

from classify.pages.evidence import optional_table
from cohort.errors import TailfillError
from cohort.stage import Stage
from cohort.tables import write_table


def test_absent_sound_and_damaged(tmp_path: Path) -> None:
    table = pd.DataFrame({"auroc": [0.5, 0.7]})
    stage = Stage("filter", tmp_path, config={}, inputs={})
    stage.begin()
    write_table(table, tmp_path / "probe.parquet")
    stage.finish(outputs=["probe.parquet"], counts={})
    pd.testing.assert_frame_equal(optional_table(tmp_path / "probe.parquet"), table)
    assert optional_table(tmp_path / "nearest.parquet").empty
    for damage in (b"PAR1 is no table", (tmp_path / "probe.parquet").read_bytes()[:-9]):
        (tmp_path / "probe.parquet").write_bytes(damage)
        with pytest.raises(TailfillError, match=r"probe\.parquet: was changed after its stamp was written"):
            optional_table(tmp_path / "probe.parquet")
    (tmp_path / "probe.parquet").unlink()
    with pytest.raises(TailfillError, match="named by the stamp but missing"):
        optional_table(tmp_path / "probe.parquet")
