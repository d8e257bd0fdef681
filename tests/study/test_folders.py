"""Folders as the recipes leave them, written here by hand; numbers are checked by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from mto_tools.errors import CorruptError, MissingError, MtoError
from mto_tools.study.report import Report, build_report
from mto_tools.study.report_cli import parse, read_runs, recognise
from mto_tools.study.runs import Source, collect
from mto_tools.study.verdict import Finding

from .conftest import CLONE, recipe_of

MAE, SIMMIM = recipe_of("mae"), recipe_of("simmim")
EPOCHS = [100, 200, 300, 400]


def lines(path: Path, records: list[dict[str, Any]], end: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + end)


def mae(folder: Path, losses: list[float]) -> Path:
    """The log of an unpatched MAE: a line for each epoch."""
    lines(
        folder / "log.txt",
        [{"train_lr": 1e-4, "train_loss": v, "epoch": e} for e, v in enumerate(losses)],
    )
    return folder


def patched(folder: Path, losses: list[float], per_epoch: int, recipe: str = "mae") -> Path:
    """What MTO adds, and MAE's own log with the terms in its loss."""
    lines(folder / "mto-config.jsonl", [{"step": 1, "recipe": recipe, "sparsity": 0.01}])
    lines(
        folder / "mto.jsonl",
        [
            {"step": s, "loss": v, "epoch": s / per_epoch, "steps_per_epoch": per_epoch}
            for s, v in enumerate(losses, start=1)
        ],
    )
    lines(folder / "log.txt", [{"train_loss": 99.0, "epoch": 0}])
    return folder


def simmim(folder: Path, losses: list[list[float]]) -> Path:
    """SimMIM's text: running mean of the epoch in parentheses."""
    path = folder / "simmim_pretrain" / "run" / "log_rank0.txt"
    path.parent.mkdir(parents=True)
    head = "[2026-11-26 01:02:03 simmim_pretrain] (main_simmim.py 184): INFO"
    text = [f"{head} Start training"]
    for epoch, values in enumerate(losses):
        for index, mean in enumerate(values):
            place = f"[{epoch}/{len(losses)}][{index}/{len(values)}]"
            text.append(
                f"{head} Train: {place}\teta 0:00:01 lr 0.0001\ttime 0.2 (0.3)\t"
                f"loss 9.9999 ({mean:.4f})\tgrad_norm 1.1 (1.2)\tmem 0MB"
            )
        text.append(f"{head} EPOCH {epoch} training takes 0:00:01")
    path.write_text("\n".join(text) + "\n")
    return folder


def tuned(folder: Path, accuracy: float) -> Path:
    """A fine-tuning of MAE whose best accuracy is not its last."""
    tests = [accuracy - 5, accuracy + 1, accuracy]
    lines(folder / "log.txt", [{"epoch": e, "test_acc1": v} for e, v in enumerate(tests)])
    return folder


def evaluation(folder: Path, epoch: int, knn: float) -> None:
    """As `mto evaluate` writes it beside a checkpoint."""
    name = f"checkpoint-{epoch}.pth"
    one: dict[str, Any] = {"checkpoint": name, "digest": "0", "progress": epoch, "recipe": "mae"}
    one |= {"model": "vit", "data": "digits", "images_train": 8, "images_val": 8}
    one |= {"scores": {"knn": knn}, "versions": {}, "made": "2026-11-26"}
    lines(folder / "evaluations" / f"{name}.json", [one])


def report_of(*sources: Source, name: str = "mae") -> Report:
    return build_report(sources, recipe=recipe_of(name), upstream=name, made_by="test")


def test_plain_log_against_steps_of_mto(tmp_path: Path) -> None:
    """A log that counts epochs and one that counts steps meet on epochs."""
    base = Source(arm="baseline", seed=0, folder=mae(tmp_path / "b", [1.0, 0.8, 0.6]))
    on = patched(tmp_path / "m", [1.0, 0.8, 0.7, 0.5, 0.5, 0.3, 0.1], per_epoch=2)
    report = report_of(base, Source(arm="mto", seed=0, folder=on))
    first, second = (record.curve("loss") for record in report.records)
    assert first.points() == [(1, 1.0), (2, 0.8), (3, 0.6)]
    assert second.at == [1, 2, 3], "the fourth epoch is not whole"
    assert second.values == pytest.approx([0.9, 0.6, 0.4])
    assert {first.unit, second.unit} == {"epoch"}
    assert report.verdicts[0].finding is Finding.ONE_SEED
    unknown = {check.name for check in report.checks if check.passed is None}
    assert {"Same random numbers", "Baseline without MTO"} <= unknown


def test_simmim_text(tmp_path: Path) -> None:
    folder = simmim(tmp_path / "s", [[0.9, 0.8], [0.7, 0.65], [0.6, 0.55]])
    record = collect(Source(arm="baseline", seed=0, folder=folder), SIMMIM)
    assert record.curve("loss").points() == [(1, 0.8), (2, 0.65), (3, 0.55)]
    inner = folder / "simmim_pretrain" / "run"
    again = collect(Source(arm="baseline", seed=0, folder=inner), SIMMIM)
    assert again.curves == record.curves


