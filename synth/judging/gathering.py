"""Gather the evidence: which sets of images there are, which reader reads which of them, and the one pass over each.

An image made is known by its file's hash, which must be the one that ``images.parquet`` tells; a real one by its pixels
at the size of those made. So nothing that was read of either is ever taken for another image's.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from classify.slots import load_pools
from cohort.config import Run
from cohort.errors import TailfillError
from cohort.pixels import load_images, read_grey
from cohort.stage import hash_file, read_stamp
from cohort.tables import RECONSTRUCTED, Cohort
from synth.judging.copies import CopyReader
from synth.judging.evidence import Evidence, Images
from synth.judging.memorisation import HELD_OUT_SIDE, NEAREST, TRAIN_SIDE, Collection, make_searches
from synth.judging.reading import Reader, Share, Source, collect, file_digests, pixel_digests, read

SETS: dict[str, tuple[str, ...]] = {
    "pixels": ("made", "train"),
    "encoder": ("made", "train", "val", "reconstructed"),
    "copies": ("train", "val"),
    "critic": ("made", "val"),
    "fold": ("made",),
}
"""Kind of reader to the sets of images that it reads. A critic has learnt the train images by heart; an out-of-fold
critic also reads the real images that were held out from it, a set of its own name. Where copies are looked for, the
images made and those of validation are searched among what ``copies`` has read, and what a rule sees is what was found
(``SEARCHING``)."""
SEARCHING = {"made": (NEAREST, TRAIN_SIDE, HELD_OUT_SIDE), "val": (NEAREST,)}
"""Set of images to the searches that its images go through."""


REAL = ("train", "val")
"""The splits whose images are looked at."""


@dataclass(frozen=True, kw_only=True)
class Gatherer:
    """What there is to read, and what reads it."""

    cohort: Cohort
    made: pd.DataFrame
    """The rows of images.parquet with status ok, with the plan's columns."""
    folder: Path
    """Of the images made."""
    readers: Mapping[str, Sequence[Reader]]
    """Kind, a key of ``SETS``, to its readers."""
    run: Path
    """Its ``cache`` folder is used."""
    threads: int
    reconstructed: Sequence[Path] = ()
    """Files of the train images as the generator's autoencoder draws them, in the order of the train images."""
    held_out: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Name of an out-of-fold critic to the image_id of the train and validation images that it may judge."""

    @property
    def size(self) -> int:
        """Pixels per side of the images made; raises ``TailfillError`` unless they are square and of one size."""
        sizes = sorted(set(zip(self.made["height"], self.made["width"], strict=True)))
        if len(sizes) != 1 or sizes[0][0] != sizes[0][1]:
            raise TailfillError(f"{self.folder / 'images.parquet'}: images of {len(sizes)} sizes ({sizes[:3]}); "
                                "wanted: square ones of one size")
        return int(sizes[0][0])

    def sources(self) -> dict[str, Source]:
        """The sets of images, each file of an image made hashed.

        Raises ``TailfillError`` for a file that is unreadable or not the one that was generated.
        """
        real = {split: self._source_of(f"real images ({split})", self.cohort.image_paths(self.cohort.split(split)))
                for split in REAL}
        again = {"reconstructed": self._source_of("real images, reconstructed", self.reconstructed)}
        return {"made": self._source_of_made(), **real, **(again if self.reconstructed else {}),
                **{critic: self._source_of_held_out(critic, real) for critic in self.held_out}}

    def read(self, sources: Mapping[str, Source], *, share: Share, wait: Callable[[], None] = lambda: None) -> None:
        """One pass over each set, of this process's share; ``wait`` returns when all processes have come so far.

        What the images are searched among is read first, by all of them.
        """
        for split in REAL:
            read(sources[split], self._readers_of(split), self.cache, share=share)
        wait()
        searches = self._searches(sources)
        for name, source in sources.items():
            read(source, [*self._readers_of(name), *searches.get(name, ())], self.cache, share=share)

    def evidence(self, sources: Mapping[str, Source], *, scarce: list[str]) -> Evidence:
        """The case, once every process has read its share."""
        labels, charged_to = self.made[self.cohort.labels], self.made["charged_to"].to_numpy()
        searches = self._searches(sources)
        real = {split: self.cohort.split(split) for split in REAL}
        owner = real["train"].set_index("image_id")["patient_id"]  # of an image that others were drawn from
        owners = self.made["init_image_id"].map(owner).astype(object).fillna("synthetic:" + self.made["sample_id"])
        sets = {"made": (self.made, labels, owners)}
        both = pd.concat(real.values(), ignore_index=True)
        real |= {critic: both[both["image_id"].isin(ids)].reset_index(drop=True)
                 for critic, ids in self.held_out.items()}
        sets |= {name: (frame, frame[self.cohort.labels], frame["patient_id"]) for name, frame in real.items()}
        gathered = {
            name: Images(
                labels=labels, patients=patients.to_numpy(), views=frame["view"].to_numpy(dtype=object),
                readings=collect(sources[name], [
                    *(reader for reader in self._readers_of(name) if reader.name != CopyReader.name),
                    *searches.get(name, ())], self.cache),
                load=sources[name].load,
            )
            for name, (frame, labels, patients) in sets.items()
        }
        again = collect(sources["reconstructed"], self._readers_of("reconstructed"),
                        self.cache) if self.reconstructed else {}
        names = {kind: tuple(reader.name for reader in self.readers.get(kind, ())) for kind in SETS}
        return Evidence(charged_to=charged_to, scarce=scarce, watched=tuple(self.cohort.in_group("tail")),
                        controls=tuple(self.cohort.in_group("control")),
                        critics=names["critic"], encoders=names["encoder"], made=gathered["made"],
                        train=gathered["train"], val=gathered["val"], reconstructed=again,
                        folds={critic: gathered[critic] for critic in self.held_out},
                        noise=self.made["seed"].where(self.made["init_image_id"].isna(), -1).to_numpy(dtype=np.int64))

    @property
    def cache(self) -> Path:
        """Folder of all that was read."""
        return self.run / "cache" / "readings"

    def _searches(self, sources: Mapping[str, Source]) -> dict[str, list[Reader]]:
        """Set of images to the searches that its images go through; none where no rule asks for copies."""
        readers = self.readers.get("copies", ())

        def collection(split: str) -> Collection:
            return Collection(
                digests=sources[split].digests, patients=self.cohort.split(split)["patient_id"].to_numpy(),
                readings=lambda: collect(sources[split], readers, self.cache)[CopyReader.name])

        searches = make_searches(*map(collection, REAL)) if readers else []
        return {name: [search for search in searches if search.name in wanted] for name, wanted in SEARCHING.items()}

    def _readers_of(self, name: str) -> list[Reader]:
        return [reader for kind, readers in self.readers.items() for reader in readers
                if name in SETS[kind] or name == reader.name]

    def _source_of_made(self) -> Source:
        paths, size = [self.folder / path for path in self.made["path"]], self.size

        def load(rows: Sequence[int]) -> np.ndarray:
            with ThreadPoolExecutor(self.threads) as pool:
                return np.stack(list(pool.map(lambda row: read_grey(paths[row], size), rows)))

        with ThreadPoolExecutor(self.threads) as pool:
            for path, sha256, told in zip(paths, pool.map(_hash, paths), self.made["sha256"], strict=True):
                if sha256 != told:
                    raise TailfillError(f"{path}: was changed after it was generated: its sha256 is not that of "
                                        "images.parquet")
        return Source(name="images made", digests=file_digests(list(self.made["sha256"])), load=load)

    def _source_of(self, name: str, paths: Sequence[Path]) -> Source:
        pixels = load_images(paths, self.size, self.run / "cache", threads=self.threads)
        return Source(name=name, digests=pixel_digests(pixels), load=lambda rows: np.asarray(pixels[list(rows)]))

    def _source_of_held_out(self, critic: str, real: Mapping[str, Source]) -> Source:
        """Images of both splits, in their order."""
        places = [(real[split], int(row)) for split in REAL
                  for row in np.flatnonzero(self.cohort.split(split)["image_id"].isin(self.held_out[critic]))]
        return Source(name=f"real images ({critic})", digests=np.array([source.digests[row] for source, row in places]),
                      load=lambda rows: np.concatenate([places[at][0].load([places[at][1]]) for at in rows]))


def _hash(path: Path) -> str:
    if not path.is_file():
        raise TailfillError(f"{path}: no such image file")
    return hash_file(path)


def find_reconstructed(run: Run, cohort: Cohort) -> list[Path]:
    """The train images as the autoencoder draws them, in their order.

    Raises ``TailfillError`` when stage `reconstruct` is not complete, or went through another generator's autoencoder.
    """
    folder = run.folder / "reconstructed"
    pool = load_pools({"reconstruct": folder}, cohort)["reconstruct"]
    makers = [(read_stamp(place) or {})["inputs"].get("generator", {}).get("hash")
              for place in (folder, run.folder / "images")]
    if makers[0] != makers[1]:
        raise TailfillError(f"{folder}: is of another generator than {run.folder / 'images'}; wanted: the same "
                            "pipeline in the sections reconstruct and generate")
    paths = dict(zip(pool.frame["image_id"], pool.paths(), strict=True))
    return [paths[RECONSTRUCTED + image] for image in cohort.split("train")["image_id"]]
