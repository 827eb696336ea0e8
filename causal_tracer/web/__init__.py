"""The Gradio web app: a service that knows no Gradio, handlers, layout and theme."""
