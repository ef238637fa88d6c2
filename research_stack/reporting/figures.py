"""figures/*.png of a run, for slides and papers: matplotlib, no display, light background."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from research_stack.records.files import atomic_path
from research_stack.records.run_folder import RunFolder
from research_stack.reporting.curves import quantile, series, smooth
from research_stack.reporting.reading import RunFiles
from research_stack.reporting.sections import loss_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY, INK = "#1f5fa8", "#c2571a", "#2b7f58", "#5d6b78", "#1e2226"
CELLS = {
    "mask": (None, "#b3b9bf"),
    "kept": (None, "#5b6570"),
    "filled": ("#d9e8f7", "#12467f"),
    "changed": ("#ffd9b8", "#8a3400"),
    "prompt": (None, "#7a838c"),
}
DPI = 150


def write_figures(place: RunFolder, run: RunFiles) -> list[Path]:
    """Draw what the run has files for; returns the paths written."""
    from research_stack.reporting import passk, policy_training, reward, trajectory_figure

    drawn = {"training.png": policy_training.figure(run)}
    drawn |= {
        "passk.png": passk.figure(run),
        "dynamics.png": trajectory_figure.figure(run),
        "reward.png": reward.figure(run),
    }
    return [save(figure, place.figures / name) for name, figure in drawn.items() if figure is not None]


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, whole or not at all."""
    with warnings.catch_warnings(), atomic_path(path) as temporary:
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a model may write in any script
        figure.savefig(temporary, dpi=DPI, format=path.suffix[1:])
    return path


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of some inches with rows of plots in the house style, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    plots = list(figure.subplots(rows, columns, squeeze=False).flat)
    for plot in plots:
        dress(plot)
    return figure, plots


def dress(plot: Axes) -> None:
    """The house style of a plot."""
    plot.spines[["top", "right", "left"]].set_visible(False)
    plot.spines["bottom"].set_color("#98a1aa")
    plot.grid(axis="y", color="#ebe8e1", linewidth=0.8)
    plot.tick_params(colors=GREY, length=0, labelsize=8)
    plot.set_axisbelow(True)


def training(run: RunFiles) -> Figure | None:
    """Loss and gradient norm over steps."""
    loss, norm, held_out = (series(run.history, key) for key in ("train/loss", "train/grad_norm", "val/loss"))
    if not loss:
        return None
    figure, plots = new_figure(9, 3.2, columns=2 if norm else 1)
    _curve(plots[0], loss, BLUE)
    if held_out:
        plots[0].plot(
            *zip(*held_out, strict=True),
            "o-",
            color=ORANGE,
            markersize=3.5,
            linewidth=1.2,
            label="validation, same loss",
        )
    values = [y for _, y in loss]
    low, high = quantile(values, 0.002), quantile(values, 0.995)
    plots[0].set_ylim(low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1))
    plots[0].set_title(f"training loss, {loss_unit(run)}", loc="left", fontsize=9, color=INK)
    plots[0].legend(frameon=False, fontsize=8, labelcolor=GREY)
    if norm:
        _curve(plots[1], [p for p in norm if p[1] > 0], GREEN)
        plots[1].set_yscale("log")
        plots[1].set_title("gradient norm before clipping", loc="left", fontsize=9, color=INK)
    for plot in plots:
        plot.set_xlabel("optimizer step", fontsize=8, color=GREY)
    return figure


def _curve(plot: Axes, points: list[tuple[float, float]], color: str) -> None:
    if points:
        plot.plot(*zip(*points, strict=True), color=color, alpha=0.25, linewidth=0.7)
        plot.plot(*zip(*smooth(points), strict=True), color=color, linewidth=1.8, label="training, smoothed")
