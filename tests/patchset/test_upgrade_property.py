"""Upgrade against `git cherry-pick` in a real work tree, over random upstream edits.

Either the rehearsal gives the tree that cherry-pick gives, or it reports a conflict where
cherry-pick stops, too; and the patch files made of it give that very tree again.
"""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from mto_tools.patchset.export import write_series
from mto_tools.patchset.git import Git
from mto_tools.patchset.lock import build_series
from mto_tools.patchset.replay import replay
from mto_tools.patchset.series import Patch, parse

CASES = 36
# Lines that occur more than once are what makes a merge ambiguous.
COMMON = ["", "pass", "    return x", "x = 1", "mto = 1"]
PATHS = ["engine.py", "main.py", "util/misc.py", "util/deep/model.py"]


def text(rng: random.Random, name: str, length: int) -> list[str]:
    lines = [f"{name} {n}: {rng.getrandbits(30)}" for n in range(length)]
    return [rng.choice(COMMON) if rng.random() < 0.3 else line for line in lines]


def ours(rng: random.Random, files: dict[str, list[str]]) -> dict[str, list[str]]:
    """Insert two or three hunks into some files."""
    changed = dict(files)
    for path in rng.sample(sorted(files), rng.randint(1, 3)):
        lines = list(files[path])
        for _ in range(rng.randint(1, 2)):
            at = rng.randint(0, len(lines))
            lines[at:at] = [
                rng.choice(COMMON) if rng.random() < 0.2 else f"ours {rng.getrandbits(30)}"
                for _ in range(rng.randint(1, 3))
            ]
        changed[path] = lines
    if rng.random() < 0.3:
        changed[f"util/new_{rng.getrandbits(20)}.py"] = [f"ours {rng.getrandbits(30)}", ""]
    return changed


def theirs(
    rng: random.Random, files: dict[str, list[str]], series: list[dict[str, list[str]]]
) -> dict[str, list[str]]:
    """Do to the upstream what upstreams do."""
    files = {path: list(lines) for path, lines in files.items()}
    for _ in range(rng.randint(1, 4)):
        if not files:
            break
        path = rng.choice(sorted(files))
        lines, kind = files[path], rng.random()
        at = rng.randint(0, len(lines))
        size = rng.randint(1, 3)
        if kind < 0.25:
            lines[at:at] = [
                rng.choice([*COMMON, f"new {rng.getrandbits(30)}"]) for _ in range(size)
            ]
        elif kind < 0.4:
            del lines[at : at + size]
        elif kind < 0.52:
            lines[at : at + size] = [f"changed {rng.getrandbits(30)}"] * size
        elif kind < 0.62:  # move a block
            block = lines[at : at + 3 * size]
            del lines[at : at + 3 * size]
            to = rng.randint(0, len(lines))
            lines[to:to] = block
        elif kind < 0.68:  # copy a block
            lines[at:at] = lines[: 3 * size]
        elif kind < 0.72:  # take over a line of ours
            last = series[-1].get(path, [])
            mine = [n for n, line in enumerate(last) if line.startswith("ours")]
            if mine:
                lines.insert(min(rng.choice(mine), len(lines)), last[rng.choice(mine)])
        elif kind < 0.86:  # rename
            to = rng.choice([f"moved/{Path(path).name}", f"util/{rng.getrandbits(20)}.py"])
            files[to] = files.pop(path)
        elif kind < 0.92:  # rename a folder
            for old in [old for old in files if old.startswith("util/")]:
                files[f"tools/{old[5:]}"] = files.pop(old)
        elif kind < 0.96:
            del files[path]
        else:
            files[path] = [f"    {line}" for line in lines]
    return files


def fast_import(repo: Path, states: list[tuple[int, dict[str, list[str]]]]) -> list[str]:
    """Make a commit of every (parent's index + 1 or 0, files) in one process."""
    stream = []
    for number, (parent, files) in enumerate(states, 1):
        stream.append(f"commit refs/heads/c{number}\nmark :{number}\n")
        stream.append("committer up <up@stream> 1640000000 +0000\ndata 1\nx\n")
        if parent:
            stream.append(f"from :{parent}\n")
        stream.append("deleteall\n")
        for path, lines in files.items():
            data = "".join(f"{line}\n" for line in lines)
            stream.append(f"M 100644 inline {path}\ndata {len(data)}\n{data}\n")
    data = "".join(stream).encode()
    subprocess.run(["git", "fast-import", "--quiet"], cwd=repo, input=data, check=True)
    names = [f"c{number}" for number in range(1, len(states) + 1)]
    run = subprocess.run(["git", "rev-parse", *names], cwd=repo, capture_output=True, check=True)
    return run.stdout.decode().split()


def cherry_pick(repo: Path, target: str, commits: list[str]) -> str | None:
    """Return the tree git gives, or None where it stops."""
    quiet = {"cwd": repo, "capture_output": True}
    subprocess.run(["git", "checkout", "-qf", "--detach", target], check=True, **quiet)
    command = ["git", "-c", "user.name=x", "-c", "user.email=x", "cherry-pick"]
    flags = ["--allow-empty", "--keep-redundant-commits"]
    if subprocess.run([*command, *flags, *commits], **quiet).returncode:
        subprocess.run(["git", "cherry-pick", "--abort"], check=True, **quiet)
        subprocess.run(["git", "clean", "-ffdqx"], check=True, **quiet)
        return None
    run = subprocess.run(["git", "rev-parse", "HEAD^{tree}"], check=True, **quiet)
    return run.stdout.decode().strip()


@pytest.mark.parametrize("seed", range(3))
def test_the_tree_of_cherry_pick_or_a_conflict(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    repo = tmp_path / "repo"
    repo.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=repo, check=True)
    base = {path: text(rng, path, rng.randint(8, 30)) for path in PATHS}
    first = ours(rng, base)
    series = [first, ours(rng, first)]
    states = [(0, base), (1, series[0]), (2, series[1])]
    states += [(1, theirs(rng, base, series)) for _ in range(CASES)]
    pin, one, two, *targets = fast_import(repo, states)
    git = Git(repo)
    names = ["0001-compat-one.patch", "0002-mto-two.patch"]
    made = [Patch(name[5:-10], "what", "Why.", (), name) for name in names]
    trees = [git.resolve(f"{commit}^{{tree}}") for commit in (one, two)]
    files, lock = write_series(git, pin, list(zip(made, trees, strict=True)))
    patches = [parse(data, name) for name, data in files.items()]
    found: Counter[str] = Counter()
    for number, target in enumerate(targets):
        expected = cherry_pick(repo, target, [one, two])
        steps = list(replay(git, lock, patches, target))
        if not all(step.ok for step in steps):
            assert expected is None, f"{target}: git goes on, we stop"
            verdicts = {hunk.verdict for step in steps for hunk in step.hunks}
            assert verdicts & {"conflict", "gone"}
            found["conflict"] += 1
            continue
        assert steps[-1].after == expected, f"{target}: not the tree of cherry-pick"
        found["same tree"] += 1
        found.update({hunk.verdict for step in steps for hunk in step.hunks})
        if number % 3 == 0:
            again, new = write_series(git, target, [(step.patch, step.after) for step in steps])
            assert (new.tree if again else git.resolve(f"{target}^{{tree}}")) == expected
            assert build_series(git, target, list(again.items())) == new
    assert found["same tree"] > CASES / 6, found
    assert found["conflict"] > CASES / 20, found
