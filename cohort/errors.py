"""One kind of error for everything a user can mend: a single line that names the culprit, and exit code 2.

Anything else is a bug and keeps its traceback.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from typing import NoReturn


class TailfillError(Exception):
    """Bad input: the message names the file, row or key, what came and what is wanted."""


MOST_LISTED = 100
"""Legal names that an error lists; there are more models than anybody reads."""


def nearest(word: str, legal: list[str]) -> str:
    """Return ``; did you mean 'x'?`` or, when nothing is close, ``; legal: a, b``, of many only how many."""
    close = get_close_matches(word, legal, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; legal: {', '.join(legal)}" if len(legal) <= MOST_LISTED else f"; none of {len(legal):,} names is close"


def fail(message: str) -> NoReturn:
    """Print ``error: message`` on one line and leave with exit code 2."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    raise SystemExit(2)


def run_command(main: Callable[[], None]) -> None:
    """Run a stage's ``main`` as a command: plain log lines on stderr, ``TailfillError`` as one line and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for chatty in ("httpx", "accelerate", "diffusers", "transformers", "matplotlib", "fontTools"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        main()
    except TailfillError as error:
        fail(str(error))
