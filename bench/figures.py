# SPDX-License-Identifier: Apache-2.0
"""A score as figures: per cause and leg, with bounds, beside naive rules. Pure.

Owns shares, bounds and the naive rules. Counts nothing itself: score.py does.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final

from bench.score import VAGUE, Labelled, Score, Verdict, accepted, cause_of, in_set, right

_Z: Final = 1.96


def longest_segment(verdict: Verdict) -> str:
    """The naive rule: what the most time of the window was spent in."""
    total: Counter[str] = Counter()
    for kind, via, ns in verdict.segments:
        total[via or cause_of(kind)] += ns
    return total.most_common(1)[0][0] if total else "unknown"


def wilson_lower(share: float, n: int) -> float:
    """Lower 95 % Wilson bound of a share seen in *n* independent trials; 0 for none."""
    if n == 0:
        return 0.0
    z2 = _Z * _Z
    middle = share + z2 / (2 * n)
    spread = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, (middle - spread) / (1 + z2 / n))


def _share(flags: Sequence[bool], groups: Sequence[str]) -> dict[str, float]:
    n = len(flags)
    share = sum(flags) / n if n else 0.0
    clusters = len(set(groups))
    return {"share": share, "lower": wilson_lower(share, clusters), "n": n, "episodes": clusters}


def figures(score: Score) -> dict[str, Any]:
    """All figures as plain data: what ``--json`` prints, and the table is drawn from."""
    known = score.labelled
    by: dict[str, list[Labelled]] = defaultdict(list)
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    said: dict[str, list[bool]] = defaultdict(list)
    for one in known:
        by[f"{one.injection.cause}/{one.leg}"].append(one)
        kinds[one.injection.kind][one.verdict.cause] += 1
        label = one.injection.cause if right(one) else one.verdict.cause
        confusion[one.injection.cause][label] += 1
        said[label].append(right(one))
    rows = {}
    for name, group in sorted(by.items()):
        episodes = [one.episode for one in group]
        cause = name.partition("/")[0]
        rows[name] = {
            "label": _share([right(one) for one in group], episodes),
            "set": _share([in_set(one) for one in group], episodes),
            "precision": sum(said[cause]) / len(said[cause]) if said[cause] else None,
        }
    truth = Counter(one.injection.cause for one in known)
    majority = truth.most_common(1)[0][0] if truth else ""
    locks = [one for one in known if one.injection.cause == "lock" and one.verdict.cause == "lock"]
    definite = [one for one in known if one.verdict.cause not in VAGUE or right(one)]
    conditions: dict[str, list[bool]] = defaultdict(list)
    for one in known:
        conditions[one.condition].append(right(one))
    episodes = [one.episode for one in known]
    total = max(1, len(known))
    others = sum(score.unlabelled.values())
    bias = sorted(score.late_bias_ns)
    found = score.hit + score.false_misses
    due = score.hit + score.not_seen
    return {
        "cycles": score.cycles,
        "detection": {
            "precision": score.hit / found if found else 1.0,
            "recall": score.hit / due if due else 1.0,
            "misses": due,
            "false": score.false_misses,
            "not_seen": score.not_seen,
            "last_cycle_not_seen": score.at_the_end,
            "not_recorded": score.not_recorded,
            "wrong_leg": score.wrong_leg,
            "ambiguous": score.ambiguous,
            "ambiguous_told": score.ambiguous_told,
        },
        "cause": {
            "precision": sum(map(right, definite)) / max(1, len(definite)),
            "recall": sum(map(right, known)) / total,
            "label": _share([right(one) for one in known], episodes),
            "set": _share([in_set(one) for one in known], episodes),
        },
        "by_cause": rows,
        "by_condition": {
            name: {"share": sum(flags) / len(flags), "n": len(flags)}
            for name, flags in sorted(conditions.items())
        },
        "by_kind": {kind: dict(counts) for kind, counts in sorted(kinds.items())},
        "confusion": {cause: dict(counts) for cause, counts in sorted(confusion.items())},
        "lock_named_right": sum(_same_lock(one) for one in locks) / len(locks) if locks else None,
        "unknown_share": sum(one.verdict.cause == "unknown" and not right(one) for one in known) / total,
        "mixed_share": sum(one.verdict.cause == "mixed" for one in known) / total,
        "unlabelled": {
            "share": others / max(1, others + len(known)),
            "reasons": dict(score.reasons),
            "by_cause": dict(score.unlabelled),
        },
        "carried": {"n": score.carried, "origin_right": score.carried_right},
        "two_at_once": {"n": score.pairs, "right": score.pairs_right},
        "late_bias_us": bias[len(bias) // 2] / 1000 if bias else None,
        "late_bias_p5_p95_us": [bias[len(bias) // 20] / 1000, bias[-1 - len(bias) // 20] / 1000]
        if bias
        else None,
        "without_item_state": _calibration(known),
        "negatives_cycles": score.negative_cycles,
        "negatives_false_misses": score.negative_false,
        "negatives_locks_blamed": score.negative_locks,
        "negatives_bound": (
            3 / score.negative_cycles if score.negative_cycles and not score.negative_false else None
        ),
        "naive": {
            "always_item_state": sum("item_state" in one.injection.locks for one in known) / total,
            "majority_class": truth[majority] / total,
            "longest_segment": sum(longest_segment(o.verdict) in accepted(o) for o in known) / total,
        },
    }


def _calibration(known: Sequence[Labelled]) -> dict[str, Any]:
    """Of "without item_state": how often it is said to avoid a miss that it would, and that it would not."""
    named = [
        (
            "item_state" in one.injection.locks and one.injection.cause == "lock",
            any(name.startswith("lock:item_state") for name in one.verdict.sufficient),
        )
        for one in known
        if one.injection.cause != "not_scheduled" or not one.injection.locks  # avoided by two remedies
    ]
    real = [said for true, said in named if true]
    other = [said for true, said in named if not true]
    return {
        "would_avoid": {"n": len(real), "predicted": sum(real)},
        "would_not": {"n": len(other), "predicted": sum(other)},
    }


def _same_lock(one: Labelled) -> bool:
    return (one.verdict.lock or "").partition("@")[0].partition("#")[0].strip() in one.injection.locks


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    d, c, n = result["detection"], result["cause"], result["naive"]
    lines = [
        f"cycles {result['cycles']}, missed {d['misses']}: precision {d['precision']:.4f} recall "
        f"{d['recall']:.4f} (invented {d['false']}, not seen {d['not_seen']}, and {d['last_cycle_not_seen']} "
        f"of the last cycle of a run, {d['not_recorded']} cycles after a recording's end; "
        f"other leg {d['wrong_leg']}; beside another client's "
        f"lateness {d['ambiguous']}, of which told {d['ambiguous_told']})",
        f"{'cause/leg':28} {'n':>5} {'epis':>5} {'label':>7} {'>=':>6} {'set':>7} {'>=':>6} {'prec':>6}",
    ]
    for name, row in [*result["by_cause"].items(), ("all", c)]:
        label, sets, precision = row["label"], row["set"], row["precision"]
        lines.append(
            f"{name:28} {label['n']:5} {label['episodes']:5} {label['share']:7.3f} {label['lower']:6.3f} "
            f"{sets['share']:7.3f} {sets['lower']:6.3f} "
            + ("     –" if precision is None else f"{precision:6.3f}")
        )
    lines += [
        f"  {name:44} n {row['n']:5} label {row['share']:.3f}" for name, row in result["by_condition"].items()
    ]
    lines += [f"  {kind:26} {counts}" for kind, counts in result["by_kind"].items()]
    lines += [f"  truth {cause:20} told as {told}" for cause, told in result["confusion"].items()]
    lines.append(
        "naive rules: " + ", ".join(f"{rule.replace('_', ' ')} {share:.3f}" for rule, share in n.items())
    )
    if n["longest_segment"] >= c["recall"]:
        lines.append("the longest segment does as well: this matrix is too easy to tell a good rule from it")
    for key in (
        "failed_runs",
        "lock_named_right",
        "mixed_share",
        "unknown_share",
        "unlabelled",
        "carried",
        "two_at_once",
        "without_item_state",
        "late_bias_p5_p95_us",
    ):
        lines.append(f"{key}: {result[key]}")
    lines.append(
        f"lateness bias {result['late_bias_us']} us (median); negatives {result['negatives_cycles']} cycles, "
        f"{result['negatives_false_misses']} false (bound {result['negatives_bound']}), "
        f"{result['negatives_locks_blamed']} locks blamed; {result['runs']} runs"
    )
    return "\n".join([*lines, str(result["host"])])
