import io
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from nuswide.reporting.plots import (
    Histogram,
    PrecisionRecall,
    SearchAxis,
    co_confusion,
    importance_bars,
    interval_dots,
    label_distribution,
    metric_bars,
    parallel_coordinates,
    picture_sheet,
    precision_by_frequency,
    precision_recall,
    prediction_grid,
    reliability,
    score_histograms,
    search_history,
    to_image,
)

LABELS: dict[str, list[str]] = {
    "one": ["cat"],
    "several": ["cat", "wild cat", "sea", "sky"],
    "81": [f"label {i}" for i in range(81)],
    "long": ["a very long name of a label " * 4, "x" * 150, "short"],
    "mathtext": ["$x$ and $y$", "a_b^2", r"\alpha", "$", "cost $5 or $6", "_hidden", "100 %"],
    "other scripts": ["Käse", "море", "ελιά"],
}


@pytest.fixture(params=LABELS)
def labels(request: pytest.FixtureRequest) -> list[str]:
    return LABELS[request.param]


def rendered(figure: Figure) -> Image.Image:
    """Draw the figure, which is when matplotlib finds most faults, as the tracker saves it."""
    assert isinstance(figure, Figure)
    picture = to_image(figure)
    assert max(picture.size) < 10_000
    return picture


def test_a_figure_has_the_pixels_that_matplotlib_saves() -> None:
    figure = metric_bars({"this model": {"map": 0.4}, "chance": {"map": 0.1}}, "on test")
    image = to_image(figure)
    assert image.info["dpi"] == (figure.dpi, figure.dpi)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    saved = Image.open(file).convert("RGB")
    assert image.size == saved.size and image.tobytes() == saved.tobytes()


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def assert_no_mathematics(figure: Figure) -> None:
    assert not [t for t in figure.findobj(Text) if t.get_parse_math() and "$" in t.get_text()]


def assert_texts_inside(figure: Figure, wanted: list[str]) -> None:
    """Every one of the texts is drawn whole inside the picture."""
    figure.draw_without_rendering()
    found = {text.get_text(): text for text in figure.findobj(Text) if text.get_text() in wanted}
    assert set(found) == set(wanted)
    for text in found.values():
        box = text.get_window_extent()
        assert box.x0 >= -1 and box.y0 >= -1, text.get_text()
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, text.get_text()


def grid_of(n: int, labels: list[str], title: str = "test", seed: int = 0) -> Figure:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 3, 16, 16), dtype=np.uint8)
    targets = rng.integers(0, 2, (n, len(labels)), dtype=np.uint8)
    scores = rng.random((n, len(labels)), dtype=np.float32)
    return prediction_grid(images, labels, targets, scores, 0.5, title)


# label_distribution


def test_label_distribution_draws_any_labels(labels: list[str]) -> None:
    counts = np.arange(len(labels))
    figure = label_distribution(labels, {"train": 10 * counts, "val": 0 * counts, "test": counts})
    assert [axis.get_title() for axis in figure.axes] == ["train", "val", "test"]
    assert_no_mathematics(figure)
    rendered(figure)


def test_label_distribution_has_the_most_frequent_label_on_top() -> None:
    counts = {"train": np.array([3, 9, 5]), "test": np.array([30, 20, 10])}
    figure = label_distribution(["c", "a", "b"], counts)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["c", "b", "a"]  # matplotlib counts from below
    for axis, split in zip(figure.axes, counts, strict=True):
        widths = [bar.get_width() for bar in axis.patches]  # type: ignore[attr-defined]
        assert widths == [counts[split][i] for i in (0, 2, 1)]


def test_label_distribution_cuts_long_names_and_long_lists_and_says_so() -> None:
    long = label_distribution(LABELS["long"], {"train": np.arange(3)})
    assert max(len(label.get_text()) for label in long.axes[0].get_yticklabels()) == 40
    many = label_distribution([f"label {i}" for i in range(1000)], {"train": np.arange(1000)})
    names = [label.get_text() for label in many.axes[0].get_yticklabels()]
    assert len(names) == 200 and names[-1] == "label 999"
    assert "the 200 most frequent of 1000 labels" in texts_of(many)
    rendered(many)


@pytest.mark.parametrize("kind", ["one", "several", "long", "mathtext"])
def test_label_distribution_shows_its_names_whole(kind: str) -> None:
    figure = label_distribution(LABELS[kind], {"train $a$": np.arange(len(LABELS[kind]))})
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert_texts_inside(figure, [*names, "train $a$", "images with the label"])
    assert_no_mathematics(figure)


