"""The decoded cache, on pictures drawn here: its pixels, its mends, its kills and its removal."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from nuswide.data import cache as cache_module
from nuswide.data import cache_build
from nuswide.data.cache import cache_key, open_cache
from nuswide.data.cache_list import list_caches, remove_cache
from nuswide.data.manifest import Manifest
from nuswide.tagger import Preprocessing, decode_image

SIZE = 32


def draw_manifest(folder: Path, n: int, size_px: int = 40) -> Manifest:
    """n noisy JPEG pictures, none like another."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(n)
    names = [f"p{i:04d}.jpg" for i in range(n)]
    for name in names:
        noise = rng.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    targets = np.arange(n, dtype=np.uint8)[:, None] % 2
    return Manifest(folder, tuple(names), ("odd",), targets, np.array(["train"] * n))


def decoded(manifest: Manifest, size_px: int = SIZE) -> np.ndarray:
    """What the cache should hold."""
    return np.stack([decode_image(manifest.root / name, size_px) for name in manifest.names])


def open_in(tmp_path: Path, manifest: Manifest, **options: bool) -> cache_module.Cache:
    return open_cache(manifest, Preprocessing(SIZE), folder=tmp_path / "cache", **options)


def test_images_are_those_of_decode_image_in_the_manifests_order(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 100)
    cache = open_in(tmp_path, manifest)
    assert cache.rejected == () and cache.images.dtype == np.uint8
    assert np.array_equal(cache.images, decoded(manifest))


