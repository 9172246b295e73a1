import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Browser
from conftest import REAL, needs_real

from nuswide.data.dataset import Dataset
from nuswide.data.manifest import Manifest
from nuswide.metrics import all_metrics, baseline_metrics, label_average_precision
from nuswide.metrics.predictions import Predictions
from nuswide.reporting.report import Part, Report, ReportInputs, make_report, to_html
from nuswide.reporting.report.entries import (
    Entry,
    best_hits,
    false_positives,
    find_confusions,
    find_entries,
    misses,
    varied,
)
from nuswide.reporting.report.galleries import Card
from nuswide.reporting.report.inputs import take_sample
from nuswide.reporting.report.tables import calibration
from nuswide.tagger import Preprocessing

HOSTILE = "<script>alert(1)</script>"


def data_of(
    targets: Any, labels: tuple[str, ...], known: Any = None, split: str = "test", side_px: int = 8
) -> Dataset:
    """Samples with pictures of one grey each, by which they can be told apart."""
    targets = np.array(targets, dtype=np.uint8)
    n = len(targets)
    manifest = Manifest(
        Path("."), tuple(f"{i}.jpg" for i in range(n)), labels, targets, np.array([split] * n),
        None if known is None else np.array(known, dtype=bool),
    )  # fmt: skip
    greys = np.arange(n, dtype=np.uint8)[:, None, None, None]
    return Dataset(manifest, np.broadcast_to(greys, (n, 3, side_px, side_px)), np.arange(n))


def inputs_of(data: Dataset, scores: Any, **changes: Any) -> ReportInputs:
    n_labels = len(data.manifest.labels)
    inputs = ReportInputs(
        "a model", "test", data, np.array(scores, dtype=np.float32),
        np.full(n_labels, 0.5, dtype=np.float32), np.full(n_labels, 30),
    )  # fmt: skip
    return replace(inputs, **changes)


@pytest.fixture
def small() -> ReportInputs:
    """Four images of sea and sand; sand is wrongly 0.9 in 1, sea missed in 1 and 3."""
    data = data_of([[1, 0], [1, 0], [0, 1], [1, 1]], ("sea", "sand"))
    return inputs_of(data, [[0.8, 0.3], [0.2, 0.9], [0.6, 0.7], [0.1, 0.8]])


def random_inputs(n: int, c: int, seed: int = 0, **changes: Any) -> ReportInputs:
    rng = np.random.default_rng(seed)
    targets = rng.random((n, c)) < 0.3
    scores = np.clip(targets * 0.4 + rng.random((n, c)) * 0.6, 0, 1)
    data = data_of(targets, tuple(f"label {i}" for i in range(c)))
    return inputs_of(data, scores, **changes)


def headlines(cards: list[Card]) -> list[str]:
    return [card.lines[0] for card in cards]


# mistakes and hits


def test_the_surest_mistakes_come_first_with_their_own_pictures(small: ReportInputs) -> None:
    galleries = make_report(small).galleries
    assert headlines(galleries["false_positives"]) == [
        "sand predicted wrongly at 0.900", "sea predicted wrongly at 0.600",
    ]  # fmt: skip
    assert headlines(galleries["misses"]) == ["sea missed at 0.100", "sea missed at 0.200"]
    assert [int(card.image[0, 0, 0]) for card in galleries["misses"]] == [3, 1]
    assert galleries["misses"][0].lines[1:] == ("✓ found: sand 0.80", "− missed: sea 0.10", "3.jpg")
    assert galleries["misses"][0].alt == ("sea missed at 0.100. True: sea, sand. Predicted: sand.")


def test_the_best_hit_is_whole_and_of_many_labels() -> None:
    data = data_of([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]], ("a", "b", "c"))
    scores = np.array(
        [[0.9, 0.6, 0.1], [0.99, 0, 0], [0.9, 0.7, 0.1], [0.9, 0, 0.4]], dtype=np.float32
    )
    thresholds = np.full(3, 0.5, dtype=np.float32)
    assert best_hits(data.manifest, scores, thresholds, 9) == [2, 0, 1]  # 3 has no hit


