"""The web app's service, without Gradio: models, checked requests, limits and stored results."""
