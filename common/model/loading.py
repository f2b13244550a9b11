"""Backbone + LoRA + head, and the way between a model and the arrays that travel.

The trained part ("adapter") is LoRA and, for classifiers, the head; names are those of PEFT's saved files, so that an
exported folder loads with `peft.PeftModel.from_pretrained`.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from ..config.run import RunConfig
from ..config.tables import DataSection, ModelSection
from ..data.images import ImageForm
from ..data.record_keys import record_keys
from ..data.sources import read_rows
from ..data.spelling import Spelling
from ..errors import ModelError, contain
from ..tasks import Batch, Task, collate, inputs_of, load_task
from ..types import DEFAULT_BETA, Adapter, Reads, Records, Rows, split
from .backbones import Folders, resolve_backbone
from .building import build
from .class_loss import ClassLoss, class_loss_of
from .dummies import check_answers
from .kept import kept
from .limits import check_length, check_order, check_room, input_embeddings, positions, tells_apart
from .lora import not_trained, saved_name, train_in_float32, with_lora
from .reading import check_vocabulary, encoded, reader_of
from .shapes import Shapes
from .weights import is_outlined, outlined, shared_state

_FEATURE_ROWS, _FEATURE_SETS = 32, 4
_features: WeakKeyDictionary[PeftModel, dict[bytes, np.ndarray]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)  # identity: two loads are two models
class FineTuneModel:
    """A loaded model; the backbone is shared, its adapter is set before every use."""

    module: PeftModel
    reader: PreTrainedTokenizerBase | None
    """None where no text is read"""
    max_length: int
    """tokens a record is cut to"""
    task: Task
    parameters: dict[str, nn.Parameter]
    """every array of the adapter by saved name, ordered; those that are trained have requires_grad"""
    initial: Adapter
    """the adapter that the seed decides, as loading left it"""
    classes: int
    head_only: bool
    """whether nothing of the backbone is trained"""
    device: torch.device
    template: PeftModel
    """the module before it was used: copies are made of it, so that no hook is copied"""
    spelling: Spelling | None
    """how texts are read; None: as they are"""
    beta: float
    """`training.beta`, for pairs"""
    recomputes: bool
    """whether a gradient computes activations again in place of keeping them"""
    two_texts: bool = False
    """whether a record has a second text"""
    segments: bool = False
    """whether the backbone is told which of the two texts a token is of"""
    class_loss: ClassLoss | None = None
    """class weights and label smoothing; None: the plain cross-entropy"""

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.parameters.items() if p.requires_grad}

    @property
    def trained_initial(self) -> Adapter:
        """The part of `initial` that is trained."""
        return {name: self.initial[name] for name in self.trained}

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights, and of most of what is computed: the narrowest there is."""
        kinds = {p.dtype for p in self.module.parameters() if p.is_floating_point()}
        return min(kinds, key=lambda kind: kind.itemsize)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises ModelError for a task that reads no text."""
        if self.reader is None:
            raise ModelError("a task that reads images alone has no tokenizer")
        return self.reader

    @property
    def image(self) -> ImageForm | None:
        """What the image encoder takes; None where it has none."""
        return getattr(self.module.get_base_model(), "form", None)

    @property
    def reads(self) -> Reads:
        """What of a row; of two texts that a table names one, where the run has one."""
        return replace(self.task.READS, alone=not self.two_texts)

    def rows(self, source: str, data: DataSection, *, labels: list[str] | None = None, whose: bool = False) -> Rows:
        """What the task reads of a source. labels: instead of the run's classes. whose: as `read_rows`. Raises
        DataError."""
        if self.task.CLASSES and labels is None:
            labels = list(data.labels or [])
        return read_rows(source, data, labels, reads=self.reads, image=self.image, whose=whose)

    def encode(self, rows: Rows, variant: int = 0) -> Records:
        """Rows as the task reads them, tokenised, with a key of each record's own."""
        return replace(self.tokenised(rows, variant), keys=record_keys(rows, b""))

    def tokenised(self, rows: Rows, variant: int = 0) -> Records:
        """Without keys. A token that the backbone has no embedding for (a tokenizer may know more) becomes padding."""
        records = encoded(self.task, rows, self.reader, self.spelling, self.max_length, variant)
        if not self.task.READS.text:
            return records
        if not self.segments:
            records = replace(records, segments=None)
        if self.task.READS.label is None and records.wanted is not None:
            records = replace(records, wanted=self._known(records.wanted))
        return replace(records, tokens=self._known(records.tokens))

    def _known(self, tokens: np.ndarray) -> np.ndarray:
        unknown = tokens >= self.vocabulary
        return np.where(unknown, self.pad, tokens) if unknown.any() else tokens

    @property
    def vocabulary(self) -> int:
        """Tokens that have an embedding. Raises ModelError for a model that reads no text."""
        weight = input_embeddings(self.module).weight
        return len(weight) if isinstance(weight, torch.Tensor) else 0

    def batch(self, records: Records, indices: np.ndarray, length: int | None = None) -> Batch:
        """The named records, padded to `length` tokens; omitted: to their longest."""
        batch = collate(self.task, records, indices, self.pad, self.device, length)
        if self.task.READS.pairs:
            batch["beta"] = torch.full((len(indices),), self.beta, device=self.device)
        if self.class_loss is not None:
            batch["class_shares"] = self.class_loss.shares(batch["targets"])
        return batch

    @torch.no_grad()
    def with_features(self, records: Records) -> Records:
        """Where only a head is trained: the records with what it reads of each, made once; otherwise as they are."""
        if not self.head_only or not self.pools or not len(records) or self.device.type == "meta":
            return records
        everyone = np.arange(len(records))
        made, key = _features.setdefault(self.template, {}), records.digest(everyone)
        if key not in made:  # the same rows of many runs in one process
            made[key] = self.features(records, everyone)
            while len(made) > _FEATURE_SETS:
                del made[next(iter(made))]
        return replace(records, features=made[key])

    @torch.no_grad()
    def features(self, records: Records, which: np.ndarray) -> np.ndarray:
        """(n, F) float32 of the named records, in batches of fixed shapes: a record's vector has the same bits whoever
        else is there. NaN for a record that the model fails on; raises what it raises when it fails on all of them."""
        whole = replace(records, features=None)
        made: list[tuple[np.ndarray, np.ndarray | None]] = []
        failed: BaseException | None = None
        for part, batch in self.fixed_batches(whole, which):
            try:
                made.append((part, self._represented(batch)[: len(part)]))
            except ModelError:
                raise
            except BaseException as error:
                contain(error)
                failed = error
                made += [(part[i : i + 1], self._alone(batch, i)) for i in range(len(part))]
        width = next((found.shape[1] for _, found in made if found is not None), None)
        if width is None and failed is not None:
            raise failed
        rows = [np.full((len(part), width or 1), np.nan, np.float32) if x is None else x for part, x in made]
        return np.concatenate(rows)[np.argsort(np.concatenate([part for part, _ in made]))]

    def _represented(self, batch: Batch) -> np.ndarray:
        return self.represent(batch).float().cpu().numpy()

    def _alone(self, batch: Batch, row: int) -> np.ndarray | None:
        """(1, F) of one row of a batch that failed, in the same shape; None: it is this row that fails."""
        try:
            return self._represented({name: values[[row] * len(values)] for name, values in batch.items()})[:1]
        except BaseException as error:
            contain(error)
            return None

    def fixed_batches(self, records: Records, which: np.ndarray) -> Iterator[tuple[np.ndarray, Batch]]:
        """Batches of fixed shapes, to be read: (m,) positions among the named records, and a batch whose first m rows
        are theirs."""
        for part, rows, length in self.feature_shapes.batches(records.lengths(which)):
            yield part, self.batch(records, which[rows], length)

    @property
    def feature_shapes(self) -> Shapes:
        """The shapes of batches that are only read."""
        spare = self.positions is None or self.positions > self.max_length
        return Shapes(self.max_length if self.task.READS.text else 0, _FEATURE_ROWS, math.inf, spare)

    @property
    def positions(self) -> int | None:
        """Tokens that the backbone has positions for; None: no bound is stated."""
        return positions(self.module.get_base_model())

    @property
    def pools(self) -> bool:
        """Whether there is one vector a record that a head reads."""
        return hasattr(self.module.get_base_model(), "represent")

    def represent(self, batch: Batch) -> torch.Tensor:
        """(B, F): what the head reads of each record. Raises ModelError where it reads more than one vector."""
        if not self.pools:
            raise ModelError(
                "the head reads whole texts, not one vector each; set model.pooling to mean, first or last"
            )
        return self.module.get_base_model().represent(**inputs_of(batch))  # pyright: ignore[reportCallIssue]

    @property
    def pad(self) -> int:
        return 0 if self.reader is None else pad_of(self.reader)

    def get(self) -> Adapter:
        """A copy of the adapter, float32."""
        return {name: p.detach().cpu().numpy().astype(np.float32) for name, p in self.parameters.items()}

    def set(self, adapter: Adapter) -> None:
        """Copies arrays in. Raises ModelError when names or shapes differ; nothing has been copied then."""
        if adapter.keys() != self.parameters.keys():
            raise ModelError("the adapter's arrays are not those of this model; same backbone, task and LoRA targets?")
        for name, p in self.parameters.items():
            if adapter[name].shape != tuple(p.shape):
                raise ModelError(f"adapter array {name}: shape {adapter[name].shape}, expected {tuple(p.shape)}")
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(torch.from_numpy(adapter[name]))

    def arrays(self, flat: np.ndarray) -> Adapter:
        """(d,) over all trained numbers → float32 arrays by name."""
        return split(flat, self.trained_initial)

    def copy(self, *, share: bool = True) -> "FineTuneModel":
        """Another model over the same frozen weights, with a trained part of its own: for training side by side.

        share: False: the frozen weights are copied, too.
        """
        frozen = [p for name, p in self.template.named_parameters() if saved_name(name) not in self.parameters]
        held = [*frozen, *(array for layer in self.template.modules() for array in shared_state(layer))]
        shared = {id(array): array for array in held if share}
        module = copy.deepcopy(self.template, shared)
        arrays = {saved_name(name): p for name, p in module.named_parameters()}
        return replace(self, module=module, parameters={name: arrays[name] for name in self.parameters})

    def losses(self, records: Records, batch: np.ndarray, length: int | None = None) -> torch.Tensor:
        """(B,) losses of the named records, each a function of its own record; gradients flow. length: of `batch`."""
        return self.task.record_losses(self.module, self.batch(records, batch, length))

    @torch.no_grad()
    def scores(
        self,
        records: Records,
        indices: np.ndarray,
        size: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, np.ndarray]:
        """What the task scores of the named records, one entry each, in their order; batches of `size` by length.
        progress: called with done, of how many."""
        parts, back = records.by_length(indices, size)
        scores: list[dict[str, np.ndarray]] = []
        for part in parts:
            scores.append(self.task.score(self.module, self.batch(records, part)))
            if progress is not None:
                progress(len(scores), len(parts))
        return {key: np.concatenate([score[key] for score in scores])[back] for key in scores[0]}

    def count(self) -> tuple[int, int]:
        """Numbers that are trained, and numbers in all."""
        packed = (getattr(p, "quant_state", None) for p in self.module.parameters())  # two numbers of 4 bits in one
        halves = sum(state.shape.numel() // 2 for state in packed if state is not None)
        return sum(p.numel() for p in self.trained.values()), halves + sum(p.numel() for p in self.module.parameters())


@kept(most=3)
def load_model(
    model: ModelSection,
    classes: int,
    seed: int,
    freeze_a: bool = False,
    folders: Folders = (),
    beta: float = DEFAULT_BETA,
    two_texts: bool = False,
    class_loss: ClassLoss | None = None,
) -> FineTuneModel:
    """Loads a model once a process; the same arguments and files give the same object, whoever asks.

    seed decides the initial adapter. freeze_a: the A factors of LoRA are not trained (FFA-LoRA, Sun et al. 2024). beta:
    of the task `preference`. two_texts: whether records have a second text. class_loss: of tasks with classes.
    Raises ModelError: backbone not found, unknown architecture, targets that are not in it, a model that does not
    answer two dummy records.
    """
    loaded = _loaded(model, resolve_backbone(model.backbone, folders), classes, seed, freeze_a, folders, beta)
    told_apart = two_texts and tells_apart(loaded.module.get_base_model(), loaded.reader)
    loaded = replace(loaded, two_texts=two_texts, segments=told_apart, class_loss=class_loss)
    if loaded.reader is not None:
        check_room(loaded.reader, model.max_length, two_texts)
    check_answers(loaded.copy())
    return loaded.copy()


def outline(config: RunConfig, folders: Folders = ()) -> FineTuneModel:
    """The model of a run on torch's meta device, of its configuration alone: shapes without numbers, for plans. Its
    classes must be resolved. Raises ModelError as `load_model`."""
    classes, freeze_a = len(config.data.labels or []), config.server.aggregation == "ffa"
    return _outline(config.model, classes, freeze_a, folders, config.training.beta)


@kept(most=8)
def _outline(model: ModelSection, classes: int, freeze_a: bool, folders: Folders, beta: float) -> FineTuneModel:
    with outlined():
        return _loaded(model, resolve_backbone(model.backbone, folders), classes, 0, freeze_a, folders, beta)


def _loaded(
    model: ModelSection, path: str, classes: int, seed: int, freeze_a: bool, folders: Folders, beta: float
) -> FineTuneModel:
    """As `load_model`; `outlined`, without numbers and without a tokenizer."""
    task = load_task(model.task)
    hf_logging.disable_progress_bar()  # of the loading of weights; a run shows its own
    device = torch.device("meta" if is_outlined() else "cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = build(task, path, model, classes, folders)
        if task.READS.text:
            check_length(base, model.max_length)
        module = with_lora(base, task, model)
    train_in_float32(module)
    module.eval()  # dropout off; `per_sample.hooked` puts only the trained layers into training mode
    module.to(device)
    parameters = {saved_name(name): p for name, p in sorted(module.named_parameters()) if p.requires_grad}
    frozen = not_trained(module, freeze_a, lora=model.train == "lora")
    for name, p in parameters.items():
        p.requires_grad_(name not in frozen)
    initial: Adapter = {}
    reads = None
    if not is_outlined():
        initial = {name: p.detach().cpu().numpy().astype(np.float32) for name, p in parameters.items()}
        if task.READS.text:
            reads = reader_of(path, model)
            weight = input_embeddings(module).weight
            check_vocabulary(reads.tokenizer, len(weight) if isinstance(weight, torch.Tensor) else 0)
    return FineTuneModel(
        module,
        None if reads is None else reads.tokenizer,
        model.max_length,
        task,
        parameters,
        initial,
        classes,
        model.train == "head",
        device,
        template=module,
        beta=beta,
        recomputes=model.checkpointing is True,
        spelling=None if reads is None else reads.spelling,
    )


def model_of(config: RunConfig, folders: Folders = ()) -> FineTuneModel:
    """The model of a run; its classes must be resolved. folders: where backbones are that the caller keeps."""
    classes, freeze_a = len(config.data.labels or []), config.server.aggregation == "ffa"
    found = load_model(
        config.model,
        classes,
        config.run.seed,
        freeze_a=freeze_a,
        folders=folders,
        beta=config.training.beta,
        two_texts=config.data.text_pair is not None,
        class_loss=class_loss_of(config),
    )
    check_order(found.module.get_base_model(), config.data.labels or [])
    return found


def pad_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills a batch: the tokenizer's own, or that of the end, or 0."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(i) for i in ids if isinstance(i, int))
