"""Recipes of this clone, and plans for them."""

from __future__ import annotations

from pathlib import Path

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
