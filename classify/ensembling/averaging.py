"""One opinion from several: the mean of probabilities, as a logit.

Probabilities are averaged, not logits: the ensemble is then a mixture of its members (Lakshminarayanan et al. 2017,
1612.01474, section 2.4), whose cross-entropy is at most the mean of theirs, and a member that is wrong and sure of it
moves the mean by its share at most, where its logit would move it without bound. Entrants of CXR-LT average
probabilities too (Yamagishi and Hanaoka 2024, 2410.10710).

Not promised: a better ranking than the best member's. A member whose probabilities spread more has more of a say.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from cohort.errors import TailfillError


def mix(logits: NDArray[np.floating], shares: NDArray[np.float64] | sparse.csr_array) -> NDArray[np.float64]:
    """The logits of mixed probabilities: float (n, m) -> float64 (k, m).

    ``shares``: float64 (k, n), the share of each opinion in each mixture, 0 or more; rows sum to 1. Probability and
    counter-probability are mixed each by itself, so that logits up to some 700 either way keep their order.
    """
    z = np.asarray(logits, dtype=np.float64)
    return np.asarray(np.log(shares @ expit(z)) - np.log(shares @ expit(-z)))


def average(logits: Sequence[NDArray[np.floating]]) -> NDArray[np.float32]:
    """The logits of the mean probability of n > 0 opinions: n x float (...) -> float32 (...); one stays as it is."""
    if len(logits) == 1:
        return np.asarray(logits[0], dtype=np.float32)
    opinions = np.stack(logits)
    mixed = mix(opinions.reshape(len(opinions), -1), np.full((1, len(opinions)), 1 / len(opinions)))
    return mixed.reshape(opinions.shape[1:]).astype(np.float32)


def average_tables(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Predictions of the same images, averaged (``average``); all other columns are the first table's.

    Raises ``TailfillError`` when images or weights are not the same, row for row.
    """
    first, keys = tables[0], ["image_id", "weights"]
    for table in tables[1:]:
        if not table[keys].equals(first[keys]):
            raise TailfillError("predictions to average are not of the same images and weights, row for row")
    columns = [name for name in first.columns if name.startswith("logit_")]
    averaged = average([table[columns].to_numpy(dtype=np.float64) for table in tables])
    return first.assign(**{name: averaged[:, at] for at, name in enumerate(columns)})
