"""The local engine of `nuswide tag`: sources, results, and recovery after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import Registered
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from nuswide.cli import main
from nuswide.deployment.batch import decode, image_list
from nuswide.deployment.batch.decode import as_lossless, decode_file
from nuswide.deployment.batch.image_list import list_images, read_chunks
from nuswide.deployment.batch.job import tag
from nuswide.deployment.batch.parts import TagParts, exclusive_lock, read_about, select
from nuswide.deployment.batch.request import TagSummary
from nuswide.tagger import Preprocessing, Tagger, TaggerModel, decode_image

LABELS = ["a", "b", "c"]


def draw(path: Path, colour: tuple[int, int, int] = (9, 99, 199)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 30), colour).save(path)
    return path


def draw_photos(folder: Path) -> Path:
    """Draw seven images of one colour each, two of them in a subfolder."""
    rng = np.random.default_rng(0)
    for i in range(7):
        r, g, b = rng.integers(0, 256, 3).tolist()
        draw(folder / ("below" if i > 4 else "") / f"{i}.png", (r, g, b))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos")


def listed(source: str | Path, file: Path) -> list[str]:
    listing = list_images(str(source), file, file.with_name("skipped.csv"))
    paths = [path for _, chunk in read_chunks(file, 2) for path in chunk]
    assert len(paths) == listing.count
    return paths


def tag_here(registered: Registered, source: Path, out: Path, **options: Any) -> TagSummary:
    """Tag with the local engine, by default in one worker process."""
    return tag(str(registered.bundle), str(source), str(out), **{"workers": 1, **options})


# sources


def test_a_folder_is_listed_in_order_at_any_depth(photos: Path, tmp_path: Path) -> None:
    draw(photos / "A.JPG"), draw(photos / ".hidden" / "x.jpg"), draw(photos / ".x.jpg")
    (photos / "notes.txt").write_text("no picture")
    expected = [photos / "0.png", *(photos / f"{i}.png" for i in range(1, 5)), photos / "A.JPG"]
    expected += [photos / "below" / "5.png", photos / "below" / "6.png"]
    assert listed(photos, tmp_path / "l") == list(map(str, expected))


def test_content_decides_what_is_an_image_where_the_name_does_not(
    photos: Path, tmp_path: Path
) -> None:
    for name in ("0.jfif", "1.JPE", "no suffix", "2.dat"):
        Image.new("RGB", (4, 4)).save(photos / name, "JPEG")
    (photos / "claims.png").write_bytes(b"no picture")  # to be rejected with a reason
    others = ("Thumbs.db", "empty", "notes.txt", "odd\n,name", "x.heic")
    for name in others:
        (photos / name).write_bytes(b"" if name == "empty" else b"\0\0\0\x1cftypheic")
    os.mkfifo(photos / "pipe")
    found = {Path(path).name for path in listed(photos, tmp_path / "l")}
    own = {"0.jfif", "1.JPE", "no suffix", "2.dat", "claims.png"}
    assert found == own | {f"{i}.png" for i in range(7)}
    skipped = pd.read_csv(tmp_path / "skipped.csv")["path"]
    assert [Path(path).name for path in skipped] == sorted((*others, "pipe"))
    assert listed(photos / "0.jfif", tmp_path / "l") == [str(photos / "0.jfif")]
    assert not (tmp_path / "skipped.csv").exists()


def test_a_glob_a_list_and_one_picture(photos: Path, tmp_path: Path) -> None:
    below = [str(photos / "below" / f"{i}.png") for i in (5, 6)]
    assert listed(photos / "**" / "[56].png", tmp_path / "l") == below
    (photos / "list.txt").write_text(f"below/6.png\r\n\n{below[0]}\nmissing.png\n")
    in_its_order = [below[1], below[0], str(photos / "missing.png")]
    assert listed(photos / "list.txt", tmp_path / "l") == in_its_order
    assert listed(photos / "0.png", tmp_path / "l") == [str(photos / "0.png")]


def test_a_data_set_gives_its_samples_and_its_digest(tiny_data: Path, tmp_path: Path) -> None:
    from nuswide.data.dataset import load_manifest

    manifest = load_manifest(str(tiny_data))
    paths = listed(tiny_data, tmp_path / "l")
    assert paths == [str(manifest.root / name) for name in manifest.names]
    assert (
        list_images(str(tiny_data), tmp_path / "l", tmp_path / "s").data_digest == manifest.digest
    )


def test_a_missing_image_of_a_data_set_is_listed_so_that_it_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,labels\na.png,sky\nlost.png,sky\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    paths = listed(tmp_path, tmp_path / "l")
    assert paths == [str(tmp_path / "a.png"), str(tmp_path / "lost.png")]
    assert decode.decode_file(paths[1], Preprocessing(8)) == "No such file or directory"


@pytest.mark.parametrize("source", ["nowhere", "*.none", "empty", "zeros.txt"])
def test_a_source_without_pictures_is_one_clear_error(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "zeros.txt").write_bytes(bytes(10))
    with pytest.raises(click.ClickException) as caught:
        list_images(source, tmp_path / "l", tmp_path / "s")
    assert source in caught.value.message and "\n" not in caught.value.message


@given(st.lists(st.binary(min_size=1).filter(lambda b: b"\0" not in b), max_size=30))
def test_sorting_on_disk_is_sorting(paths: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_list, "_SORTED_AT_ONCE", 4)
        assert list(image_list._sort_on_disk(paths)) == sorted(paths)


# results


@given(
    hnp.arrays(np.float32, (4, 3), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
    st.lists(st.sampled_from([0.0, 0.5, 0.6]), min_size=3, max_size=3),
    st.integers(0, 3),
)
def test_selection_is_best_first_at_or_above_each_threshold(
    scores: np.ndarray, thresholds: list[float], top_k: int
) -> None:
    limits = np.array(thresholds, np.float32)
    labels, kept = select(scores, LABELS, limits, top_k)
    for row, names, values in zip(scores, labels.to_pylist(), kept.to_pylist(), strict=True):
        expected = sorted(
            ((-s, i) for i, s in enumerate(row.tolist()) if s >= limits[i]), key=lambda x: x
        )[: top_k or None]
        assert names == [LABELS[i] for _, i in expected] and values == [-s for s, _ in expected]


@given(
    hnp.arrays(np.float32, 3, elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
    st.lists(st.sampled_from([0.0, 0.5, 0.6, 0.8]), min_size=3, max_size=3),
    st.integers(0, 3),
)
def test_the_served_model_and_a_batch_select_the_same_labels(
    scores: np.ndarray, thresholds: list[float], top_k: int
) -> None:
    served = TaggerModel()
    served.tagger = SimpleNamespace(  # type: ignore[assignment]
        labels=LABELS, thresholds=np.array(thresholds), score=lambda images: scores[None],
        preprocessing=Preprocessing(8),
    )  # fmt: skip
    image = pd.DataFrame({"image": [as_lossless(np.zeros((3, 8, 8), np.uint8))]})
    answer = served.predict(None, image, {"top_k": top_k})
    batch = select(scores[None], LABELS, np.array(thresholds, np.float32), top_k)
    assert [answer[name].tolist() for name in answer] == [column.to_pylist() for column in batch]


@pytest.mark.slow
def test_the_result_has_the_networks_scores_and_names_the_model(
    registered: Registered, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tags.parquet"
    tag_here(registered, photos, out, all_scores=True, threshold=0.4, part_size=3)
    table = pd.read_parquet(out)
    tagger = Tagger.load(registered.bundle)
    images = np.stack([decode_image(path, 32) for path in table["path"]])
    np.testing.assert_allclose(np.stack(table["all_scores"]), tagger.score(images), atol=1e-5)
    for labels, scores, whole in zip(
        table["labels"], table["scores"], table["all_scores"], strict=True
    ):
        assert sorted(scores, reverse=True) == list(scores) and len(scores) == sum(whole >= 0.4)
        assert [whole[tagger.labels.index(name)] for name in labels] == list(scores)
    assert sorted(p.name for p in out.iterdir()) == [
        "_rejected.csv", "_tagging.json", "part-00000.parquet", "part-00001.parquet",
        "part-00002.parquet",
    ]  # fmt: skip
    listing = list_images(str(photos), tmp_path / "l", tmp_path / "s")
    about = read_about(pq.read_schema(out / "part-00001.parquet").metadata)
    assert about["labels"] == tagger.labels and about["model"] == str(registered.bundle)
    assert about["thresholds"] == pytest.approx([0.4] * len(tagger.labels))
    assert about["data_digest"] == listing.data_digest


@pytest.mark.slow
def test_workers_and_batch_sizes_do_not_change_the_result(
    registered: Registered, photos: Path, tmp_path: Path
) -> None:
    results = []
    for i, (workers, batch_size) in enumerate(((1, 1), (3, 4))):
        out = str(tmp_path / str(i))
        tag_here(registered, photos, Path(out), threshold=0.0, workers=workers,
                 batch_size=batch_size)  # fmt: skip
        results.append(pd.read_parquet(out))
    assert results[0]["path"].equals(results[1]["path"])
    for column in ("labels", "scores"):
        for one, other in zip(results[0][column], results[1][column], strict=True):
            assert list(one) == (list(other) if column == "labels" else pytest.approx(list(other)))


# images that cannot be decoded


@pytest.mark.slow
def test_rejected_pictures_are_listed_with_their_reasons(
    registered: Registered, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "1.png").write_bytes(b"no picture")
    (photos / "below" / "6.png").unlink(), (photos / "below" / "6.png").symlink_to("nowhere")
    odd = os.fsdecode(b"odd \xff\n name.png")
    (photos / odd).write_bytes(b"")
    command = ["tag", str(registered.bundle), str(photos), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0 and "3 were rejected" in done.output, done.output
    rejected = pd.read_csv(tmp_path / "out" / "_rejected.csv")
    assert rejected["path"].map(lambda path: Path(path).name).tolist() == [
        "1.png", "6.png", "odd \\udcff\n name.png",
    ]  # fmt: skip
    assert "No such file" in rejected["reason"][1]
    assert len(pd.read_parquet(tmp_path / "out")) == 5
    strict = CliRunner().invoke(main, [*command, "--strict"])
    assert strict.exit_code == 1 and strict.output.count("Error:") == 1


@pytest.mark.slow
def test_skipped_files_are_counted_and_listed_and_strict_sees_them(
    registered: Registered, tmp_path: Path
) -> None:
    draw(tmp_path / "photos" / "one.jpg")
    (tmp_path / "photos" / "x.heic").write_bytes(b"\0\0\0\x1cftypheic")
    out = tmp_path / "out"
    command = ["tag", str(registered.bundle), str(tmp_path / "photos"), "--out", str(out)]
    done = CliRunner().invoke(main, [*command, "--workers", "1", "--strict"])
    assert "1 image; none was rejected; 1 other file is listed in" in done.output
    assert done.exit_code == 1 and "0 images were rejected and 1 file skipped" in done.output
    assert (out / "_skipped.csv").read_text() == f"path\n{tmp_path}/photos/x.heic\n"


@pytest.mark.slow
def test_a_source_of_rejected_images_only_is_an_empty_table(
    registered: Registered, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    summary = tag_here(registered, tmp_path / "list.txt", tmp_path / "out")
    assert (summary.images, summary.rejected) == (2, 2)
    assert list(pd.read_parquet(tmp_path / "out").columns) == ["path", "labels", "scores"]


@pytest.mark.slow
def test_a_file_above_the_limit_is_rejected_unread(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "MAX_BYTES", 10)
    for source in (str(photos / "0.png"), (photos / "0.png").read_bytes()):
        assert "bytes are above 10" in str(decode_file(source, Preprocessing(8)))


def test_a_pipe_is_rejected_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert decode_file(str(tmp_path / "pipe.jpg"), Preprocessing(8)) == "not a regular file"


def test_the_lossless_form_decodes_to_the_same_pixels(photos: Path) -> None:
    import base64

    noise = np.random.default_rng(0).integers(0, 256, (3, 33, 33), dtype=np.uint8)
    again = decode_file(base64.b64decode(as_lossless(noise)), Preprocessing(33))
    assert np.array_equal(again, noise)


# resuming


@pytest.mark.slow
def test_finished_parts_are_not_tagged_again(
    registered: Registered, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def run() -> int:
        return tag_here(registered, photos, out, part_size=2).scored

    assert run() == 7
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert run() == 0
    (out / "part-00001.parquet").unlink()
    assert run() == 2
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert [name for name in before if before[name] != after[name]] == ["part-00001.parquet"]


@pytest.fixture(scope="module")
def finished(
    registered: Registered, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """Photos, their tags in parts of four images, and their tags with other options."""
    folder = tmp_path_factory.mktemp("finished")
    photos = draw_photos(folder / "photos")
    tag_here(registered, photos, folder / "one", part_size=4)
    tag_here(registered, photos, folder / "other", part_size=4, top_k=2)
    return photos, folder / "one", folder / "other"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"top_k": 1}, "top_k"),
        ({"threshold": 0.9}, "thresholds"),
        ({"part_size": 3}, "part_size"),
        ({"all_scores": True}, "all_scores"),
    ],
)
def test_other_options_are_refused(
    registered: Registered,
    finished: tuple[Path, Path, Path],
    change: dict[str, Any],
    named: str,
) -> None:
    photos, out, _ = finished
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(click.ClickException, match=f"another tagging: its {named} is"):
        tag_here(registered, photos, out, **{"part_size": 4, **change})
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.name in before}
    assert after == before


@pytest.mark.slow
def test_another_source_another_model_and_changed_pictures_are_refused(
    registered: Registered, finished: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    photos, out, _ = finished
    with pytest.raises(click.ClickException, match="another tagging: its source is"):
        tag_here(registered, photos / "below", out, part_size=4)
    added = draw(photos / "7.png")
    with pytest.raises(click.ClickException, match="another tagging: its data_digest is"):
        tag_here(registered, photos, out, part_size=4)
    added.unlink()
    shutil.copytree(registered.bundle, tmp_path / "copy")
    with pytest.raises(click.ClickException, match="another tagging: its model is"):
        tag(str(tmp_path / "copy"), str(photos), str(out), part_size=4)


@pytest.mark.slow
def test_a_part_of_another_tagging_or_a_damaged_one_is_refused(
    registered: Registered, finished: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    photos, out, other = finished
    part = shutil.copytree(out, tmp_path / "out") / "part-00001.parquet"
    sound = part.read_bytes()
    for content, words in (
        ((other / part.name).read_bytes(), "another tagging: its top_k"),
        ((out / "part-00000.parquet").read_bytes(), "has 4 images"),
        (sound[: len(sound) // 2], "damaged"),
        (b"", "damaged"),
    ):
        part.write_bytes(content)
        with pytest.raises(click.ClickException, match=words):
            tag_here(registered, photos, tmp_path / "out", part_size=4)


@pytest.mark.parametrize("text", ["", '{"labels": [', "1"])
def test_a_damaged_description_of_a_tagging_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "_tagging.json").write_text(text)
    with pytest.raises(click.ClickException, match=r"_tagging\.json is damaged .*; remove it"):
        TagParts(tmp_path, {"labels": []}).begin()


@pytest.mark.slow
def test_a_folder_of_other_files_is_not_touched(
    registered: Registered, photos: Path, tmp_path: Path
) -> None:
    before = sorted(photos.rglob("*"))
    with pytest.raises(click.ClickException, match="contains other files"):
        tag_here(registered, photos, photos)
    assert sorted(photos.rglob("*")) == before
    with (
        pytest.raises(click.ClickException, match="another process"),
        exclusive_lock(tmp_path / "out"),
    ):
        tag_here(registered, photos, tmp_path / "out")


def test_a_lock_file_that_cannot_be_removed_is_no_error(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "out"):
        (tmp_path / "out" / "_lock").unlink()  # by hand, or never: Windows removes no open file
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["nowhere", "models:/none@champion", "damaged"])
def test_a_missing_model_is_one_clear_error(
    model: str, registered: Registered, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model.onnx").write_bytes(b"no network")
    settings = (registered.bundle / "tagger.json").read_bytes()
    (tmp_path / "damaged" / "tagger.json").write_bytes(settings)
    address = str(tmp_path / model) if model == "damaged" else model
    done = registered.workspace.in_process(
        "tag", address, str(photos), "--out", str(tmp_path / "out"), check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("Error:") == 1 and "Traceback" not in done.stderr, done.stderr


def test_options_of_spark_are_refused_by_the_local_engine(
    registered: Registered, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(click.UsageError, match="--master"):
        tag_here(registered, photos, tmp_path / "o", master="local")


# processes


@pytest.fixture
def many(tmp_path: Path, tiny_data: Path) -> Path:
    """A folder of 1,440 images: 48, each under 30 names."""
    folder = tmp_path / "many"
    folder.mkdir()
    for path in (tiny_data / "images").iterdir():
        for i in range(30):
            (folder / f"{i:02d}-{path.name}").hardlink_to(path)
    return folder


def start(registered: Registered, source: Path, out: Path) -> subprocess.Popen[str]:
    """Start tagging and return when the second part is written."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nuswide", "tag", registered.uri, str(source), "--out", str(out),
         "--part_size", "16", "--workers", "2"],
        env=registered.workspace.env, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while len(list(out.glob("part-*.parquet"))) < 2:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.002)
    return process


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: list[int]) -> Iterator[int]:
    for _ in range(600):
        if not any(map(alive, pids)):
            return
        time.sleep(0.1)
    yield from filter(alive, pids)