def test_paper_figures_by_hand(tmp_path: Path) -> None:
    """Fine-tuned at four epochs: reduction as in Figure 4, RAUC (eq. 8) as in Table 2."""
    scores = {"baseline": [80.0, 81.0, 82.0, 82.0], "mto": [81.0, 82.5, 83.0, 83.0]}
    sources = []
    for arm, values in scores.items():
        folder = mae(tmp_path / arm, [1.0, 0.9])
        done = {
            float(e): tuned(tmp_path / f"{arm}{e}", v) for e, v in zip(EPOCHS, values, strict=True)
        }
        sources.append(Source(arm=arm, seed=0, folder=folder, finetuned=done))
    result = report_of(*sources).verdicts[0].results[0]
    assert result.score.key == "finetuned"
    assert result.end.baseline == pytest.approx([0.82])
    (found,) = result.passages
    assert found is not None
    # 82 % at epoch 300, and at 100 + 100 * (82 - 81) / (82.5 - 81).
    assert (found.baseline, found.arm) == pytest.approx((300, 100 + 200 / 3))
    assert found.reduction == pytest.approx(1 - (100 + 200 / 3) / 300)
    early, late = result.rauc
    assert (early.start, early.stop, late.start, late.stop) == (100, 400, 200, 400)
    # Areas above 80: 50 + 150 + 200 and 175 + 275 + 300; above 81: 50 + 100 and 175 + 200.
    assert early.values == pytest.approx([750 / 400])
    assert late.values == pytest.approx([375 / 150])


def test_evaluations_decide_and_moving_targets_do_not(tmp_path: Path) -> None:
    sources = []
    for seed in (0, 1, 2):
        for arm, gain in {"baseline": 0.0, "mto": 0.05 + 0.005 * seed}.items():
            folder = mae(tmp_path / f"{arm}{seed}", [1.0, 0.9, 0.8])
            for epoch, knn in {99: 0.5, 199: 0.6, 299: 0.65}.items():
                evaluation(folder, epoch, knn + gain)
            sources.append(Source(arm=arm, seed=seed, folder=folder))
    report = report_of(*sources)
    first = report.verdicts[0].results[0]
    assert first.score.key == "evaluate.knn"
    assert report.records[0].scores["evaluate.knn"].at == [100, 200, 300]
    assert report.verdicts[0].finding is Finding.FASTER
    for seed, arms in {2: ["baseline", "mto"], 1: ["mto"], 0: ["baseline"]}.items():
        for arm in arms:
            shutil.rmtree(tmp_path / f"{arm}{seed}" / "evaluations")
        alike = {check.name: check.passed for check in report_of(*sources).checks}
        assert alike["Evaluated alike"] is (None if seed == 2 else False), "one arm alone is unfair"
    shutil.rmtree(tmp_path / "mto0" / "evaluations")
    shutil.rmtree(tmp_path / "baseline1" / "evaluations")
    report = report_of(*sources, name="conmim")
    assert report.verdicts[0].finding is Finding.NOT_COMPARABLE


def test_fine_tunings_that_one_arm_has_are_named(tmp_path: Path) -> None:
    done = {100.0: tuned(tmp_path / "t1", 80), 200.0: tuned(tmp_path / "t2", 81)}
    base = Source(arm="baseline", seed=0, folder=mae(tmp_path / "b", [1.0]), finetuned=done)
    other = {100.0: tuned(tmp_path / "t3", 82)}
    arm = Source(arm="mto", seed=0, folder=mae(tmp_path / "m", [1.0]), finetuned=other)
    report = report_of(base, arm)
    assert any("200" in note for note in report.notes)
    assert [record.scores["finetuned"].at for record in report.records] == [[100], [100]]


def test_cut_last_line_is_left_out_and_another_is_an_error(tmp_path: Path) -> None:
    folder = mae(tmp_path / "b", [1.0, 0.9])
    with (folder / "log.txt").open("a") as file:
        file.write('{"train_lo')
    source = Source(arm="baseline", seed=0, folder=folder)
    record = collect(source, MAE)
    assert record.curve("loss").at == [1, 2]
    assert "log.txt:3" in record.notes[0]
    with (folder / "log.txt").open("a") as file:
        file.write('\n{"train_loss": 0.8, "epoch": 2}\n')
    with pytest.raises(CorruptError) as caught:
        collect(source, MAE)
    assert f"{folder / 'log.txt'}:3" in caught.value.message


