import numpy as np
import pytest

from ditlab.errors import InputError
from ditlab.evaluation import frechet_distance


def test_agrees_with_the_published_evaluator(golden):
    vectors = golden("metrics")
    value = frechet_distance(vectors["reference_features"].numpy(), vectors["generated_features"].numpy())
    assert value == pytest.approx(vectors["fid"].item(), rel=1e-6)


def test_closed_form_for_diagonal_covariances():
    generator = np.random.default_rng(0)
    a = generator.standard_normal((500, 3))
    a = (a - a.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(a, rowvar=False))).T  # exactly mean 0, covariance 1
    b = a * [2.0, 3.0, 0.5] + [1.0, 0.0, -2.0]
    expected = 5.0 + (2 - 1) ** 2 + (3 - 1) ** 2 + (0.5 - 1) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_stay_real():
    a = np.random.default_rng(0).standard_normal((5, 20))
    assert 0 <= frechet_distance(a, a + 1) == pytest.approx(20, rel=1e-6)


def test_unusable_features_are_refused():
    with pytest.raises(InputError, match=r"\(4, 3\) and \(4, 2\)"):
        frechet_distance(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(InputError, match="NaN"):
        frechet_distance(np.full((4, 2), np.nan), np.zeros((4, 2)))
