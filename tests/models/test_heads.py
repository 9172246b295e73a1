from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuswide.config import Config
from nuswide.data.label_stats import LABEL_VECTORS, TrainLabels, label_vectors, read_word_vectors
from nuswide.data.manifest import Manifest
from nuswide.models.heads import HEADS, CsraHead, GcnHead, MlDecoderHead, label_graph

NAMES = ("sky", "clouds", "polar bear", "rarity")
# sky comes with clouds in 3 of 4 images, clouds always with sky; a bear comes alone; rarity never.
TARGETS = np.array(
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]], dtype=np.uint8
)
TRAIN = TrainLabels(NAMES, TARGETS, None)
N_FEATURES = 16


def build(
    name: str, train: TrainLabels = TRAIN, n_features: int = N_FEATURES, **fields: Any
) -> Any:
    torch.manual_seed(0)
    return HEADS[name](n_features, len(train.names), Config(head=name, **fields), train)


def features(n: int = 3, side: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, N_FEATURES, side, side, generator=generator)


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def test_a_head_gives_a_logit_a_label_for_any_map(head: nn.Module) -> None:
    for shape in ((3, N_FEATURES, 4, 4), (1, N_FEATURES, 1, 1), (2, N_FEATURES, 2, 7)):
        logits = head(torch.randn(shape))
        assert logits.shape == (shape[0], len(NAMES)) and torch.isfinite(logits).all()


def test_an_images_logits_do_not_depend_on_its_batch(head: nn.Module) -> None:
    maps = features()
    with torch.no_grad():
        whole = head.eval()(maps)
        alone = torch.cat([head(m[None]) for m in maps])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


def test_a_maps_memory_format_does_not_change_its_logits(head: nn.Module) -> None:
    maps = features()
    head.eval()
    plain = head(maps)
    head.to(memory_format=torch.channels_last)
    last = head(maps.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-5)


def test_a_head_works_in_half_precision(head: nn.Module) -> None:
    maps = features()
    with torch.autocast("cpu", torch.bfloat16):
        low = head.eval()(maps)
        low.float().sum().backward()
    torch.testing.assert_close(low.float(), head(maps), rtol=0.1, atol=0.1)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


def test_every_parameter_of_a_head_learns(head: nn.Module) -> None:
    (head.train()(features()) * torch.randn(3, len(NAMES))).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_a_heads_state_and_trains_labels_are_all_of_it(head: nn.Module) -> None:
    name = next(n for n in HEADS if isinstance(build(n), type(head)))
    torch.manual_seed(99)
    again = HEADS[name](N_FEATURES, len(NAMES), Config(), TRAIN)
    again.load_state_dict(head.state_dict())
    assert torch.equal(head.eval()(features()), again.eval()(features()))


def count(head: nn.Module) -> int:
    return sum(p.numel() for p in head.parameters())


@pytest.mark.parametrize(
    ("name", "millions", "fields"),
    [
        ("linear", 0.17, {}),
        ("max_pool", 0.17, {}),
        ("csra", 0.17, {}),
        ("csra", 0.17 * 4, {"csra_heads": 4}),
        ("gcn", 2.4, {"gcn_vectors": "learned"}),  # 300 numbers a label, as words have
        ("ml_decoder", 7.1, {}),
    ],
)
def test_a_head_is_as_large_as_published(
    name: str, millions: float, fields: dict[str, Any]
) -> None:
    labels = tuple(str(i) for i in range(81))
    train = TrainLabels(labels, np.zeros((1, 81), np.uint8), None)
    parameters = count(build(name, train, 2048, **fields))
    assert parameters / 1e6 == pytest.approx(millions, rel=0.04)


# Pooling


def test_linear_sees_the_mean_and_max_pool_the_greatest() -> None:
    maps = features()
    for name, pooled in (("linear", maps.mean((2, 3))), ("max_pool", maps.amax((2, 3)))):
        head = build(name, dropout=0.5).eval()
        torch.testing.assert_close(head(maps), head.linear(pooled))


# CSRA


def slow_csra(head: CsraHead, maps: Tensor) -> Tensor:
    """The paper's formulas, a place after the other."""
    n, _, height, width = maps.shape
    logits = torch.zeros(n, len(NAMES))
    for weight, temperature in zip(head.weights, head.temperatures, strict=True):
        for i in range(n):
            for label in range(len(NAMES)):
                w = weight[label, :, 0, 0]
                s = torch.stack([
                    maps[i, :, y, x] @ w / w.norm() for y in range(height) for x in range(width)
                ])  # fmt: skip
                if temperature == float("inf"):
                    attended = s.max()
                else:
                    shares = (temperature * s).exp() / (temperature * s).exp().sum()
                    attended = (shares * s).sum()
                logits[i, label] += s.mean() + head.lamb * attended
    return logits


