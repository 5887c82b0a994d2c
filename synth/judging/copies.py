"""Which training images is an image a copy of, if it was cropped, shifted, mirrored, re-windowed or compressed since?

Features of a classifier answer another question (what does it look like?), and most chests look alike. Here an image is
laid upon its candidates, as one would lay two films on a light box:

    reading   48 x 48 thumbnail, less its own blur and over its local contrast: ribs, vessels, edges; no grey scale
    retrieve  the image's four quarters, upright and mirrored, each moved by up to 12.5 % of the side on its own,
              against the same quarters of every training image: a crop moves quarters apart, a shift moves all alike;
              then the best of them once more, in finer moves and at three scales
    align     the best of these at 16 and then at 48 pixels, in scale and shift of either axis, by Gauss-Newton on the
              correlation (Evangelidis & Psarakis, PAMI 2008: "enhanced correlation coefficient")
    compare   normalised cross-correlation (NCC) over what both show

All numbers are deterministic and do not depend on how images are batched. Memory: 1.6 kB a training image beside its
reading, which may lie on disk. Time grows linearly with the training images.

Not promised: rotations beyond a few degrees, crops of less than about 80 % of a side, upside-down or inverted images,
and copies of a part of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

SIDE, COARSE = 48, 16
"""Pixels per side of a reading, and of what retrieval and the first alignment see of it."""
BAND, LOCAL = 1 / 36, 1 / 8
"""Standard deviations of the blur that is taken away and of the window of local contrast, in sides of the image. With a
band of 1/20, phantoms look more alike: 78 % of 40 brightened copies scored below all of 80 strangers, not 100 %."""
NOISE = 4.0
"""Grey levels added to the local contrast, so that flat regions stay flat."""
REACH = 6
"""Retrieval moves a quarter by up to so many pixels of a reading."""
QUARTER = 6
"""Pixels per side of a quarter at ``COARSE``; a frame of two pixels, where a shift leaves its edge, belongs to none."""
FIRST, SECOND = (2, (0.94,)), (1, (1.0, 0.93, 0.86))
"""Pixels of a reading between a quarter's moves, and the scales at which the image is shown: to all training images,
then to those in the longlist, as a crop magnifies. Of 80 crops of phantoms the source was among the 32 best of 3,730 in
57 % with ``(2, (1.0,))`` alone, in 78 % with ``FIRST``; it was named in 92.5 % with two scales in ``SECOND`` and a
longlist of 500 or 1,000, in 98.8 % with three and 1,000 (79 and 80 of 80 shifted ones)."""
LONGLIST, SHORTLIST, FINALISTS, PATIENTS = 1000, 96, 10, 8
"""Training images that are looked at twice; those that are aligned, at ``COARSE`` and in one step at ``SIDE``; those
of them that are aligned to the end; patients that are told of. To the first two comes the best one of each of the 16
nearest patients, to the third that of the 8 nearest. The step at ``SIDE`` is what tells a source from look-alikes: of
150 crops of phantoms 90 % were caught when the ten went by ``COARSE``, 97 % by ``SIDE`` (1.1 times as long), 99 % by
``SIDE`` among 96, not 32 (1.55 times)."""
MARGIN_TRAIN, MARGIN_MADE = 0.1, 0.05
"""Frame of either image that is not compared: there, what was shifted in or cut off spoils the local contrast."""
MAX_SCALE, MAX_SHIFT, MAX_MOVE = 0.22, 0.16, 0.06
"""Largest change of scale and shift (in sides), and of either in one step of an alignment."""
CHUNK = 8192
"""Training images compared at a time."""
IDENTITY = (1.0, 0.0, 1.0, 0.0)
SEARCH_KEY = "2 " + repr((SIDE, COARSE, REACH, QUARTER, FIRST, SECOND, LONGLIST, FINALISTS, PATIENTS, MARGIN_TRAIN,
                          MARGIN_MADE, MAX_SCALE, MAX_SHIFT, MAX_MOVE))
"""What a search finds depends on, beside the images; the number is the version of the code below."""


class CopyReader:
    """A reader (synth/judging/reading.py) of what a copy keeps: the pattern of ribs, vessels and edges."""

    name = "copies"
    key = f"1 side={SIDE} band={BAND:.4f} local={LOCAL:.4f} noise={NOISE}"
    width = SIDE * SIDE

    def read(self, images: np.ndarray) -> np.ndarray:
        """uint8 (b, size, size) to float32 (b, 2304), about -3 to 3 with mean near 0; rows do not depend on b."""
        grey = torch.from_numpy(np.array(images)).float().unsqueeze(1)
        small = functional.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True)[:, 0].numpy()
        detail = small - _blur(small, BAND)
        contrast = np.sqrt(_blur(detail * detail, LOCAL))
        return np.asarray((detail / (contrast + NOISE)).reshape(len(images), -1), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Each image's nearest training image of each of its k nearest patients, nearest first; (n, k) unless said."""

    rows: np.ndarray
    """int64: rows of the training images."""
    ncc: np.ndarray
    """float64, -1 to 1, after alignment; NaN where there are fewer patients than k."""
    flipped: np.ndarray
    """bool: whether the image matches as its mirror image."""
    warps: np.ndarray
    """float64 (n, k, 4): scale and shift along x, then along y: where the image's (mirrored) pixel at u lies in the
    training image, v - .5 = scale (u - .5) + shift, both in sides."""


