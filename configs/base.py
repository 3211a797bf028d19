"""Names and explains every field that the commands share; the other files only change defaults.

A field's help text is the comment above it. Bounds and choices are in the two tables at the end.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference


def get_config() -> ConfigDict:
    """The whole configuration of a routed run, with the defaults of the embedded benchmark."""
    config = ConfigDict()

    # Folder that the results are written to. The same command resumes a run that was killed.
    config.out = "results/arith-sweep"
    # Folder of steps that the models have written and judged. A solution goes as far as the steps in
    # it take it before a model is asked, and the run adds its own. Solutions and charges are the
    # same without. Empty: none are kept.
    config.store = ""
    # Sampling seeds; every problem is solved once per seed.
    config.seeds = (0, 1, 2)

    # The three models.
    config.trio = ConfigDict()
    # Checkpoint folder of the small model, which drafts every step. Empty: the shipped arith model.
    config.trio.small = ""
    # Checkpoint folder of the large model, which rewrites rejected steps. Empty: the shipped one.
    config.trio.large = ""
    # Checkpoint folder of the process-reward model, which scores steps. Empty: the shipped one.
    config.trio.prm = ""

    # The problems.
    config.data = ConfigDict()
    # The embedded benchmark, arith, or the path of a .jsonl file with the same fields.
    config.data.source = "arith"
    # Which split of the benchmark: train, policy_train, validation, test or hard.
    config.data.split = "test"
    # Only the first so many problems; none for all of them.
    config.data.limit = FieldReference(500)
    # Put before every problem in the user turn of the small and the large model.
    config.data.instruction = ""
    # System turn of the process-reward model.
    config.data.prm_system = ""

    # Sampling of both language models.
    config.sampling = ConfigDict()
    # Divides the logits; 0 always takes the most likely token.
    config.sampling.temperature = 0.7
    # Samples among the likeliest tokens that together have this probability; 1 for all.
    config.sampling.top_p = 0.8
    # Samples among this many of the likeliest tokens; 0 for all.
    config.sampling.top_k = 20

    # The engine: limits of a solution, and what runs at once. Only the limits change the results.
    config.engine = ConfigDict()
    # Longest problem plus solution, in tokens; a solution that fills it ends there.
    config.engine.max_context = 448
    # A solution ends after this many steps.
    config.engine.max_steps = 30
    # A step ends after this many tokens.
    config.engine.max_step_tokens = 64
    # Arithmetic of the models.
    config.engine.dtype = "float32"
    # Histories whose caches are in memory at once, for each of the mesh_data parts of the mesh, or for
    # all cores of a CPU; sets the memory used, which trim-jax sweep --dry-run predicts.
    config.engine.slots = 512
    # Rows that one call of a model works on at most, likewise.
    config.engine.rows = 64
    # Problems between two writes; a killed run loses at most one chunk of work.
    config.engine.chunk_problems = 125
    # Devices over which rows are split; 0 for all that there are, of a CPU its cores.
    config.engine.mesh_data = 0
    # Devices over which the heads of each model are split.
    config.engine.mesh_model = 1
    # Hosts that the mesh spans, with one process each, all started with the same command. The first
    # runs it, with all its files; the others lend it their devices. See launch/README.md.
    config.engine.hosts = 1

    # Who writes a step. --config.policy=NAME is short for --config.policy.name=NAME.
    config.policy = ConfigDict()
    # never, always, random, thr or oracle; your own, as my_module:make_policy; or the folder of a
    # policy that trim-jax study has trained.
    config.policy.name = "thr"
    # thr: the large model rewrites a step whose score is below this; 0 is never, 1 is always.
    config.policy.threshold = 0.5
    # random: the large model rewrites a step with this probability.
    config.policy.p = 0.5

    # What a sweep compares.
    config.sweep = ConfigDict()
    # Thresholds of thr. All of them come from one pass.
    config.sweep.thresholds = tuple(round(0.05 * i, 2) for i in range(21))
    # Probabilities of the random policy.
    config.sweep.random = (0.1, 0.25, 0.5, 0.75, 1.0)
    # Also run the oracle, which sees whether a step is right: an upper bound, only on arith.
    config.sweep.oracle = True
    # Problems of the validation split on which the headline setting is chosen; 0 for none.
    config.sweep.validation = 100
    # Resamples of the bootstrap over problems, for the intervals.
    config.sweep.bootstrap = 2000
    return config


def add_training(config: ConfigDict) -> None:
    """Adds how a model is trained; the config files of the three models set the values."""
    # Optimisation: AdamW, linear warm-up, cosine decay to a tenth of the peak.
    config.train = ConfigDict()
    # Updates.
    config.train.steps = 1000
    # Sequences a batch.
    config.train.rows = 32
    # Of the initial weights, the order of the batches, and what is sampled.
    config.train.seed = 0
    # Highest learning rate, reached after the warm-up.
    config.train.learning_rate = 2e-3
    # Updates of the warm-up.
    config.train.warmup = 200
    # Length of the cosine in updates, at least `steps`: training may stop before it ends.
    config.train.cosine_steps = 1000
    # Weight decay of the matrices.
    config.train.weight_decay = 0.1
    # Largest global norm of a gradient.
    config.train.clip = 1.0
    # Updates between two checkpoints; a killed run loses at most so many.
    config.train.save_every = 250


def add_language_model(config: ConfigDict) -> None:
    """Adds the shape of a language model; its config file sets the values."""
    # Folder of the tokenizer. Empty: the shipped one.
    config.tokenizer = ""
    # Shape of the model.
    config.model = ConfigDict()
    # Width of the residual stream.
    config.model.width = 64
    # Transformer layers.
    config.model.layers = 2
    # Query heads.
    config.model.heads = 2
    # Key-value heads; divides the query heads.
    config.model.kv_heads = 1
    # Width of a head.
    config.model.head_dim = 32
    # Width of the feed-forward layers.
    config.model.ffn = 192


def add_reward_model(config: ConfigDict) -> None:
    """Adds what the process-reward model starts from, and what it learns from."""
    # Which language model's body it starts from: large, or small for a smaller one.
    config.body = "large"
    # What the PRM learns from.
    config.sample = ConfigDict()
    # The last so many problems of the split; those before are the language models' own.
    config.sample.problems = 3000
    # Half of the solutions are sampled as in routing, half at this temperature, which errs more.
    config.sample.hot = 1.3
    # Probability that the label of a step flips, for a noisier PRM.
    config.sample.label_noise = 0.0
    # The body first learns to predict in the PRM's stream; else as in `train`.
    config.adapt = ConfigDict()
    # Updates.
    config.adapt.steps = 200
    # Length of its cosine in updates.
    config.adapt.cosine_steps = 200
    # Its highest learning rate.
    config.adapt.learning_rate = 1e-3


def add_study(config: ConfigDict) -> None:
    """Adds what a study trains and compares."""
    # What a study trains, and on how much.
    config.study = ConfigDict()
    # Problems of policy_train that traces are collected of.
    config.study.train = 2000
    # Problems of the split hard that the policies are transferred to; 0 for none.
    config.study.hard = 500
    # Policies beside TRIM-Thr, random and the oracle: pomdp, pomdp_filtered, q, agg, seq, which are
    # trained; agg-priced, one network for all prices instead of one for each; agg-judged and
    # q-judged, trained on the large model's opinion of a draft, not on the PRM's score; agg-tuned,
    # q-tuned, seq-tuned, which go on learning from solutions of the models; rsd, glimp, loglik; and
    # more variants, see the config ablation.
    config.study.policies = (
        "pomdp", "pomdp_filtered", "q", "q-judged", "q-tuned", "agg", "agg-priced", "agg-judged",
        "agg-tuned", "seq", "rsd", "glimp", "loglik",
    )  # fmt: skip
    # Settings of the policies with a price: tokens of the large model that a right answer is worth.
    config.study.worths = (25, 40, 65, 100, 160, 250, 400, 650, 1000, 1600, 3000, 6000, 16000)
    # Rounds of the tuned policies; after each, what they have learned is measured.
    config.study.tune_rounds = 4
    # Problems of policy_train that a round of tuning plays; as many others are held out to measure.
    config.study.tune_problems = 200
    # Problems on which each policy is timed alone, at its chosen setting; 0 for no timing.
    config.study.timed = 200
    # Also train the query-level routers.
    config.study.query = True
    # Fits of the simulator to resampled problems, for the intervals of its predictions; 0 for none.
    config.study.refits = 20
    # Seed of all training.
    config.study.seed = 0


def pick(*names: str) -> ConfigDict:
    """Only the named fields and sections, for a command that needs few of them."""
    config = get_config()
    for name in set(config) - set(names):
        del config[name]
    return config


RANGES = {
    "seeds": (0, 2**32 - 1),
    "data.limit": (1, None),
    "sampling.temperature": (0.0, None),
    "sampling.top_p": (0.0, 1.0),
    "sampling.top_k": (0, None),
    "engine.max_context": (1, None),
    "engine.max_steps": (1, None),
    "engine.max_step_tokens": (1, None),
    "engine.slots": (1, None),
    "engine.rows": (1, None),
    "engine.chunk_problems": (1, None),
    "engine.mesh_data": (0, None),
    "engine.mesh_model": (1, None),
    "engine.hosts": (1, None),
    "policy.threshold": (0.0, 1.0),
    "policy.p": (0.0, 1.0),
    "sweep.thresholds": (0.0, 1.0),
    "sweep.random": (0.0, 1.0),
    "sweep.validation": (0, None),
    "sweep.bootstrap": (1, None),
    "study.train": (50, None),
    "study.hard": (0, None),
    "study.timed": (0, None),
    "study.refits": (0, None),
    "study.tune_rounds": (1, None),
    "study.tune_problems": (1, None),
    "study.worths": (1, None),
    "study.seed": (0, 2**32 - 1),
    "sample.problems": (1, None),
    "sample.hot": (0.0, None),
    "sample.label_noise": (0.0, 0.5),
    "adapt.steps": (1, None),
    "train.steps": (1, None),
    "train.rows": (1, None),
    "train.learning_rate": (0.0, None),
    "train.save_every": (1, None),
    "model.width": (1, None),
    "model.layers": (1, None),
    "model.heads": (1, None),
    "model.kv_heads": (1, None),
    "model.head_dim": (2, None),
    "model.ffn": (1, None),
}

# Tuples that must hold something, and nothing twice.
DISTINCT = ("seeds",)

CHOICES = {"engine.dtype": ("float32", "bfloat16"), "body": ("large", "small")}
