"""The Gradio web app: a service without Gradio, the page, the endpoints, and how they are served."""
