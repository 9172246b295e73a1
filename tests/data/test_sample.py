import hashlib
import json
from collections import Counter
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from nuswide.data import sample
from nuswide.data.sample import LABELS, compose, draw_sample, scenes, split_test
from nuswide.data.sample.canvas import GROUNDS, OBJECTS, Canvas
from nuswide.data.sample.scenes import SCENES

ARTICLE_LABELS = set(
    "house birds sun valley nighttime boats mountain tree snow beach vehicle rocks reflection"
    " sunset road flowers ocean lake window plants buildings grass water animal person clouds"
    " sky".split()
)


def draw_few(out: Path, *, seed: int = 0, images: int = 8) -> None:
    draw_sample(out, images=images, size_px=32, seed=seed, test_fraction=0.25)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    # The labels at the defaults; they do not depend on the size, and small is fast.
    return [compose(0, index, size_px=16)[1] for index in range(600)]


def test_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    draw_few(tmp_path / "a")
    draw_few(tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(digests(tmp_path / "a")) == 8 + 3


def test_another_seed_gives_other_pictures(tmp_path: Path) -> None:
    draw_few(tmp_path / "a", seed=0)
    draw_few(tmp_path / "b", seed=1)
    a, b = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert all(a[name] != b[name] for name in a)


def test_a_picture_does_not_depend_on_how_many_are_drawn(tmp_path: Path) -> None:
    draw_few(tmp_path / "few", images=4)
    draw_few(tmp_path / "more", images=8)
    few, more = digests(tmp_path / "few" / "images"), digests(tmp_path / "more" / "images")
    assert few.items() < more.items()


def test_the_files_have_the_form_of_the_article(tmp_path: Path) -> None:
    draw_few(tmp_path / "sample")
    splits = [
        json.loads((tmp_path / "sample" / f"{split}.json").read_text())
        for split in ("train", "test")
    ]
    assert [len(split["samples"]) for split in splits] == [6, 2]
    assert all(split["labels"] == list(LABELS) for split in splits)
    samples = splits[0]["samples"] + splits[1]["samples"]
    assert len({entry["image_name"] for entry in samples}) == 8
    for entry in samples:
        assert entry["image_labels"] == compose(0, int(entry["image_name"][:4]), 32)[1]
        with Image.open(tmp_path / "sample" / "images" / entry["image_name"]) as picture:
            assert (picture.size, picture.mode, picture.format) == ((32, 32), "RGB", "JPEG")


def test_labels_do_not_depend_on_the_size(rows: list[list[str]]) -> None:
    assert [compose(0, index, size_px=64)[1] for index in range(40)] == rows[:40]


def test_labels_are_those_of_the_article(rows: list[list[str]]) -> None:
    drawn = {label for row in rows for label in row}
    assert drawn == set(LABELS) < ARTICLE_LABELS
    assert len(LABELS) == len(drawn) >= 16
    assert all(row for row in rows)


def test_labels_are_long_tailed_and_co_occur(rows: list[list[str]]) -> None:
    counts = Counter(label for row in rows for label in row)
    assert [label for label, _ in counts.most_common(2)] == ["sky", "clouds"]
    assert 0.45 <= counts["sky"] / len(rows) <= 0.6
    assert min(counts.values()) >= 10
    assert max(counts.values()) / min(counts.values()) >= 10
    assert 2.4 <= np.mean([len(row) for row in rows]) <= 4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_splits_hold_every_label(rows: list[list[str]], seed: int) -> None:
    test = split_test(rows, seed, 1 / 6)
    assert len(test) == 100
    in_test = Counter(label for i in test for label in rows[i])
    in_train = Counter(label for i in set(range(600)) - test for label in rows[i])
    assert min(in_test[label] for label in LABELS) >= 2
    assert min(in_train[label] for label in LABELS) >= 8


@pytest.mark.parametrize("name", SCENES)
def test_every_scene_names_what_it_draws(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "SCENES", {name: SCENES[name]})
    scene = SCENES[name]
    assert sum(scene.lights.values()) == pytest.approx(1)
    drawn = {label for index in range(4) for label in compose(0, index, size_px=16)[1]}
    assert drawn
    for ground, _, _ in scene.grounds:
        assert set(GROUNDS[ground][0].split()) <= drawn


@pytest.mark.parametrize("name", OBJECTS)
def test_every_thing_is_seen_where_it_stands(name: str) -> None:
    canvas = Canvas(np.random.default_rng(0), 64, "day")
    canvas.draw_object(name, 0.5, 0.9, 0.6)
    rows, columns = np.asarray(canvas.image).max(axis=-1).nonzero()
    assert canvas.labels == set(OBJECTS[name][0].split())
    assert rows.max() <= 0.97 * canvas.side or name in ("cat", "dog", "face")  # busts are cut off
    assert columns.min() < canvas.side / 2 < columns.max()


def test_a_complete_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_few(tmp_path / "sample")
    monkeypatch.setattr(sample, "compose", lambda *_: pytest.fail("drawn again"))
    draw_few(tmp_path / "sample")


def test_a_sample_of_other_arguments_is_refused(tmp_path: Path) -> None:
    draw_few(tmp_path / "sample", seed=0)
    before = digests(tmp_path / "sample")
    with pytest.raises(click.ClickException, match="seed=1.*name another folder"):
        draw_few(tmp_path / "sample", seed=1)
    assert digests(tmp_path / "sample") == before


def test_an_unrelated_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(click.ClickException, match="exists but is not the sample") as error:
        draw_few(tmp_path / "sample")
    assert "\n" not in error.value.message
    assert (tmp_path / "sample" / "thesis.txt").read_text() == "irreplaceable"


def test_an_interrupted_draw_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seed: int, index: int, size_px: int) -> tuple[Image.Image, list[str]]:
        if index == 3:
            raise KeyboardInterrupt
        return compose(seed, index, size_px)

    with monkeypatch.context() as patch:
        patch.setattr(sample, "compose", interrupt)
        with pytest.raises(KeyboardInterrupt):
            draw_few(tmp_path / "sample")
    assert list(tmp_path.iterdir()) == []
    draw_few(tmp_path / "sample")
    assert (tmp_path / "sample" / "sample.json").is_file()


def test_a_sample_that_another_process_finished_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(rows: list[list[str]], seed: int, fraction: float) -> set[int]:
        monkeypatch.undo()
        draw_few(tmp_path / "sample")
        return split_test(rows, seed, fraction)

    monkeypatch.setattr(sample, "split_test", overtaken)
    draw_few(tmp_path / "sample")
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]


@pytest.mark.parametrize("arguments", [{"images": 1}, {"test_fraction": 1.0}, {"size_px": 8}])
def test_arguments_that_make_no_data_set_are_refused(
    tmp_path: Path, arguments: dict[str, float]
) -> None:
    with pytest.raises(click.ClickException, match="split empty|too small"):
        draw_sample(tmp_path / "sample", **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