# prediction_grid


@pytest.mark.parametrize("n", [1, 5])
def test_prediction_grid_draws_any_labels(labels: list[str], n: int) -> None:
    figure = grid_of(n, labels)
    assert sum(len(axis.images) for axis in figure.axes) == n
    assert_no_mathematics(figure)
    rendered(figure)


def test_prediction_grid_says_what_was_found_wrong_and_missed() -> None:
    labels = ["hit", "wrong", "missed", "quiet", "hit $2$"]
    targets = np.array([[1, 0, 1, 0, 1]], dtype=np.uint8)
    scores = np.array([[0.5, 0.9, 0.49, 0.0, 1.0]], dtype=np.float32)
    images = np.zeros((1, 3, 8, 8), dtype=np.uint8)
    texts = texts_of(prediction_grid(images, labels, targets, scores, 0.5, "test"))
    assert texts.count("✓ hit, hit $2$") == 1
    assert "+ wrong" in texts and "− missed" in texts
    assert not any("quiet" in text for text in texts)


def test_prediction_grid_writes_nothing_below_a_picture_without_labels() -> None:
    images = np.zeros((1, 3, 8, 8), dtype=np.uint8)
    zeros = np.zeros((1, 2))
    figure = prediction_grid(
        images, ["a", "b"], zeros.astype(np.uint8), zeros.astype(np.float32), 0.5, "test"
    )
    assert len(texts_of(figure)) == 1  # the title
    rendered(figure)


def test_prediction_grid_shows_the_pictures_as_they_are() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    empty = np.zeros((2, 1))
    figure = prediction_grid(
        images, ["a"], empty.astype(np.uint8), empty.astype(np.float32), 0.5, "t"
    )
    for axis, image in zip(figure.axes, images, strict=True):
        assert (np.asarray(axis.images[0].get_array()) == image.transpose(1, 2, 0)).all()


@pytest.mark.parametrize("n", [1, 2, 5, 12])
@pytest.mark.parametrize("kind", ["one", "81", "long"])
def test_prediction_grid_writes_inside_the_picture_and_never_over_the_next(
    n: int, kind: str
) -> None:
    figure = grid_of(n, LABELS[kind], title="step 1200, val")
    figure.draw_without_rendering()
    pictures = [axis.get_window_extent() for axis in figure.axes if axis.images]
    captions = [text for axis in figure.axes for text in axis.texts]
    assert captions or kind == "one"
    for text in captions:
        box = text.get_window_extent()
        assert box.y0 >= 0 and box.x1 <= figure.bbox.x1 + 1
        assert not any(box.overlaps(picture) for picture in pictures)
    title = next(text for text in figure.findobj(Text) if "step 1200" in text.get_text())
    box = title.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert not any(box.overlaps(picture) for picture in pictures)


def test_captions_of_a_picture_have_three_lines_at_most_and_do_not_overlap() -> None:
    figure = grid_of(4, LABELS["81"])
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts]
        assert [text.get_text().count("\n") for text in axis.texts] == [2, 2, 2]
        assert all(above.y0 >= below.y1 for above, below in zip(boxes, boxes[1:], strict=False))


def test_prediction_grid_is_mostly_pictures() -> None:
    figure = grid_of(12, LABELS["several"])
    figure.draw_without_rendering()
    area = sum(box.width * box.height for box in (a.get_window_extent() for a in figure.axes))
    assert area / (figure.bbox.width * figure.bbox.height) > 0.7


# metric_bars


def bars_of(names: list[str], metrics: tuple[str, ...] = ("micro/f1", "map")) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: {metric: float(rng.random()) for metric in metrics} for name in names}


@pytest.mark.parametrize("n", [1, 3, 20])
@pytest.mark.parametrize(
    "name", ["run {}", "run $x_{}$", "_run{}", "a run with quite a long name, number {}", "x" * 200]
)
def test_metric_bars_name_every_bar_inside_the_picture(n: int, name: str) -> None:
    names = list(dict.fromkeys(name.format(i) for i in range(n)))
    figure = metric_bars(bars_of(names), "on $test$")
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(shown) == len(names)
    for text, whole in zip(shown, names, strict=True):
        assert text == whole or (text.endswith("…") and whole.startswith(text[:-1]))
    assert_no_mathematics(figure)
    assert_texts_inside(figure, [*shown, "on $test$"])
    assert len(figure.axes[0].patches) == 2 * len(names)


