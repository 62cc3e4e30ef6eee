"""Plots: losses over steps."""

from pathlib import Path

from matplotlib.figure import Figure


def plot_loss(logs: dict[str, list[dict]], path: Path) -> None:
    """Draw the losses of runs over their steps as a PNG: training thin, evaluation bold."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")  # pyplot would look for a display
    axes = figure.subplots()
    for number, (name, log) in enumerate(logs.items()):
        axes.plot([], [], f"C{number}", label=name)  # for the legend
        for key, width in (("loss", 0.8), ("eval_loss", 2.5)):
            points = [(entry["step"], entry[key]) for entry in log if key in entry]
            if points:
                axes.plot(*zip(*points, strict=True), f"C{number}.-", linewidth=width)
    axes.set(xlabel="step", ylabel="loss per trained token")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(title="thin: training, bold: evaluation")
    figure.savefig(path, dpi=150)
