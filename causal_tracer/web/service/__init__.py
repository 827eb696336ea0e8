"""What the web app does, without Gradio."""
