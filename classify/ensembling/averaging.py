"""One opinion from several: the mean of probabilities, as a logit.

Probabilities are averaged, not logits: the ensemble is then a uniform mixture of its members (Lakshminarayanan et al.
2017, section 2.4), whose cross-entropy is at most the mean of theirs, and a member that is wrong and sure of it, as
asymmetric loss makes some, moves the mean by 1 / n at most, where its logit would move it without bound. Entrants of
CXR-LT average probabilities too (Yamagishi and Hanaoka 2024, 2410.10710).

Not promised: a better ranking than the best member's; a member whose probabilities spread more has more of a say.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import log_expit, logsumexp

from cohort.errors import TailfillError


def average(logits: Sequence[NDArray[np.floating]] | NDArray[np.floating]) -> NDArray[np.float32]:
    """The logit of the mean probability of n opinions: n x float (...) -> float32 (...).

    Computed in float64 from the logarithms of probability and counter-probability, so nothing saturates. One opinion
    comes back as it is. Raises ``ValueError`` for none.
    """
    if len(logits) == 1:
        return np.asarray(logits[0], dtype=np.float32)
    z = np.stack([np.asarray(one, dtype=np.float64) for one in logits])
    return np.asarray(logsumexp(log_expit(z), axis=0) - logsumexp(log_expit(-z), axis=0), dtype=np.float32)


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
