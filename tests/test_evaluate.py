from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nuswide.data import Dataset
from nuswide.evaluate import Evaluation, headline, predict, torch_score
from nuswide.manifest import Manifest
from nuswide.metrics import all_figures


class MeanOfChannels(nn.Module):
    """Logits that tell which image they came from; wider spread when training."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * (3 if self.training else 1)


@pytest.fixture
def data() -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (150, 3, 8, 8), dtype=np.uint8)
    targets = rng.integers(0, 2, (150, 3)).astype(np.uint8)
    names = tuple(map(str, range(150)))
    manifest = Manifest(Path("."), names, ("a", "b", "c"), targets, np.array(["test"] * 150))
    return Dataset(manifest, images, np.arange(150))


def test_scores_keep_the_order_of_the_images_across_batches(data: Dataset) -> None:
    score = torch_score(MeanOfChannels(), torch.device("cpu"))
    scores = predict(score, data)
    one_by_one = np.concatenate([score(data.images[i : i + 1]) for i in range(150)])
    np.testing.assert_allclose(scores, one_by_one, atol=1e-6)
    assert scores.shape == (150, 3) and scores.dtype == np.float32


def test_scoring_is_done_in_eval_mode_and_leaves_the_mode_as_it_was(data: Dataset) -> None:
    model = MeanOfChannels()
    for training in (True, False):
        model.train(training)
        scores = torch_score(model, torch.device("cpu"))(data.images)
        assert model.training is training
        np.testing.assert_allclose(
            scores, torch_score(MeanOfChannels().eval(), torch.device("cpu"))(data.images)
        )


def test_figures_are_those_of_the_scores_under_the_splits_name(data: Dataset) -> None:
    scores = np.random.default_rng(1).random((150, 3), dtype=np.float32)
    evaluation = Evaluation("test", data, scores, threshold=0.3)
    expected = all_figures(data.manifest.targets, scores, 0.3)
    assert evaluation.figures == expected
    assert evaluation.prefixed == {f"test/{name}": value for name, value in expected.items()}
    assert f"map {expected['map']:.3f}" in headline(evaluation.figures)
