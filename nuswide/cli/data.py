"""The commands on data: prepare, audit, cache, download, sample."""

from pathlib import Path
from typing import Any

import click

from nuswide.cli.options import PATH, cache_option, data_option, option
from nuswide.core.wording import counted


@click.command()
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@option(
    "--format", default="auto",
    help="Annotation format: article, nuswide, hashnet, indexed, csv, coco or voc.",
)  # fmt: skip
@option(
    "--protocol", default="source",
    help="source, official, official-labelled, hashnet or article.",
)  # fmt: skip
@option(
    "--label_map", type=PATH,
    help="CSV file with the columns from and to; renames, merges and (empty to) drops labels.",
)  # fmt: skip
@option("--labels", default="all", help="all, 27, top:N, or a file with one label per line.")
@option("--unlabelled", type=click.Choice(["keep", "drop"]), default="keep")
@option(
    "--order", type=click.Choice(["listed", "shuffled"]), default="listed",
    help="Order of the rows, for protocols that take the first ones.",
)  # fmt: skip
@option("--seed", type=click.IntRange(0), default=0, help="Seed of the order.")
@option("--split_file", type=PATH, help="CSV file with the columns image and split.")
@option(
    "--group_column",
    help="Column of a CSV source; images of one group, such as a scene, stay in one split.",
)
@option("--images", type=PATH, help="Folder of the images.")
@option(
    "--duplicates", type=click.Choice(["refuse", "merge", "first"]), default="refuse",
    help="Of an image that occurs more than once: keep the first sample, or merge the labels.",
)  # fmt: skip
def prepare(source: Path, out: Path, **options: Any) -> None:
    """Convert annotations in SOURCE by a named protocol into the folder OUT."""
    from nuswide.data.prepare import prepare

    manifest = prepare(source, out, **options)
    sizes = ", ".join(f"{len(manifest.indices(s)):,} {s}" for s in ("train", "val", "test"))
    click.echo(
        f"{out} holds {sizes} images with {counted(len(manifest.labels), 'label')}, "
        f"protocol {manifest.protocol}, digest {manifest.digest}; train on them with --data {out}"
    )


@click.command()
@data_option
@option("--out", type=PATH, default="data/audit", help="Folder for the page, tables and plots.")
@option("--pictures", type=bool, default=True, help="Look for duplicate images, too.")
@cache_option
def audit(data: str, out: Path, pictures: bool, cache: Path) -> None:
    """Describe a data set: label counts, missing labels, duplicates, bias."""
    from nuswide.training.pipeline import audit_data

    audit_data(data, out, cache if pictures else None)


@click.command()
@cache_option
@option("--remove", metavar="KEY", help="Remove this cache; `all` removes every one.")
def cache(cache: Path, remove: str | None) -> None:
    """List the caches of decoded images and feature maps, or remove one."""
    from nuswide.data.cache_list import list_caches, remove_cache

    found = list_caches(cache)
    for info in found:
        click.echo(str(info))
    if not found:
        click.echo(f"no caches in {cache}")
    for key in [info.key for info in found] if remove == "all" else filter(None, [remove]):
        remove_cache(cache, key)
        click.echo(f"removed {key}")


@click.command()
@click.argument("url")
@click.argument("folder", type=PATH)
@option("--sha256", help="Checksum of the archive.")
@option("--size_bytes", type=click.IntRange(1), help="Size of the archive.")
def download(url: str, folder: Path, sha256: str | None, size_bytes: int | None) -> None:
    """Fetch an archive of images from URL and unpack it into FOLDER.

    URL is an http or https address, a Google Drive link, or `article` for the article's images.
    Run the same command again to continue an interrupted download.
    """
    from nuswide.data.download import download

    n_files = download(url, folder, sha256=sha256, size_bytes=size_bytes)
    click.echo(f"{counted(n_files, 'file is', 'files are')} in {folder}")


@click.command()
@click.argument("folder", type=PATH)
@option("--images", type=click.IntRange(2), default=600)
@option("--size_px", type=click.IntRange(32, 1024), default=128)
@option("--seed", type=click.IntRange(0), default=0)
def sample(folder: Path, images: int, size_px: int, seed: int) -> None:
    """Draw the sample data set into FOLDER."""
    from nuswide.data.sample import draw_sample

    draw_sample(folder, images=images, size_px=size_px, seed=seed)
    click.echo(f"{images} images are in {folder}; train on them with --data {folder}")