@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_csra_computes_the_papers_formulas(n_heads: int) -> None:
    head = build("csra", csra_heads=n_heads, csra_lambda=0.3)
    with torch.no_grad():
        torch.testing.assert_close(head(features()), slow_csra(head, features()))


@pytest.mark.parametrize(
    ("n_heads", "finite"), [(1, [1]), (2, [1]), (4, [1, 2, 4]), (6, [1, 2, 3, 4, 5])]
)
def test_csra_has_the_papers_temperatures(n_heads: int, finite: list[int]) -> None:
    expected = [float(t) for t in finite] + [float("inf")] * (n_heads > 1)
    assert build("csra", csra_heads=n_heads).temperatures == expected


# Train's labels


def slow_counts(targets: Any, known: Any) -> dict[str, Counter[Any]]:
    counts: dict[str, Counter[Any]] = {"both": Counter(), "given": Counter(), "known": Counter()}
    for row, states in zip(targets, known, strict=True):
        for i in range(len(row)):
            for j in range(len(row)):
                counts["both"][i, j] += int(row[i] and row[j])
                counts["given"][i, j] += int(row[i] and states[j])
                counts["known"][i, j] += int(states[i] and states[j])
    return counts


def test_labels_are_counted_where_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    known = rng.random((50, 4)) < 0.7
    targets = ((rng.random((50, 4)) < 0.4) & known).astype(np.uint8)
    monkeypatch.setattr("nuswide.data.label_stats._ROWS", 7)  # several parts
    train = TrainLabels(NAMES, targets, known)
    slow = slow_counts(targets, known)
    for i, j in [(i, j) for i in range(4) for j in range(4)]:
        assert train.together()[i, j] == slow["both"][i, j]
        assert train.comparable()[i, j] == slow["given"][i, j]
        assert train.both_known()[i, j] == slow["known"][i, j]
    assert train.positives.tolist() == targets.sum(0).tolist()
    assert train.n_known.tolist() == known.sum(0).tolist()
    whole = replace(train, known=np.ones_like(known))
    for name in ("comparable", "both_known", "conditional"):
        bare = replace(train, known=None)
        assert np.array_equal(getattr(whole, name)(), getattr(bare, name)())


def test_trains_labels_are_those_of_the_train_split_alone() -> None:
    splits = np.array(["train", "train", "val", "test", "train"])
    manifest = Manifest(Path(), tuple("abcde"), NAMES, TARGETS, splits)
    assert np.array_equal(TrainLabels.of(manifest).targets, TARGETS[[0, 1, 4]])


# The label graph


def test_the_graph_equals_a_hand_computed_one() -> None:
    # P(clouds | sky) = 3/4 and P(sky | clouds) = 1 link the two, both ways; nothing else is linked.
    assert TRAIN.conditional()[:2, :2].tolist() == [[1, 0.75], [1, 1]]
    expected = torch.eye(4)
    expected[0, 0] = expected[1, 1] = 1 / 1.25
    expected[0, 1] = expected[1, 0] = 0.25 / 1.25
    torch.testing.assert_close(label_graph(TRAIN, threshold=0.4), expected)


def test_a_label_takes_from_those_that_it_is_likely_with_and_not_the_other_way() -> None:
    # Above 0.75, only clouds tell of the sky.
    graph = label_graph(TRAIN, threshold=0.8)
    assert graph[0, 1] > 0 and graph[1, 0] == 0


def test_a_label_that_never_comes_takes_from_none() -> None:
    assert label_graph(TRAIN, threshold=0.0)[3, 3] > 0
    assert label_graph(TRAIN, threshold=0.4)[3].tolist() == [0, 0, 0, 1]


def test_gcn_multiplies_pooled_features_with_classifiers_of_the_graph() -> None:
    head = build("gcn", gcn_vectors="onehot")
    graph = label_graph(TRAIN, threshold=0.4)
    with torch.no_grad():
        hidden = F.leaky_relu(graph @ torch.eye(4) @ head.inner.weight.T, 0.2)
        classifiers = graph @ hidden @ head.outer.weight.T
        expected = features().amax((2, 3)) @ classifiers.T
        torch.testing.assert_close(head(features()), expected)


