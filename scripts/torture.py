"""Kill generation at dozens of moments, go on with another number of processes, and compare every file byte for byte.

::

    python scripts/torture.py [--kills 30] [--processes 1 2 4] [--seed 0]

A tiny run is generated once without interruption: the reference. Then it is generated again in fresh folders, killed
(SIGKILL to the whole process group) in turn while it samples, writes, assembles, at any time at all, and while it
starts; each start after a kill has another number of processes. Whenever a folder is complete, and at the end, it must
hold the reference's files and no others, with the same bytes; of the stamp and the account of the batches, which say
who drew and how long it took, what does not depend on that must be equal. The last launch is ``accelerate launch``
itself. World sizes are asserted as the account has observed them.

Not promised: anything about a machine that goes down, or about a GPU.
"""

import argparse
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from torture_kills import Fuse, forked, launch
from torture_world import N_BATCHES, build_world, read_account

from cohort.errors import TailfillError, run_command
from cohort.pipeline import STAMP
from synth.drawing.parts import BATCHES, finished_batches, is_assembled

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parent.parent
PHASES = ("sampling", "writing", "assembling", "any time", "start")
STEPS = {"start": 3, "assembling": 2 * 3 + N_BATCHES + 5}
"""Steps of a phase, as ``Fuse`` counts them: three a file, one a part that is removed, five of the stamp."""
LASTING = ("stage", "fingerprint", "schema", "config", "inputs", "outputs", "output_hash", "counts")
"""What of a stamp does not depend on who drew, and when."""


@dataclass(kw_only=True)
class Torture:
    """The run, and what has been done to it."""

    world: Path
    processes: list[int]
    rng: random.Random
    reference_seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    observed: Counter[int] = field(default_factory=Counter)
    """World size to the batches that it has drawn."""
    world_size: int = 0
    """Of the last launch that had something to do in the present folder."""
    n_complete: int = 0

    @property
    def folder(self) -> Path:
        """The images that are being tortured."""
        return self.world / "run" / "images"

    @property
    def reference(self) -> Path:
        """The images that were never interrupted."""
        return self.world / "reference"

    @property
    def config(self) -> Path:
        """The run's configuration."""
        return self.world / "config.yaml"

    def start(self, world_size: int) -> None:
        """Remember the size of a launch that finds something to do."""
        if not (self.folder / STAMP).is_file():
            self.world_size = world_size


def make_reference(torture: Torture) -> None:
    """Generate without interruption, with one process."""
    forked(build_world, torture.world / "run", torture.config)
    began = time.monotonic()
    if launch(torture.config, torture.world / "log", world_size=1):
        raise TailfillError(f"generation fails without being killed: {(torture.world / 'log').read_text()[-1000:]}")
    torture.reference_seconds = time.monotonic() - began
    torture.folder.rename(torture.reference)


