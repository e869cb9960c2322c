import numpy as np
import pytest
import torch

from ditlab.core.errors import InputError
from ditlab.data.rows import RowFile, row_file
from ditlab.evaluation import frechet_distance, inception_score, kernel_distance, precision_recall
from ditlab.evaluation.metrics import METRICS, RESULTS, Metric, canonical_name
from ditlab.evaluation.metrics.frechet import gaussian_distance
from ditlab.evaluation.metrics.neighbors import merged, nearest, neighbor_ratio, neighbors_of, no_neighbors, radii
from ditlab.evaluation.moments import Moments
from ditlab.evaluation.statistics import result_name


def test_agrees_with_the_published_evaluator(golden):
    vectors = {name: value.numpy() for name, value in golden("metrics").items()}
    real, made = vectors["reference_features"], vectors["generated_features"]
    assert frechet_distance(real, made) == pytest.approx(float(vectors["fid"]), rel=1e-6)
    precision, recall = precision_recall(real, made, k=3)
    assert (np.float32(precision), np.float32(recall)) == (vectors["precision_k3"], vectors["recall_k3"])
    score = inception_score(vectors["generated_probabilities"])
    assert score == pytest.approx(float(vectors["inception_score_1split"]), rel=1e-6)


class TestFrechet:
    def test_closed_form_for_diagonal_covariances(self):
        generator = np.random.default_rng(0)
        a = generator.standard_normal((500, 3))
        a = (a - a.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(a, rowvar=False))).T  # mean 0, covariance 1
        b = a * [2.0, 3.0, 0.5] + [1.0, 0.0, -2.0]
        expected = 5.0 + (2 - 1) ** 2 + (3 - 1) ** 2 + (0.5 - 1) ** 2
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
        assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)

    def test_singular_covariances_stay_real(self):
        a = np.random.default_rng(0).standard_normal((5, 20))
        assert 0 <= frechet_distance(a, a + 1) == pytest.approx(20, rel=1e-6)

    def test_unusable_features_are_rejected(self):
        with pytest.raises(InputError, match=r"\(4, 3\) and \(4, 2\)"):
            frechet_distance(np.zeros((4, 3)), np.zeros((4, 2)))
        with pytest.raises(InputError, match="NaN"):
            frechet_distance(np.full((4, 2), np.nan), np.zeros((4, 2)))
        with pytest.raises(InputError, match="all 4 images have the same features"):
            frechet_distance(np.ones((4, 2)), np.eye(2))

    def test_variance_that_is_rounding_is_none(self):
        moments = Moments(64)
        moments.add(5 + 1e-7 * np.random.default_rng(0).standard_normal((100, 64)))
        with pytest.raises(InputError, match="all 100 images have the same features"):
            moments.gaussian()
        moments.add(np.full((1, 64), 5.01))
        assert moments.gaussian().count == 101

    @pytest.mark.parametrize("batches", [[1000], [1] * 1000, [999, 1], [300, 300, 400]])
    def test_running_moments_do_not_depend_on_batches(self, batches):
        x = 1e4 + np.random.default_rng(0).standard_normal((1000, 6))  # far from 0, where naive sums lose digits
        moments = Moments(6)
        for part in np.split(x, np.cumsum(batches)[:-1]):
            moments.add(part)
        found = moments.gaussian()
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-14)
        np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-9)
        other = np.random.default_rng(1).standard_normal((50, 6))
        gaussian = Moments(6)
        gaussian.add(other)
        assert gaussian_distance(found, gaussian.gaussian()) == pytest.approx(frechet_distance(x, other), rel=1e-9)


class TestInceptionScore:
    def test_closed_forms(self):
        assert inception_score(np.eye(5)) == pytest.approx(5)  # sure, and of all classes alike
        assert inception_score(np.full((7, 5), 0.2)) == pytest.approx(1)
        assert inception_score(np.eye(5)[[0, 0, 0]]) == pytest.approx(1)

    def test_rows_that_are_no_distributions(self):
        with pytest.raises(InputError, match="sum to 1"):
            inception_score(np.ones((3, 4)))


class TestKernelDistance:
    def test_is_the_unbiased_estimate(self):
        a, b = np.array([[1.0], [2.0]]), np.array([[3.0], [5.0]])

        def kernel(x, y):
            return (x * y + 1) ** 3

        # Pairs of different rows within a set, all pairs across: with a single subset of everything.
        expected = kernel(1, 2) + kernel(3, 5) - 2 * np.mean([kernel(x, y) for x in (1, 2) for y in (3, 5)])
        assert kernel_distance(a, b, subsets=1)[0] == pytest.approx(expected)

    @pytest.mark.slow
    def test_equal_distributions_are_at_zero_within_the_error_and_shifted_ones_are_not(self):
        chance = np.random.default_rng(0)
        a, b = chance.standard_normal((2, 2000, 8))
        near, error = kernel_distance(a, b, size=200)
        assert abs(near) < error
        far, error = kernel_distance(a, b + 0.5, size=200)
        assert far > 3 * error
        assert kernel_distance(a, b, size=200) == (near, kernel_distance(a, b, size=200)[1])


