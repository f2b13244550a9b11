"""Labels that look wrong: confident learning (Northcutt et al. 2021) on probabilities of models without the row.

Two linear models vote: one on the words and their neighbours, one on the embeddings, where they are given.
"""

import warnings

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier

FOLDS = 5
_SURE = 0.7
"""doubt from which a label is named: the models give the other classes more than twice its weight"""


def suspects(
    texts: list[str], labels: np.ndarray, groups: np.ndarray, embeddings: np.ndarray | None, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows whose label looks wrong, most doubtful first; what each would rather be; and the doubt of every row.

    labels: (N,) class indices. groups: (N,) the same number for rows that say the same, which stay in one fold: a copy
    in the training part would vouch for its twin's label. Returns (S,), (S,) and (N,) in [0, 1], 1 the worst.
    Classes with fewer rows than folds are not judged: no model could learn them.
    """
    counts = np.bincount(labels)
    judged = np.flatnonzero(counts[labels] >= FOLDS)
    doubt = np.zeros(len(labels))
    kinds, own = np.unique(labels[judged], return_inverse=True)
    if len(kinds) < 2:
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int), doubt
    probabilities = out_of_fold([texts[i] for i in judged], own, groups[judged], _take(embeddings, judged), seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are rare
        found = find_label_issues(own, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
        doubt[judged] = 1 - get_label_quality_scores(own, probabilities)
    found = found[doubt[judged[found]] > _SURE]
    return judged[found], kinds[probabilities[found].argmax(1)], doubt


def out_of_fold(
    texts: list[str], labels: np.ndarray, groups: np.ndarray, embeddings: np.ndarray | None, seed: int
) -> np.ndarray:
    """(N, K) probabilities, each by models fitted to the other folds. labels: (N,), every class in 0 … K − 1 there."""
    fold = folds(labels, groups, seed)
    classes = int(labels.max()) + 1
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(texts) > 1000 else 1)
    features = words.fit_transform(texts)  # word counts know no labels
    result = np.zeros((len(labels), classes))
    for number in range(FOLDS):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if not len(outside):
            continue
        by_words = SGDClassifier(loss="log_loss", alpha=2e-6, max_iter=30, tol=1e-3, average=True, random_state=seed)
        votes = [_vote(by_words, features, labels, inside, outside, classes)]
        if embeddings is not None:
            by_meaning = LogisticRegression(C=1.0, max_iter=60)
            votes.append(_vote(by_meaning, embeddings, labels, inside, outside, classes))
        result[outside] = np.mean(votes, axis=0)
    return result


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


def _vote(model, features, labels: np.ndarray, inside: np.ndarray, outside: np.ndarray, classes: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if len(np.unique(labels[inside])) < 2:
            return np.full((len(outside), classes), 1 / classes)
        model.fit(features[inside], labels[inside])
    result = np.full((len(outside), classes), 1e-6)
    result[:, model.classes_] += model.predict_proba(features[outside])
    return result / result.sum(1, keepdims=True)


def _take(embeddings: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if embeddings is None else embeddings[rows]
