"""Evaluation: traces, metrics, bootstrap, figures and the HTML report."""