def kill_once(torture: Torture, phase: str, world_size: int) -> bool:
    """Launch, and kill in ``phase``; False when it was complete before that."""
    note, left = torture.world / "note", 0 if is_assembled(torture.folder) else N_BATCHES - len(
        finished_batches(torture.folder))
    note.unlink(missing_ok=True)
    share = max(1, left // world_size)
    steps = {"sampling": 2 * share, "writing": 9 * share, **STEPS}.get(phase)
    fuse = None if steps is None else Fuse(phase, torture.rng.randint(1, steps), folder=torture.folder, note=note)
    bearer = torture.rng.randrange(world_size) if phase in ("sampling", "writing") and left >= world_size else 0
    seconds = torture.rng.uniform(0, torture.reference_seconds) if fuse is None else None
    torture.start(world_size)
    code = launch(torture.config, torture.world / "log", world_size=world_size, fuse=fuse, bearer=bearer,
                  seconds=seconds)
    if code > 0:
        raise TailfillError(f"a start after a kill fails: {(torture.world / 'log').read_text()[-1000:]}")
    if code == 0:
        return False
    torture.kills[phase] += 1
    where = note.read_text() if note.is_file() else f"{phase}: {seconds or 0:.2f} s after the start"
    done = N_BATCHES if is_assembled(torture.folder) else len(finished_batches(torture.folder))
    log.info("kill %d, %d processes, %s; %d of %d batches are finished", torture.kills.total(), world_size, where, done,
             N_BATCHES)
    return True


def compare(torture: Torture) -> None:
    """Raise ``TailfillError`` unless the complete folder is the reference, then put it away."""
    ours, theirs = torture.folder, torture.reference
    names = [sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
             for folder in (ours, theirs)]
    if names[0] != names[1]:
        raise TailfillError(f"{ours}: files differ from {theirs}: {sorted(set(names[0]) ^ set(names[1]))[:5]}")
    for name in names[0]:
        if name not in (STAMP, BATCHES) and (ours / name).read_bytes() != (theirs / name).read_bytes():
            raise TailfillError(f"{ours / name}: its bytes are not those of {theirs / name}")
    stamps = [json.loads((folder / STAMP).read_text()) for folder in (ours, theirs)]
    different = [key for key in LASTING if stamps[0][key] != stamps[1][key]]
    accounts = [forked(read_account, folder) for folder in (ours, theirs)]
    for mine, other in zip(*accounts, strict=True):
        different += [key for key in ("batch", "images", "failed", "micro_batch") if mine[key] != other[key]]
    sizes = Counter(row["world_size"] for row in accounts[0])
    if different or any(row["rank"] >= row["world_size"] for row in accounts[0]) or set(sizes) - {*torture.processes}:
        raise TailfillError(f"{ours}: stamp or account differ from {theirs}: {different}, world sizes {dict(sizes)}")
    if stamps[0]["extra"]["world_size"] != torture.world_size:
        raise TailfillError(f"{ours}: drawn with a world size of {stamps[0]['extra']['world_size']}, "
                            f"wanted: {torture.world_size}")
    torture.observed.update(sizes)
    torture.n_complete += 1
    shutil.rmtree(ours)


def launch_for_real(torture: Torture, world_size: int) -> None:
    """Complete the folder with accelerate's own launcher."""
    torture.start(world_size)
    several = ["--multi_gpu"] if world_size > 1 else []
    command = [sys.executable, "-m", "accelerate.commands.launch", *several, "--num_processes", str(world_size),
               "--main_process_port", "0", str(REPOSITORY / "synth" / "generate.py"), "--config", str(torture.config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise TailfillError(f"{' '.join(command)} fails: {done.stderr[-1000:]}")


def torture_all(torture: Torture, n_kills: int) -> None:
    """Kill ``n_kills`` times, complete and compare; raises ``TailfillError`` at the first difference."""
    make_reference(torture)
    while (n := torture.kills.total()) < n_kills:
        attempt = n + torture.n_complete
        if not kill_once(torture, PHASES[n % len(PHASES)], torture.processes[attempt % len(torture.processes)]):
            compare(torture)
    launch_for_real(torture, torture.processes[-1])
    compare(torture)
    never = sorted({*torture.processes} - {*torture.observed})
    if never:
        raise TailfillError(f"no batch was drawn with a world size of {never}; wanted: more kills")
    told = ", ".join(f"{count} {phase}" for phase, count in torture.kills.items())
    log.info("%d kills (%s), %d folders completed; batches by world size: %s; every file equal byte for byte",
             torture.kills.total(), told, torture.n_complete, dict(sorted(torture.observed.items())))


def main() -> None:
    """Parse, torture, and remove the world unless it shows a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="how often to kill")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes, in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    if min(options.kills, *options.processes) < 1:
        raise TailfillError(f"--kills, --processes are {options.kills}, {options.processes}; wanted: 1 or more")
    world = Path(tempfile.mkdtemp(prefix="torture_"))
    torture_all(Torture(world=world, processes=options.processes, rng=random.Random(options.seed)), options.kills)
    shutil.rmtree(world)


if __name__ == "__main__":
    run_command(main)
