"""The training loop: each step sees some questions of each medium. It can be stopped and resumed exactly."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Qwen3_5ForConditionalGeneration

from demo.batch import Batch, collate, predict
from demo.data import MEDIA, ask
from demo.evaluate import evaluate
from demo.model import make_config, make_model
from demo.mtp import MtpHead
from demo.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Options:
    """Sizes and rates; the defaults are those of the README's table."""

    steps: int = 8000
    minutes: float | None = None
    """End after this much training time in all, whichever limit comes first"""
    seed: int = 0
    batch: tuple[int, int, int] = (32, 24, 8)
    """Questions a step: text, image, video"""
    rate: float = 2e-3
    last_rate: float = 2e-5
    warmup: int = 100
    decay: float = 0.05
    clip: float = 1.0
    mtp_weight: float = 0.3
    report_every: int = 50
    evaluate_every: int = 1000
    save_every: int = 500


@dataclass
class Progress:
    step: int = 0
    seconds: float = 0.0

    def fraction(self, options: Options) -> float:
        """How much of the training is done, 0 to 1, by steps or by time."""
        by_time = self.seconds / (60 * options.minutes) if options.minutes else 0.0
        return min(1.0, max(self.step / options.steps, by_time))


def learning_rate(progress: Progress, options: Options) -> float:
    """A short linear rise, then half a cosine down to the last rate."""
    rise = min(1.0, (progress.step + 1) / options.warmup)
    fall = 0.5 * (1 + math.cos(math.pi * progress.fraction(options)))
    return rise * (options.last_rate + (options.rate - options.last_rate) * fall)


def make_optimizer(modules: list[nn.Module], options: Options) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, not on norms, biases, gates or embeddings."""
    named = {id(p): (name, p) for module in modules for name, p in module.named_parameters()}
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in named.values():
        groups[parameter.ndim == 2 and "embed" not in name].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": options.decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )


class Trainer:
    """Model, MTP head, optimizer and how far they are."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.progress = Progress()
        self.tokenizer: Tokenizer = train_tokenizer(options.seed)
        config = make_config(self.tokenizer.get_vocab(with_added_tokens=True))
        self.model: Qwen3_5ForConditionalGeneration = make_model(config, options.seed)
        self.mtp = MtpHead(self.model)
        self.optimizer = make_optimizer([self.model, self.mtp], options)

    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def batches(self) -> list[Batch]:
        """The questions of this step: seed and step alone decide, so that a resumed run sees the same."""
        rng = Random(f"training {self.options.seed} {self.progress.step}")
        sizes = zip(MEDIA, self.options.batch, strict=True)
        return [
            collate(self.tokenizer, [ask(medium, rng) for _ in range(size)]) for medium, size in sizes if size
        ]

    def step(self) -> tuple[list[float], float]:
        """One step; returns the loss of each medium, and that of the MTP head."""
        started = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress, self.options)
        self.optimizer.zero_grad(set_to_none=True)
        losses, ahead = [], 0.0
        batches = self.batches()
        for batch in batches:
            got = predict(self.model, self.mtp, batch)
            loss = cross_entropy(got.logits, got.targets)
            mtp_loss = cross_entropy(got.mtp_logits, got.targets)
            ((loss + self.options.mtp_weight * mtp_loss) / len(batches)).backward()
            losses.append(loss.item())
            ahead += mtp_loss.item() / len(batches)
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.options.clip)
        if not torch.isfinite(norm):
            raise ArithmeticError(
                f"the gradient is {norm.item()} at step {self.progress.step}: lower the rate"
            )
        self.optimizer.step()
        self.progress.step += 1
        self.progress.seconds += time.monotonic() - started
        return losses, ahead

    def run(self, save_to: Path) -> None:
        """Train to the end, saving as it goes and when it is stopped."""
        try:
            while self.progress.fraction(self.options) < 1.0:
                losses, ahead = self.step()
                self.report(losses, ahead)
                if self.progress.step % self.options.save_every == 0:
                    self.save(save_to)
        finally:
            self.save(save_to)

    def report(self, losses: list[float], ahead: float) -> None:
        step = self.progress.step
        if step == 1 or step % self.options.report_every == 0:
            shown = "  ".join(f"{medium} {loss:.3f}" for medium, loss in zip(MEDIA, losses, strict=False))
            rate = learning_rate(self.progress, self.options)
            done = f"step {step}  {self.progress.seconds / 60:.1f} min"
            print(f"{done}  rate {rate:.1e}  loss: {shown}  mtp {ahead:.3f}", flush=True)
        if step % self.options.evaluate_every == 0:
            print(evaluate(self.model, self.mtp, self.tokenizer, 64, seed=step).table(), flush=True)

    def save(self, path: Path) -> None:
        """Everything needed to go on, written under another name first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "seed": self.options.seed,
            "step": self.progress.step,
            "seconds": self.progress.seconds,
            "model": self.model.state_dict(),
            "mtp": self.mtp.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, weights_only=True)
        if state["seed"] != self.options.seed:
            raise ValueError(f"{path} was trained with --seed {state['seed']}, not {self.options.seed}")
        self.model.load_state_dict(state["model"])
        self.mtp.load_state_dict(state["mtp"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(state["step"], state["seconds"])
