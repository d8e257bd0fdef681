"""`mto upgrade --scan`: every upstream commit tried, to see where the series still goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mto_tools.errors import MissingError
from mto_tools.patchset.merge import require_merge_tree
from mto_tools.patchset.replay import VERDICTS, replay
from mto_tools.patchset.upgrade import load_series
from mto_tools.patchset.workshop import Workshop, resolve_target
from mto_tools.upstreams.upstream import Upstream


@dataclass(frozen=True)
class Tried:
    """One upstream commit: `counts` is the number of hunks by verdict."""

    commit: str
    date: str
    subject: str
    ok: bool
    counts: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return it for `--json`, without the subject, which is upstream text."""
        return {"commit": self.commit, "date": self.date, "ok": self.ok, "counts": self.counts}


def scan(shop: Workshop, upstream: Upstream, since: str = "") -> Iterator[Tried]:
    """Try every commit of all branches and tags, oldest first.

    Args:
        shop: Where it is tried.
        upstream: The upstream.
        since: Only commits that this one does not contain; and itself.

    Raises:
        MissingError: The upstream has no history, as an embedded one.
    """
    require_merge_tree(shop.git)
    if shop.history is None:
        raise MissingError(f"{upstream.name} is embedded: it has no history to scan")
    lock, series = load_series(shop.git, upstream)
    first = [resolve_target(shop, upstream, since)] if since else []
    listed = shop.history.text(
        *("log", "--reverse", "--topo-order", "--format=%H%x00%cs%x00%s", f"--glob={shop.prefix}*"),
        *(f"^{oid}^@" for oid in first),
    )
    outcomes: dict[str, tuple[bool, dict[str, int]]] = {}
    for line in listed.split("\n") if listed else ():
        commit, date, subject = line.split("\0")
        tree = shop.git.resolve(f"{commit}^{{tree}}")
        if tree not in outcomes:
            steps = list(replay(shop.git, lock, series, tree))
            verdicts = [hunk.verdict for step in steps for hunk in step.hunks]
            counts = {verdict: verdicts.count(verdict) for verdict in VERDICTS}
            outcomes[tree] = (all(step.ok for step in steps), counts)
        ok, counts = outcomes[tree]
        yield Tried(commit, date, subject, ok, counts)
