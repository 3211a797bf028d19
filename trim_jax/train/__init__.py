"""Training of the language models, the process reward model and the learned policies."""
