"""Is it a radiograph's picture at all? Grey levels, borders, lattices and the view, against the real images.

``PixelStatistics`` reads five numbers of each image in the one pass; a rule is a quantile of one or two of them over
the real train images of the same size. Images come squeezed to a square, so a wrong aspect shows as bars:

- **Border.** A frame or a pair of bars is a jump between neighbouring lines at the same depth on opposite sides. A
  single bar is a flat run of lines from an edge on. Where real images have black collimation of a width, bars of that
  width pass: on such a set the rule promises little against one bar, and much against frames.
- **Checkerboard.** Strided and transposed convolutions leave a pattern with a period of 2, 4 or 8 pixels (Odena 2016),
  hence power in single bins of the spectrum at multiples of an eighth of the sampling frequency, above the bins around.
- **View.** A linear discriminant between PA and AP on the fidelity encoder's features, learnt on train images, judged
  and calibrated on validation images. An image fails when the other view is likelier *and* hardly any real image of
  the view asked for looks as little like it.

All of them together fail about 1 % of real images: .1 % per statistic, .5 % of either view.
"""

import numpy as np

from synth.judging.critic import auroc_interval
from synth.judging.evidence import Evidence, Images
from synth.judging.realism import features, held_back_quantile, thinned
from synth.judging.rules import Criterion, reads
from synth.measuring.probe import LinearProbe

STATISTICS = ("std", "share_at_ends", "mirrored_step", "flat_run", "lattice_power")
"""What ``PixelStatistics`` reads, in the order of its columns."""
FLAT = 2.0
"""Standard deviation, in grey levels, below which a line is flat; chosen above JPEG's ripple on a constant."""
SLACK = 0.5
"""Grey levels added where differences are divided, so that a constant background does not divide by zero."""
PERIOD = 8
"""Longest period of a lattice, in pixels: three halvings, as in the usual autoencoders."""
NEAR, FAR = 1, 3
"""Bins on each side that count as a lattice's peak, and as its surroundings: Hann's window spreads a line over 3."""
VIEWS = ("PA", "AP")


class PixelStatistics:
    """Five numbers per image: see ``STATISTICS``.

    Standard deviation of the grey levels (0 to 127.5); share of pixels at 0 or 255; largest mirrored step (ratio);
    longest flat run from an edge (share of the side); lattice power (log10 of a ratio, 0 below 16 pixels per side).
    """

    name = "pixel_statistics"
    key = "2"
    width = len(STATISTICS)

    def read(self, images: np.ndarray) -> np.ndarray:
        """uint8 (b, size, size) to float32 (b, 5)."""
        rows = [(image.std(dtype=np.float64), ((image == 0) | (image == 255)).mean(), mirrored_step(image),
                 flat_run(image), lattice_power(image)) for image in images]
        return np.array(rows, dtype=np.float32).reshape(len(images), self.width)


def mirrored_step(image: np.ndarray) -> float:
    """The largest jump at one depth on two opposite sides, relative to the jumps three lines around it.

    The jump is the mean absolute difference of neighbouring lines; the depth is a quarter of the side at most, which
    is where the bars of an image twice as long as wide would end. ``image`` is uint8 (size, size), size >= 8.
    """
    largest = 0.0
    for grey in (image.astype(np.float64), image.T.astype(np.float64)):
        jumps = np.abs(np.diff(grey, axis=0)).mean(axis=1)
        around = np.lib.stride_tricks.sliding_window_view(np.pad(jumps, 3, mode="reflect"), 7)[:, [0, 1, 2, 4, 5, 6]]
        relative = (jumps / (np.median(around, axis=1) + SLACK))
        depth = len(image) // 4
        largest = max(largest, float(np.minimum(relative[:depth], relative[::-1][:depth]).max()))
    return largest


def flat_run(image: np.ndarray) -> float:
    """Share of the side that flat lines take from one edge on, the largest of the four sides; uint8 (size, size)."""
    flat = [image.std(axis=axis, dtype=np.float64) < FLAT for axis in (0, 1)]
    runs = [np.cumprod(lines).sum() for side in flat for lines in (side, side[::-1])]
    return float(max(runs) / len(image))