def test_a_cache_cannot_be_written_through(tmp_path: Path) -> None:
    cache = open_in(tmp_path, draw_manifest(tmp_path / "pictures", 2))
    with pytest.raises(ValueError, match="read-only"):
        cache.images[0] = 0


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are decoded from here on."""
    names: list[str] = []

    decode_file = cache_build._decode_file

    def spy(path: Path, size_px: int) -> tuple[np.ndarray, int]:
        names.append(path.name)
        return decode_file(path, size_px)

    monkeypatch.setattr(cache_build, "_decode_file", spy)
    return names


def test_pictures_are_decoded_once(tmp_path: Path, decodings: list[str]) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 70)
    first = open_in(tmp_path, manifest)
    assert sorted(decodings) == list(manifest.names)
    decodings.clear()
    assert np.array_equal(open_in(tmp_path, manifest).images, first.images) and not decodings


def test_a_changed_picture_alone_is_decoded_again(tmp_path: Path, decodings: list[str]) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 70)
    open_in(tmp_path, manifest)
    decodings.clear()
    Image.new("RGB", (9, 9), "red").save(manifest.root / manifest.names[33])
    assert np.array_equal(open_in(tmp_path, manifest).images, decoded(manifest))
    assert decodings == [manifest.names[33]]


def fill(manifest: Manifest, color: str) -> None:
    """Make all pictures one color; the files keep their time."""
    for name in manifest.names:
        Image.new("RGB", (40, 40), color).save(manifest.root / name)
        os.utime(manifest.root / name, (0, 0))


def test_two_folders_of_equal_names_sizes_and_times_have_caches_of_their_own(
    tmp_path: Path,
) -> None:
    manifest = draw_manifest(tmp_path / "red", 5)
    shutil.copytree(manifest.root, tmp_path / "blue")
    other = replace(manifest, root=tmp_path / "blue")
    fill(manifest, "#fe0000")
    fill(other, "#0000fe")
    sizes = [(folder / "p0000.jpg").stat().st_size for folder in (manifest.root, other.root)]
    assert sizes[0] == sizes[1]
    red = open_in(tmp_path, manifest)
    blue = open_in(tmp_path, other)
    assert (red.images[:, 0] > 250).all() and (red.images[:, 2] < 5).all()
    assert (blue.images[:, 2] > 250).all() and (blue.images[:, 0] < 5).all()
    assert cache_key(manifest, Preprocessing(SIZE)) == cache_key(
        replace(manifest, root=tmp_path / "b/../red"), Preprocessing(SIZE)
    )


def test_an_open_cache_keeps_its_pixels_when_files_change(
    tmp_path: Path, decodings: list[str]
) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 70)
    opened = open_in(tmp_path, manifest)
    before = np.array(opened.images)
    fill(manifest.take(np.arange(3)), "red")
    decodings.clear()
    again = open_in(tmp_path, manifest)
    assert sorted(decodings) == ["p0000.jpg", "p0001.jpg", "p0002.jpg"]
    assert np.array_equal(opened.images, before)
    assert np.array_equal(again.images, decoded(manifest))
    changed = np.flatnonzero(opened.contents != again.contents)
    assert changed.tolist() == [0, 1, 2]


def test_a_file_replaced_by_one_of_equal_size_and_time_is_decoded_again(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 2)
    fill(manifest, "#fe0000")
    before = [os.stat(manifest.root / name) for name in manifest.names]
    open_in(tmp_path, manifest)
    fill(manifest, "#0000fe")
    after = [os.stat(manifest.root / name) for name in manifest.names]
    assert [(s.st_size, s.st_mtime_ns) for s in before] == [
        (s.st_size, s.st_mtime_ns) for s in after
    ]
    assert (open_in(tmp_path, manifest).images[:, 2] > 250).all()


def test_changed_labels_and_splits_decode_nothing(tmp_path: Path, decodings: list[str]) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 5)
    open_in(tmp_path, manifest)
    decodings.clear()
    relabelled = replace(
        manifest, labels=("even", "odd"), targets=np.ones((5, 2), np.uint8),
        splits=np.array(["test"] * 5),
    )  # fmt: skip
    open_in(tmp_path, relabelled)
    assert not decodings and len(list_caches(tmp_path / "cache")) == 1


def test_size_order_and_content_have_caches_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 6)
    backwards = manifest.take(np.arange(6)[::-1])
    small = Preprocessing(32)
    keys = [cache_key(manifest, small), cache_key(manifest, Preprocessing(64))]
    keys += [cache_key(backwards, small), cache_key(manifest.take(np.arange(5)), small)]
    monkeypatch.setattr(cache_module, "DECODER_VERSION", 99)
    assert len({*keys, cache_key(manifest, small)}) == 5


# Pictures that can't be read


def test_rejected_pictures_are_named_with_their_reasons(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 40)
    (manifest.root / "p0007.jpg").write_bytes(b"no picture")
    (manifest.root / "p0031.jpg").write_bytes((manifest.root / "p0031.jpg").read_bytes()[:-900])
    with pytest.raises(click.ClickException) as caught:
        open_in(tmp_path, manifest)
    message = caught.value.message
    assert message.startswith("2 of 40 images cannot be decoded: p0007.jpg: not a readable picture")
    assert "p0031.jpg" in message and "skip_rejected=true" in message and "\n" not in message
    with next((tmp_path / "cache").glob("*/rejected.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["image"]) for row in rows] == [("7", "p0007.jpg"), ("31", "p0031.jpg")]
    assert "truncated" in rows[1]["reason"]


def test_rejected_pictures_are_skipped_if_told_and_the_sound_ones_kept(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 40)
    expected = decoded(manifest)
    (manifest.root / "p0007.jpg").write_bytes(b"no picture")
    cache = open_in(tmp_path, manifest, skip_rejected=True)
    assert [row for row, _ in cache.rejected] == [7]
    assert not cache.images[7].any()
    sound = np.delete(np.arange(40), 7)
    assert np.array_equal(cache.images[sound], expected[sound])


def test_rejections_are_remembered_and_a_mended_picture_is_taken(
    tmp_path: Path, decodings: list[str]
) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 40)
    for name in ("p0007.jpg", "p0008.jpg"):
        (manifest.root / name).write_bytes(b"no picture")
    first = open_in(tmp_path, manifest, skip_rejected=True).rejected
    decodings.clear()
    assert open_in(tmp_path, manifest, skip_rejected=True).rejected == first and not decodings
    Image.new("RGB", (9, 9), "red").save(manifest.root / "p0007.jpg")
    cache = open_in(tmp_path, manifest, skip_rejected=True)
    assert [row for row, _ in cache.rejected] == [8] and decodings == ["p0007.jpg"]
    assert cache.images[7, 0].min() > 250


def test_many_rejected_pictures_are_cut_short(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 6)
    for name in manifest.names:
        (manifest.root / name).write_bytes(b"")
    with pytest.raises(click.ClickException, match=r"^6 of 6 .*p0000.*p0001.*p0002.* \.\.\.;") as e:
        open_in(tmp_path, manifest)
    assert "p0003.jpg" not in e.value.message


def test_an_oversized_picture_is_rejected_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 3)
    monkeypatch.setattr("nuswide.tagger.MAX_PIXELS", 2000)
    Image.new("RGB", (50, 50)).save(manifest.root / "p0001.jpg")
    cache = open_in(tmp_path, manifest, skip_rejected=True)
    assert cache.rejected[0][0] == 1 and "50x50 px" in cache.rejected[0][1]


def test_500_damaged_pictures_of_2000_are_named_and_no_sound_one_is_lost(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 2000, size_px=24)
    expected = decoded(manifest)
    rng = np.random.default_rng(0)
    damaged = sorted(rng.choice(2000, 500, replace=False).tolist())
    for row in damaged:
        path = manifest.root / manifest.names[row]
        path.write_bytes(path.read_bytes()[: int(rng.integers(0, 400))])  # the header is longer
    cache = open_in(tmp_path, manifest, skip_rejected=True)
    assert [row for row, _ in cache.rejected] == damaged
    sound = np.setdiff1d(np.arange(2000), damaged)
    assert np.array_equal(cache.images[sound], expected[sound])


# Kills, company and full disks

BUILD = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    import numpy as np
    from nuswide.data import cache, cache_build
    from nuswide.data.manifest import Manifest
    from nuswide.tagger import Preprocessing

    folder, pause = Path(sys.argv[1]), float(sys.argv[2])
    names = tuple(sorted(p.name for p in (folder / "pictures").iterdir()))
    targets = np.arange(len(names), dtype=np.uint8)[:, None] % 2
    manifest = Manifest(folder / "pictures", names, ("odd",), targets,
                        np.array(["train"] * len(names)))
    decode, cache_build._SAVE_S = cache_build._decode_file, 0.05

    def slow(path, preprocessing):
        time.sleep(pause)
        with (folder / "decoded.txt").open("a") as log:
            log.write(path.name + chr(10))
        return decode(path, preprocessing)

    cache_build._decode_file = slow
    cache.open_cache(manifest, Preprocessing(32), folder=folder / "cache")
""")