def test_metric_bars_of_many_names_never_look_alike() -> None:
    figure = metric_bars(bars_of([f"run {i}" for i in range(14)], ("map",)), "title")
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bar in figure.axes[0].patches}
    assert len(looks) == 14


def test_metric_bars_are_as_high_as_their_figures() -> None:
    figures = {"a": {"map": 0.25, "micro/f1": 1.0}, "b": {"map": 0.75, "micro/f1": 0.0}}
    axis = metric_bars(figures, "title").axes[0]
    heights = [bar.get_height() for bar in axis.patches]  # type: ignore[attr-defined]
    assert heights == [0.25, 1.0, 0.75, 0.0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["map", "micro/f1"]
    assert [text.get_text() for text in axis.texts] == ["0.25", "1.00", "0.75", "0.00"]


def test_metric_bars_leave_a_gap_for_a_missing_or_undefined_figure() -> None:
    figure = metric_bars({"a": {"map": float("nan")}, "b": {"micro/f1": 0.5}}, "title")
    heights = [bar.get_height() for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert np.isnan(heights).tolist() == [True, True, True, False]
    assert "nan" not in texts_of(figure)
    rendered(figure)


# interval_dots


def test_interval_dots_draw_values_bounds_and_others_and_name_them_rightly() -> None:
    figure = interval_dots(
        {"map": (0.5, 0.4, 0.7), "micro/f1": (0.6, 0.6, 0.6)},
        {"$all$": {"map": 0.1, "micro/f1": 0.2}, "_top": {"map": 0.15}},
    )
    axis = figure.axes[0]
    dots = {line.get_marker(): list(line.get_xdata()) for line in axis.lines}  # type: ignore[arg-type]
    assert dots["o"] == [0.5, 0.6] and dots["D"] == [0.1, 0.2]
    assert dots["s"][0] == 0.15 and np.isnan(dots["s"][1])
    segments = axis.collections[-1].get_segments()  # type: ignore[attr-defined]
    np.testing.assert_allclose(segments[0][:, 0], [0.4, 0.7])
    names = {
        text.get_text(): handle
        for text, handle in zip(
            figure.legends[0].get_texts(), figure.legends[0].legend_handles, strict=True
        )
    }
    assert names["$all$"].get_marker() == "D" and names["_top"].get_marker() == "s"  # type: ignore[union-attr]
    assert_no_mathematics(figure)
    rendered(figure)


# curves


def curve(title: str) -> PrecisionRecall:
    recall = np.array([0.0, 0.5, 1.0])
    return PrecisionRecall(title, recall, 1 - recall / 2, 0.3, {"here": (0.5, 0.75)})


@pytest.mark.parametrize("n", [1, 3, 4, 12])
def test_precision_recall_has_a_panel_a_curve_with_its_point(n: int) -> None:
    figure = precision_recall([curve(f"$label$ {i}") for i in range(n)])
    used = [axis for axis in figure.axes if axis.get_title()]
    assert len(used) == n
    for axis in used:
        drawn = {line.get_marker(): line for line in axis.lines}
        assert list(drawn["o"].get_xydata()[0]) == [0.5, 0.75]  # type: ignore[index]
    assert_texts_inside(figure, ["here", "chance: the share of positives", "$label$ 0"])
    assert_no_mathematics(figure)
    assert_nothing_overlaps(figure, ["here", "recall"])


def assert_nothing_overlaps(figure: Figure, wanted: list[str]) -> None:
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.findobj(Text) if t.get_text() in wanted]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize("n", [1, 5])
def test_score_histograms_show_shares_and_the_threshold(n: int) -> None:
    panel = Histogram("sky", np.array([0.0, 0.25, 0.75]), np.array([0.9, 0.1, 0.0]), 0.4)
    figure = score_histograms([panel] * n)
    axis = figure.axes[0]
    heights = {tuple(patch.get_data().values) for patch in axis.patches}  # type: ignore[attr-defined]
    assert heights == {(0.0, 0.25, 0.75), (0.9, 0.1, 0.0)}
    assert list(axis.lines[0].get_xdata()) == [0.4, 0.4]  # type: ignore[arg-type]
    assert_nothing_overlaps(figure, ["have the label", "score"])
    rendered(figure)


def test_reliability_draws_used_bins_and_counts_all() -> None:
    nan = np.nan
    figure = reliability(
        np.array([0.1, nan, 0.9]), np.array([0.2, nan, 0.5]), np.array([0.1, nan, 0.4]),
        np.array([0.3, nan, 0.8]), np.array([1234, 0, 3]),
    )  # fmt: skip
    top, bottom = figure.axes
    assert [list(line.get_xdata()) for line in top.lines if line.get_marker() == "o"] == [  # type: ignore[arg-type]
        [0.1, 0.9]
    ]
    assert [text.get_text() for text in bottom.texts] == ["1.2k", "0", "3"]
    rendered(figure)


@pytest.mark.parametrize("kind", ["one", "81", "mathtext"])
def test_precision_by_frequency_has_a_dot_a_label_and_names_some(kind: str) -> None:
    names = LABELS[kind]
    positives = np.arange(len(names)) ** 2
    figure = precision_by_frequency(names, positives, np.linspace(0, 1, len(names)), (20, 100))
    axis = figure.axes[0]
    assert list(axis.lines[0].get_xdata()) == list(positives)  # type: ignore[arg-type]
    assert names[-1] in [text.get_text() for text in axis.texts]
    assert_no_mathematics(figure)
    rendered(figure)


# co_confusion


def test_co_confusion_shades_by_share_and_writes_counts() -> None:
    images = np.array([[2, 0], [0, 5]])
    figure = co_confusion(["sea", "sky $x$"], ["sand", "sun"], images, np.array([4, 5]))
    axis = figure.axes[0]
    np.testing.assert_allclose(axis.images[0].get_array(), [[0.5, 0], [0, 1]])
    assert [text.get_text() for text in axis.texts] == ["2", "5"]
    assert_texts_inside(figure, ["sea (4)", "sky $x$ (5)", "sand", "sun"])
    assert_no_mathematics(figure)


# picture_sheet


@pytest.mark.parametrize("n", [1, 5])
def test_picture_sheet_writes_captions_inside_and_never_over_a_picture(n: int) -> None:
    images = [np.zeros((3, 8, 8), dtype=np.uint8)] * n
    figure = picture_sheet(images, ["$headline$\n" + "a long line of words " * 8] * n)
    figure.draw_without_rendering()
    pictures = [axis.get_window_extent() for axis in figure.axes if axis.images]
    assert len(pictures) == n
    for axis in figure.axes[:n]:
        box = axis.texts[0].get_window_extent()
        assert box.y0 >= 0 and box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(picture) for picture in pictures)
    assert_no_mathematics(figure)


