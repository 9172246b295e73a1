"""Claims: `nuswide tag` outruns a plain loop, and its memory does not grow with the pictures.

    python benchmarks/bulk.py [FOLDER] [--pictures 64]

FOLDER holds photographs; without one, scenes are drawn. For each of two networks (random weights:
they cost the same) a plain loop decodes one picture and scores one, in one process with ONNX
Runtime's own threads. `tag` does as many pictures, and 8 times as many: what the latter takes more
is the time of its pictures without the start of its processes. The processor's seconds a picture
are shown too, for other work on the machine disturbs them less. The memory is what all processes of
`tag` take for themselves. At last that of listing paths, at 125,000 and a million.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from serve_setup import write_random_bundle

TIMES, PATHS = 8, 1_000_000


def link_pictures(folder: Path, source: Path, count: int) -> Path:
    """A folder with `count` names of pictures, as many to each as it takes."""
    folder.mkdir()
    pictures = sorted(p for p in source.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
    for i in range(count):
        (folder / f"{i:06d}.jpg").symlink_to(pictures[i % len(pictures)].absolute())
    return folder


def run_loop(bundle: Path, pictures: Path) -> None:
    """Decode one, score one; prints the seconds of the loop, and the processor's."""
    from nuswide.tagger import Tagger, decode_image

    tagger = Tagger.load(bundle)
    begin, used = time.perf_counter(), time.process_time()
    for path in sorted(pictures.iterdir()):
        tagger.score(decode_image(path, *tagger.preprocessing)[None])
    print(time.perf_counter() - begin, time.process_time() - used)


def run_list(count: int) -> None:
    """List a text file of paths, and as many paths in disorder; prints the peak memory in MB."""
    from nuswide.deployment.batch.image_list import _sort_on_disk, list_images

    with tempfile.TemporaryDirectory() as folder:
        names = (f"photos/{i * 7919 % count:08d}/a-name-of-a-picture.jpg" for i in range(count))
        with Path(folder, "list.txt").open("w") as file:
            file.writelines(f"{name}\n" for name in names)
        listing = list_images(
            f"{folder}/list.txt", Path(folder, "pictures"), Path(folder, "skipped")
        )
        paths = (b"/data/photos/%08d/picture.jpg" % (i * 7919 % count) for i in range(count))
        n_sorted = sum(1 for _ in _sort_on_disk(paths))
        assert listing.count == n_sorted == count
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1e3)


def processes_of(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        try:
            text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        except OSError:
            continue
        found += map(int, text.split())
    return found


def own_mb(pid: int) -> float:
    """The memory that a process and those below it take for themselves."""
    total = 0
    for each in processes_of(pid):
        try:
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return total / 1e3


def run_tag(bundle: Path, pictures: Path, out: Path) -> tuple[float, float, float]:
    """Gives the seconds of the whole command, the processor's, and the peak memory in MB."""
    tag = ["tag", str(bundle), str(pictures), "--out", str(out)]
    begin = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [sys.executable, "-m", "nuswide", *tag],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, own_mb(process.pid))
        time.sleep(0.02)
    assert process.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begin, used, peak


def itself(*arguments: object) -> list[float]:
    """Run a part of this script in a process of its own; gives the numbers that it prints."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return list(map(float, done.stdout.split()))


def compare(folder: Path, source: Path, backbone: str, size_px: int, count: int) -> None:
    """The loop and `tag` with one network."""
    own = folder / f"{backbone}-{size_px}"
    own.mkdir()
    _, bundle = write_random_bundle(own, backbone, size_px, n_labels=81)
    few = link_pictures(folder / f"{own.name}-few", source, count)
    many = link_pictures(folder / f"{own.name}-many", source, count * TIMES)
    looped, loop_used = itself("loop", bundle, few)
    seconds, used, peak = run_tag(bundle, few, folder / f"{own.name}-1.parquet")
    seconds_8, used_8, peak_8 = run_tag(bundle, many, folder / f"{own.name}-8.parquet")
    again, loop_used_again = itself("loop", bundle, few)  # other work may have come or gone
    loop_s, loop_cpu_s = (looped + again) / 2 / count, (loop_used + loop_used_again) / 2 / count
    tag_s, tag_cpu_s = ((b - a) / count / (TIMES - 1) for a, b in
                        ((seconds, seconds_8), (used, used_8)))  # fmt: skip
    print(
        f"{backbone}, {size_px} px: loop {1 / loop_s:.1f} pictures/s ({loop_cpu_s * 1e3:.1f} ms of "
        f"a core each), tag {1 / tag_s:.1f} ({tag_cpu_s * 1e3:.1f} ms), {loop_s / tag_s:.2f} times "
        f"the loop (claim: above 1); all of {count * TIMES} pictures in {seconds_8:.0f} s\n"
        f"  memory with {count} pictures {peak:.0f} MB, with {count * TIMES} {peak_8:.0f} MB, "
        f"{peak_8 / peak:.2f} times (claim: at most 1.1)",
        flush=True,
    )


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", nargs="?", type=Path)
    parser.add_argument("--pictures", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = given.source
        if source is None:
            from nuswide.data.sample import draw_sample

            source = folder / "sample"
            draw_sample(source, images=64, size_px=640)
        compare(folder, source, "resnext50_32x4d", 256, given.pictures)
        compare(folder, source, "resnet18", 64, given.pictures * TIMES)
    (few,), (many,) = (itself("list", count) for count in (PATHS // TIMES, PATHS))
    print(
        f"listing {PATHS // TIMES:,} paths {few:.0f} MB, {PATHS:,} {many:.0f} MB, "
        f"{many / few:.2f} times (claim: at most 1.1)"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["loop"]:
        run_loop(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1:2] == ["list"]:
        run_list(int(sys.argv[2]))
    else:
        main()
