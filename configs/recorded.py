"""Two real models from their recorded solutions: query-level baselines, and TRIM-Thr predicted.

    trim-jax recorded --config.small=1b.jsonl --config.large=8b.jsonl --config.questions=math.jsonl

No model runs. A file of solutions has one JSON object a line: id, steps, prm_scores (one process
reward a step) and correct; the file of questions has id, problem and, if known, level. Baselines
are trained and judged in cross-validation. TRIM-Thr, of which there is no record, is predicted by
the simulator. Takes about six minutes on two cores; killed, the same command goes on.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The files, and how often each part is repeated."""
    config = ConfigDict()
    # Folder that the results are written to. The same command resumes a run that was killed.
    config.out = "results/recorded"
    # Recorded solutions of the small model (.jsonl).
    config.small = ""
    # Recorded solutions of the large model (.jsonl) to the same questions.
    config.large = ""
    # The questions (.jsonl).
    config.questions = ""
    # Parts of the cross-validation.
    config.folds = 5
    # Each seed splits and trains anew. The first gives the figures, the others show the spread.
    config.seeds = (0, 1, 2)
    # Resamples of the questions, for the intervals of the baselines.
    config.bootstrap = 2000
    # Resamples of the questions that the simulator is fitted to, for the prediction's interval.
    config.refits = 40
    # Problems that the simulator draws for each fit.
    config.simulated = 10_000
    # Thresholds of TRIM-Thr that are predicted, besides its ends 0 and 1.
    config.thresholds = tuple(round(0.05 * i, 2) for i in range(1, 20))
    return config


RANGES = {
    "folds": (2, None),
    "bootstrap": (1, None),
    "refits": (1, None),
    "simulated": (100, None),
    "thresholds": (0.0, 1.0),
}
