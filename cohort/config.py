"""One YAML per experiment, one section per stage, every key checked before any work.

A stage declares its section as a frozen dataclass; jsonargparse turns it into ``--help``, types, ranges and dotted
overrides (``--plan.total 200``). Two rules are ours: an unknown key is an error that names the nearest legal one, and
paths in a config resolve against the config's folder (mark such a field with ``path()``, ``hub_or_path()`` or
``places()``).
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from cohort.errors import TailfillError, fail, nearest
from cohort.pipeline import SECTIONS

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


class HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help with a module's docstring left in its lines."""


TRACKERS = ("none", "tensorboard", "wandb", "mlflow", "comet_ml", "clearml", "dvclive", "aim", "swanlab", "trackio")
"""accelerate's trackers, and none."""


def path(default: Any = MISSING) -> Any:
    """A dataclass field that holds a path, or several; relative ones resolve against the config's folder."""
    return _marked("path", default)


def hub_or_path(default: Any = MISSING) -> Any:
    """A dataclass field that holds a local path if one exists beside the config, and a model hub id otherwise."""
    return _marked("hub_or_path", default)


def places(default: Any) -> Any:
    """A dataclass field of several ``name`` or ``name:path``; a path that exists beside the config is resolved."""
    return _marked("places", default)


def _marked(kind: str, default: Any) -> Any:
    return field(metadata={kind: True}) if default is MISSING else field(default=default, metadata={kind: True})


DOSED = ("duplicate", "synthetic")
"""Arms that ``amounts`` adds at other amounts, rival first."""


def arm_at(arm: str, amount: float) -> str:
    """The name of an arm at an amount: ``synthetic-0.25x``; at 1 the arm itself."""
    name = f"{amount:g}"
    return arm if name == "1" else f"{arm}-{name}x"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all stages share; the top level of an experiment's YAML."""

    run: str = path()
    """Folder of the experiment; every stage writes its own folder inside it."""
    cohort: str | None = path(None)
    """Folder of a prepared cohort, or where ``prepare`` makes it; default: ``RUN/cohort``."""
    seed: int = 0
    """Seed of everything that is drawn at random in the experiment, from 0 on."""
    threads: int = 2
    """CPU threads per process; part of the promise of bit-equal output, so it is fixed here. 1 or more."""
    tracker: str = "tensorboard"
    """An accelerate tracker for training curves, or ``none``."""
    arms: tuple[str, ...] = ("real", "oversample", "duplicate", "synthetic")
    """The arms to compare; names as ``python -m classify.arm --help`` lists them."""
    n_seeds: int = 3
    """Seeds per arm: 0 to n_seeds - 1. At least 3, 5 for a claim."""
    amounts: tuple[float, ...] = ()
    """Dose-response: further amounts of added slots, in units of arm.slots_per_class; .01 to 100, say .25, .5, 2, 5.

    Each adds two arms, as ``duplicate-2x`` and ``synthetic-2x``; 1 is ``duplicate`` and ``synthetic`` themselves."""
    members: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name to what this member of every arm's ensemble has otherwise in ``train``: ``{r64: {image_size: 64}, ...}``.

    Two or more, whose probabilities are averaged (``classify.ensemble``), or none: one model per arm and seed."""
    expected_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of one stage, by its name, where this configuration was measured; only the time left is told from it."""

    def __post_init__(self) -> None:
        """Raise ``TailfillError`` for the first value out of range."""
        require_values("", seed=(self.seed, 0 <= self.seed < 2**32, "0 to 4294967295"),
                threads=(self.threads, self.threads >= 1, "1 or more"),
                tracker=(self.tracker, self.tracker in TRACKERS, ", ".join(TRACKERS)),
                arms=(list(self.arms), len(set(self.arms)) == len(self.arms) > 0, "different names, one or more"),
                n_seeds=(self.n_seeds, self.n_seeds >= 1, "1 or more"),
                members=(sorted(self.members), len(self.members) != 1 and all(
                    re.fullmatch("[A-Za-z0-9_-]+", name) for name in self.members),
                    "two or more names of letters, digits, _ and -, or none"),
                amounts=(list(self.amounts), all(0.01 <= amount <= 100 for amount in self.amounts), "0.01 to 100 each"),
                **{f"expected_seconds.{stage}": (n, n > 0, "above 0") for stage, n in self.expected_seconds.items()})
        if self.amounts:
            require_values("", arms=(list(self.arms), set(self.arms) >= set(DOSED),
                                     f"{' and '.join(DOSED)} among them, for the arms that amounts adds"))
            added = [arm_at(arm, amount) for amount in sorted(self.amounts) for arm in DOSED]
            object.__setattr__(self, "arms", tuple(dict.fromkeys([*self.arms, *added])))

    @property
    def folder(self) -> Path:
        """The experiment's folder."""
        return Path(self.run)

    @property
    def cohort_folder(self) -> Path:
        """The prepared cohort's folder."""
        return Path(self.cohort) if self.cohort else self.folder / "cohort"

    @property
    def owns_cohort(self) -> bool:
        """Whether the prepared cohort lies in the run's folder, so that no other run is likely to use it."""
        return self.cohort_folder.resolve().parent == self.folder.resolve()


