"""Local training: what a mode (common/modes) composes a release of.

Steps either move the site's own copy (`local_steps` > 1: FedAvg) or are sent as the mean gradient that the server's
optimizer takes (`local_steps` = 1: one round is one step over all sites' data).
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from ..common.config.run import RunConfig
from ..common.data.augmentation import Draw, padded_to, view_losses
from ..common.errors import PrivacyError, contain
from ..common.model.checkpointing import recomputing
from ..common.model.cuts import cheapest_cuts
from ..common.model.loading import FineTuneModel
from ..common.model.optimizer import make_optimizer, rate_of_round, shrink
from ..common.model.per_sample import clipped_rows, forget, record_gradients
from ..common.model.shapes import Shapes
from ..common.modes import GradientStep
from ..common.privacy.audit import NO_CANARIES, GradientCanaries
from ..common.privacy.mechanism import PoissonMechanism, PrivacyPlan
from ..common.privacy.noise import secure_generator
from ..common.types import Adapter, Records, RoundTask, joined, shuffled_batches

log = logging.getLogger("confide.worker")
_HELD = 2**25
"""numbers of persons' gradients that are held at once: 256 MiB in float64"""
NOBODY = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Work:
    """What one round at one site is made of."""

    config: RunConfig
    model: FineTuneModel
    """used by nobody else meanwhile"""
    records: Records
    indices: np.ndarray
    """(n,) numbers of the site's records among `records`"""
    task: RoundTask
    canaries: GradientCanaries = NO_CANARIES
    """an audit's, which are drawn, added and noised as records are"""
    held_out: np.ndarray = field(default_factory=lambda: NOBODY)
    """(m,) numbers of the site's records that are not trained on"""

    def batches(self, drawn: np.ndarray) -> Iterator[np.ndarray]:
        """Physical batches of the named records, as they cost least: for modes whose unit is not a record."""
        return _by_length(self.records, drawn, self.config.training.tokens, self.model.device)

    def persons(self, named: np.ndarray | None = None) -> list[np.ndarray]:
        """The numbers of each person's records among the named, or else among those that are trained on.

        Raises PrivacyError for records of nobody."""
        indices = self.indices if named is None else named
        if not len(indices):
            return []
        if self.records.person is None:
            raise PrivacyError("data.person: the records do not say whose they are")
        owner = self.records.person[indices]
        order = np.argsort(owner, kind="stable")
        return np.split(indices[order], np.flatnonzero(np.diff(owner[order])) + 1)

    def losses(self, part: np.ndarray, draw: Draw, length: int | None = None) -> torch.Tensor:
        """(V, B) losses of the views of the named records; gradients flow. length: tokens to pad to."""
        return view_losses(self.config, self.model, self.records, part, self.task.round, draw, length)


def train_plain(work: Work, rng: np.random.Generator) -> tuple[Adapter, float]:
    """Ordinary training: shuffled batches of `batch_size` records. Returns the delta and the mean training loss.

    rng: decides the batch order, and which copies of augmented records are taken.
    """
    model = work.model
    batches = shuffled_batches(work.indices, work.config.training.batch_size, rng)

    def step() -> tuple[torch.Tensor, float]:
        batch, draw = next(batches), Draw.of(rng)
        parameters = list(model.trained.values())
        gradient, total = torch.zeros(sum(p.numel() for p in parameters), device=model.device), 0.0
        for part in work.batches(batch):
            model.module.zero_grad()
            with recomputing(model.module, model.recomputes):
                loss = work.losses(part, draw).mean(0).sum() / len(batch)
                loss.backward()
            gradient += torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
            total += float(loss.detach())
        return gradient, total

    return _take_steps(work, step)


