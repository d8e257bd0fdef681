"""Recipes of this clone, plans for them, and one process that stands for a rank of eight."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mto_tools.plan.planner import Plan, Request, make_plan
from mto_tools.upstreams.recipe import plan_facts
from mto_tools.upstreams.upstream import load_upstream

HOME = Path(__file__).parents[2]
NAMES = ("mae", "simmim", "bootmae", "conmim", "mini")
UPSTREAMS = {name: load_upstream(HOME, name) for name in NAMES}
FACTS = {name: plan_facts(upstream) for name, upstream in UPSTREAMS.items()}
EVERY = [(name, model) for name in NAMES for model in FACTS[name].models]


def plan(name: str, **request: object) -> Plan:
    return make_plan(UPSTREAMS[name], Request(**request))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def rank_of_eight() -> dict[str, Any]:
    """DeepSpeed's reading of all committed configurations, and ZeRO's memory."""
    pytest.importorskip("deepspeed")
    files = sorted(str(file) for file in HOME.glob("patches/*/deepspeed/*.json"))
    script = str(Path(__file__).with_name("rank_of_eight.py"))
    done = subprocess.run([sys.executable, script, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