def start_build(folder: Path, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(pause)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def count_decoded(folder: Path) -> int:
    found = list_caches(folder / "cache") if (folder / "cache").exists() else []
    return found[0].ready if found else 0


def wait_until_decoded(folder: Path, process: subprocess.Popen[str], n: int) -> None:
    deadline = time.monotonic() + 60
    while count_decoded(folder) < n:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_build_goes_on_where_it_was(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 600)
    for wanted in (1, 300):
        process = start_build(tmp_path, pause=0.004)
        wait_until_decoded(tmp_path, process, wanted)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert wanted <= count_decoded(tmp_path) < 600
        assert "complete" not in str(list_caches(tmp_path / "cache")[0])
    before = count_decoded(tmp_path)
    (tmp_path / "decoded.txt").unlink()
    assert start_build(tmp_path, pause=0).wait() == 0
    assert len((tmp_path / "decoded.txt").read_text().split()) == 600 - before
    assert np.array_equal(open_in(tmp_path, manifest).images, decoded(manifest))
    assert "complete" in str(list_caches(tmp_path / "cache")[0])


@pytest.mark.slow
def test_two_builders_at_once_decode_each_picture_once(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 300)
    builders = [start_build(tmp_path, pause=0.01) for _ in range(2)]
    assert [builder.wait() for builder in builders] == [0, 0]
    assert sorted((tmp_path / "decoded.txt").read_text().split()) == list(manifest.names)


@pytest.mark.slow
def test_a_second_builder_says_that_it_waits_and_goes_on_when_it_may(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 3)
    place = tmp_path / "cache" / cache_key(manifest, Preprocessing(SIZE))
    place.mkdir(parents=True)
    with cache_module.cache_folder(place, "decoded images"):
        builder = start_build(tmp_path, pause=0)
        assert builder.stdout is not None
        assert "another process is writing into" in builder.stdout.readline()
        assert not list(place.glob("*images.u8*"))
    assert builder.wait() == 0 and count_decoded(tmp_path) == 3


def test_a_disk_too_small_is_told_before_any_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decodings: list[str]
) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 4)
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - 100, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(click.ClickException, match=r"take 0\.0 GB, but only 0\.0 GB are free"):
        open_in(tmp_path, manifest)
    assert not decodings and not list((tmp_path / "cache").glob("*/*images.u8*"))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 1)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(click.ClickException, match=r"^cannot write decoded images into .*cache="):
        open_in(tmp_path, manifest)


def test_a_cut_off_file_is_not_taken_for_a_cache(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 5)
    open_in(tmp_path, manifest)
    with next((tmp_path / "cache").glob("*/images.u8")).open("r+b") as file:
        file.truncate(11)
    assert np.array_equal(open_in(tmp_path, manifest).images, decoded(manifest))


# Listing and removing


def test_caches_are_listed_with_size_and_source(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 5)
    open_in(tmp_path, manifest)
    (info,) = list_caches(tmp_path / "cache")
    assert info.key == cache_key(manifest, Preprocessing(SIZE))
    assert (info.images, info.ready, info.content) == (5, 5, f"{SIZE} px")
    assert info.size_bytes >= 5 * 3 * SIZE**2 and info.source == str(manifest.root)


def test_a_cache_with_a_damaged_description_is_listed_removed_and_mended(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 2)
    open_in(tmp_path, manifest)
    about = tmp_path / "cache" / cache_key(manifest, Preprocessing(SIZE)) / "cache.json"
    about.write_text("")
    (info,) = list_caches(tmp_path / "cache")
    assert "cache.json is damaged" in str(info)
    open_in(tmp_path, manifest)
    assert list_caches(tmp_path / "cache")[0].ready == 2
    about.write_text("")
    remove_cache(tmp_path / "cache", info.key)
    assert not list_caches(tmp_path / "cache")


def test_a_cache_is_removed_by_its_key_alone(tmp_path: Path) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 2)
    open_in(tmp_path, manifest)
    open_cache(manifest, Preprocessing(64), folder=tmp_path / "cache")
    remove_cache(tmp_path / "cache", cache_key(manifest, Preprocessing(SIZE)))
    assert [info.content for info in list_caches(tmp_path / "cache")] == ["64 px"]


@pytest.mark.parametrize("key", ["..", "../pictures", "", "/"])
def test_nothing_but_a_cache_is_removed(tmp_path: Path, key: str) -> None:
    manifest = draw_manifest(tmp_path / "pictures", 2)
    open_in(tmp_path, manifest)
    with pytest.raises(click.ClickException, match="there is no cache"):
        remove_cache(tmp_path / "cache", key)
    assert (manifest.root / "p0000.jpg").exists()
