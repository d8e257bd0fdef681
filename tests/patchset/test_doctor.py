"""Doctor: what is missing is named with what mends it, and status 3 says so to programs."""

from __future__ import annotations

import json
import shutil

from mto_tools.doctor import Finding, doctor
from mto_tools.patchset import apply as applying


def by_name(findings) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


def test_a_house_with_a_mirror(authored) -> None:
    found = by_name(doctor(authored.home, ["toy", "nobody"]))
    assert [found[what].state for what in ("python", "git", "torch", "einops")] == ["ok"] * 4
    assert found["toy source"].state == "ok"
    assert str(authored.origin) in found["toy source"].found
    assert found["toy series"].state == "note"
    assert "not checked out" in found["toy series"].found
    assert found["nobody"].state == "missing"
    applying.ensure_clone(authored.toy, print)
    found = by_name(doctor(authored.home, ["toy"]))["toy series"]
    assert (found.state, "ready to apply" in found.found) == ("ok", True)
    applying.apply(authored.toy, print)
    found = by_name(doctor(authored.home, ["toy"]))["toy series"]
    assert (found.state, "ready" in found.found, "applied" in found.found) == ("ok", False, True)
    (authored.clone / "engine.py").write_text("mine\n")
    found = by_name(doctor(authored.home, ["toy"]))["toy series"]
    assert (found.state, found.hint) == ("note", "mto status toy")


def test_a_source_that_is_gone_or_does_not_answer(authored, monkeypatch) -> None:
    monkeypatch.setenv("MTO_UPSTREAM_URL", "/no/such/{repo}.git")
    found = by_name(doctor(authored.home, ["toy"]))["toy source"]
    assert (found.state, "'/no/such/toy.git'" in found.found) == ("missing", True)
    # Nothing listens on port 1; the password must not be shown.
    monkeypatch.setenv("MTO_UPSTREAM_URL", "http://user:secret@127.0.0.1:1/{repo}.git")
    found = by_name(doctor(authored.home, ["toy"]))["toy source"]
    assert found.state == "missing"
    assert "does not answer" in found.found
    assert "secret" not in found.found
    assert "--source" in found.hint
    found = by_name(doctor(authored.home, ["toy"], network=False))["toy source"]
    assert (found.state, "not asked" in found.found) == ("note", True)


def test_a_tampered_series_is_named(authored) -> None:
    file = authored.patches / "0003-mto-loss.patch"
    file.write_bytes(file.read_bytes() + b" context\n")
    found = by_name(doctor(authored.home, ["toy"]))["toy series"]
    assert (found.state, found.hint) == ("missing", "mto lint toy")
    assert "0003-mto-loss.patch" in found.found


def test_command_line_and_exit_status(authored, tmp_path) -> None:
    good = authored.mto("doctor", "--json")
    assert good.returncode == 0, good.stderr
    table = json.loads(good.stdout)
    assert table["ok"]
    assert {"what", "state", "found", "hint"} == table["findings"][0].keys()
    bad = authored.mto("doctor", "nobody")
    assert bad.returncode == 3
    assert "nobody" in bad.stdout
    # Without git on PATH doctor is the one command that must still work.
    empty = tmp_path / "bin"
    empty.mkdir()
    python = shutil.which("python3")
    assert python
    (empty / "python3").symlink_to(python)
    gone = authored.mto("doctor", "--offline", PATH=str(empty))
    assert gone.returncode == 3, gone.stdout + gone.stderr
    assert "there is no git on PATH" in gone.stdout
