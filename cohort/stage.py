"""One folder per stage: a table and a stamp that says how it came to be.

The stamp (``_stage.json``) is written last, so its presence means complete. It holds the stage's fingerprint: its
config section, the hashes of its inputs and the schema version, but not the world size, the device or the micro-batch.
A folder with another fingerprint is refused, naming the key or input that differs; nothing is ever deleted or silently
reused. ``_begun.json`` keeps the fingerprint of an unfinished stage, so that a restart continues only its own work.
From there to the stamp the folder is locked: a second process that would work in it is refused.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cohort.errors import TailfillError
from cohort.lock import hold, let_go
from cohort.pipeline import BEGUN, STAGES, STAMP, read_stamp, read_stamp_file

SCHEMA_VERSION = 1
PARTIAL = ".partial"
"""Ending of a file that is being written; a kill leaves it behind."""
PACKAGES = ("tailfill", "torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "safetensors",
            "xformers", "timm", "torchmetrics", "numpy", "pandas", "pyarrow", "pillow", "scikit-learn", "scipy")


def hash_bytes(content: bytes) -> str:
    """sha256 as hex."""
    return hashlib.sha256(content).hexdigest()


def hash_file(file: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_folder(folder: Path) -> str:
    """sha256 over the sorted relative names and contents of a folder's files, half files of a kill left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != PARTIAL)
    return hash_bytes("".join(f"{path.relative_to(folder)} {hash_file(path)}\n" for path in files).encode())


def write_atomically(file: Path, content: bytes, *, owned: bool = False) -> None:
    """Write under a temporary name in the same folder and rename, so that no reader meets half a file.

    The temporary name is this process' own, since two runs may write the same cache. Where a file is ``owned`` by the
    one that writes it, the name is fixed: whoever writes it again after a kill overwrites what that has left.
    Raises ``TailfillError`` when the disk is full or the folder cannot be written.
    """
    partial = file.with_name(f".{file.name}{'' if owned else f'.{os.getpid()}'}{PARTIAL}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise TailfillError(f"{file}: cannot be written: {error.strerror or error}; what was made before it is kept, "
                            "so mend this and give the same command again") from error


class Stage:
    """The folder of one run of one stage.

    ``config`` is the JSON-able part of the settings that decides the output; ``inputs`` maps a name to the folder of
    a complete stage or to a file. A missing input raises ``TailfillError`` with the command that makes it.
    """

    def __init__(self, name: str, folder: Path, *, config: Mapping[str, Any], inputs: Mapping[str, Path]) -> None:
        self.name, self.folder = name, folder
        self.config: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
        self.inputs = {key: _describe_input(self, key, path) for key, path in inputs.items()}
        identity = {"stage": name, "schema": SCHEMA_VERSION, "config": self.config,
                    "inputs": {key: entry["hash"] for key, entry in self.inputs.items()}}
        self.fingerprint = hash_bytes(json.dumps(identity, sort_keys=True).encode())
        self.was_complete = (folder / STAMP).is_file()
        self.started = time.monotonic()

    def is_complete(self) -> bool:
        """True when this very work is done, False when it has to be done or continued.

        Raises ``TailfillError`` when the folder holds something else. A note of other settings alone is nothing: what
        begins with a mistake can be begun again without it.
        """
        complete = self._find_stamp()
        if complete is None and self._holds_work():
            raise TailfillError(f"{self.folder}: is not empty and holds no stamp of stage '{self.name}'; "
                                "give another folder, or move this one away")
        return bool(complete)

    def begin(self) -> None:
        """Lock the folder for this process, clear the half files of a killed one, and note what is being made.

        Raises ``TailfillError`` when another process is at work in it, or has completed it in the meantime, or has made
        something else of it.
        """
        hold(self.folder)
        try:
            if self._find_stamp() and not self.was_complete:
                raise TailfillError(f"{self.folder}: another process has just completed this stage; nothing is left to "
                                    "do")
        except TailfillError:
            let_go(self.folder)
            raise
        for half in self.folder.glob(f".*{PARTIAL}"):
            half.unlink()
        write_atomically(self.folder / BEGUN, _json({"stage": self.name, "fingerprint": self.fingerprint,
                                                     "config": self.config, "inputs": self.inputs}))

    def finish(self, *, outputs: list[str], counts: Mapping[str, int], extra: Mapping[str, Any] | None = None,
               seconds: float | None = None) -> None:
        """Write the stamp. ``outputs`` are files or folders below the stage's; the first is the main table.

        ``counts`` must balance (planned = made + failed and so on); ``extra`` is whatever else readers need.
        """
        hashes = {name: hash_folder(self.folder / name) if (self.folder / name).is_dir() else
                  hash_file(self.folder / name) for name in outputs}
        stamp = {
            "stage": self.name, "fingerprint": self.fingerprint, "schema": SCHEMA_VERSION, "config": self.config,
            "inputs": self.inputs, "outputs": hashes, "output_hash": hash_bytes(_json(hashes)), "counts": dict(counts),
            "extra": dict(extra or {}), "versions": package_versions(), "git_commit": git_commit(),
            "python": platform.python_version(), "device": device_name(),
            "seconds": round(time.monotonic() - self.started if seconds is None else seconds, 1),
        }
        write_atomically(self.folder / BEGUN, _json(stamp))
        (self.folder / BEGUN).replace(self.folder / STAMP)  # in one step: no kill finds both of them, or neither
        let_go(self.folder)

    def describe(self, **rows: Any) -> str:
        """What ``--dry-run`` prints: config, inputs and whatever the stage knows of the work ahead."""
        inputs = {key: f"{entry['path']} ({entry['hash'][:12]})" for key, entry in self.inputs.items()}
        state = "complete, nothing to do" if self.is_complete() else "to do"
        return json.dumps({"stage": self.name, "folder": str(self.folder), "state": state, "inputs": inputs,
                           "config": self.config, **rows}, indent=2, default=str)

    def _find_stamp(self) -> bool | None:
        """True for this very work's stamp, False for its note that it has begun, None where neither stands."""
        for name, complete in ((STAMP, True), (BEGUN, False)):
            file = self.folder / name
            if file.is_file():
                found = read_stamp_file(file)
                if found["fingerprint"] == self.fingerprint:
                    return complete
                if complete or self._holds_work():
                    raise TailfillError(f"{self.folder}: was made from other settings: {self._difference(found)}; "
                                        "give another run folder, or move this one away")
        return None

    def _holds_work(self) -> bool:
        """Whether there is more in the folder than the note that something has begun, and half files of a kill."""
        return self.folder.is_dir() and any(file.suffix != PARTIAL and file.name != BEGUN
                                            for file in self.folder.iterdir())

    def _difference(self, found: dict[str, Any]) -> str:
        """Name the first settings and inputs that differ."""
        if found.get("schema", SCHEMA_VERSION) != SCHEMA_VERSION:
            return f"schema version {found['schema']}, wanted {SCHEMA_VERSION}"
        then, now = _flatten(found["config"]), _flatten(self.config)
        keys = [key for key in sorted(then | now) if then.get(key) != now.get(key)]
        if found["stage"] != self.name:
            return f"stage '{found['stage']}', wanted '{self.name}'"
        if keys:
            return "; ".join(f"{key} was {then.get(key)!r}, now {now.get(key)!r}" for key in keys[:3])
        inputs = [key for key in sorted(found["inputs"].keys() | self.inputs)
                  if found["inputs"].get(key, {}).get("hash") != self.inputs.get(key, {}).get("hash")]
        return f"input {', '.join(inputs)} has changed since"


