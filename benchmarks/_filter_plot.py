"""The plot of the filter benchmark's results, for the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._filter_load import Kind

_OURS, _OTHERS = "#1f6fb2", "#b8b8b8"
_PANELS = (
    (Kind.REJECTED, "rejected packet: ns over a plain drop", "over_plain_drop_ns"),
    (Kind.NEW, "accepted, new flow: ns over an empty chain", "added_ns"),
    (Kind.ESTABLISHED, "accepted, established flow: ns over an empty chain", "added_ns"),
)
_KERNEL = ("conntrack only", "iptables drop", "xt_cluster", "nftables")
_ROW_INCHES, _HEAD_INCHES = 0.26, 0.75


def draw(results: dict[str, Any], file: Path) -> None:
    """Draw medians as bars, with the range of the repetitions.

    Args:
        results: As the benchmark returns them.
        file: ``.svg`` or ``.png``.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "nlbfarm", "font.size": 9})
    from matplotlib import pyplot

    panels = [(title, bars) for title, bars in _panels(results) if bars]
    heights = [_HEAD_INCHES + _ROW_INCHES * len(bars) for _, bars in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(8, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (title, bars) in zip(axes[:, 0], panels, strict=True):
        _bars(axis, title, bars)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


Bar = tuple[str, dict[str, float], bool]
"""Label, spread, and whether it is one of nlbfarm's filters."""


def _panels(results: dict[str, Any]) -> list[tuple[str, list[Bar]]]:
    found = []
    for kind, title, field in _PANELS:
        rows = [
            row
            for row in results["cost"]
            if row["packets"] == kind
            and row["filter"] in _KERNEL
            and row.get(field)
            and not _off_the_scale(row)
        ]
        found.append((title, [(_label(row), row[field], row["filter"] == "nftables") for row in rows]))
    in_user_space: list[Bar] = [
        (_label(row), row["per_cpu_second"], row["filter"].startswith(("nfqueue", "windivert")))
        for row in results["rate"]
        if row["packets"] == Kind.SCATTERED
    ]
    found.append(("user space: new flows decided in a second of CPU time", in_user_space))
    return found


def _off_the_scale(row: dict[str, Any]) -> bool:
    return bool(
        row["filter"] == "xt_cluster" and row["rules"] > 1
    )  # one rule a service, passed one after another


def _label(row: dict[str, Any]) -> str:
    rules = "1 rule" if row["rules"] == 1 else f"{row['rules']} rules"
    if row["filter"].endswith(("only", "drop")):
        return str(row["filter"])
    return f"{row['filter']}, {row['owned']} % owned, {rules}"


def _bars(axis: Any, title: str, bars: Sequence[Bar]) -> None:
    places = range(len(bars))
    middle = [spread["median"] for _, spread, _ in bars]
    whiskers = [
        [value - spread["min"] for value, (_, spread, _) in zip(middle, bars, strict=True)],
        [spread["max"] - value for value, (_, spread, _) in zip(middle, bars, strict=True)],
    ]
    colours = [_OURS if ours else _OTHERS for _, _, ours in bars]
    axis.barh(
        places, middle, xerr=whiskers, color=colours, height=0.7, error_kw={"elinewidth": 0.8, "capsize": 2}
    )
    for place, (_, spread, _) in zip(places, bars, strict=True):
        axis.annotate(
            f" {spread['median']:,.0f}",
            (spread["max"], place),
            va="center",
            xytext=(2, 0),
            textcoords="offset points",
        )
    axis.set_yticks(places, [label for label, _, _ in bars])
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_title(title, loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
