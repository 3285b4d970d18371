"""Do nets that are better at one thing transfer better? (Kornblith et al. 2019, arXiv 1805.08974.)"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ssl_lab.errors import UsageError


def transfer_correlation(source: ArrayLike, transferred: ArrayLike) -> float:
    """Pearson's r, over nets, of the logit of their accuracy where they were trained and the mean over data sets of the
    logits of their accuracies there, log(p / (1 - p)).

    The logit weighs 98 against 99% as it does 50 against 67. NaN if one side is constant. Kornblith et al. 2019 (arXiv
    1805.08974) have 0.99 for frozen features of 16 nets on 12 data sets, 0.96 fine-tuned.

    Args:
        source: [n], in (0, 1).
        transferred: [n], or [n, data sets].

    Raises:
        UsageError: for fewer than 3 nets, and for accuracies of 0 or 1, whose logit is infinite.

    >>> round(sl.analysis.transfer_correlation([0.6, 0.7, 0.8], [0.5, 0.62, 0.72]), 2)
    1.0
    """
    ours, theirs = np.asarray(source, np.float64), np.asarray(transferred, np.float64)
    theirs = theirs.reshape(len(theirs), -1)
    if len(ours) != len(theirs) or len(ours) < 3:
        raise UsageError(f"transfer_correlation: {len(ours)} and {len(theirs)} nets; expected the same ones, 3 or more")
    if not all(((each > 0) & (each < 1)).all() for each in (ours, theirs)):
        raise UsageError("transfer_correlation: accuracies are shares above 0 and below 1")
    x, y = np.log(ours / (1 - ours)), np.log(theirs / (1 - theirs)).mean(axis=1)
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else float("nan")