def lattice_power(image: np.ndarray) -> float:
    """log10 of a lattice's power over that of the surrounding bins, the largest of all periods up to ``PERIOD``.

    Periods whose lines lie fewer than 8 bins apart are left out. ``image`` is uint8 (size, size).
    """
    size = len(image)
    parts = max((period for period in (2, 4, PERIOD) if size // period >= 8), default=0)
    if parts == 0:
        return 0.0
    window = np.hanning(size)
    grey = image.astype(np.float64)
    power = np.abs(np.fft.fft2((grey - grey.mean()) * window[:, None] * window)) ** 2
    lines = np.rint(np.arange(parts) * size / parts).astype(int)
    down, right = (axis.ravel()[1:] for axis in np.meshgrid(lines, lines[: parts // 2 + 1], indexing="ij"))
    offsets = np.arange(-FAR, FAR + 1)
    bins = power[(down[:, None, None] + offsets[:, None]) % size, (right[:, None, None] + offsets) % size]
    peak = np.add.outer(abs(offsets) > NEAR, abs(offsets) > NEAR) == 0
    ratio = bins[:, peak].mean(axis=1) / (np.median(bins[:, ~peak], axis=1) + size**2 * 1e-6)
    return float(np.log10(ratio.max() + 1e-6))


@reads("pixels")
def blank(evidence: Evidence, *, quantile: float = 0.001) -> list[Criterion]:
    """Standard deviation of the grey levels: at least what all but ``quantile`` of the real train images have."""
    return [_by_quantile(evidence, "std", quantile, at_least=True, what="std of grey levels")]


@reads("pixels")
def saturated(evidence: Evidence, *, quantile: float = 0.999) -> list[Criterion]:
    """Share of pixels at 0 or 255: at most what a share of ``quantile`` of the real train images have."""
    return [_by_quantile(evidence, "share_at_ends", quantile, at_least=False, what="share of pixels at 0 or 255")]


@reads("pixels")
def frame(evidence: Evidence, *, quantile: float = 0.999) -> list[Criterion]:
    """A jump at one depth on opposite sides: at most what a share of ``quantile`` of the real train images have."""
    return [_by_quantile(evidence, "mirrored_step", quantile, at_least=False,
                         what="jump at one depth on opposite sides, relative to the lines around")]


@reads("pixels")
def bar(evidence: Evidence, *, quantile: float = 0.999) -> list[Criterion]:
    """Flat lines from an edge on: at most what a share of ``quantile`` of the real train images have."""
    return [_by_quantile(evidence, "flat_run", quantile, at_least=False,
                         what="share of the side taken by flat lines from an edge on")]


@reads("pixels")
def checkerboard(evidence: Evidence, *, quantile: float = 0.999) -> list[Criterion]:
    """Power of a lattice: at most what a share of ``quantile`` of the real train images have."""
    return [_by_quantile(evidence, "lattice_power", quantile, at_least=False,
                         what=f"log10 power of a lattice of at most {PERIOD} pixels over the bins around")]


def _by_quantile(evidence: Evidence, statistic: str, quantile: float, *, at_least: bool, what: str) -> Criterion:
    column = STATISTICS.index(statistic)
    real = evidence.train.read(PixelStatistics.name)[:, column].astype(np.float64)
    threshold = float(np.quantile(real, quantile, method="lower" if at_least else "higher"))  # nothing in between
    return Criterion(
        label=None, score=evidence.made.read(PixelStatistics.name)[:, column].astype(np.float64),
        applies=np.ones(len(evidence.made), dtype=bool), threshold=threshold,
        at_least=at_least, source=f"{what}, quantile {quantile:g} of {len(real):,} real train images",
    )


@reads("encoder")
def view(evidence: Evidence, *, passing: float = 0.995) -> list[Criterion]:
    """The view asked for must not be the unlikelier one, unless real images of that view look as unlike it.

    Args:
        evidence: with an encoder's features.
        passing: share of the real validation images of a view that pass at least, 0 to 1.
    """
    scores, reason, skill = _view_scores(evidence)
    criteria = []
    for name, sign in zip(VIEWS, (1.0, -1.0), strict=True):
        of_view = evidence.val.views == name
        lowest = None if reason else held_back_quantile(-sign * scores["val"][of_view], passing)
        why = reason or (None if lowest is not None else
                         f"not judged: {of_view.sum()} validation images are too few for a share of {passing:g}")
        criteria.append(Criterion(
            label=name, score=sign * scores["made"], applies=evidence.made.views == name,
            threshold=None if lowest is None else min(-lowest, 0.0), at_least=True, reason=why,
            source=f"log odds of the view asked for; 0, or the score that a share of {passing:g} of {of_view.sum()} "
                   f"validation images reach where that is lower; {skill}",
        ))
    return criteria


def _view_scores(evidence: Evidence) -> tuple[dict[str, np.ndarray], str | None, str]:
    """Log odds of PA against AP for images made and validation images; why they do not count; the skill in words."""
    sets: dict[str, Images] = {"made": evidence.made, "val": evidence.val}
    missing = {name: np.zeros(len(images)) for name, images in sets.items()}
    train, known = evidence.train, np.flatnonzero(np.isin(evidence.train.views, VIEWS))
    n_train, n_val = ([int((images.views == name).sum()) for name in VIEWS] for images in (train, evidence.val))
    if min(n_train) < 2 or min(n_val) < 1:
        return missing, (f"not judged: {n_train} train and {n_val} validation images of {VIEWS}; wanted: 2 and 1 "
                         "at least"), "skill unknown"
    rows = thinned(known)
    probe = LinearProbe.fit(features(evidence, train)[rows], train.views[rows] == VIEWS[0])
    scores = {name: probe.log_odds(features(evidence, images)) for name, images in sets.items()}
    judged = np.isin(evidence.val.views, VIEWS)
    auroc, low, high = auroc_interval(logits=scores["val"][judged], patients=evidence.val.patients[judged],
                                      targets=(evidence.val.views[judged] == VIEWS[0]).astype(np.int64))
    skill = f"validation AUROC {auroc:.3f} ({low:.3f} to {high:.3f})"
    return scores, f"not judged: {skill} is not above chance" if low <= 0.5 else None, skill