def test_log_in_which_another_run_begins(tmp_path: Path) -> None:
    """A resumed run goes back a little; one that begins anew is another."""
    losses = [(0, 1.0), (1, 0.9), (2, 0.8), (1, 0.91), (2, 0.81), (0, 2.0), (1, 1.9)]
    folder = tmp_path / "b"
    lines(folder / "log.txt", [{"train_loss": v, "epoch": e} for e, v in losses[:5]])
    record = collect(Source(arm="a", seed=0, folder=folder), MAE)
    assert record.curve("loss").values == [1.0, 0.91, 0.81]
    lines(folder / "log.txt", [{"train_loss": v, "epoch": e} for e, v in losses])
    record = collect(Source(arm="a", seed=0, folder=folder), MAE)
    assert record.curve("loss").values == [2.0, 1.9]
    assert record.notes


def test_unequal_seeds_are_paired_by_seed_and_named(tmp_path: Path) -> None:
    sources = [
        Source(arm=arm, seed=seed, folder=mae(tmp_path / f"{arm}{seed}", [1.0, 0.9 - 0.1 * seed]))
        for arm, seed in (("baseline", 0), ("baseline", 1), ("mto", 1))
    ]
    report = report_of(*sources)
    assert [record.name for record in report.records] == ["baseline-1", "mto-1"]
    assert report.failed == ["mto-0"]


def test_several_arms_share_the_error(tmp_path: Path) -> None:
    sources = [
        Source(arm=arm, seed=0, folder=mae(tmp_path / arm, [1.0, 0.9 - 0.1 * i]))
        for i, arm in enumerate(("none", "e", "e-r"))
    ]
    report = report_of(*sources)
    assert report.arms == ["none", "e", "e-r"]
    assert [verdict.arm for verdict in report.verdicts] == ["e", "e-r"]
    assert {verdict.confidence for verdict in report.verdicts} == {0.9875}
    assert all(math.isfinite(v.results[0].end.mean) for v in report.verdicts)


def test_recipe_is_seen_from_the_files(tmp_path: Path) -> None:
    plain, on = mae(tmp_path / "b", [1.0]), patched(tmp_path / "m", [1.0, 0.9], 1)
    text = simmim(tmp_path / "s", [[1.0]])
    assert recognise(CLONE, [text]) == "simmim"
    assert recognise(CLONE, [plain, on]) == "mae"
    with pytest.raises(MissingError) as caught:
        recognise(CLONE, [plain])  # ConMIM's log has the same name
    assert "--recipe" in caught.value.hint
    with pytest.raises(MtoError) as other:
        recognise(CLONE, [plain, text])
    assert str(plain) in other.value.message
    assert str(text) in other.value.message


def broken(tmp_path: Path) -> dict[str, tuple[list[str], list[str]]]:
    a, b = (str(mae(tmp_path / name, [1.0, 0.9])) for name in "ab")
    (tmp_path / "empty").mkdir()
    for name in "cd":
        mae(tmp_path / "both" / name, [1.0])
    return {
        "no such folder": ([f"baseline={a}", "mto=/nowhere"], []),
        "no form": ([a, f"mto={b}"], []),
        "one arm": ([f"baseline={a}"], []),
        "twice": ([f"baseline={a}", f"mto={a}"], []),
        "several runs": ([f"baseline={a}", f"mto={tmp_path / 'both'}"], []),
        "nothing in it": ([f"baseline={a}", f"mto={tmp_path / 'empty'}"], []),
        "no arm of it": ([f"baseline={a}", f"mto={b}"], [f"mtp:100={b}"]),
        "no epoch": ([f"baseline={a}", f"mto={b}"], [f"mto={b}"]),
        "no fine-tuning": ([f"baseline={a}", f"mto={b}"], [f"mto:1={tmp_path / 'empty'}"]),
    }


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("no such folder", MissingError),
        ("no form", MtoError),
        ("one arm", MtoError),
        ("twice", MtoError),
        ("several runs", MtoError),
        ("nothing in it", MissingError),
        ("no arm of it", MtoError),
        ("no epoch", MtoError),
        ("no fine-tuning", MissingError),
    ],
)
def test_refused_with_a_hint(tmp_path: Path, case: str, error: type[MtoError]) -> None:
    with pytest.raises(error) as caught:
        read_runs(*broken(tmp_path)[case], "mae", tmp_path / "out")
    assert type(caught.value) is error
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_arms_named_several_times_are_seeds(tmp_path: Path) -> None:
    folders = [mae(tmp_path / name, [1.0]) for name in "abcd"]
    words = [f"{arm}={f}" for arm, f in zip(("x", "y", "x", "y"), folders, strict=True)]
    done = [f"y:100={tmp_path}", f"y:100={folders[0]}"]
    found = parse(words, done)
    assert [(s.arm, s.seed, s.folder) for s in found] == [
        ("x", 0, folders[0]),
        ("x", 1, folders[2]),
        ("y", 0, folders[1]),
        ("y", 1, folders[3]),
    ]
    assert [s.finetuned for s in found[2:]] == [{100: tmp_path}, {100: folders[0]}]
