"""The time of attention as a function of its work: a physical base times a smooth correction. No torch.

The base is a sum of terms (pairs of queries and keys, keys read, the longest chain, tiles, a launch) with coefficients
of at least 0, fitted to relative errors. The correction is a Gaussian process on the logarithm of time / base over
logarithms of the work: near measured steps it follows them, far from all it returns to the base.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_profile.serving.composition import AttentionWork, FloatArray, features_of, terms_of

SMOOTHNESS = 2.5
"""Of the Matern kernel: twice differentiable, as times are but for the steps of waves."""


@dataclass(frozen=True)
class AttentionModel:
    """Fitted to the steps of one way of computing. coefficients: of `terms`, in ns. process: a fitted regressor."""

    coefficients: FloatArray
    kept: NDArray[np.int64]  # features that vary and repeat no other
    centre: FloatArray
    spread: FloatArray
    process: Any

    @classmethod
    def fit(
        cls, works: Sequence[AttentionWork], times_ns: FloatArray, start: "AttentionModel | None" = None
    ) -> "AttentionModel":
        """times_ns: shape [works], above 0. start: a model of more such steps, whose kernel is taken as it is."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor

        terms, features = terms_of(works), features_of(works)
        coefficients = _non_negative(terms / times_ns[:, np.newaxis])
        kept = _independent(features) if start is None else start.kept
        centre, spread = features[:, kept].mean(axis=0), features[:, kept].std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        if start is not None:
            centre, spread = start.centre, start.spread
        kernel = _kernel(len(kept)) if start is None else start.process.kernel_
        process = GaussianProcessRegressor(kernel, alpha=0.0, optimizer="fmin_l_bfgs_b" if start is None else None)
        with warnings.catch_warnings():  # a length scale at its bound says that a feature does not matter
            warnings.simplefilter("ignore", ConvergenceWarning)
            process.fit((features[:, kept] - centre) / spread, np.log(times_ns / (terms @ coefficients)))
        return cls(coefficients, kept, centre, spread, process)

    def times_ns(self, works: Sequence[AttentionWork]) -> FloatArray:
        """Times of these works, in ns. Shape [works]."""
        base_ns = terms_of(works) @ self.coefficients
        features = (features_of(works)[:, self.kept] - self.centre) / self.spread
        return np.asarray(base_ns * np.exp(self.process.predict(features)))


def _kernel(features: int) -> Any:
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    smooth = Matern(np.full(features, 2.0), (0.2, 100.0), nu=SMOOTHNESS)
    return ConstantKernel(0.1, (1e-4, 10.0)) * smooth + WhiteKernel(1e-4, (1e-6, 0.1))


def _non_negative(relative_terms: FloatArray) -> FloatArray:
    """Coefficients that bring the sum of terms nearest to 1. Shape of relative_terms: [steps, terms]."""
    from sklearn.linear_model import LinearRegression

    scale = relative_terms.max(axis=0)
    found = LinearRegression(fit_intercept=False, positive=True).fit(
        relative_terms / scale, np.ones(len(relative_terms))
    )
    return np.asarray(found.coef_ / scale)


def _independent(features: FloatArray) -> NDArray[np.int64]:
    """Indices of features that vary, without those that others imply."""
    kept: list[int] = []
    centred = features - features.mean(axis=0)
    for column in range(features.shape[1]):
        values = centred[:, column]
        if np.abs(values).max() < 1e-9:
            continue
        if kept:
            others = centred[:, kept]
            values = values - others @ np.linalg.lstsq(others, values, rcond=None)[0]
        if np.abs(values).max() > 1e-6:
            kept.append(column)
    return np.array(kept, dtype=np.int64)
