"""More rounds on a finished fill: its end is put aside, so that the rounds go on from where they stood.

The rounds themselves are stages of their own and stay where they are. What was written at the end, all rounds as one,
is moved to ``RUN/fill_of_4_rounds`` (4 being the limit that it had), and written anew after the further rounds. A kill
between two moves leads back here, because the folder that says that the fill has ended is moved last.

Not promised: that stages after the fill agree with the new images; their stamps tell them that these have changed. And
the images of what was put aside are those of the rounds: its table names them as seen from where it stood.
"""

import logging
from pathlib import Path

from cohort.pipeline import read_stamp
from cohort.stage import Stage

log = logging.getLogger(__name__)

ENDS = ("plan", "images", "synthetic", "fill")
"""Folders of the run that are written when the last round is over; the last of them holds the stamp."""


def has_ended_earlier(stage: Stage) -> bool:
    """Whether the folder holds this very fill, complete, with fewer ``rounds`` and nothing else that differs."""
    stamp = read_stamp(stage.folder)
    if stamp is None or stamp["stage"] != stage.name:
        return False
    then, now = dict(stamp["config"]), dict(stage.config)
    fewer = then.pop("rounds", 0) < now.pop("rounds")
    return bool(fewer and then == now and {key: entry["hash"] for key, entry in stamp["inputs"].items()} == {
        key: entry["hash"] for key, entry in stage.inputs.items()})


def put_end_aside(stage: Stage, run: Path) -> None:
    """Move the end of a fill with fewer rounds aside; only for one that ``has_ended_earlier``."""
    stamp = read_stamp(stage.folder) or {}
    aside = run / f"fill_of_{stamp['config']['rounds']}_rounds"
    aside.mkdir(exist_ok=True)
    for name in ENDS:
        if (run / name).is_dir():
            (run / name).replace(aside / name)
    log.info("fill: ended after %d rounds before; that end is kept in %s", stamp["config"]["rounds"], aside)
