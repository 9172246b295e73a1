"""The commands on data: prepare, audit, cache, download, sample."""

from pathlib import Path
from typing import Any

import click

from nuswide.cli.options import cache_option


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    default="auto",
    show_default=True,
    help="Form of the annotations: article, nuswide, hashnet, indexed, csv, coco or voc.",
)
@click.option(
    "--protocol",
    default="source",
    show_default=True,
    help="source, official, official-labelled, hashnet or article.",
)
@click.option(
    "--labels", default="all", show_default=True, help="all, 27, top:N, or a file with one a line."
)
@click.option(
    "--unlabelled", type=click.Choice(["keep", "drop"]), default="keep", show_default=True
)
@click.option(
    "--order",
    type=click.Choice(["listed", "shuffled"]),
    default="listed",
    show_default=True,
    help="Which rows come first, where a protocol takes the first.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order.")
@click.option("--split_file", type=click.Path(path_type=Path), help="CSV with image and split.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of the pictures.")
def prepare(source: Path, out: Path, **options: Any) -> None:
    """Import annotations from SOURCE by a named protocol into the folder OUT."""
    from nuswide.data.prepare import prepare

    manifest = prepare(source, out, **options)
    sizes = ", ".join(f"{len(manifest.indices(s)):,} {s}" for s in ("train", "val", "test"))
    click.echo(
        f"{out} holds {sizes} images with {len(manifest.labels)} labels, protocol "
        f"{manifest.protocol}, digest {manifest.digest}; train on them with --data {out}"
    )


@click.command()
@click.option("--data", default="sample", show_default=True, help="Folder, or `sample`.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="data/audit",
    show_default=True,
    help="Folder for the page, the tables and the figures.",
)
@click.option(
    "--pictures", type=bool, default=True, show_default=True, help="Look for duplicates, too."
)
@cache_option
def audit(data: str, out: Path, pictures: bool, cache: Path) -> None:
    """Say what a data set is like: counts, gaps, duplicates, bias."""
    from nuswide.training.pipeline import audit_data

    audit_data(data, out, cache if pictures else None)


@click.command()
@cache_option
@click.option("--remove", metavar="KEY", help="Remove this cache; `all` for every one.")
def cache(cache: Path, remove: str | None) -> None:
    """List the caches of decoded pictures, or remove one."""
    from nuswide.data.cache import list_caches, remove_cache

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
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--sha256", help="Checksum of the archive.")
@click.option("--size_bytes", type=click.IntRange(1), help="Size of the archive.")
def download(url: str, folder: Path, sha256: str | None, size_bytes: int | None) -> None:
    """Fetch an archive of pictures from URL and unpack it into FOLDER.

    URL is an http or https address, a Google Drive link, or `article` for the article's pictures.
    Run it again to continue a download that broke off.
    """
    from nuswide.data.download import download

    n_files = download(url, folder, sha256=sha256, size_bytes=size_bytes)
    click.echo(f"{n_files} files are in {folder}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--images", type=click.IntRange(2), default=600, show_default=True)
@click.option("--size_px", type=click.IntRange(32, 1024), default=128, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def sample(folder: Path, images: int, size_px: int, seed: int) -> None:
    """Draw the sample data set into FOLDER."""
    from nuswide.data.sample import draw_sample

    draw_sample(folder, images=images, size_px=size_px, seed=seed)
    click.echo(f"{images} pictures are in {folder}; train on them with --data {folder}")
