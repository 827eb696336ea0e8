"""From a request to what a sweep needs: answer, clean run, base run."""
