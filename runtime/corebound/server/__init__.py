"""A model behind HTTP: completions in the form of OpenAI's API, health, readiness."""
