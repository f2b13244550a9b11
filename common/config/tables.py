"""The tables of a run's file. Every field has its documentation under it, here and nowhere else."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from ..data.spelling import Words
from ..errors import ConfigError
from ..types import DEFAULT_BETA, DEFAULT_TASK
from .byzantine import ROBUST
from .section import PathText, Positive, PositiveFloat, Rate, Section

GIVEN_STRATEGY = "given"
"""a Flower strategy object that `confide.simulate` was given"""
OUR_AGGREGATIONS = ("fedavg", "ffa", "exact")
FLOWER_STRATEGIES = {
    "fedprox": "FedProx",
    "fedavgm": "FedAvgM",
    "fedadam": "FedAdam",
    "fedyogi": "FedYogi",
    "fedadagrad": "FedAdagrad",
    "qfedavg": "QFedAvg",
}


def _known_aggregation(name: str) -> str:
    known = (*OUR_AGGREGATIONS, *ROBUST, *FLOWER_STRATEGIES)
    if name not in (*known, GIVEN_STRATEGY):
        raise ValueError(f"one of {', '.join(known)}")
    return name


def _known_targets(targets: Any) -> Any:
    names = isinstance(targets, list | tuple) and all(isinstance(name, str) for name in targets)
    if not names and targets not in ("all-linear", None):
        raise ValueError("a list of module names, such as ['q_proj', 'v_proj'], or 'all-linear'")
    return targets


class RunSection(Section, frozen=True):
    name: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")] = "run"
    """letters, digits, '.', '_' and '-'; no '.' in front"""
    rounds: Positive = 10
    """how often the server asks the sites for updates"""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """partitions, initialisation, batch order without privacy; never noise or sampling under privacy"""
    output: PathText | None = None
    """the folder of results; omitted: runs/NAME"""
    id: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    """the run's name in the sites' ledgers; omitted: drawn when the run starts, and kept for --resume"""

    @property
    def folder(self) -> Path:
        """Of the results."""
        return Path(self.output or f"runs/{self.name}")


class LoraSection(Section, frozen=True):
    rank: Positive = 8
    """r: columns of each B, rows of each A"""
    alpha: PositiveFloat = 16
    """B·A is scaled by alpha / rank …"""
    scaling: Literal["standard", "rank_stabilized"] = "standard"
    """… or, rank_stabilized, by alpha / √rank (Kalajdzievski 2023; PEFT's use_rslora), so that a higher rank does not
    learn less"""
    targets: Annotated[tuple[str, ...] | Literal["all-linear"] | None, BeforeValidator(_known_targets)] = None
    """module names; all-linear: every linear layer but the head and the output layer; omitted: PEFT's default for the
    architecture or, where it has none, the attention's projections to queries and values"""
    modules_to_save: tuple[str, ...] | None = None
    """parts of the model that are trained whole beside LoRA and the head, e.g. ["image_encoder"] of a new one"""


class ModelSection(Section, frozen=True):
    backbone: PathText
    """hub id, or a local folder; demo:vit for a small vision transformer without weights; demo:gemma for Gemma 3
    270M as confide[llm] carries it"""
    image_backbone: PathText | None = None
    """`image-text-classification`: the tower that reads images, named likewise"""
    task: str = DEFAULT_TASK
    """a file of common/tasks/"""
    max_length: Annotated[int, Field(ge=2)] = 64
    """tokens a record is cut to"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """type of the frozen weights and of what is computed with them; what is trained is float32 always. `auto`: bfloat16
    for a backbone of 100 million weights and more, with LoRA, where this machine multiplies it faster; decided once,
    before the run, and stated in its config.toml"""
    weights: Literal["full", "int8", "nf4"] = "full"
    """how the frozen linear layers are held: as they are; or, with LoRA, in 8 or 4 bits (Dettmers et al. 2022, 2023;
    bitsandbytes: pip install 'confide[quantized]'). What is trained, embeddings and the output layer stay so"""
    checkpointing: Literal["auto"] | bool = "auto"
    """whether a layer's activations are computed again backward in place of being kept: less memory, a third more time,
    the same numbers. `auto`: where fewer than 8 records would fit in a batch otherwise; decided once, before the run"""
    init_from: PathText | None = None
    """folder of a finished run with the same backbone and LoRA, from whose adapter training starts: e.g. of `masked-lm`
    on text without labels"""
    spelling: Words = "none"
    """words that misspelled ones are read as: of the backbone's vocabulary (any language), or English ones; from
    training to serving. What becomes of a text depends on it and on those words alone, so ε does not change"""
    known_words: tuple[Annotated[str, Field(pattern=r"^[^\W\d_]+$")], ...] = ()
    """with spelling: known as well, e.g. names of drugs, letters alone; of words as near they come first"""
    pooling: Literal["mean", "first", "last", "model"] = "mean"
    """how tokens become one vector for the head; `model`: the backbone's own head"""
    train: Literal["lora", "head", "full"] = "lora"
    """what is learned: LoRA and the head; the head alone, for which the backbone reads each record once; or all weights
    of a small model"""
    lora: LoraSection = LoraSection()


class PartitionSection(Section, frozen=True):
    clients: Positive | None = None
    """number of simulated sites; omitted for `natural`: one a value of the column"""
    kind: Literal["iid", "dirichlet", "shards", "natural"] = "iid"
    """how rows are dealt out: at random, in shares of classes drawn for each site, in label-sorted pieces, or by a
    column"""
    alpha: PositiveFloat = 0.5
    """concentration of `dirichlet`: small is skewed"""
    shards_per_client: Positive = 2
    """`shards`: label-sorted pieces a client holds"""
    column: str | None = None
    """`natural`: the column that names the site"""
    empty: Literal["refuse", "redistribute"] = "refuse"
    """a client left without records: an error, or one record of the largest client moves to it"""


class AugmentationSection(Section, frozen=True):
    """What copies of a record are made by, all that are set; a step trains on `training.views` of them together."""

    swap: Rate | None = None
    """texts (EDA, Wei and Zou 2019): probability that a word changes place with another"""
    delete: Rate | None = None
    """… that a word is left out"""
    insert: Rate | None = None
    """… that a word of the same text is said again somewhere"""
    punctuation: Rate | None = None
    """… that a mark goes before a word (AEDA, Karimi et al. 2021)"""
    flip: bool = False
    """images: half of the copies are mirrored"""
    shift: Annotated[int, Field(ge=0)] = 0
    """… moved by up to so many pixels"""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """… standard deviation of noise, as a share of the whole range"""
    mix: PositiveFloat | None = None
    """α of Beta(α, α): what the head reads of a record is mixed with that of another of its batch, and so is the loss
    (manifold mixup, Verma et al. 2019). No record stands alone then, so none can be clipped: modes none and client"""

    @property
    def of_texts(self) -> bool:
        return any(value is not None for value in (self.swap, self.delete, self.insert, self.punctuation))

    @property
    def of_images(self) -> bool:
        return bool(self.flip or self.shift or self.noise)


class DataSection(Section, frozen=True):
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "default"
    """the data set's name at the sites: whose budget the run is charged to"""
    train: PathText | None = None
    """csv, tsv, json, jsonl or parquet file, hub id, SQL url#table-or-query, demo:train, or demo:facts/train.
    Simulations only: a real site names its data in its own site.toml"""
    validation: PathText | None = None
    """public, at the server: accuracy per round; omitted: the test set"""
    test: PathText
    """public, at the server: the before / after comparison"""
    text: str = "text"
    """the column of the texts"""
    text_pair: str | None = None
    """tasks with classes or a number for a text: the column of a record's second text (inference, paraphrase, question
    and answer); the tokenizer joins the two, and the longer one is cut first"""
    label: str = "label"
    """the column of the classes, tags or numbers; `causal-lm` reads it only to partition by dirichlet or shards"""
    image: str = "image"
    """tasks with images: the column of their paths (relative to the file) or bytes"""
    prompt: str | None = None
    """`causal-lm` on instructions, and `preference`: the column that is read …"""
    response: str | None = None
    """… and, of `causal-lm`, the column that is learned"""
    messages: str | None = None
    """`causal-lm` on conversations: the column of lists of {role, content}, as JSON text in csv; the assistant's turns
    are learned. Text becomes of them by the tokenizer's own chat template …"""
    template: Annotated[str, Field(min_length=1, max_length=2**16)] | None = None
    """… or by this one, a Jinja text of `messages` and `add_generation_prompt`. It is a program that runs on each
    record: a real site must allow it (policy.templates)"""
    chosen: str | None = None
    """`preference`: the column of the better of two answers to the prompt …"""
    rejected: str | None = None
    """… and of the other"""
    person: str | None = None
    """modes local and distributed: the column that names whose a row is; ε is then for a person with all their rows"""
    person_rows: Annotated[int, Field(ge=1, le=256)] = 8
    """with person: rows of a drawn person that a step reads at most, drawn afresh; their gradients are averaged and
    clipped once"""
    labels: list[str] | None = None
    """class names in order; omitted: those of the public test and validation sets, sorted"""
    numbered_tags: list[str] | None = None
    """`token-classification`: what numbers in the column of the tags mean, from 0 on; omitted: data.labels as they
    stand"""
    class_shares: tuple[PositiveFloat, ...] | None = None
    """with training.class_weights: how often each class of `labels` is expected, in their order; only the ratios count.
    Omitted: as in `validation`, or without it in `test`. It must not be counted on private rows: that would be a
    release"""
    scale: tuple[float, PositiveFloat] | None = None
    """`regression`: mean and standard deviation that labels are measured by; omitted: those of
    `validation`, or without it of `test`"""
    limit: Positive | None = None
    """first N rows after a seeded shuffle; omitted: all"""
    reference: Annotated[int, Field(ge=0)] | None = None
    """`confide audit leakage`: instead of the first N rows, the N of the first 2N that this number draws"""
    augmentation: AugmentationSection = AugmentationSection()
    partition: PartitionSection = PartitionSection()

    @property
    def training(self) -> str:
        """`train`. Raises ConfigError when it is omitted."""
        if self.train is None:
            raise ConfigError("data.train: nothing received; a simulation needs it (a real site names its own data)")
        return self.train


CLIP_RANGE = (1e-12, 1e12)
"""of a clip norm, declared or adapted: beyond it a sum could overflow the grid of the noise"""


class PrivacySection(Section, frozen=True):
    mode: Literal["none", "local", "distributed", "client"] = "none"
    """what is protected, and who adds the noise: nothing; a record, each site all of it; a record, each site a share
    of it; all that a site contributes"""
    epsilon: PositiveFloat | None = None
    """the target over all rounds; the noise multiplier is calibrated from it"""
    delta: Annotated[float, Field(ge=1e-13, lt=1)] = 1e-5
    """δ of the target; accountants cut tails off at 1e-15"""
    clip: Annotated[float, Field(ge=CLIP_RANGE[0], le=CLIP_RANGE[1])] = 1.0
    """L2 bound on one record's gradient (`client`: on a site's update), over all trained arrays together"""
    sampling_rate: Annotated[float, Field(ge=1e-12, le=1)] | None = None
    """probability that a record is drawn in a step (with data.person a person; `client`: that a site takes part in a
    round, by its own coin)"""
    declared_examples: Positive | None = None
    """public size of all sites' data together: the constant of the denominator, never counted"""
    declared_persons: Positive | None = None
    """with data.person, in its place: the public number of persons at all sites together"""
    colluders: Annotated[int, Field(ge=0)] = 1
    """with secure aggregation: sites that may work for the server; their noise shares do not count. 1 also covers what
    any one site can subtract from the sum that it sees in the next model"""
    clip_quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    """`client`: γ, the share of updates that the clip norm shall leave unclipped, from `clip` on; omitted: fixed"""
    clip_learning_rate: PositiveFloat = 0.2
    """η_C: how fast the clip norm adapts"""
    clip_count_noise: PositiveFloat | None = None
    """σ_b: noise on the count of unclipped updates; omitted: a twentieth of the expected cohort"""


class TrainingSection(Section, frozen=True):
    optimizer: Literal["sgd", "momentum", "adam"] = "adam"
    """of the sites, or of the server where it takes the steps"""
    learning_rate: PositiveFloat = 0.005
    """of that optimizer; with a schedule or a warm-up the highest"""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """how the learning rate falls over the rounds after the warm-up: not at all, in a straight line, or as half a
    cosine, to 0 after the last round, which still has a rate above 0. It follows from the round's number alone, so it
    costs no ε"""
    warmup: Annotated[int, Field(ge=0)] = 0
    """rounds W in which the rate rises: round t ≤ W has t / (W + 1) of `learning_rate`, and round W + 1 all of it"""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """λ: before each step every trained array shrinks by the round's rate times λ of itself, apart from the gradient
    (decoupled, as in AdamW), whichever the optimizer"""
    local_steps: Positive = 1
    """optimizer steps a site takes in a round. With 1 (and `fedavg` or `ffa`) a site sends its mean gradient and the
    server takes the step: one round is one step over all sites' data"""
    batch_size: Positive = 64
    """records of a step in mode `none` and of a student; a Poisson draw has no size"""
    batch_tokens: Literal["auto"] | Annotated[int, Field(ge=2)] = "auto"
    """tokens in memory at once, for each site that trains at the same time: a step's records, however many, are cut to
    batches of it, in shapes that stay the same for a run, whose sums add up to the step's: no gradient accumulates
    beyond its step. A record without text counts as `model.max_length` tokens. `auto`: planned from the configuration
    and free memory (at a real site half of all memory), at most 4,096 (on a GPU 65,536)"""
    beta: PositiveFloat = DEFAULT_BETA
    """`preference`: β of DPO; the smaller, the farther the model may move from what it was"""
    class_weights: Literal["none", "balanced"] = "none"
    """tasks with one class a record or word: what a record of each class counts in the loss. `balanced`: 1 / (K·share)
    by `data.class_shares`, which are public, so that a rare class counts as much as a common one. The weights are
    constants of the run: a record's loss is a function of that record alone, and ε does not change"""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """the same tasks: share of each label that is spread over all classes (Szegedy et al. 2016), so that the model is
    less sure. Losses that are reported are without it, and without weights"""
    augmentation: Rate | None = None
    """share of characters perturbed in copies of each text, which are trained on beside it; omitted: none"""
    views: Annotated[int, Field(ge=2)] = 2
    """with augmentation: copies of a record in a step, the first as it is; averaged before the gradient is clipped"""
    adversarial: PositiveFloat | None = None
    """radius, relative to a token's norm, in which embeddings are moved to raise the loss before they are trained on"""
    adversarial_kind: Literal["pgd", "freelb"] = "pgd"
    """the last step of the ascent, or all of them, beside the record as it is"""
    adversarial_steps: Positive = 3
    """steps of the ascent"""
    adversarial_warmup: Annotated[int, Field(ge=0)] = 0
    """rounds of plain training before"""

    @property
    def tokens(self) -> int:
        """`batch_tokens`. Raises ConfigError before it is decided."""
        if self.batch_tokens == "auto":
            raise ConfigError("training.batch_tokens: 'auto' was not planned for this process; set a number")
        return self.batch_tokens


class ServerSection(Section, frozen=True):
    aggregation: Annotated[str, AfterValidator(_known_aggregation)] = "fedavg"
    """fedavg, ffa (A frozen), exact (mean of the products B·A); trimmedmean, median, geometricmedian, krum, multikrum,
    bulyan, centredclipping (they tolerate Byzantine sites); or a Flower strategy by its name in lower case"""
    byzantine: Annotated[int, Field(ge=0)] | None = None
    """f: Byzantine sites among those of a round that a robust aggregation tolerates; omitted: one in five"""
    mixing: bool | None = None
    """nearest-neighbour mixing before a robust aggregation; omitted: yes"""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """weight of the past in the running mean of a site's updates, by which a robust aggregation leaves out the f sites
    farthest from the others, or as many as still let it tolerate f Byzantine sites; 0: none; omitted: 0.8"""
    max_norm: PositiveFloat | None = None
    """L2 norm that an update is shortened to before it is aggregated; omitted: any finite one is taken"""
    options: dict[str, float | int] = Field(default_factory=dict)
    """arguments of a Flower strategy, e.g. {eta = 0.01, tau = 1e-8}"""
    min_clients: Positive = 2
    """replies without which a round is void"""
    cohort: Positive | None = None
    """sites asked in a round, drawn anew each time; omitted: all"""
    deadline: PositiveFloat = 3600.0
    """seconds a round waits for replies"""
    wait_minutes: Annotated[float, Field(ge=0)] = 60.0
    """before a round, while fewer sites are online than it needs: nobody is asked, and then the run stops"""
    secure_aggregation: bool | None = None
    """whether the server sees only sums; omitted: true in modes distributed and client"""
    min_survivors: Positive | None = None
    """t: with secure aggregation, inputs without which a round is void and for which the noise is calibrated; omitted:
    one site in ten may vanish (none of fewer than four)"""
    groups: Annotated[int, Field(ge=3)] | None = None
    """with secure aggregation and a robust aggregation: groups of sites that are summed apart and then compared; each
    needs its noise whole and hides its sites among fewer; omitted: one sum over all"""
    setup_rounds: Positive = 32
    """with secure aggregation: rounds that one exchange of keys and shares serves"""
    upload_dtype: Literal["float32", "float16"] = "float32"
    """type in which an update is uploaded; rounded after the noise"""
    evaluation_limit: Positive = 512
    """rows of the validation set behind the accuracy per round; those of the test set before and after:
    evaluation.limit"""
    patience: Positive | None = None
    """rounds without a better accuracy on `data.validation` after which a run ends; its best round's model is kept.
    The set is public, so the choice costs no ε; what sites have reserved for later rounds stays reserved"""

    @property
    def flower(self) -> bool:
        """Whether the aggregation is one of Flower's strategies."""
        return self.aggregation in FLOWER_STRATEGIES or self.aggregation == GIVEN_STRATEGY

    @property
    def robust(self) -> bool:
        """Whether the aggregation tolerates Byzantine sites."""
        return self.aggregation in ROBUST

    @property
    def mixes(self) -> bool:
        return self.robust if self.mixing is None else self.mixing


class EngineSection(Section, frozen=True):
    kind: Literal["inprocess", "ray"] = "inprocess"
    """simulations: all sites in this process, or Flower's simulation on Ray"""
    ledger: PathText | None = None
    """simulations: folder of the sites' ledgers, and of the site.toml that limits them; omitted: in memory"""
    workers: Positive | None = None
    """`inprocess`: sites that train at the same time, each on its share of the cores; omitted: one a core up to 8, and
    one on a GPU or for a backbone of 100 million weights. Each holds activations of its own; the frozen weights are
    shared."""
    cpus_per_client: Positive = 1
    """`ray`: cores that one client holds"""
    address: str | None = None
    """`ray`: address of a running cluster; omitted: this machine"""


class DistillSection(Section, frozen=True):
    """Federated distillation: instead of a model that all train, each site trains teachers of its own, and what leaves
    it are their noised answers to public queries, of which the server's model learns."""

    public: PathText | None = None
    """texts that everybody may see, in the column `data.text`: a file, a hub id, or demo:public. Setting it is what
    makes a run a distillation; at real sites the texts come from the server"""
    queries: Positive = 1000
    """M: how many of them are asked, drawn by `run.seed`"""
    teachers: Positive = 10
    """T: a site's records are dealt out to so many teachers, each trained for `training.local_steps` on its own. One
    record is with one teacher; more of them tolerate more noise, and each knows less"""
    train: Literal["head", "lora", "full"] = "head"
    """what a teacher trains; `model.train` is the student's"""
    backbones: tuple[PathText, ...] = ()
    """simulations: the backbones of the sites' teachers, in turn; omitted: the student's. A real site names its own in
    site.toml"""
    steps: Positive = 500
    """of the student at the server, on batches of `training.batch_size` queries"""
    learning_rate: PositiveFloat | None = None
    """of the student; omitted: `training.learning_rate`"""
