"""What was made leaves the run: accepted images as a dataset with its card, or the generator as a pipeline with its.

::

    python -m synth.export --run RUN --out DIR                  an image folder of Hugging Face's datasets
    python -m synth.export --run RUN --out DIR --generator      a diffusers pipeline
    ... --licence cc-by-nc-4.0 --base-licence openrail++        where Tailfill cannot know them
    ... --push OWNER/NAME --private                             to the hub as well; off unless asked for

The card says what drew the images, whose radiographs it has learnt from and on what terms, what the filter kept of
each class, fidelity beside its floors, what is known of copies, and what all this is not for. The licence must be given
unless the cohort is a phantom: most sources forbid that their images be passed on, and Tailfill cannot say for whom
that holds of images that resemble them. That of the base pipeline must be given where its own card does not name it.

DIR must not exist, or be empty. It is written beside under another name and renamed at its end, so what is there is
whole; the same command again finds it complete (and pushes it, if asked to). Only a finished run is exported. Not
promised: that a licence which was given is right.
"""

import argparse
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from cohort.errors import TailfillError, run_command
from cohort.lock import hold, let_go
from cohort.stage import git_commit, hash_bytes, package_versions, write_atomically
from synth.exporting.cards import dataset_card, model_card
from synth.exporting.facts import Facts, read_facts
from synth.exporting.hub import CARD, Api, check_repository, push
from synth.exporting.image_folder import list_metadata, write_image_folder
from synth.exporting.pipeline_folder import find_generator, write_pipeline_folder
from synth.exporting.rights import choose_licence

log = logging.getLogger(__name__)

RECORD = "export.json"
"""Written last: what an export was made from."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """One thing that leaves: what it is called, what it was made from, and what writes it into a new folder."""

    kind: str
    """``images`` or ``generator``."""
    identity: dict[str, Any]
    """What decides its content, in plain types."""
    write: Callable[[Path], None]
    card: str
    counts: dict[str, int]

    @property
    def fingerprint(self) -> str:
        """sha256 of kind, identity and card."""
        content = {"kind": self.kind, "card": self.card, **self.identity}
        return hash_bytes(json.dumps(content, sort_keys=True, default=str).encode())


def base_licence_of(facts: Facts, given: str | None) -> str | None:
    """The licence of the pipeline that the generator started from; None for one from nothing.

    Raises ``TailfillError`` where nobody says, and where one is given for a pipeline that does not exist.
    """
    generator = facts.generator
    if generator.from_nothing:
        if given is not None:
            raise TailfillError(f"--base-licence is '{given}', and the generator was trained from nothing; wanted: "
                                "none")
        return None
    if given is None and generator.base_licence is None:
        raise TailfillError(f"the generator started from {generator.base}, whose licence is not known here; wanted: "
                            "--base-licence, as that pipeline's page states it")
    return choose_licence(given or generator.base_licence, (), flag="--base-licence")


def plan_export(facts: Facts, *, generator: bool, licence: str | None, base_licence: str | None) -> Export:
    """Everything that is to leave, checked; raises ``TailfillError`` before a byte is written."""
    base = base_licence_of(facts, base_licence)
    chosen = choose_licence(licence, facts.rights)
    identity = {"licence": chosen, "base_licence": base,
                "stages": {name: stamp["output_hash"] for name, stamp in facts.stamps.items()}}
    if generator:
        pipeline, lora = find_generator(facts)
        stamp = facts.generator.training or {}
        return Export(kind="generator", identity=identity | {"finetune": stamp.get("output_hash")},
                      write=lambda folder: write_pipeline_folder(pipeline, lora, folder), counts={"pipelines": 1},
                      card=model_card(facts, licence=chosen, base_licence=base, lora=lora is not None))
    metadata = list_metadata(facts)
    return Export(kind="images", identity=identity, write=lambda folder: write_image_folder(facts, metadata, folder),
                  card=dataset_card(facts, metadata, licence=chosen, base_licence=base),
                  counts={"planned": len(facts.plan), "made": len(facts.synthetic), "exported": len(metadata)})


def is_complete(out: Path, export: Export) -> bool:
    """Whether this very export stands in ``out``; raises ``TailfillError`` when something else does."""
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        found = record["fingerprint"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TailfillError(f"--out {out}: is not empty, and no export of this run; wanted: a folder that does not "
                            "exist, or is empty") from error
    if found != export.fingerprint:
        raise TailfillError(f"--out {out}: holds an export of {record.get('kind')} from another run, or under other "
                            "settings; wanted: another folder")
    return True


def write_export(export: Export, out: Path) -> None:
    """Write ``out`` in one step: whole, or not at all. Raises ``TailfillError`` when that cannot be done."""
    hold(out)
    partial = out.with_name(f".{out.name}.exporting")
    try:
        if partial.exists():  # what a killed export has left under its own name
            shutil.rmtree(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        export.write(partial)
        write_atomically(partial / CARD, export.card.encode())
        record = {"kind": export.kind, "fingerprint": export.fingerprint, "counts": export.counts,
                  "git_commit": git_commit(), "versions": package_versions(), **export.identity}
        write_atomically(partial / RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
        partial.rename(out)
    except OSError as error:
        raise TailfillError(f"--out {out}: cannot be written: {error.strerror or error}; nothing is there that looks "
                            "whole") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        let_go(out)


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked as far as that goes without the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; absent or empty")
    parser.add_argument("--generator", action="store_true", help="export the generator instead of the images")
    parser.add_argument("--licence", help="identifier or name of the licence under which it leaves")
    parser.add_argument("--base-licence", help="licence of the pipeline that the generator started from")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository of the hub; default: no")
    parser.add_argument("--private", action="store_true", help="the repository is to be private; only with --push")
    options = parser.parse_args(argv)
    if options.push is not None:
        check_repository(options.push)
    elif options.private:
        raise TailfillError("--private is given without --push; wanted: both, or neither")
    return options


def main(api: Api | None = None) -> None:
    """Check, write, and push if asked to; ``api`` stands in for the hub."""
    options = read_arguments()
    out: Path = options.out.absolute()
    facts = read_facts(options.run.absolute())
    export = plan_export(facts, generator=options.generator, licence=options.licence, base_licence=options.base_licence)
    if is_complete(out, export):
        log.info("export: complete, nothing to write")
    else:
        write_export(export, out)
        log.info("export: %s in %s", ", ".join(f"{key} {n:,}" for key, n in export.counts.items()), out)
    if options.push is not None:
        hub: Any = api or HfApi()
        push(out, options.push, kind="model" if options.generator else "dataset", private=options.private, api=hub)
        log.info("export: pushed to %s", options.push)


if __name__ == "__main__":
    run_command(main)
