"""The routed loop as one would write it on transformers and PyTorch, for comparison.

A batch of problems goes through the loop of the method step by step: the small model drafts a step
for every row with `generate`, the PRM scores the drafts, the large model rewrites the rows below
the threshold in a sub-batch of their own, and finished rows leave the batch. It has the weights,
the prompts, the sampling and the limits of ours, and the care of somebody who wants it fast:
inference mode, no text that is tokenised twice, stopping as soon as the last row has its step, and
the caches of the small model and of the PRM kept from step to step (`_Kept`). The large model's
is not: nearly every sub-batch has a row that it has never read, which must be prefilled anyhow.

PyTorch is imported here only, inside functions: it is a dependency of the tests, not of the
package.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.util
import itertools
import multiprocessing
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from trim_jax.api import Trio
from trim_jax.engine.engine import EngineConfig, Request
from trim_jax.engine.rows import MODELS
from trim_jax.engine.sampling import Sampling
from trim_jax.engine.tokens import BOXED, OVER, START_STATE
from trim_jax.xla import cores

if TYPE_CHECKING:
    import torch

HOW_TO_GET_TORCH = "PyTorch is not installed; pip install torch==2.13.0 measures this part too"


def has_torch() -> bool:
    """Whether the baseline can run here."""
    return importlib.util.find_spec("torch") is not None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a program made of one request.

    Attributes:
      problem_id, seed: of the request.
      steps: token ids of each step, with delimiter, without end-of-sequence.
      regenerated: which of them the large model wrote.
      strong_tokens: tokens of those, without delimiters.
    """

    problem_id: str
    seed: int
    steps: tuple[tuple[int, ...], ...]
    regenerated: tuple[bool, ...]
    strong_tokens: int


@dataclasses.dataclass(eq=False)
class _Row:
    """A solution in the making: text and PRM stream, both with their prompts in front."""

    request: Request
    text: list[int]
    stream: list[int]
    steps: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    regenerated: list[bool] = dataclasses.field(default_factory=list)
    strong_tokens: int = 0
    finished: bool = False


