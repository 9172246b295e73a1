from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nuswide.config import Config
from nuswide.data.manifest import Manifest
from nuswide.evaluation.evaluate import Evaluation
from nuswide.evaluation.model_card import make_card, without_labels

LABELS = ("sky", "sea|side", "cat")


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 3)) < [0.6, 0.3, 0.02]).astype(np.uint8)
    splits = np.array(["train"] * 120 + ["val"] * 30 + ["test"] * 50)
    return Manifest(
        names=tuple(f"{i}.jpg" for i in range(200)), labels=LABELS, targets=targets, splits=splits,
        root=Path("images"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluations(manifest: Manifest) -> list[Evaluation]:
    found = []
    for split in ("val", "test"):
        part = manifest.of(split)
        noise = np.random.default_rng(1).random(part.targets.shape)
        scores = (0.5 * part.targets + 0.5 * noise).astype(np.float32)
        found.append(Evaluation(split, part, scores, 0.6))
    return found


@pytest.fixture(scope="module")
def card(manifest: Manifest, evaluations: list[Evaluation]) -> str:
    return make_card(Config(), manifest, evaluations, choice="Chosen by mAP on val.")


def test_a_card_says_what_the_model_is_and_on_what_it_was_made(
    card: str, manifest: Manifest
) -> None:
    for fact in (
        "resnext50_32x4d", "256 px", "3 labels", "Chosen by mAP on val.", manifest.digest,
        "120 train, 30 val, 50 test images", "licence",
    ):  # fmt: skip
        assert fact in card, fact


def test_its_metrics_are_those_of_the_evaluations_with_their_intervals(
    card: str, evaluations: list[Evaluation]
) -> None:
    row = next(line for line in card.splitlines() if line.startswith("| map |"))
    for evaluation in evaluations:
        low, high = evaluation.resampled.intervals()["map"][1:]
        assert f"{evaluation.metrics['map']:.3f} [{low:.3f}, {high:.3f}]" in row


def test_it_says_over_how_many_labels_the_means_are_if_one_has_no_positive(
    manifest: Manifest, evaluations: list[Evaluation]
) -> None:
    targets = manifest.targets.copy()
    targets[:150, 2] = targets[150, 2] = 1
    val, test = (replace(manifest, targets=targets).of(split) for split in ("val", "test"))
    whole = [replace(evaluations[0], samples=val), replace(evaluations[1], samples=test)]
    assert "that have a positive" not in make_card(Config(), manifest, whole, choice="")
    targets[150:, 2] = 0
    test = replace(manifest, targets=targets).of("test")
    text = make_card(Config(), manifest, [whole[0], replace(whole[1], samples=test)], choice="")
    assert "On test, map is over the 2 of 3 labels that have a positive" in text
    assert "On val, map" not in text


def test_it_has_a_row_a_label_and_no_name_breaks_the_table(card: str) -> None:
    rows = card.partition("## Labels")[2].strip().splitlines()
    assert len(rows) == 2 + len(LABELS)
    assert all(row.replace("\\|", "").count("|") == 9 for row in rows)
    assert any(row.startswith("| sea\\|side |") for row in rows)


def test_it_names_labels_of_which_little_is_known(card: str) -> None:
    limits = card.partition("## Limits")[2].partition("## Licence")[0]
    assert "Labels with fewer than 20 positives in train, unreliable: cat." in limits


def test_the_short_form_lacks_the_labels_and_nothing_else(card: str) -> None:
    short = without_labels(card)
    assert "## Licence" in short and "## Labels" not in short and card.startswith(short)