# search_history, parallel_coordinates, importance_bars


def test_search_history_draws_complete_trials_their_best_and_pruned_ones() -> None:
    figure = search_history([1, 2, 3, 5], [0.2, 0.1, 0.15, 0.4], [False, False, True, False])
    best, complete, pruned = figure.axes[0].lines
    assert list(best.get_ydata()) == [0.2, 0.2, 0.4]  # type: ignore[arg-type]
    assert list(complete.get_xdata()) == [1, 2, 5]  # type: ignore[arg-type]
    assert list(pruned.get_xdata()) == [3]  # type: ignore[arg-type]
    assert_nothing_overlaps(figure, ["best so far", "trial"])
    rendered(search_history([1], [0.2], [True]))


@pytest.mark.parametrize("values", [[0.3], [0.2, 0.2], [0.1, 0.4, 0.2]])
def test_parallel_coordinates_has_a_line_a_trial_and_a_thick_one_for_the_best(
    values: list[float],
) -> None:
    n = len(values)
    axes = [
        SearchAxis("lr", list(np.linspace(0, 1, n)), {"1e-5": 0, "1e-2": 1}),
        SearchAxis("a $very$ long name of a field", [0.5] * n, {"$x$": 0, "y" * 60: 0.5}),
    ]
    figure = parallel_coordinates(axes, values, "mAP on val")
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]  # type: ignore[arg-type]
    assert len(curves) == n
    thick = [line for line in curves if line.get_linewidth() == 3]
    assert len(thick) == 1
    height = (max(values) - min(values)) and 1.0
    assert thick[0].get_ydata()[-1] == pytest.approx(height)  # type: ignore[index]
    assert_texts_inside(figure, ["1e-5", "$x$", "lr", "mAP on val"])
    assert_no_mathematics(figure)


def test_importance_bars_has_the_greatest_on_top() -> None:
    figure = importance_bars({"lr": 0.2, "loss": 0.7, "$x$": 0.1})
    bars = figure.axes[0].patches
    assert [round(bar.get_width(), 2) for bar in bars] == [0.1, 0.2, 0.7]  # type: ignore[attr-defined]
    assert_texts_inside(figure, ["loss", "lr", "70%"])
    assert_no_mathematics(figure)
