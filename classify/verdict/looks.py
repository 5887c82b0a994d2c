"""What was fixed before test predictions existed, and how often they have been looked at since.

An endpoint that is chosen after the answer is known finds something in every experiment. So ``RUN/endpoint.json`` fixes
it beforehand (``agrees_with``), and ``RUN/looks.jsonl`` gets one line each time that test predictions are about to be
turned into numbers in a way that they were not before: another endpoint, other arms, margins, pairs or draws, or other
predictions. A line is written before the first number is computed, by renaming, so that a kill costs none; the same
work done again after a kill, or found done, is no new look.

Not promised: that nobody looked by other means, or removed a line.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cohort.errors import TailfillError
from cohort.stage import write_atomically

LOOKS = "looks.jsonl"
"""Its name in the run's folder."""


def agrees_with(file: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether ``file`` fixed ``wanted`` beforehand, False without such a file.

    Raises ``TailfillError`` naming the first key that differs from it.
    """
    if not file.is_file():
        return False
    try:
        fixed = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TailfillError(f"{file}: is no readable JSON: {error}") from error
    if not isinstance(fixed, dict):
        raise TailfillError(f"{file}: holds {type(fixed).__name__}; wanted: a mapping")
    for key, now in wanted.items():
        then = fixed.get(key)
        if isinstance(now, dict) and isinstance(then, dict):
            for name in sorted(now.keys() | then.keys()):
                if now.get(name) != then.get(name):
                    raise TailfillError(f"{file}: {key}.{name} was fixed as {then.get(name)!r}, now {now.get(name)!r}")
        elif then != now:
            raise TailfillError(f"{file}: {key} was fixed as {then!r}, now {now!r}")
    return True


def read_looks(file: Path) -> list[dict[str, Any]]:
    """The looks so far, the first one first; none without the file. Raises ``TailfillError`` naming a broken line."""
    if not file.is_file():
        return []
    looks = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            look = json.loads(line)
            looks.append({key: look[key] for key in ("fingerprint", "sha256", "fixed_beforehand", "at")})
        except (ValueError, KeyError, TypeError) as error:
            raise TailfillError(f"{file}, line {number}: is no look at test: {error!r}") from error
    return looks


def record_look(file: Path, *, fingerprint: str, sha256: str, fixed_beforehand: bool) -> None:
    """Add a line for this work, unless it has one. ``fingerprint``: all that decides the numbers (``cohort.stage``).

    ``sha256``: of endpoint, arms, seeds and margins. Important: called before the first number from test is computed.
    """
    if any(look["fingerprint"] == fingerprint for look in read_looks(file)):
        return
    line = json.dumps({"fingerprint": fingerprint, "sha256": sha256, "fixed_beforehand": fixed_beforehand,
                       "at": datetime.now(UTC).isoformat(timespec="seconds")})
    before = file.read_bytes() if file.is_file() else b""
    write_atomically(file, before + line.encode() + b"\n")


def looks_sentence(looks: list[dict[str, Any]], fingerprint: str, *, own_cohort: bool = True) -> str:
    """How often test was looked at, beside the comparison with ``fingerprint``, as far as this run can know."""
    elsewhere = "" if own_cohort else (" The cohort lies outside of this run: how often other runs have looked at it "
                                       "is not counted.")
    return _told(looks, fingerprint) + elsewhere


def _told(looks: list[dict[str, Any]], fingerprint: str) -> str:
    own = next((look for look in looks if look["fingerprint"] == fingerprint), None)
    if own is None:
        return "How often the test set was looked at is not known: this comparison was made before looks were counted."
    if len(looks) == 1:
        return "The test set was looked at once, for this comparison."
    others = [look for look in looks if look is not own]
    changed = sum(look["sha256"] != own["sha256"] for look in others)
    kinds = {"with another endpoint, other arms or other margins": changed,
             "with other predictions, pairs or draws": len(others) - changed}
    said = " and ".join(f"{n} {kind}" for kind, n in kinds.items() if n)
    return (f"The test set was looked at {len(looks)} times: beside this comparison {said}. Each further look is one "
            "more chance to find something; the interval knows of one.")
