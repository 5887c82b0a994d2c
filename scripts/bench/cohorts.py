"""How fast label files become a cohort, and a cohort a plan: rows per second, growth with size, against plain pandas.

::

    python scripts/bench/cohorts.py --rows 100000 377110 1000000 4000000
    python scripts/bench/cohorts.py --nih DIR      (a folder with Data_Entry_2017_v2020.csv[.gz] and the split lists)

Per size, in a process of its own: invented CXR-LT tables (``make_cxr_lt_tables``) are prepared without opening images;
the rival is ``pandas.read_csv`` of the same files, its default way, which parses and checks nothing else. Images are
planned for every tail label up to 2,000 (17,642 at the real size) over 40 labels. Times are CPU seconds of the one
thread, so that other work on the machine counts less; the ratio is what to quote. Growth is seconds over seconds
against rows over rows of the size before: 1 is linear. The peak of memory is that of preparing alone, the interpreter
included; ``--memory-gib 6`` ends a size that wants more.
"""

import argparse
import gzip
import json
import logging
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from cohort.errors import run_command
from cohort.prepare import prepare
from cohort.preparing.settings import PrepareConfig
from cohort.tables import load_cohort
from prompts.plan import build_plan
from prompts.settings import PlanConfig

log = logging.getLogger(__name__)

MAKER = Path(__file__).parents[1] / "make_cxr_lt_tables.py"
FLOOR = 2_000
"""Images of each tail label, real and synthetic, that the plan aims for: 17,642 more at CXR-LT's real counts."""


def measure(config: PrepareConfig, folder: Path, files: list[Path], *, floor: int) -> dict[str, float]:
    """CPU seconds of preparing, planning and plain reading, rows, and the peak of memory in MB after preparing."""
    start = time.process_time()
    prepare(config, folder, threads=1)
    prepared = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    cohort = load_cohort(folder)
    start = time.process_time()
    plan = build_plan(cohort, PlanConfig(rule="floor", floor=floor, max_ratio=None, negatives_per_positive=0), seed=0)
    found = {"prepare": prepared, "peak_mb": peak, "plan": time.process_time() - start, "planned": len(plan.rows),
             "train": len(cohort.split("train")), "labels": len(cohort.labels)}
    del cohort, plan
    start = time.process_time()
    rows = sum(len(pd.read_csv(file)) for file in files)  # last, so that its memory is not taken for ours
    return found | {"rows": rows, "read_csv": time.process_time() - start}


def measure_cxr_lt(n_rows: int, work: Path) -> dict[str, float]:
    """One size of the invented tables."""
    subprocess.run([sys.executable, MAKER, "--out", work, "--images", str(n_rows)], check=True)
    files = sorted(work.glob("cxr-lt-2024/train_labeled.csv")) + sorted(work.glob("cxr-lt-2024/*_labeled_task1.csv"))
    config = PrepareConfig(source="cxr-lt", labels=str(work), root=str(work), check="none")
    return measure(config, work / "cohort", files, floor=FLOOR)


def measure_nih(tables: Path, work: Path) -> dict[str, float]:
    """NIH's own table, without images."""
    source = next(tables.glob("Data_Entry_2017_v2020.csv*"))
    text = (gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()).decode()
    (work / "Data_Entry_2017_v2020.csv").write_text(text)
    for name in ("train_val_list.txt", "test_list.txt"):
        shutil.copy(tables / name, work / name)
    config = PrepareConfig(source="nih", root=str(work), check="none")
    return measure(config, work / "cohort", [work / "Data_Entry_2017_v2020.csv"], floor=FLOOR)


def alone(arguments: list[str]) -> dict[str, float]:
    """The same script in a process of its own, so that one size's memory is not another's."""
    command = [sys.executable, __file__, *arguments, "--inside"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """A line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 377_110, 1_000_000, 4_000_000])
    parser.add_argument("--nih", type=Path, help="folder of NIH's label file and split lists, instead of --rows")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory-gib", type=float, help="address space of a size at most; none where not given")
    options = parser.parse_args()
    if options.memory_gib:  # children inherit it
        limit = int(options.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if options.inside:
        with tempfile.TemporaryDirectory() as work:
            found = (measure_nih(options.nih, Path(work)) if options.nih else
                     measure_cxr_lt(options.rows[0], Path(work)))
        sys.stdout.write(json.dumps(found) + "\n")
        return
    before = None
    for arguments in ([["--nih", str(options.nih)]] if options.nih else [["--rows", str(n)] for n in options.rows]):
        one = alone(arguments)
        growth = (one["prepare"] / before["prepare"]) / (one["rows"] / before["rows"]) if before else float("nan")
        log.info("%9d rows: prepare %6.1f s, %7.0f rows/s, %.1f times pandas.read_csv (%.1f s), growth %.2f, peak %.0f "
                 "MB", one["rows"], one["prepare"], one["rows"] / one["prepare"], one["prepare"] / one["read_csv"],
                 one["read_csv"], growth, one["peak_mb"])
        log.info("          plan of %d images from %d rows over %d labels: %.1f s", one["planned"], one["train"],
                 one["labels"], one["plan"])
        before = one


if __name__ == "__main__":
    run_command(main)
