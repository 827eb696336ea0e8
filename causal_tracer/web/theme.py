"""Colours, fonts and CSS of the app. Nothing is fetched: the fonts are the system's own."""

from __future__ import annotations

import gradio as gr

_SANS = tuple(gr.themes.Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"))
_MONO = tuple(gr.themes.Font(name) for name in ("ui-monospace", "SFMono-Regular", "Consolas", "monospace"))


def app_theme() -> gr.themes.Base:
    """The theme: white on a violet that is dark enough to be read (7.6:1; Gradio's own primary button has 2.8:1)."""
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
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; padding-top: 12px !important; }
.ct-header h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .15rem; }
.ct-header p { margin: 0; color: var(--body-text-color-subdued); }

.block.hide-container > .html-container, .block.hide-container > * > .html-container { padding: 0 !important; }
#ct-message:not(:has(.ct-error)) { display: none; }
.dark { --color-accent: #a78bfa; }

.ct-status { color: var(--body-text-color-subdued); font-size: var(--text-md); min-height: 1.5em; }
.ct-status.ct-ready::before, .ct-status.ct-loading::before, .ct-status.ct-failed::before {
  content: ""; display: inline-block; width: .6em; height: .6em; border-radius: 50%; margin-right: .5em;
}
.ct-status.ct-ready::before { background: #15803d; }
.ct-status.ct-loading::before { background: #b45309; animation: ct-pulse 1.2s ease-in-out infinite; }
.ct-status.ct-failed::before { background: #b91c1c; }
.ct-status.ct-failed { color: #b91c1c; }
.dark .ct-status.ct-failed { color: #fca5a5; }
@keyframes ct-pulse { 50% { opacity: .25; } }
@media (prefers-reduced-motion: reduce) { .ct-status::before { animation: none !important; } }

.ct-error, .ct-warning { border-left: 4px solid; border-radius: 4px; padding: .55rem .8rem; overflow-wrap: anywhere; }
.ct-error { max-height: 12em; overflow-y: auto; }
.ct-error { background: #fef2f2; border-color: #b91c1c; color: #7f1d1d; }
.ct-warning { background: #fffbeb; border-color: #b45309; color: #713f12; margin: .5rem 0; }
.dark .ct-error { background: #3b1212; border-color: #f87171; color: #fecaca; }
.dark .ct-warning { background: #33240a; border-color: #fbbf24; color: #fde68a; }

.ct-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: .5rem; margin: 0; }
.ct-card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .4rem .7rem; min-width: 0; }
.ct-card dt { font-size: .8rem; color: var(--body-text-color-subdued); }
.ct-card dd { margin: 0; font-size: 1.25rem; font-weight: 600; overflow-wrap: anywhere; line-height: 1.3; }
.ct-card dd.ct-hint { font-size: .75rem; font-weight: 400; color: var(--body-text-color-subdued); }
.ct-prompt, .ct-made, .ct-note { margin: .15rem 0; overflow-wrap: anywhere; }
.ct-prompt b { font-weight: 600; margin-inline-end: .35em; }
.ct-made, .ct-note { font-size: .85rem; color: var(--body-text-color-subdued); }

/* The map: its own background is transparent, and its text takes the page's colour. */
.ct-map { overflow: hidden; }
.ct-map .main-svg .infolayer text, .ct-map .main-svg .cartesianlayer text {
  fill: var(--body-text-color) !important;
}
.ct-map .modebar { display: none; }

.ct-run { align-items: center; flex-wrap: wrap; }
.ct-run button { min-height: 44px; }
footer .divider { display: none; }
#ct-examples .gallery-item { font-size: .85rem; }
.ct-help { overflow-wrap: anywhere; }
:focus-visible { outline: 3px solid #7c3aed !important; outline-offset: 2px; }
.dark :focus-visible { outline-color: #c4b5fd !important; }

@media (max-width: 480px) {
  .gradio-container { padding: .5rem !important; }
  .ct-cards { grid-template-columns: 1fr 1fr; }
  .ct-header h1 { font-size: 1.25rem; }
  .ct-run > .block { min-width: 100% !important; }
}
"""
