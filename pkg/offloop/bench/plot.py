"""The comparison as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .compare import Comparison, Entry

_OTHERS = ("#9aa5b1", "#52606d", "#c0a16b", "#7b8f6a")
_OURS = ("#9ec5f4", "#3d8bea", "#0b57c2", "#06307a")
_GROUP_WIDTH = 0.84


def _short(value: float, _: object = None) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _colours(labels: list[str], ours: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for label in labels:
        shades = _OURS if label in ours else _OTHERS
        used = sum(1 for other in found if (other in ours) == (label in ours))
        found[label] = shades[used % len(shades)]
    return found


def _bars(
    axes: Axes, comparison: Comparison, name: str, colours: dict[str, str], *, whisker: str = ""
) -> None:
    width = _GROUP_WIDTH / len(colours)
    tasks = list(comparison.options.tasks)
    for at, (label, colour) in enumerate(colours.items()):
        entries = [entry for entry in comparison.entries if entry.label == label]
        places = [
            tasks.index(entry.tasks) + (at - (len(colours) - 1) / 2) * width for entry in entries
        ]
        heights = [entry.median(name) for entry in entries]
        bars = axes.bar(places, heights, width * 0.92, color=colour, label=label, zorder=2)
        if whisker:
            _whiskers(axes, places, heights, entries, whisker)
        else:
            axes.bar_label(
                bars,
                labels=[_short(height) for height in heights],
                fontsize=7,
                rotation=90,
                padding=3,
            )
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low * 0.7, high * (1.3 if whisker else 3.5))
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(range(len(tasks)), [f"{count:,}" for count in tasks])
    axes.set_xlabel("tasks awaiting at the same time")
    axes.grid(axis="y", color="#d9dee4", linewidth=0.7, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _whiskers(
    axes: Axes, places: list[float], heights: list[float], entries: list[Entry], name: str
) -> None:
    tops = [entry.median(name) for entry in entries]
    rise = [max(0.0, top - height) for top, height in zip(tops, heights, strict=True)]
    axes.errorbar(
        places,
        heights,
        yerr=[[0.0] * len(rise), rise],
        fmt="none",
        ecolor="#1f2933",
        elinewidth=1.1,
        capsize=2.5,
        zorder=3,
    )


def save_plot(comparison: Comparison, path: Path) -> None:
    """Draw ``comparison`` and write it to ``path``, in the format of its suffix."""
    labels = list(dict.fromkeys(entry.label for entry in comparison.entries))
    ours = {entry.label for entry in comparison.entries if entry.peer == "offloop"}
    colours = _colours(labels, ours)
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    _bars(left, comparison, "ops_per_s", colours)
    left.set_title("Throughput (higher is better)")
    left.set_ylabel("operations per second (log)")
    _bars(middle, comparison, "p50_us", colours, whisker="p99_us")
    middle.set_title("Latency, p50 with a whisker to p99 (lower is better)")
    middle.set_ylabel("microseconds (log)")
    _bars(right, comparison, "cpu_us", colours)
    right.set_title("Client CPU per command (lower is better)")
    right.set_ylabel("microseconds (log)")
    figure.suptitle("await r.get(key) from asyncio", fontsize=14, fontweight="bold")
    handles, names = left.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=len(labels),
        frameon=False,
        title=str(comparison.machine),
        title_fontproperties={"size": 7.5},
    )
    figure.savefig(path, dpi=130)