@dataclass(frozen=True)
class SiteComputation:
    """What this site offers to a mode, for one round: `modes.Computation`."""

    work: Work
    coins: np.random.Generator
    """decides the batch order of `plain_steps`"""
    teachers: Callable[[], np.ndarray]
    """gives the scaled answers of the site's teachers"""
    shapes: Shapes | None = None
    """of batches, in which the model was proved, for modes that clip single records"""
    counting: Callable[[], np.ndarray] = lambda: np.zeros(0)
    """counts the held-out records"""

    @property
    def trains(self) -> bool:
        return self.work.config.trains_in(self.work.task.round)

    @property
    def evaluates(self) -> bool:
        return self.work.task.evaluate

    def counts(self) -> np.ndarray:
        return self.counting()

    @property
    def config(self) -> RunConfig:
        return self.work.config

    def records(self) -> int:
        return len(self.work.indices)

    def clip(self, plan: PrivacyPlan) -> float:
        return plan.clip if self.work.task.clip is None else self.work.task.clip

    def clipped_sum(self, mechanism: PoissonMechanism) -> np.ndarray:
        """The model must be hooked, and hold the step's weights."""
        if self.shapes is None:
            raise PrivacyError("no shapes of batches: nothing shows that gradients are per record")
        return _drawn_sum(self.work, mechanism, self.shapes)

    def private_steps(self, step: GradientStep) -> Adapter:
        def taken() -> tuple[torch.Tensor, float]:
            gradient, loss = step()
            return torch.from_numpy(gradient).float().to(self.work.model.device), loss

        return _take_steps(self.work, taken)[0]

    def plain_steps(self) -> tuple[Adapter, float]:
        return train_plain(self.work, self.coins)

    def plain_change(self) -> np.ndarray:
        return joined(train_plain(self.work, secure_generator())[0])

    def votes(self) -> np.ndarray:
        return self.teachers()

    def as_adapter(self, vector: np.ndarray) -> Adapter:
        return self.work.model.arrays(vector)


def _drawn_sum(work: Work, mechanism: PoissonMechanism, shapes: Shapes) -> np.ndarray:
    """(d,) float64 sum of the clipped gradients of a Poisson draw; the model is hooked, and proved in these shapes.

    Each record's part is a function of that record, the step's weights and the step's own coins: batches have fixed
    shapes, and a record that cannot be computed counts as zero by itself.
    """
    canaries, clip = work.canaries, mechanism.plan.clip
    units = work.persons() if work.config.data.person is not None else work.indices
    drawn = mechanism.draw(len(units) + len(canaries))
    chosen = [units[i] for i in drawn if i < len(units)]
    draw, total = Draw.of(secure_generator()), np.zeros(mechanism.plan.trained)
    if chosen and work.config.data.person is not None:
        total += _persons_sum(work, chosen, shapes, draw, clip)
    elif chosen:
        rows_of = np.array(chosen)
        lengths = padded_to(work.config, work.model, work.records)[rows_of]
        for part, rows, length in shapes.batches(lengths):
            total += _batch_sum(work, rows_of[rows], len(part), length, draw, clip)
    canaries.add(total, drawn[drawn >= len(units)] - len(units), clip)
    return total