def require(folder: Path, name: str) -> dict[str, Any]:
    """The stamp of a complete stage, or ``TailfillError`` with the command that makes it."""
    stamp = read_stamp(folder)
    if stamp is None:
        names = [(stage, (stage.name, stage.folder.split("/")[0])) for stage in STAGES]
        command = next((stage.command for stage, known in names if name in known), None)
        raise TailfillError(f"{folder}: no complete '{name}' stage here" + (f"; run: {command}" if command else ""))
    if stamp.get("schema") != SCHEMA_VERSION:
        raise TailfillError(f"{folder}: schema version {stamp.get('schema')}, wanted {SCHEMA_VERSION}")
    return stamp


def verify(folder: Path, name: str, output: str) -> Path:
    """The path of a complete stage's output, after checking that its bytes are those that the stamp names."""
    stamp = require(folder, name)
    file = folder / output
    if output not in stamp["outputs"]:
        raise TailfillError(f"{folder}: its stamp names no output '{output}'")
    if not file.exists():
        raise TailfillError(f"{file}: is named by the stamp but missing")
    found = hash_folder(file) if file.is_dir() else hash_file(file)
    if found != stamp["outputs"][output]:
        raise TailfillError(f"{file}: was changed after its stamp was written (sha256 {found[:12]}, "
                            f"stamp {stamp['outputs'][output][:12]})")
    return file


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide results."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the code that runs, with ``-dirty`` for uncommitted changes; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40",
               "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def device_name() -> str:
    """The device type that torch would use, with its name; of a stage that has not loaded torch, the CPU."""
    torch = sys.modules.get("torch")  # important: loading it takes seconds and 350 MB that such a stage can do without
    on_gpu = torch is not None and torch.cuda.is_available()
    return str(torch.cuda.get_device_name()) if torch and on_gpu else f"cpu {platform.machine()}"


def _describe_input(stage: Stage, key: str, path: Path) -> dict[str, str]:
    if path.is_file():
        return {"kind": "file", "path": str(path.resolve()), "hash": hash_file(path)}
    return {"kind": "stage", "path": str(path.resolve()), "hash": require(path, key)["output_hash"]}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, default=str) + "\n").encode()
