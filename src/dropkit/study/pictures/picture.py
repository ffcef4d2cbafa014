"""What a picture of the report is, and the look that all of them share."""

import colorsys
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dropkit._look import FIRST, LOOK, MUTED, SECOND
from dropkit.study.findings import Findings
from dropkit.study.measures import MEASURES
from dropkit.study.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["EARLY", "LAST", "MUTED", "Picture", "colour", "figure", "panels", "svg"]

EARLY, LAST = FIRST, SECOND
_NONE = "#4b5563"
_PANELS_A_ROW = 4
_COLOURS = (
    *("#2563eb", "#0d9488", "#9333ea", "#c2410c", "#be185d", "#65a30d", "#0891b2", "#a16207"),
    *("#a78bfa", "#b91c1c", "#166534", "#e879f9", "#ea580c", "#1e3a8a", "#f59e0b", "#14b8a6"),
    *("#7f1d1d", "#fb7185", "#3f6212", "#38bdf8", "#78716c"),
)


@dataclass(frozen=True)
class Picture:
    """A picture of the report: its title, what it shows in words, and the function that draws it.

    A picture of a measure is named after it, and there is none where the measure could not be taken.
    """

    name: str
    title: str
    caption: str
    draw: "Callable[[Findings], Figure]"

    def is_drawn(self, findings: Findings) -> bool:
        """Whether a study has something to draw."""
        is_measured = self.name in findings.measures or all(self.name != measure.name for measure in MEASURES)
        return bool(findings.summary.comparisons) and is_measured


def colour(method: str) -> str:
    """Return the colour of a method, the same in all pictures."""
    if method == "none":
        return _NONE
    place = [name for name in METHODS if name != "none"].index(method)
    if place < len(_COLOURS):
        return _COLOURS[place]
    hue = place * 0.618034 % 1.0  # as many more as the registry of layers asks for, by the golden ratio far apart
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hsv_to_rgb(hue, 0.65, 0.7))


def panels(count: int, height: float = 3.4, label: str = "", apart: int = 0) -> "tuple[Figure, list[Axes]]":
    """Return a figure with panels in rows of at most four; all but the last `apart` share the vertical axis.

    `label` names the axis.
    """
    from matplotlib.figure import Figure

    rows = -(-count // _PANELS_A_ROW)
    columns = -(-count // rows)
    figure = Figure(figsize=(10, height if rows == 1 else 3.0 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place, panel in enumerate(axes[1 : count - apart], start=1):
        panel.sharey(axes[0])
        panel.tick_params(labelleft=place % columns == 0)
    for panel in axes[:count:columns]:
        panel.set_ylabel(label)
    for panel in axes[count:]:
        panel.set_visible(False)
    return figure, axes[:count]


def figure(picture: Picture, findings: Findings) -> "Figure":
    """Draw a picture as a Matplotlib figure with the report's look."""
    import matplotlib as mpl

    look: Any = LOOK  # the stub lists every key by name
    with mpl.rc_context(look):
        return picture.draw(findings)


def svg(picture: Picture, findings: Findings) -> str:
    """Draw a picture as an SVG element to stand in an HTML page; equal findings give equal text."""
    import matplotlib as mpl

    look: Any = {**LOOK, "svg.hashsalt": picture.name}  # the stub lists every key by name
    with mpl.rc_context(look):
        text = io.StringIO()
        figure = picture.draw(findings)
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    element = text.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(
        r'<g id="[^"]*">', "<g>", element
    )  # nothing refers to groups, and pictures would share their names
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{picture.title}">', element
    )
