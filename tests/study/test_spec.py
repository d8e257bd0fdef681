"""Study files: read back as written, and refused by the name of the key that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from mto_tools.errors import MtoError, RefusedError
from mto_tools.study.builtin import Asked, ablation, compare, paper
from mto_tools.study.folder import locked
from mto_tools.study.resume import checkpoint_at, go_on, numbered
from mto_tools.study.spec import FineTuning, check_folder, load_study

from .conftest import FAKE, fake_session, recipe_of

PLAIN = """\
upstream = "mini"
seeds = [0, 1]
steps = 60
[arms]
baseline = { preset = "observe" }
mto = { preset = "mae", ranking = 0.5, arguments = ["--lr", "1e-3"] }
"""


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    asked = Asked(seeds=3, extra=["--mto_ranking", "2", "--lr", "1"], data="/a b")
    tuned = Asked(epochs=2, batch=8, finetune=FineTuning(epochs=1, arguments=("--x", "1")))
    studies = [compare("fake", FAKE, asked), ablation("fake", FAKE, asked.__class__())]
    studies.append(paper("mae", recipe_of("mae"), tuned))
    for number, study in enumerate(studies):
        study.save_as(tmp_path / f"{number}.toml")
        assert load_study(tmp_path / f"{number}.toml") == study


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("steps = 60", "step = 60", "step"),
        ("steps = 60", "steps = 1", "steps"),
        ("steps = 60", "steps = 60\nepochs = 2", "not both"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "seeds"),
        ("seeds = [0, 1]", "seeds = []", "seeds"),
        ("ranking = 0.5", "rankin = 0.5", "rankin"),
        ("ranking = 0.5", "ranking = -1", "ranking"),
        ('preset = "mae"', 'preset = "mea"', "mea"),
        ("mto = {", '"m-t" = {', "m-t"),
        ("seeds = [0, 1]\n", "", "seeds"),
        ("seeds = [0, 1]", "seeds = [0, 1", "TOML"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, before: str, after: str, named: str) -> None:
    file = tmp_path / "study.toml"
    file.write_text(PLAIN)
    assert load_study(file).arms["mto"].mto["ranking"] == 0.5
    file.write_text(PLAIN.replace(before, after))
    with pytest.raises(MtoError, match=named) as caught:
        load_study(file)
    assert str(file) in caught.value.message
    assert caught.value.hint


def test_a_folder_with_foreign_files_is_left_alone(tmp_path: Path) -> None:
    study = fake_session(tmp_path).study
    check_folder(study, tmp_path / "new")
    check_folder(study, tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RefusedError, match="holds files"):
        check_folder(study, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_one_study_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RefusedError, match="process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_checkpoints_by_epoch_and_the_first_one_at_or_after(tmp_path: Path) -> None:
    """MAE saves after 1, 21, 41 … epochs, whatever one asks."""
    recipe = recipe_of("mae")
    for epoch in (0, 20, 40, 99):
        (tmp_path / f"checkpoint-{epoch}.pth").write_bytes(b"half a checkpoint")
    (tmp_path / "checkpoint-x.pth").touch()
    assert sorted(numbered(tmp_path, recipe.checkpoint)) == [0, 20, 40, 99]
    assert checkpoint_at(recipe, tmp_path, 1) == (1, tmp_path / "checkpoint-0.pth")
    assert checkpoint_at(recipe, tmp_path, 30) == (41, tmp_path / "checkpoint-40.pth")
    with pytest.raises(MtoError, match="no checkpoint of 101"):
        checkpoint_at(recipe, tmp_path, 101)


def test_a_run_goes_on_from_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    import torch

    recipe, folder = recipe_of("conmim"), tmp_path / "run"
    folder.mkdir()
    assert go_on(recipe, "pretrain", folder) == []
    for epoch in range(3):  # student and teacher
        for name in ("checkpoint", "checkpoint_copy"):
            torch.save({"model": {"w": torch.ones(3)}}, folder / f"{name}-{epoch}.pth")
    (folder / "checkpoint_copy-2.pth").unlink()
    cut = folder / "checkpoint-1.pth"
    cut.write_bytes(cut.read_bytes()[:-40])
    words = go_on(recipe, "pretrain", folder)
    assert [word for word in words if "-0.pth" in word] == [
        str(folder / "checkpoint-0.pth"),
        str(folder / "checkpoint_copy-0.pth"),
    ]
    assert (folder / "checkpoint-1.pth.cut").is_file()
    (folder / "checkpoint-0.pth").write_bytes(b"")
    assert go_on(recipe, "pretrain", folder) == []
    assert not folder.exists()
    assert (tmp_path / "run.aside1" / "checkpoint-1.pth.cut").is_file(), "nothing is lost"