@dataclass(frozen=True, kw_only=True)
class Options:
    """A parsed command line: shared settings, the stage's own section, and its extra arguments."""

    run: Run
    section: Any
    extra: dict[str, Any]
    dry_run: bool
    beside: dict[str, Any] = field(default_factory=dict)
    """Other stages' sections, for a command that runs them."""


def parse(
    section: str, schema: type, *, doc: str | None, extra: dict[str, tuple[type, Any]] | None = None,
    beside: dict[str, type] | None = None,
) -> Options:
    """Read ``--config FILE`` and overrides from ``sys.argv``; exit with code 2 and one line on any mistake.

    ``schema`` is the dataclass of the stage's section; ``extra`` maps the name of a further command-line argument to
    ``(type, default)``, a default of ``...`` making it required; ``beside`` maps other sections that are read to their
    dataclasses.
    """
    schemas = {section: schema, **(beside or {})}
    parser = jsonargparse.ArgumentParser(description=doc, exit_on_error=False, formatter_class=HelpFormatter)
    parser.add_argument("--config", action="config", help="the experiment's YAML")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    flags = {name: f"{name}-name" if name == section else name for name in extra or {}}
    for name, (kind, default) in (extra or {}).items():
        given = {"required": True} if default is ... else {"default": default}
        parser.add_argument(f"--{flags[name]}", type=kind, help=f"typed as --{name}", **given)
    parser.add_class_arguments(Run)
    for name, kind in schemas.items():
        parser.add_class_arguments(kind, name)
    argv = _read_config_files(sys.argv[1:], schemas)
    if section in flags:  # jsonargparse keeps the flag of a section's own name for itself
        argv = [re.sub(f"^--{section}(?==|$)", f"--{flags[section]}", word) for word in argv]
    try:
        parsed = parser.instantiate(parser.parse_args(argv))
        run = Run(**{f.name: getattr(parsed, f.name) for f in fields(Run)})
    except (jsonargparse.ArgumentError, TailfillError, TypeError, ValueError) as error:
        _fail_plainly(str(error))
    return Options(
        run=run,
        section=getattr(parsed, section),
        extra={name: getattr(parsed, flag.replace("-", "_")) for name, flag in flags.items()},
        dry_run=parsed.dry_run,
        beside={name: getattr(parsed, name) for name in beside or {}},
    )


def require_values(section: str, **legal: tuple[Any, bool, str]) -> None:
    """Raise ``TailfillError`` for the first ``key=(value, is_legal, what is wanted)`` that is not legal."""
    for key, (value, is_legal, wanted) in legal.items():
        if not is_legal:
            raise TailfillError(f"{section}.{key}".removeprefix(".") + f" is {value!r}; wanted: {wanted}")


