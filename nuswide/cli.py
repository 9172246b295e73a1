"""The command line: parse, load the config, call one function.

Owns options and exit codes: 1 for what goes wrong, 2 for a command typed wrong. Imports the rest
late, so that `--help` is instant.
"""

import functools
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from nuswide.config import Config, load_config
from nuswide.serve.settings import Settings

CHAMPION = "models:/nuswide-tagger@champion"


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn MLflow's exceptions, which are the user's or the server's, into one-line errors.

    A SIGTERM becomes an interrupt, so that a run that is stopped so ends as KILLED.
    """

    @functools.wraps(command)
    def wrapper(**options: Any) -> None:
        from mlflow.exceptions import MlflowException

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            command(**options)
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise click.ClickException(f"MLflow: {reason}") from error

    return wrapper


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each config field, under the field's own name."""
    for f in reversed(fields(Config)):
        text = f"{f.metadata['help']}  [{f.default}]"
        command = click.option(f"--{f.name}", default=None, metavar="VALUE", help=text)(command)
    return command


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each limit of the server, under the field's own name."""
    for f in reversed(fields(Settings)):
        option = click.option(
            f"--{f.name}",
            default=f.default,
            type=f.type,
            show_default=True,
            help=f.metadata["help"],
        )
        command = option(command)
    return command


cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Config.cache,
    show_default=True,
    help="Folder for decoded pictures.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="nuswide")
def main() -> None:
    """Train, evaluate, compare and serve taggers of images, with MLflow as the record."""


@main.command()
@click.option("--experiment", type=click.Path(path_type=Path), help="A file of experiments/.")
@config_options
@one_line_errors
def train(experiment: Path | None, **overrides: str | None) -> None:
    """Train a tagger, record the run, and register the model."""
    given = {name: value for name, value in overrides.items() if value is not None}
    config = load_config(experiment, given)
    from nuswide.jobs import train_and_register

    changes = (f"{key}={Path(value).name}" for key, value in given.items())
    train_and_register(
        config, name=" ".join([experiment.stem if experiment else "train", *changes])
    )


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--trials", type=click.IntRange(1), help="How many.  [the file's]")
@click.option(
    "--storage",
    metavar="URL",
    help="sqlite:///FILE, or postgresql://USER@HOST/DATABASE for workers on several machines.  "
    "[a file beside the tracking store]",
)
@click.option("--name", metavar="STUDY", help="Of the study.  [the file's]")
@config_options
@one_line_errors
def sweep(
    file: Path, trials: int | None, storage: str | None, name: str | None, **overrides: str | None
) -> None:
    """Search what a FILE of experiments/sweeps/ names, by trials that are runs of their own.

    The same command, given once more, is a second worker, or goes on with what was stopped. Fields
    that are given win over the file's experiment.
    """
    try:
        from nuswide.sweep.plan import read_plan
        from nuswide.sweep.worker import run_sweep
    except ImportError as error:
        raise click.ClickException(
            f"sweeping needs {error.name}; pip install 'nuswide[sweep]' brings it"
        ) from error

    given = {key: value for key, value in overrides.items() if value is not None}
    run_sweep(read_plan(file, given, trials=trials), name=name or file.stem, storage=storage)


@main.command()
@click.option(
    "--model", default=CHAMPION, show_default=True, help="models:/NAME@ALIAS or /VERSION."
)
@click.option("--data", default="sample", show_default=True, help="Folder, or `sample`.")
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True
)
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    help="Judge these scores, an npz or CSV, instead of a model.",
)
@click.option(
    "--thresholds",
    type=click.Choice(["fixed", "global", "label"]),
    default="fixed",
    show_default=True,
    help="With --scores: how thresholds come about; fitted ones from the data's val split.",
)
@click.option(
    "--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True,
    help="With --scores: the fixed threshold.",
)  # fmt: skip
@cache_option
@one_line_errors
def evaluate(
    model: str, data: str, split: str, scores: Path | None, thresholds: str, threshold: float,
    cache: Path,
) -> None:  # fmt: skip
    """Measure a registered model, or another program's scores, on a split of a data set."""
    from nuswide import judge

    if scores:
        judge.evaluate_scores(scores, data, split, thresholds=thresholds, threshold=threshold)
    else:
        judge.evaluate_registered(model, data, split, cache)


