"""To the hub, by the library's own call, and only when asked to.

Nothing is pushed without its card, and nothing that was to be private into a repository that others can see. Not
promised: that a push which ended halfway has left nothing there; the same command completes it.
"""

import re
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from cohort.errors import TailfillError

CARD = "README.md"
Kind = Literal["dataset", "model"]


class Api(Protocol):
    """What is used of ``huggingface_hub.HfApi``."""

    def create_repo(self, repo_id: str, **settings: Any) -> Any:
        """Make a repository, or leave the one that is there."""

    def repo_info(self, repo_id: str, **settings: Any) -> Any:
        """What the hub knows of it; ``private`` for one."""

    def upload_folder(self, **settings: Any) -> Any:
        """Upload in one commit."""


def check_repository(name: str) -> None:
    """Raise ``TailfillError`` for what is no id of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise TailfillError(f"--push is '{name}'; wanted: OWNER/NAME: {error}") from error
    if name.count("/") != 1:
        raise TailfillError(f"--push is '{name}'; wanted: OWNER/NAME")


def read_card(folder: Path) -> dict[str, Any]:
    """The header of a folder's card; raises ``TailfillError`` when there is no card, or none that names a licence."""
    file = folder / CARD
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.match(r"---\n(.*?)\n---\n(.*)", text, flags=re.DOTALL)
    try:
        header = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        header = None
    if found is None or not isinstance(header, dict) or not header.get("license") or not found[2].strip():
        raise TailfillError(f"{file}: is no card with a header that names a license; nothing is pushed without one")
    return header


def push(folder: Path, repository: str, *, kind: Kind, private: bool, api: Api) -> None:
    """Upload a complete export; raises ``TailfillError`` when the hub refuses, or others could see what is private."""
    read_card(folder)
    try:
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        if private and not api.repo_info(repository, repo_type=kind).private:
            raise TailfillError(f"--push {repository}: this repository exists and is public, and --private is given; "
                                "wanted: a private one, or another name")
        api.upload_folder(repo_id=repository, repo_type=kind, folder_path=str(folder),
                          commit_message="Synthetic chest radiographs" if kind == "dataset" else "Generator")
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TailfillError(f"--push {repository}: {reason}; the export is complete in {folder}, and the same command "
                            "tries again") from error
