"""The web app: `python app.py`, then open the address that it prints. A Hugging Face Space runs this file too."""

import sys

from causal_tracer.web.launch import main

if __name__ == "__main__":
    sys.exit(main())