def test_the_graph_is_not_taken_from_a_file_of_weights() -> None:
    other = replace(TRAIN, targets=np.eye(4, dtype=np.uint8))
    head, theirs = build("gcn"), build("gcn", other)
    head.load_state_dict(theirs.state_dict())
    assert torch.equal(head.graph, label_graph(TRAIN, threshold=0.4))


# Label vectors


@pytest.mark.parametrize("source", [*LABEL_VECTORS, "learned"])
def test_gcn_takes_vectors_from_any_source(source: str) -> None:
    head = build("gcn", gcn_vectors=source)
    assert isinstance(head, GcnHead)
    assert ("vectors" in dict(head.named_parameters())) == (source == "learned")
    norms = head.vectors.detach().norm(dim=1)
    assert norms.tolist() == pytest.approx([1] * 4)
    assert len({tuple(v.tolist()) for v in head.vectors}) == 4


def test_labels_that_come_together_have_vectors_near_each_other() -> None:
    vectors = label_vectors("pmi", TRAIN)
    similar = vectors @ vectors.T
    assert similar[0, 1] > max(
        similar[i, j] for i, j in combinations(range(4), 2) if (i, j) != (0, 1)
    )


def test_pmi_vectors_keep_at_most_300_numbers() -> None:
    targets = np.eye(310, dtype=np.uint8)
    train = TrainLabels(tuple(map(str, range(310))), targets, None)
    assert label_vectors("pmi", train).shape == (310, 300)


def write_words(folder: Path, text: str) -> Path:
    path = folder / "words.txt"
    path.write_text(text, encoding="utf-8")
    return path


WORDS = "the 9 9\nsky 1 0\nclouds 0.5 0.5\npolar 0 2\nbear 4 0\nrarity -1e-1 1\nsky 7 7\n"


def test_word_vectors_are_read_and_averaged_over_a_labels_words(tmp_path: Path) -> None:
    vectors = read_word_vectors(write_words(tmp_path, WORDS), NAMES)
    assert vectors.tolist() == [[1, 0], [0.5, 0.5], [2, 1], [pytest.approx(-0.1), 1]]
    same = read_word_vectors(tmp_path / "words.txt", ("Sky", "CLOUDS", "polar_bear", "rarity"))
    assert np.array_equal(vectors, same)
    head = build("gcn", gcn_vectors=str(tmp_path / "words.txt"))
    assert head.vectors[2].tolist() == pytest.approx([2 / 5**0.5, 1 / 5**0.5])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sky 1 0\nclouds 0 1\n", "lacks 3 of the labels' words (bear, polar, rarity)"),
        (WORDS.replace("bear 4 0", "bear 4 x"), "could not convert"),
        (WORDS.replace("bear 4 0", "bear 4"), "line 5 does not hold 2 numbers"),
        (WORDS.replace("bear 4 0", "bear nan 0"), "line 5 does not hold 2 numbers"),
        (WORDS.replace("bear 4 0", "bear"), "lacks 1 of the labels' words (bear)"),
    ],
)
def test_a_file_that_lacks_a_word_or_a_number_is_refused_in_one_line(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(click.ClickException) as caught:
        read_word_vectors(write_words(tmp_path, text), NAMES)
    assert said in caught.value.message and "\n" not in caught.value.message
    assert "words.txt" in caught.value.message


def test_a_source_that_is_no_name_and_no_file_is_refused_with_what_there_is() -> None:
    with pytest.raises(click.ClickException, match="gcn_vectors=pmmi .*onehot, pmi, learned, or"):
        build("gcn", gcn_vectors="pmmi")


# ML-Decoder


def test_ml_decoder_has_a_query_a_label_up_to_100() -> None:
    for n_labels, n_queries, share in ((4, 4, 1), (100, 100, 1), (101, 100, 2), (250, 100, 3)):
        head = MlDecoderHead(8, n_labels)
        assert head.queries.shape[0] == n_queries and head.weight.shape[2] == share
        assert head(torch.randn(2, 8, 2, 2)).shape == (2, n_labels)


def test_ml_decoders_queries_are_fixed_and_in_its_state() -> None:
    head = build("ml_decoder")
    assert "queries" in head.state_dict() and "queries" not in dict(head.named_parameters())


def test_ml_decoder_attends_to_places_whatever_their_order() -> None:
    head = build("ml_decoder").eval()
    torch.testing.assert_close(head(features()), head(features().flip(3)), rtol=1e-4, atol=1e-5)
