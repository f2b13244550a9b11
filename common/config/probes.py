"""The tables of what tests a run: generated text, an audit's canaries, and Byzantine sites. As those of `tables`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from .section import Positive, PositiveFloat, Section


def _different(answers: tuple[str, ...]) -> tuple[str, ...]:
    if len(answers) == 1 or len(set(answers)) < len(answers) or not all(answer.strip() for answer in answers):
        raise ValueError("two or more different texts, as the responses begin with them")
    return answers


class EvaluationSection(Section, frozen=True):
    """What is asked of the model on public data, before and after; and, with `sites`, on records that the sites hold
    out. `generate` to `answers` are for `causal-lm` with responses or conversations: what the model writes after
    prompts of `data.test`. Of a conversation the assistant's last turn is what should be written."""

    limit: Positive | None = None
    """rows of `data.test` that before and after are measured on, the same ones both times, drawn by `run.seed`;
    omitted: all. A language model on a CPU reads a few short rows a second"""
    generate: Annotated[int, Field(ge=0)] | None = None
    """different prompts that are answered, drawn by `run.seed`; rows with the same prompt are one prompt with several
    references; 0: none; omitted: 64. Costs, before and after, `new_tokens` passes of the model for some 30 short
    prompts at a time"""
    new_tokens: Positive = 64
    """of an answer at most; fewer where the backbone has positions for fewer than twice as many"""
    temperature: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """tokens are drawn at it, by `run.seed`; omitted: the likeliest token each time"""
    answers: Annotated[tuple[str, ...], AfterValidator(_different)] = ()
    """classification by likelihood, of `limit` rows: every response begins with one of these, such as ["yes", "no",
    "maybe"], and the model's choice is the one whose tokens are the likeliest after the prompt, their
    log-probabilities added up"""
    sites: bool = False
    """whether each site holds some of its records (whole persons, with data.person) out of training, and answers with
    counts over them: under privacy with the run's noise, in the same releases as the gradients. It costs no ε beyond
    the run's own, since a record is either trained on or counted. docs/how-to/evaluate-at-sites.md"""
    holdout: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """with sites: the share that is held out, by a keyed hash of each record alone; public, so sums over the records
    that are trained on are divided by the rest of what is declared"""
    every: Positive | None = None
    """with sites: rounds from one evaluation to the next, from the model before the first round on; the final model is
    always one more. Omitted: the final model alone"""
    per_class: bool = False
    """with sites, of tasks with one class a record: counts by class, for the recall of each; all classes' noise is in
    the accuracy then"""
    bound: PositiveFloat | None = None
    """with sites: what a loss (of language models), or an absolute error (`regression`, in standard deviations), counts
    as at most. Omitted: 8 of a loss, 3 of an error"""


class BaselinesSection(Section, frozen=True):
    """What a finished simulation is compared with, on the same test records; each is trained like the run, and costs
    about as much. In a deployment none is measured, since the data stay at the sites."""

    alone: bool = False
    """each site trains on its own records and nobody else's, with the same ε for a record or a person, and all of the
    noise its own"""
    pooled: bool = False
    """all records in one place, without privacy: as many steps, each on as many records as a step of the run expects"""
    pooled_private: bool = False
    """all records in one place, with central DP-SGD at the same ε"""

    @property
    def asked(self) -> bool:
        return self.alone or self.pooled or self.pooled_private


class AuditSection(Section, frozen=True):
    canaries: Annotated[int, Field(ge=0)] = 0
    """gradient canaries among all sites' records, each in with probability ½, added after the clip and scored on the
    released updates: they test sampling, noise and composition"""
    records: Annotated[int, Field(ge=0)] = 0
    """canary records, each in with probability ½, that pass through the clip like any record: scored on the released
    updates (with local_steps = 1) and on the final model; in mode none on the final model alone. Costs the server a
    forward and a backward pass of each canary record in every round, in batches of training.batch_tokens, and 256
    MiB; and `confide audit canary` at the end nine sums of gradients over at most 256 records"""
    kind: Literal["words", "random", "in-distribution"] | None = None
    """what canary records are: random words and a random class; or, of `causal-lm`, what a model can memorise: a short
    prompt with a sequence of rare tokens, or a record of the test set with a random number at its end, of which the
    final model's loss is scored on these alone. Omitted: `random` for `causal-lm`, `words` for the other tasks"""
    guesses: Positive | None = None
    """r: how many are guessed to be in; omitted: 5 % of the canaries"""
    control: bool = False
    """the same run without noise, to see whether the audit can see anything. No privacy: simulations only, in memory"""

    @property
    def planted(self) -> int:
        """Canaries of both kinds."""
        return self.canaries + self.records


ON_RECORDS = ("labelflip", "backdoor")
"""attacks that change records; the others change updates"""


Attack = Literal[
    "labelflip",
    "backdoor",
    "random",
    "scaled",
    "signflip",
    "innerproduct",
    "alie",
    "minmax",
    "mimic",
    "freerider",
    "overclaim",
    "notfinite",
]


class AttackSection(Section, frozen=True):
    """Byzantine sites, to see how far a run tolerates them: simulations only."""

    kind: Attack | None = None
    """what they do; simulations/attacks/byzantine.py says it in full. Omitted: no attack"""
    byzantine: Positive | None = None
    """how many sites are Byzantine"""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """… or which share of them"""
    participation: Literal["fixed", "drawn"] = "drawn"
    """with server.cohort: Byzantine sites are drawn like everybody, or as many as given attack in every round"""
    strength: PositiveFloat | None = None
    """factor on what is forged; omitted: the attack's own"""
    trigger: str = "cf"
    """`backdoor`: the word that leads to `target`"""
    target: str | None = None
    """`backdoor`: the class that it leads to; omitted: the first"""
    poison: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`backdoor`: share of a Byzantine site's records that carry the trigger"""
