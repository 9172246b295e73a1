"""Where the images of a manifest are, and which of them are missing.

Owns the search for image files. Opens none of them.
"""

import os
from pathlib import Path

from nuswide.core.wording import counted
from nuswide.data.manifest import Manifest

_SHOWN = 5


def find_images(manifest: Manifest) -> tuple[Path, list[str]]:
    """Return the folder that the image names are relative to, and the names of missing images.

    The folder is images/ below the manifest's root, or the root, whichever has more of them.
    """
    missing = {
        root: [n for n in manifest.names if not os.path.isfile(root / n)]  # False for odd names too
        for root in (manifest.root / "images", manifest.root)
    }
    root = min(missing, key=lambda candidate: len(missing[candidate]))
    return root, missing[root]


def describe_missing(manifest: Manifest, missing: list[str]) -> str:
    """Return a clause with the number and the first of the missing images, and where to put them.

    manifest: as read, with the root of its source.
    """
    more = " ..." if len(missing) > _SHOWN else ""
    of_all = f"of {len(manifest):,} images"
    return (
        f"{counted(len(missing), f'{of_all} is', f'{of_all} are')} missing: "
        f"{', '.join(map(repr, missing[:_SHOWN]))}{more}; put them into "
        f"{manifest.root / 'images'} or {manifest.root}"
    )
