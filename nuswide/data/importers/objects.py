"""Object detection data sets, reduced to the presence of each class: COCO and VOC.

COCO: instances JSON. The split is the word train, val or test in a file's name; as in papers, val
is used as test if there is no annotated test file. VOC: a folder with Annotations/*.xml and,
optionally, ImageSets/Main/{train,val,test}.txt. A class whose objects are all marked difficult is
unknown.
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from nuswide.data.importers.files import checked_labels, checked_name, make_manifest, split_in_name
from nuswide.data.manifest import SPLITS, Manifest
from nuswide.data.text_files import find_file, has_suffix, read_bytes, read_json, read_lines

# COCO


def detects_coco(source: Path) -> bool:
    """Return whether a folder has instances_*.json, or a file is JSON."""
    return bool(_instances(source))


def read_coco(source: Path) -> Manifest:
    """Read one or more instances files; the images are in SOURCE, or in SOURCE/train2017 ..."""
    paths = _instances(source)
    if not paths:
        raise click.ClickException(f"{source} has no instances_*.json")
    splits_of = {path: split_in_name(path) or "train" for path in paths}
    if "test" not in splits_of.values():
        splits_of = {path: "test" if s == "val" else s for path, s in splits_of.items()}
    contents = {path: _read_instances(path) for path in paths}
    # Category IDs are those of the first file; the others must agree, or labels would be mixed up.
    classes = {c["id"]: c["name"] for c in contents[paths[0]]["categories"]}
    labels = checked_labels(str(paths[0]), list(classes.values()))
    names, splits, present = [], [], []
    for path, content in contents.items():
        if {c["id"]: c["name"] for c in content["categories"]} != classes:
            raise click.ClickException(f"{path}: its categories differ from those of {paths[0]}")
        of_image = _classes_of_images(path, content, classes)
        for image in content["images"]:
            names.append(checked_name(str(path), f"{_folder(source, path)}{image['file_name']}"))
            splits.append(splits_of[path])
            present.append(sorted(of_image[image["id"]]))
    return make_manifest(source, names, splits, labels, present)


def _instances(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source] if has_suffix(source, ".json") else []
    folders = (source / "annotations", source)
    return next(filter(None, (sorted(f.glob("instances_*.json*")) for f in folders)), [])


def _folder(source: Path, path: Path) -> str:
    """Return the folder that instances_train2017.json implies, `train2017/`, if it exists."""
    name = path.name.partition(".")[0].removeprefix("instances_")
    return f"{name}/" if (source / name).is_dir() else ""


def _read_instances(path: Path) -> dict[str, Any]:
    """Read a file and check the fields that are used, and their types."""
    content = read_json(path)
    wanted: dict[str, dict[str, type]] = {
        "images": {"id": int, "file_name": str},
        "annotations": {"image_id": int, "category_id": int},
        "categories": {"id": int, "name": str},
    }
    for key, fields in wanted.items():
        items = content.get(key) if isinstance(content, Mapping) else None
        if not isinstance(items, list):
            raise click.ClickException(f'{path} has no list "{key}"; COCO\'s format needs one')
        for index, item in enumerate(items):
            is_valid = isinstance(item, Mapping) and all(
                isinstance(item.get(field), kind) for field, kind in fields.items()
            )
            if not is_valid:
                raise click.ClickException(f"{path}: {key}[{index}] needs {' and '.join(fields)}")
    return dict(content)


def _classes_of_images(
    path: Path, content: Mapping[str, Any], classes: Mapping[int, str]
) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {image["id"]: set() for image in content["images"]}
    if len(found) < len(content["images"]):
        raise click.ClickException(f"{path}: two images have the same id")
    for index, annotation in enumerate(content["annotations"]):
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in found or category not in classes:
            raise click.ClickException(
                f"{path}: annotations[{index}] is of an image or category that is not listed"
            )
        found[image].add(classes[category])
    return found


# VOC


def detects_voc(source: Path) -> bool:
    """Return whether a folder has Annotations/ with XML files."""
    return any((source / "Annotations").glob("*.xml*"))


def read_voc(source: Path) -> Manifest:
    """Read the images listed in ImageSets/Main, or all of Annotations/ as train."""
    annotated = {
        path.name.removesuffix(".gz").removesuffix(".xml"): path
        for path in sorted((source / "Annotations").glob("*.xml*"))
    }
    listed = _image_sets(source) or [(identifier, "train") for identifier in annotated]
    names, splits, present, unknown = [], [], [], []
    for identifier, split in listed:
        if identifier not in annotated:
            raise click.ClickException(f"{source / 'Annotations'} has no {identifier}.xml")
        path = annotated[identifier]
        name, sure, difficult = _read_objects(path)
        names.append(checked_name(str(path), f"JPEGImages/{name}"))
        splits.append(split)
        present.append(sorted(sure))
        unknown.append(sorted(difficult - sure))
    labels = sorted({label for row in (*present, *unknown) for label in row})
    checked_labels(str(source), labels)
    return make_manifest(source, names, splits, labels, present, unknown)


def _image_sets(source: Path) -> list[tuple[str, str]]:
    """Return the listed images, each with its split; those in trainval.txt only are train."""
    listed: dict[tuple[str, str], None] = {}
    for name in (*SPLITS, "trainval"):
        path = find_file(source / "ImageSets/Main", f"{name}.txt")
        split = "train" if name == "trainval" else name
        for line in read_lines(path) if path else []:
            identifier = line.split()[0] if line.strip() else ""
            checked_name(str(path), identifier)
            if name != "trainval" or (identifier, "val") not in listed:
                listed[identifier, split] = None
    return list(listed)


def _read_objects(path: Path) -> tuple[str, set[str], set[str]]:
    """Read the image's file name, classes of ordinary objects, and classes of difficult ones."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
        # A document type may define entities that expand without limit, or read other files.
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ValueError("it has a document type, which is refused")
        root = ET.fromstring(text)
        objects = [
            (o.findtext("name", ""), o.findtext("difficult", "0")) for o in root.iter("object")
        ]
    except (ValueError, ET.ParseError) as error:
        raise click.ClickException(f"{path} is not a valid VOC annotation: {error}") from error
    stem = path.name.removesuffix(".gz").removesuffix(".xml")
    name = root.findtext("filename") or f"{stem}.jpg"
    difficult = {label.strip() for label, mark in objects if mark.strip() == "1"}
    sure = {label.strip() for label, mark in objects if mark.strip() != "1"}
    return name.strip(), sure, difficult
