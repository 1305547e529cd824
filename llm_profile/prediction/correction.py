"""The learned part: by what factor a row differs from its base, and how sure that is. Imports no torch.

The learner sees shapes only, no figure of a card. So whatever it learns, a prediction falls where its base falls.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_profile.prediction.base import base_ns
from llm_profile.prediction.card import Card
from llm_profile.prediction.row_work import RowWork
from llm_profile.records import INTERVAL_COVERS

Floats = NDArray[np.float64]

ENDS = (1 - INTERVAL_COVERS) / 2, (1 + INTERVAL_COVERS) / 2
"""Quantiles at which an interval begins and ends."""

MODEL_FOLDS = 5
"""Parts that models are divided into: each part is predicted by what the others teach, which calibrates intervals."""

LEAST_WIDTH = 0.03
"""Half the width of an interval of log time at least: two runs of a card differ by as much in rows of microseconds."""

SETTINGS: dict[str, Any] = {
    "learning_rate": 0.1,
    "max_iter": 300,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 20,
    "l2_regularization": 1.0,
    "random_state": 0,
}
FULL_ROWS = 64

CATEGORIES = ("product", "experts", "attention", "decode", "masked", "router", "memory")


@dataclass(frozen=True)
class Lesson:
    """A measured row. model: whose it is, so that no model calibrates itself."""

    model: str
    work: RowWork
    card: Card
    latency_ns: float

    @property
    def factor(self) -> float:
        """Log of what was measured over the base."""
        return math.log(self.latency_ns / base_ns(self.work, self.card))


def _features(work: RowWork, layers: dict[str, int]) -> list[float]:
    rows = work.rows
    sizes = (work.tokens, work.total, work.taken, work.given, work.groups, rows, work.flops / max(work.bytes, 1.0))
    fill = rows / (-(-rows // FULL_ROWS) * FULL_ROWS)
    launches = 0 if work.category in ("product", "decode") else work.launches
    return [
        layers.get(work.layer, math.nan),
        CATEGORIES.index(work.category),
        launches,
        fill,
        *(math.log2(size + 1.0) for size in sizes),
        math.log2(work.moved + 1.0),
        math.log2(work.bytes + 1.0),
    ]


class Correction:
    """What measured rows teach: a middle and the two ends of an interval of log(time / base)."""

    def __init__(self, lessons: Sequence[Lesson], calibrate: bool = True) -> None:
        """Raises ValueError for no lessons. calibrate: whether intervals are wanted, which takes six times as long."""
        if not lessons:
            raise ValueError("nothing to learn from")
        self._layers = {name: number for number, name in enumerate(sorted({each.work.layer for each in lessons}))}
        self.known = {(each.model, each.work.layer) for each in lessons}
        self.models = sorted({each.model for each in lessons})
        features = self._matrix([each.work for each in lessons])
        factors = np.array([each.factor for each in lessons])
        self._middle = _fitted(features, factors, None)
        self._ends = [_fitted(features, factors, quantile) for quantile in ENDS]
        self._wider: dict[str, float] = dict.fromkeys(CATEGORIES, 0.0)
        if calibrate:
            self._calibrate(lessons, features, factors)

    def _matrix(self, works: Sequence[RowWork]) -> Floats:
        return np.array([_features(work, self._layers) for work in works])

    def _calibrate(self, lessons: Sequence[Lesson], features: Floats, factors: Floats) -> None:
        """How much wider intervals have to be, by category, so that models that were left out are covered.

        Conformalised quantile regression: Romano, Patterson and Candes 2019, arxiv.org/abs/1905.03222.
        """
        part = {model: number % MODEL_FOLDS for number, model in enumerate(self.models)}
        parts = np.array([part[each.model] for each in lessons])
        categories = np.array([each.work.category for each in lessons])
        beyond = np.full(len(lessons), np.nan)
        for number in sorted({*part.values()}) if len(self.models) > 1 else ():
            inside, outside = parts != number, parts == number
            low, high = (_fitted(features[inside], factors[inside], quantile) for quantile in ENDS)
            middle = _fitted(features[inside], factors[inside], None).predict(features[outside])
            below = np.minimum(low.predict(features[outside]), middle)
            above = np.maximum(high.predict(features[outside]), middle)
            beyond[outside] = np.maximum(below - factors[outside], factors[outside] - above)
        for category in CATEGORIES:
            known = beyond[(categories == category) & ~np.isnan(beyond)]
            if len(known):
                self._wider[category] = float(np.quantile(known, INTERVAL_COVERS))

    def middle(self, works: Sequence[RowWork]) -> Floats:
        """Log of the factor of each work, [works]."""
        return np.asarray(self._middle.predict(self._matrix(works)))

    def interval(self, works: Sequence[RowWork]) -> tuple[Floats, Floats]:
        """How far the factor may be below and above its middle, in log time, for a model that was never seen."""
        features, middle = self._matrix(works), self.middle(works)
        wider = np.array([self._wider[work.category] for work in works])
        low, high = (np.asarray(end.predict(features)) for end in self._ends)
        below = np.maximum(middle - np.minimum(low, middle) + wider, LEAST_WIDTH)
        above = np.maximum(np.maximum(high, middle) - middle + wider, LEAST_WIDTH)
        return below, above


def _fitted(features: Floats, factors: Floats, quantile: float | None) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    loss = {"loss": "absolute_error"} if quantile is None else {"loss": "quantile", "quantile": quantile}
    return HistGradientBoostingRegressor(**SETTINGS, **loss, categorical_features=[0, 1]).fit(features, factors)