@main.command()
@click.option(
    "--runs",
    default="Default",
    show_default=True,
    help="Run IDs, MLflow experiments and models:/ addresses, parted by commas.",
)
@click.option(
    "--baseline",
    help="The one of them that the others are measured against; by default the best on val.",
)
@click.option(
    "--across_test_sets",
    type=bool,
    default=False,
    show_default=True,
    help="Show what was tested on different images, too, unpaired.",
)
@click.option(
    "--pool_seeds",
    type=bool,
    default=True,
    show_default=True,
    help="Take training runs that differ in their seed alone as one.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="A folder for page, tables and drawings, too."
)
@one_line_errors
def compare(
    runs: str, baseline: str | None, across_test_sets: bool, pool_seeds: bool, out: Path | None
) -> None:
    """Put runs and registered versions side by side, with paired differences."""
    from nuswide.compare import compare_runs

    compare_runs(
        runs,
        baseline=baseline,
        across_test_sets=across_test_sets,
        pool_seeds=pool_seeds,
        out=out,
    )


@main.command()
@click.option(
    "--model",
    default="models:/nuswide-tagger/latest",
    show_default=True,
    help="The challenger, models:/NAME/VERSION; for a rollback only its name counts.",
)
@click.option(
    "--figure", default="map", show_default=True, help="On val: map, micro/f1, macro/f1 ..."
)
@click.option(
    "--rule",
    default="better",
    show_default=True,
    help="better: the difference's 95 % interval is above margin; not_worse: above -margin.",
)
@click.option("--margin", type=float, default=0.0, show_default=True, help="Of the figure.")
@click.option(
    "--rollback",
    type=click.IntRange(1),
    is_flag=False,
    flag_value=1,
    help="Give the alias back to the champion so many back; 1 without a number.",
)
@one_line_errors
def promote(model: str, figure: str, rule: str, margin: float, rollback: int | None) -> None:
    """Make a version champion if it is better on val, or take that back."""
    from nuswide import promote

    if rollback:
        name = model.removeprefix("models:/").partition("@")[0].partition("/")[0]
        click.echo(promote.roll_back(name, steps=rollback))
    else:
        click.echo(promote.promote(model, promote.Rule(figure, rule, margin)))


@main.command()
@click.option(
    "--model", default=CHAMPION, show_default=True, help="models:/NAME@ALIAS or /VERSION."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5001, show_default=True)
@settings_options
@one_line_errors
def serve(model: str, host: str, port: int, **limits: Any) -> None:
    """Serve a registered model: MLflow's /invocations with limits, and a page to try it at /."""
    try:
        settings = Settings(**limits)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        from nuswide.serve.server import serve_model
    except ImportError as error:
        raise click.ClickException(
            f"serving needs {error.name}; pip install 'nuswide[serve]' brings it"
        ) from error

    serve_model(model, host, port, settings)


@main.command()
@click.argument("model")
@click.argument("source")
@click.option("--out", required=True, help="Folder for the Parquet parts.")
@click.option("--engine", type=click.Choice(["local", "spark"]), default="local", show_default=True)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Score at which a label is given, for all labels.  [the model's own]",
)
@click.option(
    "--top_k", type=click.IntRange(0), default=0, show_default=True,
    help="The most labels a picture gets; 0: any number.",
)  # fmt: skip
@click.option(
    "--all_scores", type=bool, is_flag=False, flag_value=True, default=False, show_default=True,
    help="Add a column of every label's score.",
)  # fmt: skip
@click.option(
    "--strict", type=bool, is_flag=False, flag_value=True, default=False, show_default=True,
    help="Exit with 1 if a picture is rejected.",
)  # fmt: skip
@click.option(
    "--part_size", type=click.IntRange(1), default=1000, show_default=True,
    help="Pictures to a part; a kill costs the work on one at most. Local engine.",
)  # fmt: skip
@click.option(
    "--batch_size", type=click.IntRange(1), default=8, show_default=True,
    help="Pictures scored at once, by each worker.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(1), help="Worker processes. Local engine.  [one a core]"
)
@click.option("--master", help="Spark's master.  [spark-submit's, or local[*]]")
@click.option(
    "--partition_by", metavar="COLUMN,COLUMN",
    help="Columns of a source table to keep and to part the result by. Spark engine.",
)  # fmt: skip
@one_line_errors
def tag(model: str, source: str, out: str, engine: str, strict: bool, **options: Any) -> None:
    """Tag the pictures of SOURCE with MODEL.

    MODEL is models:/NAME@ALIAS, models:/NAME/VERSION or a model's folder. SOURCE is a folder of
    pictures, a glob in quotes, a data set as for training, or a text file with a path a line; for
    Spark also an address (hdfs://, s3a://) of these, or a table with the columns path and content:
    FOLDER.parquet or table:NAME.

    The same command goes on with what was interrupted.
    """
    from nuswide.bulk.job import tag

    summary = tag(model, source, out, engine=engine, **options)
    click.echo(str(summary))
    if strict and summary.rejected:
        raise click.ClickException(f"{summary.rejected} pictures were rejected, and --strict given")


