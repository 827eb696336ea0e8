"""Draw the docs' picture of a stored study: averaged maps by token role, and effects with severed paths.

python examples/make_study_picture.py   # needs pyarrow, kaleido and a Chrome or Chromium
"""

from pathlib import Path

from plotly.subplots import make_subplots

from causal_tracer import save_figure
from causal_tracer.study.figures import study_figures
from causal_tracer.study.stored import StoredStudy

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "causal_tracer" / "web" / "stored" / "studies" / "gemma-3-270m"
PANELS = {
    "map hidden": "AIE of hidden states",
    "map mlp": "AIE of the MLP, 10 layers",
    "map attention": "AIE of attention, 10 layers",
    "severed": "AIE of hidden states at the last subject token, paths severed",
}


def main() -> None:
    """Write docs/study.png."""
    figures = study_figures(StoredStudy.open(STUDY).effects)
    picture = make_subplots(
        2,
        3,
        subplot_titles=list(PANELS.values()),
        specs=[[{}, {}, {}], [{"colspan": 3}, None, None]],
        horizontal_spacing=0.06,
        vertical_spacing=0.2,
        row_heights=[0.55, 0.45],
    )
    for number, name in enumerate(PANELS):
        single = figures[name]
        row, column = number // 3 + 1, number % 3 + 1
        for trace in single.data:
            picture.add_trace(trace, row=row, col=column)
        picture.update_xaxes(title="layer", tick0=0, dtick=2 if row == 1 else 1, row=row, col=column)
        if row == 1:
            picture.update_yaxes(autorange="reversed", showticklabels=column == 1, row=row, col=column)
            axis = picture.layout["xaxis" if column == 1 else f"xaxis{column}"]
            picture.data[-1].colorbar.update(x=axis.domain[1] + 0.003, y=0.78, len=0.5, title=None, thickness=10)
    picture.update_layout(
        template="plotly_white",
        barmode="group",
        width=1200,
        height=640,
        margin={"l": 10, "r": 20, "t": 30, "b": 10},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 0.36},
    )
    save_figure(picture, ROOT / "docs" / "study.png", scale=1.5)


if __name__ == "__main__":
    main()
