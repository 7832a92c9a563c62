"""The page's first line: one sentence in words, and the one thing that is wrong. Pure."""

from __future__ import annotations

from dashboard.view import ExpertHealth, Verdict

CRITICAL_GONE_SHARE = 0.5  # of the experts that were ever hosted: half the model is missing
DEGRADED_SHARE = 0.05  # below it a large swarm is always a little ill, which is what it is made for


def judge(
    counts: dict[ExpertHealth, int],
    *,
    experts_total: int,
    nodes_online: int,
    unserved_layers: tuple[str, ...],
    worst_node: str | None,
) -> Verdict:
    """The verdict on a swarm. `counts` has every state but vacant; `worst_node` is the one that left most experts
    behind.
    """
    if not experts_total:
        return Verdict("empty", "Nothing to host.", "This project has no layers.", "What trainers report is shown.")
    hosted = sum(counts.values())
    if not hosted:
        return Verdict(
            "empty", "Nobody is here yet.", f"None of {experts_total:,} experts is hosted.", "The first node starts it."
        )
    working = counts.get("serving", 0) + counts.get("degraded", 0)
    gone = counts.get("lost", 0) + counts.get("orphaned", 0)
    troubled = hosted - counts.get("serving", 0)
    headline = (
        f"{counts.get('serving', 0):,} of {experts_total:,} experts are serving on "
        f"{nodes_online:,} node{'' if nodes_online == 1 else 's'}."
    )
    detail = _worst(counts, unserved_layers, worst_node)
    if not working or gone >= CRITICAL_GONE_SHARE * hosted:
        return Verdict("critical", "Critical.", headline, detail)
    if unserved_layers or troubled > DEGRADED_SHARE * hosted:
        return Verdict("degraded", "Degraded.", headline, detail)
    return Verdict("healthy", "Healthy.", headline, detail)


def _worst(counts: dict[ExpertHealth, int], unserved_layers: tuple[str, ...], worst_node: str | None) -> str:
    if unserved_layers:
        return f"Nobody serves layer {unserved_layers[0]}."
    whose = f"; most were on {worst_node}" if worst_node else ""
    told: tuple[tuple[ExpertHealth, str], ...] = (
        ("orphaned", f"orphaned{whose}"),
        ("lost", f"lost{whose}"),
        ("degraded", "slow or failing"),
        ("stale", "not answering at the moment"),
    )
    for health, words in told:
        if number := counts.get(health, 0):
            return f"{number:,} {'is' if number == 1 else 'are'} {words}."
    return ""
