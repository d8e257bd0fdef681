"""Digits as image folders, with the lists that some recipes read."""

from __future__ import annotations

import json
from pathlib import Path

from mto_tools.launch.digits import lay_out
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import load_upstream

HOME = Path(__file__).parents[2]


def test_images_as_bootmae_reads_them(tmp_path: Path) -> None:
    lay_out(load_recipe(load_upstream(HOME, "bootmae")).data, tmp_path / "images", 2)
    labels = json.loads((tmp_path / "data/imagenet_class_index.json").read_text())
    label = {folder: int(number) for number, (folder, _) in labels.items()}
    assert len(label) == 1000
    for phase, count in (("train", 16), ("val", 8)):
        names = (tmp_path / f"data/ILSVRC2012_name_{phase}.txt").read_text().split()
        assert len(names) == count
        assert all((tmp_path / "images" / phase / name).is_file() for name in names)
        assert {label[name.split("/")[0]] for name in names} == set(range(8))


def test_images_as_conmim_reads_them(tmp_path: Path) -> None:
    lay_out(load_recipe(load_upstream(HOME, "conmim")).data, tmp_path, 1)
    for phase in ("train", "val"):
        lines = (tmp_path / f"{phase}_map.txt").read_text().splitlines()
        assert len(lines) == 8
        for name, label in map(str.split, lines):
            assert (tmp_path / phase / name).is_file()
            assert name.startswith(f"digit{label}/")