def _persons_sum(work: Work, persons: list[np.ndarray], shapes: Shapes, draw: Draw, clip: float) -> np.ndarray:
    """(d,) float64: of each person the mean gradient of some of their records, clipped once; all added up.

    persons: the numbers of each one's records, of which `data.person_rows` are drawn now where there are more. A
    person's part is a function of their own records: each record's gradient has the same bits whatever its mates, and
    a person's are added in the order of their own lengths.
    """
    rng, most, size = secure_generator(), work.config.data.person_rows, work.model.count()[0]
    taken = [rows if len(rows) <= most else rng.choice(rows, most, replace=False) for rows in persons]
    total, together = np.zeros(size), max(1, _HELD // size)
    tokens = padded_to(work.config, work.model, work.records)
    for start in range(0, len(taken), together):
        some = taken[start : start + together]
        counts = [len(rows) for rows in some]
        rows, owners = np.concatenate(some), np.repeat(np.arange(len(some)), counts)
        sums = torch.zeros((len(some), size), dtype=torch.float64, device=work.model.device)
        for part, filled, length in shapes.batches(tokens[rows]):
            for place, gradients in _gradients(work, rows[filled], len(part), length, draw):
                for owner, gradient in zip(owners[part][place:], torch.cat(gradients, 1).double(), strict=False):
                    sums[owner] += gradient
        means = sums / torch.tensor(counts, dtype=torch.float64, device=sums.device)[:, None]
        total += clipped_rows([means], clip)[0].cpu().numpy()
    return total


def _batch_sum(work: Work, rows: np.ndarray, real: int, length: int, draw: Draw, clip: float) -> np.ndarray:
    """(d,) float64 sum of the clipped gradients of the first `real` of the rows."""
    total = np.zeros(work.model.count()[0])
    for _, gradients in _gradients(work, rows, real, length, draw):
        total += clipped_rows(gradients, clip)[0].cpu().numpy()
    return total


def _gradients(
    work: Work, rows: np.ndarray, real: int, length: int, draw: Draw
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """The gradients of the first `real` of the rows, in order: the place of the first of them, and (m, d_p) of each
    trained array.

    Where the batch fails, or a gradient in it is not finite, each record is tried by itself in a batch of the same
    shape, among copies of itself: a number that is none must not reach another record's, as it does in some kernels
    (bfloat16 on a CPU reads beyond the end of a row, and multiplies by zero what it finds there). A record that fails
    there, too, has none.
    """
    found: list[torch.Tensor] | None = None
    try:
        found = record_gradients(work.model, work.losses(rows, draw, length), real)
    except PrivacyError:
        raise
    except BaseException as error:
        contain(error)
        forget(work.model)
        if real == 1:
            log.error("a record counts as zero: %s; confide site check looks for such rows", type(error).__name__)
            return
    if found is not None and (real == 1 or all(bool(torch.isfinite(part).all()) for part in found)):
        yield 0, found
        return
    for place, row in enumerate(rows[:real]):
        for _, alone in _gradients(work, np.full(len(rows), row), 1, length, draw):
            yield place, alone


def _by_length(records: Records, drawn: np.ndarray, tokens: int, device: torch.device) -> Iterator[np.ndarray]:
    """Physical batches of similar length, of at most so many tokens: little padding, and order does not matter in a sum
    over records.

    A GPU takes full batches; on a CPU padding is what costs, and the cuts are those of the least total.
    """
    lengths = records.lengths(drawn)
    order = np.argsort(lengths, kind="stable")
    size = max(1, tokens // max(1, int(lengths.max(initial=1))))
    cuts = range(0, len(drawn), size) if device.type != "cpu" else cheapest_cuts(lengths[order], size)
    for start, end in pairwise([*cuts, len(drawn)]):
        yield drawn[order[start:end]]


def _take_steps(work: Work, step: Callable[[], tuple[torch.Tensor, float]]) -> tuple[Adapter, float]:
    config, model, task = work.config, work.model, work.task
    model.set(task.adapter)
    names, parameters = list(model.trained), list(model.trained.values())
    if config.server_steps:
        gradient, loss = step()
        return model.arrays(-gradient.detach().cpu().numpy()), loss
    before = [p.detach().clone() for p in parameters]
    optimizer = make_optimizer(config.training.optimizer, parameters, rate_of_round(config, task.round))
    losses = []
    for _ in range(config.training.local_steps):
        gradient, loss = step()
        losses.append(loss)
        pieces = gradient.split([p.numel() for p in parameters])
        for p, piece, start in zip(parameters, pieces, before, strict=True):
            # the proximal term is a function of released values: it needs no noise
            p.grad = piece.view_as(p) + task.proximal_mu * (p.detach() - start)
        shrink(optimizer, config.training.weight_decay)
        shrunk = [p.detach().clone() for p in parameters] if len(losses) == 1 else []
        optimizer.step()
        if shrunk:
            _check_moved(optimizer, parameters, shrunk)
        optimizer.zero_grad()
    delta = {name: (p.detach() - start).cpu().numpy() for name, p, start in zip(names, parameters, before, strict=True)}
    return delta, float(np.mean(losses))


def _check_moved(optimizer: torch.optim.Optimizer, parameters: list, before: list[torch.Tensor]) -> None:
    """A known silent failure of Opacus with PEFT: ε accrues and nothing trains."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if held != {id(p) for p in parameters}:
        raise PrivacyError("the optimizer does not hold exactly the trained arrays")
    if all(torch.equal(p.detach(), start) for p, start in zip(parameters, before, strict=True)):
        raise PrivacyError("no trained array moved in the first step")