@pytest.mark.parametrize("block", [1, 7, 10**6])
def test_found_entries_are_those_of_a_plain_sort(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("nuswide.reporting.report.entries._BLOCK", block * 4)
    inputs = random_inputs(50, 4, seed=1)
    samples = inputs.data.manifest
    scores = (inputs.scores * 8).round() / 8  # ties
    for value, wanted in ((false_positives, 0), (misses, 1)):
        found = find_entries(samples, scores, value(inputs.thresholds), per_label=3)
        predicted = scores >= 0.5
        chosen = (samples.targets == wanted) & (predicted != wanted)
        sign = -1 if wanted else 1
        everything = [(float(sign * scores[i, k]), int(i), int(k)) for i, k in np.argwhere(chosen)]
        everything.sort(key=lambda e: (-e[0], e[1], e[2]))
        firsts = [e for k in range(4) for e in [e for e in everything if e[2] == k][:3]]
        assert found == sorted(firsts, key=lambda e: (-e[0], e[1], e[2]))


def test_varied_entries_repeat_no_image_and_few_labels() -> None:
    entries = [Entry(9, 0, 0), Entry(8, 0, 1), Entry(7, 1, 0), Entry(6, 2, 0), Entry(5, 3, 1)]
    assert varied(entries, count=4, n_labels=9) == [entries[0], entries[2], entries[4]]
    one_label = [Entry(9 - i, i, 0) for i in range(9)]
    assert varied(one_label, count=5, n_labels=1) == one_label[:5]


def test_unknown_entries_are_no_mistake_no_suspect_and_in_no_caption() -> None:
    known = [[True, False], [True, True]]
    data = data_of([[1, 0], [0, 0]], ("sea", "sand"), known)
    scores = [[0.9, 0.99], [0.1, 0.2]]
    val = Part(replace(data, manifest=replace(data.manifest, splits=np.array(["val"] * 2))),
               np.array(scores, dtype=np.float32))  # fmt: skip
    report = make_report(inputs_of(data, scores, held_out=val))
    assert not report.galleries["false_positives"] and not report.galleries["misses"]
    assert not report.galleries["may_be_missing"] and not report.tables["suspects"]["rank"]
    (hit,) = report.galleries["best_hits"]
    assert not any("sand" in line for line in hit.lines) and "sand" not in hit.alt
    assert not report.tables["confusions"].rows
    assert "1 of 4 entries is unknown and in no metric." in report.findings
    assert sum(report.tables["calibration"]["entries"]) == 3


# confusions


def test_confusions_count_images_where_one_is_missed_and_another_wrong(small: ReportInputs) -> None:
    table = make_report(small).tables["confusions"]
    assert table.as_dict() == {
        "missed": ["sea"], "predicted instead": ["sand"], "images": [1],
        "share of the missed": [0.5], "share of all images": [0.25],
    }  # fmt: skip


def test_confusions_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nuswide.reporting.report.entries._BLOCK", 40)
    inputs = random_inputs(60, 5, seed=2)
    samples, predicted = inputs.data.manifest, inputs.scores >= 0.5
    found = find_confusions(samples, inputs.scores, inputs.thresholds)
    for r, i in enumerate(found.missed):
        for c, j in enumerate(found.wrong):
            both = (samples.targets[:, i] == 1) & ~predicted[:, i]
            both &= (samples.targets[:, j] == 0) & predicted[:, j]
            assert found.images[r, c] == both.sum()


# suspected labels


def test_suspects_are_ranked_by_distance_and_say_why() -> None:
    data = data_of([[1, 0], [0, 1], [1, 1]], ("sea", "sand"), split="val")
    scores = np.array([[0.9, 0.95], [0.1, 0.9], [0.02, 0.9]], dtype=np.float32)
    test = data_of([[1, 1]], ("sea", "sand"))
    report = make_report(inputs_of(test, [[0.9, 0.9]], held_out=Part(data, scores)))
    table = report.tables["suspects"]
    assert table["image"] == ["2.jpg", "0.jpg"] and table["label"] == ["sea", "sand"]
    np.testing.assert_allclose(table["distance"], [0.98, 0.95], rtol=1e-6)
    aps = label_average_precision(Predictions(data.manifest.targets, scores))
    assert table["reason"] == [
        f"may not be there; the model is good at it (AP {aps[0]:.2f})",
        f"may be missing; the model is fair at it (AP {aps[1]:.2f})",
    ]
    assert headlines(report.galleries["may_be_missing"]) == ["sand, not labelled, scored 0.950"]
    assert headlines(report.galleries["may_be_wrong"]) == ["sea, labelled, scored 0.020"]
    assert "Entries of val, which the model was not trained on" in to_html(report)


def test_without_held_out_scores_nothing_is_suspected(small: ReportInputs) -> None:
    report = make_report(small)
    assert "suspects" not in report.tables and "may be wrong" not in to_html(report)


# metrics


def test_headline_shows_the_metrics_intervals_and_baselines_that_it_was_given(
    small: ReportInputs,
) -> None:
    targets = small.data.manifest.targets
    metrics = all_metrics(targets, small.scores, small.thresholds)
    baselines = baseline_metrics(targets, targets)
    interval = (metrics["map"], 0.123, 0.987)
    report = make_report(
        replace(small, metrics=metrics, intervals={"map": interval}, baselines=baselines)
    )
    table = report.tables["headline"]
    row = {name: values[table["metric"].index("map")] for name, values in table.as_dict().items()}
    assert (row["value"], row["low"], row["high"]) == interval
    assert row["all_labels"] == baselines["all_labels"]["map"]
    assert row["top_k"] == baselines["top_k"]["map"]
    assert table["low"][1] is None  # no interval is made up
    page = to_html(report)
    assert "(95 % interval 0.123 to 0.987); the trivial tagger" in page
    assert f"<td>{metrics['map']:.3f}</td><td>0.123</td><td>0.987</td>" in page


def test_metrics_are_computed_if_they_are_not_given(small: ReportInputs) -> None:
    expected = all_metrics(small.data.manifest.targets, small.scores, small.thresholds)
    table = make_report(small).tables["headline"]
    for name, value in zip(table["metric"], table["value"], strict=True):
        assert value == expected[name]


def test_thresholds_stand_beside_a_half() -> None:
    inputs = random_inputs(80, 3, thresholds=np.array([0.3, 0.4, 0.7], dtype=np.float32))
    table = make_report(inputs).tables["thresholds"]
    for column, thresholds in (("at its thresholds", inputs.thresholds), ("at 0.5", 0.5)):
        expected = all_metrics(inputs.data.manifest.targets, inputs.scores, thresholds)
        for name, value in zip(table["metric"], table[column], strict=True):
            assert value == expected[name]


def test_the_per_label_table_keeps_each_labels_own_values_together() -> None:
    inputs = random_inputs(
        90, 4, thresholds=np.array([0.2, 0.4, 0.6, 0.8], dtype=np.float32),
        train_positives=np.array([7, 11, 13, 17]),
    )  # fmt: skip
    table = make_report(inputs).tables["per_label"]
    targets = inputs.data.manifest.targets
    for row, label in enumerate(table["label"]):
        i = inputs.labels.index(label)
        alone = all_metrics(targets[:, [i]], inputs.scores[:, [i]], 0.5)
        assert table["support"][row] == targets[:, i].sum()
        assert table["in train"][row] == inputs.train_positives[i]
        assert table["threshold"][row] == pytest.approx(inputs.thresholds[i])
        assert table["f1 at 0.5"][row] == pytest.approx(alone["macro/f1"], abs=1e-4)
        assert table["ap"][row] == pytest.approx(alone["map"], abs=1e-4)


def test_calibration_bins_hold_every_entry_once() -> None:
    inputs = random_inputs(200, 3, seed=3)
    table = calibration(take_sample(inputs, 10**6).predictions)
    assert sum(table["entries"]) == 600
    for row, n in enumerate(table["entries"]):
        low, high = table["from"][row], table["to"][row]
        inside = (inputs.scores >= np.float32(low)) & (inputs.scores < np.float32(high))
        if not n:
            assert table["share true"][row] is None
            continue
        assert n == inside.sum()
        share = inputs.data.manifest.targets[inside].mean()
        assert table["share true"][row] == pytest.approx(share)
        assert table["low"][row] <= share + 1e-9 and share <= table["high"][row] + 1e-9
        assert table["mean score"][row] == pytest.approx(inputs.scores[inside].mean())


# the page


def image_count(page: str, kind: str) -> int:
    return page.count(f"data:image/{kind};base64,")


@pytest.fixture(scope="module")
def whole() -> tuple[Report, str]:
    """A report with all that it can have, its texts hostile, and its page."""
    rng = np.random.default_rng(0)
    labels = (HOSTILE, '"><img src=x onerror=alert(1)>', "$sea$", "_sand")
    targets = rng.random((40, 4)) < 0.4
    data = data_of(targets, labels)
    names = tuple(f"{HOSTILE}{i}.jpg" for i in range(40))
    data = replace(data, manifest=replace(data.manifest, names=names))
    scores = rng.random((40, 4), dtype=np.float32)
    val = replace(data, manifest=replace(data.manifest, splits=np.array(["val"] * 40)))
    inputs = inputs_of(
        data, scores, title=HOSTILE, held_out=Part(val, scores),
        baselines=baseline_metrics(data.manifest.targets, data.manifest.targets),
        intervals={"map": (0.4, 0.3, 0.5)}, costs={"images_per_s": 1234.5, HOSTILE: 1.0},
        facts={"code commit": "1e5", HOSTILE: HOSTILE, "site": "https://example.org/x"},
    )  # fmt: skip
    report = make_report(inputs)
    return report, to_html(report)


def test_hostile_labels_names_and_facts_are_escaped(whole: tuple[Report, str]) -> None:
    _, page = whole
    assert page.count("<script") == 1  # the one that sorts
    assert "<img src=x" not in page and "alert(1)" in page and "&lt;script&gt;alert" in page


class Addresses(HTMLParser):
    """What a page's elements point at or load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loading = ("src", "href", "srcset", "action", "data", "poster", "background")
        self.addresses += [value or "" for name, value in attrs if name in loading]


def test_the_page_names_no_resource_outside_itself(whole: tuple[Report, str]) -> None:
    _, page = whole
    found = Addresses()
    found.feed(page)
    assert found.addresses and all(a.startswith(("data:image/", "#")) for a in found.addresses)
    assert "url(" not in page and "@import" not in page


def test_each_section_is_in_the_contents(whole: tuple[Report, str]) -> None:
    _, page = whole
    linked = re.findall(r'<li><a href="#([^"]+)">', page)
    assert linked == re.findall(r'<h2 id="([^"]+)">', page) and len(linked) == 13


def test_every_picture_says_what_is_seen(whole: tuple[Report, str]) -> None:
    report, page = whole
    alts = re.findall(r'<img alt="([^"]+)"', page)
    shown = sum(map(len, report.galleries.values()))
    assert len(alts) == page.count("<img") == len(report.plots) + shown
    assert image_count(page, "png") == len(report.plots) and image_count(page, "jpeg") == shown
    assert all(len(alt) > 20 for alt in alts)


@pytest.mark.slow
def test_the_pieces_are_there_as_pictures_and_columns(whole: tuple[Report, str]) -> None:
    report, _ = whole
    assert set(report.images) == {
        "headline", "label_distribution", "ap_by_frequency", "precision_recall", "calibration",
        "score_histograms", "co_confusion", "false_positives", "misses", "best_hits",
        "may_be_missing", "may_be_wrong",
    }  # fmt: skip
    for columns in report.tables.values():
        assert len({len(values) for values in columns.as_dict().values()}) == 1


@pytest.mark.browser
def test_chromium_opens_the_page_without_network_or_complaint_and_sorts_labels(
    whole: tuple[Report, str], tmp_path: Path, browser: Browser
) -> None:
    report, page = whole
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    browser.resize(400)
    browser.get((tmp_path / "report.html").as_uri())
    assert browser.requests() == [(tmp_path / "report.html").as_uri()]
    assert browser.console() == []
    assert browser.ask("[...document.images].every(i => i.naturalWidth > 0)")
    assert browser.ask("document.documentElement.scrollWidth <= window.innerWidth")
    browser.ask("document.querySelectorAll('table.sortable')[0].id = 'labels'")
    browser.click("#labels th:nth-child(2) button")
    shown = browser.ask("[...document.querySelectorAll('#labels tbody th')].map(e => e.innerText)")
    table = report.tables["per_label"]
    order = sorted(range(4), key=lambda i: -table["ap"][i])
    assert shown == [table["label"][i] for i in order]


# edges


@pytest.mark.parametrize(
    ("targets", "scores"),
    [
        ([[1], [0], [1]], [[0.9], [0.8], [0.1]]),
        ([[1, 0, 1]], [[0.9, 0.8, 0.1]]),
        ([[1]], [[0.5]]),
        ([[0]], [[0.2]]),
        ([[0, 1], [0, 0]], [[0.9, 1.0], [0.0, 0.3]]),
        ([[0, 0], [0, 0]], [[0.9, 0.1], [0.0, 0.3]]),
        ([[1, 1], [1, 1]], [[1.0, 1.0], [1.0, 1.0]]),
    ],
    ids=["one label", "one image", "one entry", "one negative", "a label without positives",
         "no positive at all", "all positive and found"],
)  # fmt: skip
def test_edges_make_a_page(targets: Any, scores: Any) -> None:
    labels = tuple("abc"[: len(targets[0])])
    data = data_of(targets, labels)
    val = Part(data_of(targets, labels, split="val"), np.array(scores, dtype=np.float32))
    report = make_report(inputs_of(data, scores, held_out=val))
    page = to_html(report)
    rising = np.array(targets).any()  # without a positive there is no curve to show
    assert page.count("<h2") == (11 if rising else 10)
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page)
    missing = int((~np.array(targets, dtype=bool).any(axis=0)).sum())
    have = "has" if missing == 1 else "have"
    said = [f for f in report.findings if f"{missing} of {len(labels)} labels {have} no image" in f]
    assert len(said) == (missing > 0)


def test_one_of_a_kind_is_named_in_the_singular() -> None:
    report = make_report(inputs_of(data_of([[1]], ("sea",)), [[0.9]]))
    assert report.findings[0] == "1 image of test, 1 label."
    means = "1 label with 20 to 100 images in train: mean AP 1.00"
    assert any(means in plot.caption for plot in report.plots.values())


def test_many_images_are_sampled_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = random_inputs(300, 4)
    sample = take_sample(inputs, most_entries=400)
    assert len(sample.rows) == 100 and (np.diff(sample.rows) > 0).all()
    np.testing.assert_array_equal(sample.predictions.scores, inputs.scores[sample.rows])
    np.testing.assert_array_equal(
        sample.predictions.targets, inputs.data.manifest.targets[sample.rows]
    )
    monkeypatch.setattr("nuswide.reporting.report.make.MOST_ENTRIES", 400)
    said = make_report(inputs).findings
    assert any("of 100 of these images, drawn at random" in sentence for sentence in said)


@pytest.mark.slow
def test_many_labels_are_cut_on_the_page_alone_and_it_says_so() -> None:
    inputs = random_inputs(12, 700)
    report = make_report(inputs)
    assert len(report.tables["per_label"]["label"]) == 700
    page = to_html(report)
    assert "the 500 most frequent of 700" in page and len(page) < 3_000_000


def test_scores_of_another_shape_are_refused(small: ReportInputs) -> None:
    with pytest.raises(ValueError, match="scores are"):
        replace(small, scores=small.scores[:2])
    with pytest.raises(ValueError, match="2 values each"):
        replace(small, thresholds=small.thresholds[:1])


@pytest.mark.slow
@needs_real("corel5k")
def test_a_page_of_real_photographs_is_small(tmp_path: Path) -> None:
    from nuswide.data.dataset import load_manifest, open_dataset

    manifest = load_manifest(str(REAL / "corel5k"))
    data = open_dataset(manifest, Preprocessing(224), folder=tmp_path).of("test")
    targets = data.manifest.targets
    noise = np.random.default_rng(0).random(targets.shape, dtype=np.float32)
    scores = np.clip(0.3 * targets + 0.7 * noise, 0, 1).astype(np.float32)
    val = replace(data, manifest=replace(data.manifest, splits=np.array(["val"] * len(data))))
    report = make_report(inputs_of(data, scores, held_out=Part(val, scores)))
    assert sum(map(len, report.galleries.values())) >= 40
    assert len(to_html(report).encode()) < 3_000_000
