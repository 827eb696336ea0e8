"""Draw the README's picture from the stored maps of the web app: three kinds, side by side.

python examples/make_stored_maps.py      # computes the maps
python examples/make_readme_picture.py   # needs kaleido and a Chrome or Chromium
"""

from pathlib import Path

from plotly.subplots import make_subplots

from causal_tracer import HiddenFlow, plot_hidden_flow_heatmap, save_figure

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "causal_tracer" / "web" / "stored"
KINDS = {"hidden": "Hidden state", "mlp": "MLP, 10 layers", "attention": "Attention, 10 layers"}


def main() -> None:
    """Write docs/space_needle.png."""
    flows = {kind: HiddenFlow.load(STORED / f"space_needle_{kind}.json") for kind in KINDS}
    picture = make_subplots(1, 3, shared_yaxes=True, subplot_titles=list(KINDS.values()), horizontal_spacing=0.09)
    for column, flow in enumerate(flows.values(), start=1):
        single = plot_hidden_flow_heatmap(flow, title="", xlabel="layer", show=False)
        picture.add_trace(single.data[0], row=1, col=column)
        across, down = single.layout.xaxis, single.layout.yaxis
        picture.update_xaxes(title=across.title, tickvals=across.tickvals, ticktext=across.ticktext, row=1, col=column)
        picture.update_yaxes(autorange="reversed", tickvals=down.tickvals, ticktext=down.ticktext, row=1, col=column)
        right = picture.layout["xaxis" if column == 1 else f"xaxis{column}"].domain[1]
        picture.data[-1].colorbar.update(x=right + 0.005, len=0.9, title=None)
    picture.update_xaxes(showgrid=False, zeroline=False)
    picture.update_yaxes(showgrid=False, zeroline=False)
    answer = next(iter(flows.values())).answer.strip()
    picture.update_layout(
        title=f"P({answer}) after restoring one activation: “{flows['hidden'].prompt}”",
        width=1200,
        height=380,
        margin={"l": 10, "r": 40, "t": 90, "b": 10},
        paper_bgcolor="white",
        plot_bgcolor="#eeeeee",
    )
    save_figure(picture, ROOT / "docs" / "space_needle.png", scale=1.5)


if __name__ == "__main__":
    main()
