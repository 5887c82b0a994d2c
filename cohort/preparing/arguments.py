"""``python -m cohort.prepare SOURCE ...``: one command per source, with the settings that it uses."""

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import jsonargparse

from cohort.config import HelpFormatter
from cohort.errors import TailfillError, fail
from cohort.phantom.settings import PhantomConfig
from cohort.preparing.registry import SOURCES
from cohort.preparing.settings import USES, PrepareConfig


def read_arguments(argv: list[str], *, doc: str | None) -> tuple[PrepareConfig, Path, int, bool]:
    """Config, folder to write, threads or processes, and dry run; exits with code 2 and one line on any mistake."""
    parser = jsonargparse.ArgumentParser(prog="python -m cohort.prepare", description=doc, exit_on_error=False,
                                         formatter_class=HelpFormatter)
    sources = parser.add_subcommands(dest="source")
    for name, source in SOURCES.items():
        command = jsonargparse.ArgumentParser(description=source.module.__doc__, exit_on_error=False,
                                              formatter_class=HelpFormatter)
        workers, work = ("processes", "draw the images") if name == "phantom" else ("threads", "decode images")
        if name == "phantom":
            command.add_class_arguments(PhantomConfig)
        else:
            command.add_class_arguments(PrepareConfig, skip={f.name for f in fields(PrepareConfig)} - {*USES[name]})
        command.add_argument("--out", type=str, required=True, help="folder to write; new, or of the same settings")
        command.add_argument(f"--{workers}", type=int, default=2, help=f"{workers} that {work}, 1 or more")
        command.add_argument("--dry_run", action="store_true", help="print what would be done, and do nothing")
        sources.add_subcommand(name, command, help=(source.module.__doc__ or "").splitlines()[0])
    try:
        parsed = parser.instantiate(parser.parse_args([_spell(word, argv[0]) for word in argv]))
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        fail(str(error))
    own = dict(vars(parsed[parsed.source]))
    out, dry_run = Path(own.pop("out")), own.pop("dry_run")
    if parsed.source == "phantom":
        processes = own.pop("processes")
        return PrepareConfig(source="phantom", phantom=PhantomConfig(**own)), out, processes, dry_run
    threads = own.pop("threads")
    return PrepareConfig(source=parsed.source, **own), out, threads, dry_run


def _spell(word: str, source: str) -> str:
    """``--val-fraction=.1`` as ``--val_fraction=.1``; ``--images DIR`` is another word for ``--root DIR``."""
    flag, equals, value = word.partition("=")
    if not flag.startswith("--"):
        return word
    flag = "--root" if flag == "--images" and source != "phantom" else f"--{flag[2:].replace('-', '_')}"
    return f"{flag}{equals}{value}"


def find_role(argv: list[str], roles: Collection[str]) -> str:
    """The value of ``--role``: it says which section to read; raises ``TailfillError`` for an unknown one."""
    words = [part for word in argv for part in word.split("=", 1)]
    role = words[words.index("--role") + 1] if "--role" in words[:-1] else "cohort"
    if role not in roles:
        raise TailfillError(f"--role is '{role}'; wanted: {', '.join(roles)}")
    return role
