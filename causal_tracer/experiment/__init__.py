"""From a request to the inputs of a sweep: prompts, answer, clean run, corruption and base run."""
