"""Packages and modules that a recipe needs: old ones, missing ones, and the installs that help."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mto_tools.launch.needs import imports, package, required
from mto_tools.upstreams.recipe import load_recipe
from mto_tools.upstreams.upstream import all_upstreams

from ..command import HOME, make_home, mto


def test_imports_are_those_that_the_script_runs(tmp_path: Path) -> None:
    files = {
        "main.py": "import os, torch\nfrom pkg import part\nfrom pkg.sub.deep import f\n"
        "try:\n    import maybe\nexcept ImportError:\n    pass\n"
        "def later():\n    import lazy\n"
        "if True:\n    import always.inner\n",
        "pkg/__init__.py": "from . import near\n",
        "pkg/near.py": "import nearby\n",
        "pkg/part.py": "from .near import x\nimport outside\nimport parted\n",
        "pkg/sub/__init__.py": "",
        "pkg/sub/deep.py": "from ..near import x\nimport deep_one\n",
        "outside.py": "import out_one\n",
        "unused.py": "import never\n",
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = imports(tmp_path / "main.py")
    assert found == {"torch", "always", "nearby", "parted", "deep_one", "out_one"}


@pytest.fixture
def doctor(tmp_path: Path) -> Callable[..., dict[str, dict[str, str]]]:
    """`mto doctor` for mini, whose recipe needs what is given; findings by name."""

    def run(needs: list[str], script: str = "", **installed: str) -> dict[str, dict[str, str]]:
        home, site = make_home(tmp_path / "home", "mini"), tmp_path / "site"
        file = home / "patches" / "mini" / "recipe.toml"
        file.write_text(
            re.sub(r"(?m)^needs = .*", f"needs = {json.dumps(needs)}", file.read_text())
        )
        if script:
            (home / "upstream" / "mini").mkdir(parents=True)
            (home / "upstream" / "mini" / "main_pretrain.py").write_text(script)
        for name, version in installed.items():
            info = site / f"{name}-{version}.dist-info"
            info.mkdir(parents=True)
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (info / "METADATA").write_text(text)
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = mto("doctor", "--offline", "--json", MTO_HOME=str(home), PYTHONPATH=path)
        table = json.loads(done.stdout)
        assert done.returncode == (0 if table["ok"] else 3)
        return {finding["what"]: finding for finding in table["findings"]}

    return run


def test_a_version_below_the_floor_is_not_ok(
    doctor: Callable[..., dict[str, dict[str, str]]],
) -> None:
    found = doctor(["timm"], timm="0.3.2")
    for what in ("tools", "mini packages"):
        assert found[what]["state"] == "missing"
        assert "timm 0.3.2" in found[what]["found"]
        assert "pip install -e '.[tools]'" in found[what]["hint"]


def test_a_package_that_is_not_there(doctor: Callable[..., dict[str, dict[str, str]]]) -> None:
    found = doctor(["no-such-package", "numpy"])["mini packages"]
    assert (found["state"], "no-such-package" in found["found"]) == ("note", True)


def test_a_module_that_a_script_of_the_checkout_imports(
    doctor: Callable[..., dict[str, dict[str, str]]],
) -> None:
    found = doctor(["numpy"], "import numpy\nimport no_such_module\n")["mini packages"]
    assert (found["state"], "no_such_module" in found["found"]) == ("missing", True)
    assert "numpy" not in found["found"]


def test_installs_that_are_named_exist() -> None:
    extras = {extra for extra, _ in required()}
    assert {"tools", "recipes", "deepspeed"} <= extras
    for upstream in all_upstreams(HOME):
        for name in load_recipe(upstream).needs:
            assert package(name).extra in extras - {"dev"}, name
    assert package("deepspeed").install == "pip install -e '.[deepspeed]'"


@pytest.mark.parametrize("upstream", all_upstreams(HOME), ids=lambda upstream: upstream.name)
def test_every_module_of_the_real_scripts_is_known(upstream, tmp_path: Path) -> None:
    from mto_tools.launch.smoke import unpatched

    url = os.environ.get("MTO_UPSTREAM_URL", "")
    if upstream.source == "embedded":
        root = HOME / upstream.path
    elif "{owner}" not in url:
        pytest.skip("no source of the upstreams: set MTO_UPSTREAM_URL to a template")
    else:
        owner, repo = upstream.repository.split("/")
        mirror = Path(url.format(owner=owner, repo=repo))
        root = unpatched(mirror, upstream.pin, tmp_path)
    recipe = load_recipe(upstream)
    modules = importlib.metadata.packages_distributions()
    for script in recipe.scripts:
        assert (root / script).is_file()
        for name in imports(root / script) - {"torch", *recipe.provided}:
            named = {found.lower() for found in modules.get(name, [name])}
            assert named & set(recipe.needs), f"{script} imports {name}"