class TorchRouter:
    """TRIM-Thr on transformers, with the models of a trio."""

    def __init__(
        self, trio: Trio, threshold: float, sampling: Sampling, limits: EngineConfig,
        threads: int | None = None,
    ):  # fmt: skip
        """
        Args:
          trio: its folders are loaded once more, in PyTorch, in the type it was loaded in.
          threshold: k; the large model writes a step whose draft scores below it.
          sampling: as for our engine. limits: its max_context, max_steps and max_step_tokens hold.
          threads: of a product; None for as many as there are cores.
        """
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Model
        from transformers.utils import logging

        # The PRM's head is loaded apart, and the names of some arguments go with the version.
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(threads or cores())
        self.limits, self.tables = limits, trio.tables
        self.threshold = float(np.float32(threshold))  # as precise as the scores
        dtype = getattr(torch, trio.models[0].dtype)
        small, large, prm = (trio.folders[name] for name in MODELS)
        load = lambda kind, folder: kind.from_pretrained(folder, dtype=dtype).eval()  # noqa: E731
        self.small, self.large = (load(AutoModelForCausalLM, f) for f in (small, large))
        self.prm, self.head = load(Qwen2Model, prm), _prm_head(prm, dtype)
        # Where a row ends is known to the stopping criterion, end-of-sequence included.
        for model in (self.small, self.large):
            model.generation_config.eos_token_id = None
        drawn = sampling.temperature > 0
        self.generation = GenerationConfig(
            max_new_tokens=limits.max_step_tokens,
            return_dict_in_generate=True,
            do_sample=drawn,
            pad_token_id=trio.tokenizer.pad_token_id,
            **(dict(temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k)
               if drawn else {}),
        )  # fmt: skip
        self.pad = trio.tokenizer.pad_token_id
        self.stripped = trio.tables.stripped.tolist()
        self.boxed_next = trio.tables.boxed_next.tolist()
        self.is_eos = trio.tables.is_eos.tolist()

    def solve(self, requests: Sequence[Request], batch: int, seed: int) -> list[Outcome]:
        """Solve the requests, `batch` at a time, in order."""
        import torch

        torch.manual_seed(seed)
        outcomes = []
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            for i in range(0, len(requests), batch):
                outcomes += self._solve_batch(requests[i : i + batch])
        return outcomes

    def _solve_batch(self, requests: Sequence[Request]) -> list[Outcome]:
        rows = [_Row(r, list(r.prompt), list(r.prm_prompt)) for r in requests]
        drafting, scoring = _Kept(), _Kept()
        active = rows
        while active:
            steps = self._write(self.small, active, drafting)
            scores = self._score(active, steps, scoring)
            rejected = [i for i, score in enumerate(scores) if score < self.threshold]
            if rejected:
                for i in rejected:
                    drafting.take_back(active[i], len(active[i].text))
                    scoring.take_back(active[i], len(active[i].stream))
                rewritten = self._write(self.large, [active[i] for i in rejected])
                for i, step in zip(rejected, rewritten):
                    steps[i] = step
            for i, row in enumerate(active):
                self._accept(row, *steps[i], by_large=i in rejected)
            active = [row for row in active if not row.finished]
        return [
            Outcome(row.request.problem_id, row.request.seed, tuple(row.steps),
                    tuple(row.regenerated), row.strong_tokens)
            for row in rows
        ]  # fmt: skip

    def _write(self, model, rows: Sequence[_Row], kept: _Kept | None = None) -> list:
        """(tokens, ended by end-of-sequence) of the next step of each row."""
        from transformers import StoppingCriteriaList

        texts = [row.text for row in rows]
        ids, mask = self._left_padded(texts)
        lengths = [len(text) for text in texts]
        cache = kept.before(rows, lengths) if kept is not None else None
        end = _step_end(self.tables, lengths, self.limits.max_context)
        out = model.generate(
            ids, attention_mask=mask, past_key_values=cache, generation_config=self.generation,
            stopping_criteria=StoppingCriteriaList([end]),
        )  # fmt: skip
        counts = end.count.tolist()
        written = out.sequences[:, ids.shape[1] :].tolist()
        if kept is not None:
            # The last token of the longest row was drawn but never read.
            read = len(written[0]) - 1
            known = [n + min(count, read) for n, count in zip(lengths, counts)]
            kept.after(rows, out.past_key_values, lengths, known)
        steps = []
        for tokens, count in zip(written, counts):
            tokens = tokens[:count]
            if count == self.limits.max_step_tokens:
                tokens[-1] = self.tables.delimiter
            ended = self.is_eos[tokens[-1]]
            steps.append((tokens[:-1] if ended else tokens, ended))
        return steps

    def _score(self, rows: Sequence[_Row], steps, kept: _Kept) -> list[float]:
        """Probability that the newest step is right, of each row."""
        import torch

        streams = [row.stream + self._prm_step(step) for row, (step, _) in zip(rows, steps)]
        ids, mask = self._left_padded(streams)
        lengths = [len(stream) for stream in streams]
        cache = kept.before(rows, lengths)
        new = slice(cache.get_seq_length() if cache is not None else 0, None)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        out = self.prm(
            input_ids=ids[:, new], attention_mask=mask, position_ids=positions[:, new],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
        kept.after(rows, out.past_key_values, lengths, lengths)
        # Padded on the left, every stream ends in the last column.
        logits = self.head(out.last_hidden_state[:, -1])
        return torch.softmax(logits.float(), dim=-1)[:, 1].tolist()

    def _prm_step(self, step: list[int]) -> list[int]:
        """A step as the PRM reads it: newlines at its end replaced by the separator."""
        n = self._length(step)
        last = [self.stripped[step[n - 1]]] if n else []
        return step[: n - 1 if n else 0] + last + [self.tables.separator]

    def _length(self, step: list[int]) -> int:
        """Tokens of a step without its delimiter."""
        n = len(step)
        while n and self.stripped[step[n - 1]] < 0:
            n -= 1
        return n

    def _accept(self, row: _Row, step: list[int], ended: bool, by_large: bool) -> None:
        row.stream += self._prm_step(step)
        row.text += step
        row.steps.append(tuple(step))
        row.regenerated.append(by_large)
        row.strong_tokens += self._length(step) if by_large else 0
        boxed = 0
        for token in step:
            boxed = self.boxed_next[token][boxed]
        full = len(row.steps) == self.limits.max_steps or len(row.text) >= self.limits.max_context
        row.finished = ended or boxed == len(BOXED) or full

    def _left_padded(self, texts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [rows, longest], and the mask of those that are real."""
        import torch

        longest = max(map(len, texts))
        ids = torch.tensor([[self.pad] * (longest - len(text)) + text for text in texts])
        lengths = torch.tensor([[len(text)] for text in texts])
        return ids, (torch.arange(longest) >= longest - lengths).long()


class TorchProcesses:
    """A `TorchRouter` of one thread for each core, in a process of its own, on its part of a batch.

    What the loop does in Python keeps but one core of a process busy.
    """

    def __init__(self, trio: Trio, threshold: float, sampling: Sampling, limits: EngineConfig):
        """As for `TorchRouter`."""
        self.cores = cores()
        named = dataclasses.replace(trio, params=(), mesh=None)
        self.pool = concurrent.futures.ProcessPoolExecutor(
            self.cores, multiprocessing.get_context("spawn"), _begin,
            (named, threshold, sampling, limits, 1),
        )  # fmt: skip

    def solve(self, requests: Sequence[Request], batch: int, seed: int) -> list[Outcome]:
        """Solve the requests, `batch` at a time over all processes."""
        each = -(-batch // self.cores)
        parts = [requests[i :: self.cores] for i in range(self.cores)]
        solved = [self.pool.submit(_solve, part, each, seed) for part in parts if part]
        return list(itertools.chain.from_iterable(future.result() for future in solved))

    def close(self) -> None:
        """End the processes."""
        self.pool.shutdown()


def _begin(*arguments: Any) -> None:
    global _router
    _router = TorchRouter(*arguments)


def _solve(requests: Sequence[Request], batch: int, seed: int) -> list[Outcome]:
    return _router.solve(requests, batch, seed)


class _Kept:
    """The cache of a left-padded batch, kept from one step to the next.

    Rows leave the batch, drafts are taken back, and the padding of every row changes with the
    longest one: before each call the columns that all rows still know are gathered into place.
    """

    def __init__(self):
        self.cache: Any = None  # DynamicCache, arrays [rows, heads, columns, width]
        self.at: dict[_Row, int] = {}
        self.known: list[int] = []  # leading tokens of each row that the cache holds
        self.padding: list[int] = []  # columns before them

    def before(self, rows: Sequence[_Row], lengths: Sequence[int]) -> Any:
        """The cache for a call on `rows`, whose padded texts have `lengths`; None at first."""
        import torch

        if self.cache is None:
            return None
        index, longest = [self.at[row] for row in rows], max(lengths)
        # At least the last token is read again, for its logits.
        unread = max(n - min(self.known[i], n - 1) for n, i in zip(lengths, index))
        padding = torch.tensor([longest - n for n in lengths])
        shift = torch.tensor([self.padding[i] for i in index]) - padding
        source = torch.arange(longest - unread) + shift[:, None]  # [rows, columns]
        source = source.clamp(min=0)  # what is out of range is padding, and masked
        pick = torch.tensor(index)[:, None]
        for layer in self.cache.layers:
            layer.keys = layer.keys[pick, :, source].transpose(1, 2)
            layer.values = layer.values[pick, :, source].transpose(1, 2)
        return self.cache

    def after(
        self, rows: Sequence[_Row], cache: Any, lengths: Sequence[int], known: Sequence[int]
    ) -> None:
        """Remember what a call on padded texts of `lengths` has read: `known` tokens of each row."""
        self.cache, self.at = cache, {row: i for i, row in enumerate(rows)}
        self.known, self.padding = list(known), [max(lengths) - n for n in lengths]

    def take_back(self, row: _Row, length: int) -> None:
        """Forget what the row had beyond `length` tokens."""
        i = self.at[row]
        self.known[i] = min(self.known[i], length)


def _step_end(tables, lengths: Sequence[int], context: int):
    """A stopping criterion: each row is done at the end of its step; `count` has its tokens."""
    import torch
    from transformers import StoppingCriteria

    class StepEnd(StoppingCriteria):
        def __init__(self):
            self.step_next = torch.from_numpy(tables.step_next.astype(np.int64))
            self.is_eos = torch.from_numpy(tables.is_eos)
            self.room = context - torch.tensor(lengths)
            self.state = torch.full([len(lengths)], START_STATE)
            self.count = torch.zeros(len(lengths), dtype=torch.int64)
            self.done = torch.zeros(len(lengths), dtype=torch.bool)

        def __call__(self, input_ids, scores, **kwargs):
            token = input_ids[:, -1]
            self.state = self.step_next[token, self.state]
            self.count += ~self.done
            over = (self.state == OVER) | self.is_eos[token] | (self.count >= self.room)
            self.done = self.done | over
            return self.done

    return StepEnd()


def _prm_head(folder, dtype):
    """The two-layer head of a process-reward model, which transformers has no class for."""
    import torch

    weights = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            weights |= {k: file.get_tensor(k) for k in file.keys() if k.startswith("score.")}
    width = weights["score.0.weight"].shape[0]
    head = torch.nn.Sequential(
        torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)
    )
    head.load_state_dict({name.removeprefix("score."): w for name, w in weights.items()})
    return head.to(dtype).eval()