@pytest.mark.slow
def test_after_kill_9_no_process_remains_and_every_image_is_tagged_once(
    registered: Registered, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(registered, many, out)
    workers = children(process.pid)
    process.kill()
    process.communicate()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert len(workers) >= 2 and 2 <= len(before) < 90
    assert list(wait_until_gone(workers)) == []
    done = registered.workspace.nuswide(
        "tag", registered.uri, str(many), "--out", str(out), "--part_size", "16"
    )
    assert f"{len(before) * 16:,} are done" in done.stderr
    table = pd.read_parquet(out)
    assert sorted(table["path"]) == sorted(map(str, many.iterdir()))
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert before.items() <= after.items() and len(after) == 90
    assert not list(out.glob("*.new")) and not (out / "_pictures.list").exists()


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_with_one_line(
    registered: Registered, many: Path, tmp_path: Path
) -> None:
    process = start(registered, many, tmp_path / "out")
    workers = children(process.pid)
    for pid in workers:
        if (
            "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
        ):  # not Python's resource tracker
            os.kill(pid, signal.SIGKILL)
    _, words = process.communicate(timeout=120)
    assert process.returncode == 1 and words.count("Error: a worker process died") == 1, words
    assert "Traceback" not in words and list(wait_until_gone(workers)) == []


@pytest.mark.slow
def test_tagging_needs_neither_torch_nor_other_packages_for_training(
    registered: Registered, photos: Path, tmp_path: Path
) -> None:
    """These packages cannot be imported in any process of the command."""
    barred = ("torch", "torchvision", "onnx", "onnxscript", "safetensors", "pyspark")
    code = f"import sys; sys.modules.update(dict.fromkeys({barred}))\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    env = registered.workspace.env
    env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "nuswide", "tag", registered.uri, str(photos), "--out", "out"],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(pd.read_parquet(tmp_path / "out")) == 7
    version = json.loads((tmp_path / "out" / "_tagging.json").read_text())
    assert (version["model"], version["model_version"]) == (registered.uri, "1")
