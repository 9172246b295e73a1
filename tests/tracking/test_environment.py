"""The environment of a run, and the commit of the package in repositories made here."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from nuswide import __version__
from nuswide.tracking import environment as module
from nuswide.tracking.environment import environment, patch_digest, uncommitted_patch


def git(folder: Path, *arguments: str) -> str:
    own = ("-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(folder), *own, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a repository, with a commit that has only the file beside it."""
    package = tmp_path / "repository" / "nuswide"
    package.mkdir(parents=True)
    monkeypatch.setattr(module, "_PACKAGE", package)
    (package / "config.py").write_text("lr = 1\n")
    (package.parent / "secrets.txt").write_text("none yet\n")
    git(package.parent, "init", "-q")
    git(package.parent, "add", "secrets.txt")
    git(package.parent, "commit", "-q", "-m", "of another project")
    return package


def test_the_commit_of_a_repository_that_only_surrounds_the_package_is_not_ours(
    package: Path,
) -> None:
    tags = environment()
    assert tags["mlflow.source.git.commit"] == "none"  # MLflow would record the repository's
    assert "git.uncommitted_changes" not in tags and not uncommitted_patch()
    assert tags["software.nuswide"] == __version__


def test_the_commit_and_the_patch_are_those_of_the_packages_tracked_files(package: Path) -> None:
    git(package, "add", "config.py")
    git(package, "commit", "-q", "-m", "of the package")
    (package.parent / "secrets.txt").write_text("password\n")
    tags = environment()
    assert tags["mlflow.source.git.commit"] == git(package, "rev-parse", "HEAD")
    assert tags["git.uncommitted_changes"] == "false" and "git.patch_digest" not in tags
    (package / "config.py").write_text("lr = 2\n\n")
    (package / "notes.txt").write_text("untracked\n")
    patch, tags = uncommitted_patch(), environment()
    assert "+lr = 2" in patch and "password" not in patch and "untracked" not in patch
    assert tags["git.uncommitted_changes"] == "true"
    assert tags["git.patch_digest"] == patch_digest(patch)
    git(package, "checkout", "-q", "config.py")
    (package.parent / "a.patch").write_text(patch)
    git(package.parent, "apply", "a.patch")
    assert (package / "config.py").read_text() == "lr = 2\n\n"


def test_the_versions_of_libraries_that_change_numbers_are_recorded() -> None:
    tags = environment()
    for name in ("timm", "torchvision", "pillow", "numpy"):
        assert tags[f"software.{name}"] == version(name)