def load_yaml(file: Path) -> dict[str, Any]:
    """Read an experiment's YAML as a mapping; raises ``TailfillError`` naming the file when it is not one."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TailfillError(f"config {file}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise TailfillError(f"config {file}: holds {type(content).__name__}; wanted: a mapping of sections")
    legal = [f.name for f in fields(Run)] + list(SECTIONS)
    for key in content:
        if key not in legal:
            raise TailfillError(f"config {file}: unknown key '{key}'{nearest(str(key), legal)}")
    return content


def check_keys(content: Any, schema: type, *, where: str) -> None:
    """Raise ``TailfillError`` for the first key of ``content`` that is no field of ``schema``, nested ones included."""
    if not isinstance(content, dict):
        raise TailfillError(f"{where}: is {content!r}; wanted: a mapping with keys of {schema.__name__}")
    legal: dict[str, Field[Any]] = {f.name: f for f in fields(schema)}
    for key, value in content.items():
        if key not in legal:
            raise TailfillError(f"{where}: unknown key '{key}'{nearest(str(key), list(legal))}")
        kind = legal[key].type
        if isinstance(kind, type) and is_dataclass(kind):
            check_keys(value, kind, where=f"{where}.{key}")


def resolve_paths(content: dict[str, Any], schema: type, base: Path) -> dict[str, Any]:
    """Return ``content`` with the marked path fields of ``schema`` made absolute against ``base``."""
    resolved = dict(content)
    for f in fields(schema):
        value = resolved.get(f.name)
        if isinstance(value, dict) and isinstance(f.type, type) and is_dataclass(f.type):
            resolved[f.name] = resolve_paths(value, f.type, base)
        elif isinstance(value, list) and "path" in f.metadata:
            resolved[f.name] = [os.path.normpath(base / Path(str(item)).expanduser()) for item in value]
        elif isinstance(value, str) and ("path" in f.metadata or "hub_or_path" in f.metadata):
            candidate = Path(os.path.normpath(base / Path(value).expanduser()))
            resolved[f.name] = str(candidate) if "path" in f.metadata or candidate.exists() else value
        elif isinstance(value, list) and "places" in f.metadata:
            resolved[f.name] = [_resolve_place(item, base) for item in value]
    return resolved


def resolve_members(content: dict[str, Any], schemas: Mapping[str, type], base: Path, *, where: str) -> dict[str, Any]:
    """``content`` with the keys of its ``members`` checked and their paths resolved, where ``train`` is in ``schemas``.

    Raises ``TailfillError`` naming ``where`` and the key at fault.
    """
    members = content.get("members")
    if not isinstance(members, dict) or "train" not in schemas:
        return content
    for name, keys in members.items():
        check_keys(keys, schemas["train"], where=f"{where}: members.{name}")
    return content | {"members": {name: resolve_paths(keys, schemas["train"], base) for name, keys in members.items()}}


def _resolve_place(item: Any, base: Path) -> Any:
    """``name:path`` with the path made absolute where it exists beside the config; anything else as it is."""
    name, colon, where = str(item).partition(":")
    candidate = Path(os.path.normpath(base / Path(where).expanduser()))
    return f"{name}:{candidate}" if colon and where and candidate.exists() else item


def _read_config_files(argv: list[str], schemas: dict[str, type]) -> list[str]:
    """Replace ``--config FILE`` by the sections of the file that are read, checked and with paths resolved."""
    out, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        flag, _, value = word.partition("=")
        if flag != "--config":
            out.append(word)
            continue
        if not value and not rest:
            fail("--config: no file given")
        file = Path(value or rest.pop(0))
        try:
            content = load_yaml(file)
            own = {name: content.get(name) or {} for name in schemas}
            for name, schema in schemas.items():
                check_keys(own[name], schema, where=f"config {file}: {name}")
            base = file.resolve().parent
            top = {key: content[key] for key in content if key in {f.name for f in fields(Run)}}
            top = resolve_members(top, schemas, base, where=f"config {file}")
        except TailfillError as error:
            fail(str(error))
        merged = resolve_paths(top, Run, base) | {
            name: resolve_paths(own[name], schema, base) for name, schema in schemas.items()}
        out += ["--config", json.dumps(merged)]
    return out


def _fail_plainly(message: str) -> None:
    """jsonargparse's message without its usage text, as one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    fail(" ".join(lines) or "the command line cannot be read; see --help")