class TestNeighbours:
    def test_precision_and_recall_in_a_case_done_by_hand(self):
        reference = np.array([[0.0], [1.0], [2.0], [10.0]])  # radii for k 1: 1, 1, 1, 8
        generated = np.array([[0.5], [30.0], [19.0]])  # radii for k 1: 18.5, 11, 11
        precision, recall = precision_recall(reference, generated, k=1)
        assert precision == pytest.approx(1 / 3)  # 0.5 alone: 19 is 9 from 10
        assert recall == 1.0

    def test_ties_count_as_inside(self):
        reference, generated = np.array([[0.0], [1.0]]), np.array([[2.0], [5.0]])
        assert precision_recall(reference, generated, k=1)[0] == 0.5

    @pytest.fixture
    def sets(self):
        return np.random.default_rng(0).standard_normal((2, 50, 4))

    def test_tiles_give_what_the_whole_gives(self, sets, monkeypatch):
        a, b = sets
        whole = precision_recall(a, b), radii(a, 3)
        monkeypatch.setattr("ditlab.evaluation.metrics.neighbors.TILE", 7)
        assert precision_recall(a, b) == whole[0]
        torch.testing.assert_close(radii(a, 3), whole[1])
        near = neighbors_of(torch.from_numpy(a), b, 5)
        exact = torch.cdist(torch.from_numpy(a), torch.from_numpy(b)).sort(1)
        torch.testing.assert_close(near.squares.sqrt(), exact.values[:, :5])
        assert torch.equal(near.places, exact.indices[:, :5])

    def test_features_in_a_file_give_what_those_in_memory_give(self, sets, tmp_path, monkeypatch):
        a, b = sets.astype(np.float32)
        files = []
        for i, values in enumerate((a, b)):
            files.append(row_file(tmp_path / str(i), values.shape, np.float32))
            files[-1].write(0, values)
        seen = []
        read = RowFile.__getitem__

        def watched(self, part):
            seen.append(len(found := read(self, part)))
            return found

        monkeypatch.setattr(RowFile, "__getitem__", watched)
        monkeypatch.setattr("ditlab.evaluation.metrics.neighbors.TILE", 7)
        monkeypatch.setattr("ditlab.evaluation.statistics.ROWS", 7)
        assert precision_recall(*files) == precision_recall(a, b)
        assert max(seen) == 7  # never more than a tile in memory
        assert kernel_distance(*files, subsets=5, size=6) == kernel_distance(a, b, subsets=5, size=6)
        assert max(seen) == 7

    def test_of_equally_near_ones_the_first_are_taken_in_whatever_order_they_come(self):
        distances = torch.tensor([[2.0, 1.0, 1.0, 3.0, 1.0, 1.0]], dtype=torch.float64)
        numbers = torch.tensor([3, 4, 5, 6, 8, 9])
        near = nearest(distances.clone(), numbers, 3)
        assert (near.squares.tolist(), near.places.tolist()) == ([[1, 1, 1]], [[4, 5, 8]])
        parts = [nearest(distances[:, part].clone(), numbers[part], 3) for part in (slice(4, 6), slice(0, 2))]
        for first, second in (parts, parts[::-1]):
            both = merged(merged(no_neighbors(1, 3), first), second)
            assert (both.squares.tolist(), both.places.tolist()) == ([[1, 1, 1]], [[4, 8, 9]])
        rest = nearest(distances[:, 2:4].clone(), numbers[2:4], 2)
        assert merged(both, rest).places.tolist() == [[4, 5, 8]]

    def test_too_few_rows(self):
        with pytest.raises(InputError, match="3 and 9 features with k 3"):
            precision_recall(np.random.rand(3, 2), np.random.rand(9, 2))

    def test_ratio_tells_copies_from_new_images(self):
        held_out = torch.tensor([1.0, 2.0, 3.0, 4.0])
        assert neighbor_ratio(held_out, held_out) == (1.0, 0.5)
        ratio, closer = neighbor_ratio(torch.zeros(5), held_out)
        assert (ratio, closer) == (0.0, 1.0)
        assert neighbor_ratio(torch.tensor([2.5]), held_out) == (1.25, 0.5)  # the lower of two medians, as torch's


class TestResults:
    def test_metrics_declare_their_results(self):
        assert dict(RESULTS) == {
            "fd": "frechet", "sfd": "spatial", "inception_score": "inception-score", "precision": "precision-recall",
            "recall": "precision-recall", "kd": "kernel", "accuracy": "accuracy", "prompts_seen": "prompts",
            "prompts_held_out": "prompts", "binding_errors": "prompts", "relation_errors": "prompts",
            "same_digit": "motion", "speed_deviation": "motion", "acceleration_deviation": "motion",
        }  # fmt: skip
        assert RESULTS.lower_is_better("fd")
        assert not RESULTS.lower_is_better("accuracy")

    def test_a_metric_from_outside_is_one_line(self):
        METRICS.register("shift", Metric(frozenset(), lambda a, b: {"shift": 0.0}, results={"shift": "lower"}))
        try:
            assert RESULTS["shift"] == "shift"
            assert "shift" in RESULTS
        finally:
            del METRICS["shift"]
        assert "shift" not in RESULTS

    def test_distances_are_named_after_the_features(self):
        assert [result_name("fd", name) for name in ("inception", "digits")] == ["fid", "fd_digits"]
        names = ("fid", "sfid", "kid", "fd_digits", "sfd_x", "kd_dinov2", "precision", "inception_score")
        assert [canonical_name(name) for name in names] == [
            "fd", "sfd", "kd", "fd", "sfd", "kd", "precision", "inception_score",
        ]  # fmt: skip
