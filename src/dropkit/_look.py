"""The look that all figures share, those of reports and those of uncertainty."""

__all__ = ["FIRST", "LOOK", "MUTED", "SECOND"]

MUTED = "#6b7280"
FIRST = "#2563eb"
SECOND = "#b45309"

LOOK: dict[str, object] = {
    "svg.fonttype": "none",  # text stays text: small, sharp, and found by the browser's search
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "figure.facecolor": "white",
    "savefig.facecolor": "auto",
    "text.color": "black",
    "axes.facecolor": "white",
    "axes.titlecolor": "auto",
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#374151",
    "axes.labelsize": "medium",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "xtick.color": "#4b5563",
    "xtick.labelsize": "medium",
    "ytick.color": "#4b5563",
    "ytick.labelsize": "medium",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}