class Gallery:
    """Training images to be searched."""

    def __init__(self, readings: np.ndarray, patients: Sequence[str] | np.ndarray) -> None:
        """Take ``CopyReader``'s readings, float32 (n, 2304), and each image's patient; raises ``ValueError`` for 0."""
        if not len(readings):
            raise ValueError("Gallery: no training images; wanted: one or more")
        self.readings = torch.from_numpy(np.ascontiguousarray(readings)).unflatten(1, (SIDE, SIDE))
        self.patients = torch.from_numpy(np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1])
        parts = self.readings.split(CHUNK)
        self.coarse = torch.cat([_coarse(part) for part in parts])
        self.quarters = torch.cat([_quarters(_thinned(part)) for part in parts], dim=1).mT.contiguous()  # (4, 36, n)

    @torch.inference_mode()
    def search(self, readings: np.ndarray, *, shortlist: int = SHORTLIST) -> Matches:
        """Find each image's nearest training images.

        Args:
            readings: of the images, float32 (n, 2304).
            shortlist: training images that are aligned for each, besides the best one of each near patient.
        """
        n = len(readings)
        found = Matches(rows=np.zeros((n, PATIENTS), dtype=np.int64), ncc=np.full((n, PATIENTS), np.nan),
                        flipped=np.zeros((n, PATIENTS), dtype=bool), warps=np.tile(IDENTITY, (n, PATIENTS, 1)))
        for i, reading in enumerate(readings):
            both = _both_ways(torch.from_numpy(np.array(reading)).view(SIDE, SIDE))
            rows, flipped, warps = self._candidates(both, shortlist)
            image, seen = both[flipped], self.readings[rows]
            ncc, warps = align(_coarse(both)[flipped], self.coarse[rows], warps, steps=3)
            ncc, warps = align(image, seen, warps, steps=1)
            last = torch.cat([ncc.topk(min(FINALISTS, len(ncc))).indices, self._one_per_patient(rows, ncc)]).unique()
            ncc, warps = align(image[last], seen[last], warps[last], steps=3)
            best = self._one_per_patient(rows[last], ncc)
            k = len(best)
            found.rows[i, :k], found.ncc[i, :k] = rows[last][best], ncc[best]
            found.flipped[i, :k], found.warps[i, :k] = flipped[last][best].bool(), warps[best]
        return found

    def _candidates(self, both: Tensor, shortlist: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the training images to align, (c,), whether mirrored, 0 or 1, and the warps to begin with, (c, 4)."""
        moved = _quarters(_moved(both, *FIRST))
        scores = torch.cat([_match(moved, part).amax(0) for part in self.quarters.split(CHUNK, dim=2)])
        rows = self._best(torch.arange(len(scores)), scores, LONGLIST)
        moved = _quarters(_moved(both, *SECOND))
        best, view = _match(moved, self.quarters[:, :, rows]).max(0)
        chosen = torch.isin(rows, self._best(rows, best, shortlist))
        rows, view = rows[chosen], view[chosen]
        where = (moved[:, view] @ self.quarters[:, :, rows].permute(0, 2, 1).unsqueeze(3)).argmax(2)[:, :, 0]
        scale, flipped = torch.tensor(SECOND[1])[view // 2], view % 2
        return rows, flipped, _warps(where, _coarse(both)[flipped], self.coarse[rows], scale)

    def _best(self, rows: Tensor, scores: Tensor, n: int) -> Tensor:
        """Of ``rows``, the ``n`` with the highest scores and the best one of each of 16 near patients, in order."""
        patients = self.patients[rows]
        by_patient = scores.new_full((int(self.patients.max()) + 1,), -2.0)
        by_patient.scatter_reduce_(0, patients, scores, "amax")
        near = torch.zeros(len(by_patient), dtype=torch.bool)
        near[by_patient.topk(min(2 * PATIENTS, len(by_patient))).indices] = True
        firsts = (scores >= by_patient[patients]) & near[patients]
        firsts[scores.topk(min(n, len(scores))).indices] = True
        return rows[firsts]

    def _one_per_patient(self, rows: Tensor, ncc: Tensor) -> Tensor:
        """Positions of the best row of each of ``PATIENTS`` patients, or of as many as there are, best first."""
        best: dict[int, int] = {}
        for position in ncc.argsort(descending=True).tolist():
            best.setdefault(int(self.patients[rows[position]]), position)
        return torch.tensor(list(best.values())[:PATIENTS])


def align(image: Tensor, seen: Tensor, warps: Tensor, *, steps: int) -> tuple[Tensor, Tensor]:
    """Warp training images onto images so that they correlate best.

    Each step regresses the image on the warped training image, its derivatives by the four numbers of the warp, and a
    constant; the coefficients of the derivatives are the next step (Gauss-Newton; contrast and brightness drop out).

    Args:
        image: float32 (m, s, s).
        seen: the training images, float32 (m, s, s).
        warps: to begin with, float32 (m, 4); see ``Matches.warps``.
        steps: of Gauss-Newton; the best warp met on the way is kept.

    Returns:
        NCC, float32 (m,), -1 to 1, and its warps, float32 (m, 4).
    """
    u = _centres(image.shape[-1])
    best, best_warps = image.new_full((len(image),), -1.0), warps
    for step in range(steps + 1):
        warped, mask = _warp(seen, warps)
        ncc = _correlation(image, warped, mask)
        best_warps = torch.where((ncc > best)[:, None], warps, best_warps)
        best = torch.maximum(best, ncc)
        if step < steps:
            down, across = torch.gradient(warped, spacing=1 / len(u), dim=(1, 2))
            across, down = across / warps[:, 0, None, None], down / warps[:, 2, None, None]
            terms = torch.stack([warped, across * u, across, down * u[:, None], down, torch.ones_like(warped)], dim=1)
            terms = (terms * mask[:, None]).flatten(2)
            normal = terms @ terms.transpose(1, 2)
            normal = normal + torch.diag_embed(1e-3 * normal.diagonal(dim1=1, dim2=2) + 1e-4)
            fit = torch.linalg.solve(normal, terms @ (image * mask).flatten(1).unsqueeze(2))[:, :, 0]
            move = (fit[:, 1:5] / fit[:, :1].clamp_min(0.2)).clamp(-MAX_MOVE, MAX_MOVE)
            limits = torch.tensor([MAX_SCALE, MAX_SHIFT, MAX_SCALE, MAX_SHIFT])
            neutral = torch.tensor(IDENTITY)
            warps = torch.clamp(warps + move, neutral - limits, neutral + limits)
    return best, best_warps


def _warp(seen: Tensor, warps: Tensor) -> tuple[Tensor, Tensor]:
    """Training images as the image would show them, bilinear, and a mask of what both show: float32 (m, s, s) each."""
    side = seen.shape[-1]
    u, pixels = _centres(side), torch.arange(side)
    v = warps[:, 0::2, None] * u + warps[:, 1::2, None]  # (m, 2, s), along x and along y
    weights = (1 - (((v + 0.5) * side - 0.5).clamp(0, side - 1).unsqueeze(3) - pixels).abs()).clamp_min(0)
    mask = ((v.abs() <= 0.5 - MARGIN_TRAIN) & (u.abs() <= 0.5 - MARGIN_MADE)).float()
    return (torch.bmm(torch.bmm(weights[:, 1], seen), weights[:, 0].transpose(1, 2)),
            mask[:, 1, :, None] * mask[:, 0, None, :])


def _correlation(image: Tensor, warped: Tensor, mask: Tensor) -> Tensor:
    """NCC over the mask, (m,); 0 where either is flat."""
    n = mask.sum((1, 2), keepdim=True).clamp_min(1)
    image, warped = ((x - (x * mask).sum((1, 2), keepdim=True) / n) * mask for x in (image, warped))
    norm = (image.square().sum((1, 2)) * warped.square().sum((1, 2))).sqrt()
    return ((image * warped).sum((1, 2)) / norm.clamp_min(1e-6)).clamp(-1, 1)


def _warps(where: Tensor, image: Tensor, seen: Tensor, scale: Tensor) -> Tensor:
    """Warps (c, 4) that explain how the quarters moved: scaled and shifted, or shifted only, whichever fits better.

    Args:
        where: the best move of each quarter, as a position among those of ``_moved`` with ``SECOND``, (4, c).
        image, seen: at ``COARSE``, (c, 16, 16) each.
        scale: at which the image was shown, (c,).
    """
    step, _ = SECOND
    per_axis = 2 * (REACH // step) + 1
    moves = torch.stack([where % per_axis, where // per_axis]) * (step / SIDE) - REACH / SIDE  # (x or y, quarter, c)
    (left, right), (top, bottom) = moves[0].view(2, 2, -1).mean(0), moves[1].view(2, 2, -1).mean(1)
    stretch = (torch.stack([right - left, bottom - top]) / (QUARTER / COARSE)).clamp(-0.2, 0.2)
    shift = torch.stack([right + left, bottom + top]) / 2
    affine = torch.stack([scale / (1 + stretch), -shift / (1 + stretch)], dim=1).flatten(0, 1).T
    middle = moves.median(dim=1).values
    shifted = torch.stack([scale.expand_as(middle), -middle], dim=1).flatten(0, 1).T
    fits = [_correlation(image, *_warp(seen, warps)) for warps in (affine, shifted)]
    return torch.where((fits[0] > fits[1])[:, None], affine, shifted)


def _match(moved: Tensor, quarters: Tensor) -> Tensor:
    """Views of an image (4, views, moves, 36) against training images (4, 36, c): the mean over quarters of the NCC in
    their best moves, (views, c)."""
    return torch.bmm(moved.flatten(1, 2), quarters).unflatten(1, moved.shape[1:3]).amax(2).mean(0)


def _moved(both: Tensor, step: int, scales: tuple[float, ...]) -> Tensor:
    """(2, 48, 48) to (2 * scales, moves, 16, 16), thinned: both ways at each scale; in each, y, x shows what stood at
    y + dy, x + dx; dx varies fastest."""
    shown = [both if scale == 1 else _warp(both, torch.tensor([[1 / scale, 0, 1 / scale, 0]] * 2))[0]
             for scale in scales]
    every = SIDE // COARSE
    padded = functional.avg_pool2d(functional.pad(torch.cat(shown), (REACH,) * 4), every, stride=1)
    starts = range(0, 2 * REACH + 1, step)
    return torch.stack([padded[:, y: y + SIDE: every, x: x + SIDE: every] for y in starts for x in starts], dim=1)


def _quarters(coarse: Tensor) -> Tensor:
    """(..., 16, 16) to (4, ..., 36), each of mean 0 and norm 1: upper left, upper right, lower left, lower right."""
    starts = (COARSE // 2 - QUARTER, COARSE // 2)
    parts = torch.stack([coarse[..., y: y + QUARTER, x: x + QUARTER].flatten(-2) for y in starts for x in starts])
    parts = parts - parts.mean(-1, keepdim=True)
    return parts / parts.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def _thinned(fine: Tensor) -> Tensor:
    """(..., 48, 48) to (..., 16, 16), means of 3 x 3 pixels: what retrieval sees."""
    pooled = functional.avg_pool2d(fine.reshape(-1, 1, SIDE, SIDE), SIDE // COARSE)
    return pooled.view(*fine.shape[:-2], COARSE, COARSE)


def _coarse(fine: Tensor) -> Tensor:
    """(..., 48, 48) to (..., 16, 16), smoothed by a mean of 5 x 5 pixels first: what the first alignment sees.

    Without it, detail that 16 pixels cannot show makes a copy moved by half a pixel look like another image (NCC of 40
    shifted phantoms with their source, after alignment, 5 % quantile: .979, without .895). Retrieval needs that detail:
    among the 64 best of 4,711 real images were all of 120 crops' sources, with the smoothing 94 %.
    """
    smooth = functional.avg_pool2d(fine.reshape(-1, 1, SIDE, SIDE), 5, stride=1, padding=2, count_include_pad=False)
    return _thinned(smooth.view(fine.shape))


def _both_ways(image: Tensor) -> Tensor:
    """(side, side) to (2, side, side): upright and mirrored."""
    return torch.stack([image, image.flip(-1)])


def _centres(side: int) -> Tensor:
    """Centres of pixels, in sides from the image's middle."""
    return (torch.arange(side) + 0.5) / side - 0.5


def _blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """float32 (b, s, s), each blurred by ``sigma`` sides of the image."""
    width = sigma * images.shape[-1]
    return np.asarray(gaussian_filter(images, (0, width, width), mode="nearest", truncate=3.0))