@main.command()
@click.option(
    "--model", default=CHAMPION, show_default=True, help="models:/NAME@ALIAS or /VERSION."
)
@click.option("--data", help="Where its data set is now, if elsewhere than it was.")
@click.option(
    "--images", type=click.IntRange(1), default=256, show_default=True,
    help="Train pictures to calibrate on.",
)  # fmt: skip
@click.option(
    "--most_lost", type=click.FloatRange(0, 1), default=0.005, show_default=True,
    help="Of val's mAP; if int8 costs more, nothing is registered.",
)  # fmt: skip
@cache_option
@one_line_errors
def quantize(model: str, data: str | None, images: int, most_lost: float, cache: Path) -> None:
    """Register an int8 variant of a model, which is smaller and faster, if it is as good on val."""
    from nuswide.quantize import quantize

    quantize(model, data=data, cache=cache, images=images, most_lost=most_lost)


@main.command()
@click.argument("run_id")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    default=Config.checkpoints,
    show_default=True,
    help="Folder for the state of runs.",
)
@one_line_errors
def upload(run_id: str, checkpoints: Path) -> None:
    """Send what the tracking server did not take of a run, once it answers again."""
    from nuswide.jobs import upload_run

    upload_run(run_id, checkpoints)


@main.command()
@click.argument("run_id")
@click.option("--data", help="Where the data is now, if elsewhere than it was.")
@click.option("--checkpoints", help="Folder for the state of runs.")
@click.option("--cache", help="Folder for decoded pictures.")
@one_line_errors
def reproduce(run_id: str, **changes: str | None) -> None:
    """Train a recorded run again, and say what is as it was, and how far its figures differ."""
    from nuswide.reproduce import reproduce

    reproduce(run_id, {name: value for name, value in changes.items() if value is not None})


@main.command()
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
    from nuswide.prepare import prepare

    manifest = prepare(source, out, **options)
    sizes = ", ".join(f"{len(manifest.indices(s)):,} {s}" for s in ("train", "val", "test"))
    click.echo(
        f"{out} holds {sizes} images with {len(manifest.labels)} labels, protocol "
        f"{manifest.protocol}, digest {manifest.digest}; train on them with --data {out}"
    )


@main.command()
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
    from nuswide.jobs import audit_data

    audit_data(data, out, cache if pictures else None)


@main.command()
@cache_option
@click.option("--remove", metavar="KEY", help="Remove this cache; `all` for every one.")
def cache(cache: Path, remove: str | None) -> None:
    """List the caches of decoded pictures, or remove one."""
    from nuswide.cache import list_caches, remove_cache

    found = list_caches(cache)
    for info in found:
        click.echo(str(info))
    if not found:
        click.echo(f"no caches in {cache}")
    for key in [info.key for info in found] if remove == "all" else filter(None, [remove]):
        remove_cache(cache, key)
        click.echo(f"removed {key}")


@main.command()
@click.argument("url")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--sha256", help="Checksum of the archive.")
@click.option("--size_bytes", type=click.IntRange(1), help="Size of the archive.")
def download(url: str, folder: Path, sha256: str | None, size_bytes: int | None) -> None:
    """Fetch an archive of pictures from URL and unpack it into FOLDER.

    URL is an http or https address, a Google Drive link, or `article` for the article's pictures.
    Run it again to continue a download that broke off.
    """
    from nuswide.download import download

    n_files = download(url, folder, sha256=sha256, size_bytes=size_bytes)
    click.echo(f"{n_files} files are in {folder}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--images", type=click.IntRange(2), default=600, show_default=True)
@click.option("--size_px", type=click.IntRange(32, 1024), default=128, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def sample(folder: Path, images: int, size_px: int, seed: int) -> None:
    """Draw the sample data set into FOLDER."""
    from nuswide.sample import draw_sample

    draw_sample(folder, images=images, size_px=size_px, seed=seed)
    click.echo(f"{images} pictures are in {folder}; train on them with --data {folder}")
