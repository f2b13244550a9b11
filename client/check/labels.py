"""Labels ranked by how little a model that has not seen the row believes them: confident learning.

Northcutt et al. 2021, as cleanlab has it: the score of a label is its probability out of fold ("self-confidence"), and
as many are named as the confident joint counts (its filter `low_self_confidence`). Two logistic regressions vote: one
on the words and their neighbours, one on the embeddings, where they are given. Whether the ranking can be believed is
tried out (`trial.py`).
"""

import warnings
from dataclasses import dataclass

import numpy as np
from cleanlab.count import num_label_issues
from cleanlab.rank import get_label_quality_scores
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.preprocessing import normalize

FOLDS = 5
_INVERSE_PENALTY = 10.0
"""C of both models: weaker penalties learn the wrong labels by heart"""


Features = list[np.ndarray | csr_matrix]
"""(N, d) each, rows of length 1; each is given to a model of its own"""


@dataclass(frozen=True)
class Ranking:
    """Labels, the most doubtful first."""

    order: np.ndarray
    """(N,) rows"""
    likely: np.ndarray
    """(N,) … the class that the model finds most likely in each, which may be the given one"""
    score: np.ndarray
    """(N,) … the probability of the label as given, ascending"""
    estimated: int
    """how many of them are estimated to be wrong"""


def judged_rows(labels: np.ndarray) -> np.ndarray:
    """Rows whose class has as many rows as there are folds; none where fewer than two classes have."""
    rows = np.flatnonzero(np.bincount(labels, minlength=1)[labels] >= FOLDS)
    return rows if len(np.unique(labels[rows])) > 1 else rows[:0]


def features_of(texts: list[str], embeddings: np.ndarray | None) -> Features:
    """Sparse counts of words and pairs of neighbours, where there are words; the embeddings, where they are given."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(texts) > 1000 else 1)
    found: Features = [] if embeddings is None else [np.asarray(normalize(embeddings))]
    try:
        return [words.fit_transform(texts), *found]  # word counts know no labels
    except ValueError:  # the vocabulary is empty
        return found


def ranked(features: Features, labels: np.ndarray, groups: np.ndarray, seed: int) -> Ranking:
    """features: at least one. labels: (N,) class indices 0 … K − 1.

    groups: (N,) the same number for rows that say the same, which stay in one fold: a copy in the training part would
    vouch for its twin's label.
    """
    probabilities = out_of_fold(features, labels, groups, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are rare
        score = get_label_quality_scores(labels, probabilities, method="self_confidence")
        estimated = int(num_label_issues(labels, probabilities))
    order = np.argsort(score, kind="stable")
    return Ranking(order, probabilities[order].argmax(1), score[order], estimated)


def out_of_fold(features: Features, labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """(N, K) probabilities, each by models fitted to the other folds."""
    fold = folds(labels, groups, seed)
    result = np.full((len(labels), int(labels.max()) + 1), 1e-6)  # of a class that is in no other fold
    for number in range(FOLDS):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        known = np.unique(labels[inside])
        if not len(outside) or len(known) < 2:
            continue
        for one in features:
            model = _model(one, len(inside), seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(one[inside], labels[inside])
            result[np.ix_(outside, known)] += model.predict_proba(one[outside])
    return result / result.sum(1, keepdims=True)


def _model(features: np.ndarray | csr_matrix, rows: int, seed: int) -> LogisticRegression | SGDClassifier:
    if isinstance(features, np.ndarray):
        return LogisticRegression(C=_INVERSE_PENALTY, max_iter=200)
    penalty = 1 / (_INVERSE_PENALTY * rows)  # as scikit-learn's two names for it go together
    return SGDClassifier(loss="log_loss", alpha=penalty, max_iter=50, tol=1e-3, average=True, random_state=seed)


def folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """(N,) fold of each row: groups stay whole, and each class is dealt out as evenly as its groups allow."""
    rng = np.random.default_rng([seed, 0xF01D])
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    kind = labels[first]  # of a group's first row
    of_group = np.zeros(len(first), dtype=int)
    for one in np.unique(kind):
        members = rng.permutation(np.flatnonzero(kind == one))
        of_group[members] = (np.arange(len(members)) + rng.integers(FOLDS)) % FOLDS
    return of_group[inverse]
