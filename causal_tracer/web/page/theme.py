"""Colours, fonts and CSS of the app. No font is downloaded: the page uses the system's fonts."""

from __future__ import annotations

import gradio as gr

from causal_tracer.web.page.assets import static_text

_SANS = tuple(gr.themes.Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"))
_MONO = tuple(gr.themes.Font(name) for name in ("ui-monospace", "SFMono-Regular", "Consolas", "monospace"))


def app_theme() -> gr.themes.Base:
    """Return the theme: white on a violet dark enough to be read (7.6:1; Gradio's own primary button has 2.8:1)."""
    theme = gr.themes.Default(primary_hue="violet", neutral_hue="slate", font=_SANS, font_mono=_MONO)
    return theme.set(
        layout_gap="10px",
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


CSS = static_text("page.css") + static_text("lens.css")
