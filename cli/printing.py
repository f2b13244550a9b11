"""What audits say on a terminal."""

import json
import math
from pathlib import Path
from typing import Any

from rich.text import Text

from ..client.deploy.setup import Check, SiteStatus
from ..common.ledger.verify import LedgerAudit
from ..common.privacy.audit import CANARY_KINDS
from ..common.privacy.explain import Alternative, Meaning
from ..server.deploy.deployment import ServerStatus
from ..server.deploy.runs import RunRow
from ..server.report import read_report
from ..server.report.audited import reconciled
from ..server.report.plots import ATTACKS, AUDIT_KINDS
from ..server.report.verdict import in_words
from .terminal import Terminal, new_table, show


def print_explanation(words: list[str], units: list[Meaning], choices: list[Alternative]) -> None:
    """Paragraphs, what ε means for each unit, and a table of what-ifs."""
    for paragraph in words:
        show(paragraph + "\n")
    whose = new_table("what this run's noise hides", "of", ">ε", "hides")
    for row in units:
        whose.add_row(
            row.whose,
            "no promise" if math.isinf(row.epsilon) else f"{row.epsilon:.3g}",
            "nothing" if math.isinf(row.epsilon) else row.hides,
        )
    show(whose)
    table = new_table("what if", "", ">rounds", ">noise multiplier", ">ε")
    for choice in choices:
        table.add_row(choice.change, str(choice.rounds), f"{choice.noise_multiplier:.4g}", f"{choice.epsilon:.4g}")
    show(table)


def print_audit(folder: Path) -> None:
    """ε planned, spent, audited, ceiling and control, side by side."""
    report = read_report(folder)
    found, privacy = report["audit"], report["privacy"]
    table = new_table(
        f"ε at δ = {found['delta']:g}, confidence {found['confidence']:.0%}",
        "attacker saw",
        ">planned",
        ">spent",
        ">audited ≥",
        ">Gaussian ≥",
        ">ceiling",
        ">no noise ≥",
    )
    for kind, title in AUDIT_KINDS.items():
        if kind not in found:
            continue
        control = found.get("control", {}).get(kind)
        table.add_row(
            title,
            *((f"{privacy['epsilon_planned']:g}", f"{privacy['epsilon_spent']:.2f}") if found["noise"] else "––"),
            *(f"{found[kind][key]:.2f}" for key in ("epsilon_steinke", "epsilon_gdp", "ceiling_steinke")),
            f"{control['epsilon_steinke']:.2f}" if control else "–",
        )
    show(table)
    for row in reconciled(report):
        show(row.words)
    show(f"canary records: {CANARY_KINDS[found['kind']]}")
    show("a low bound is no proof of safety: it limits this attack, not every attack")


def print_leakage(outcome: dict[str, Any]) -> None:
    """What the attacks achieved."""
    found = outcome["membership"]
    table = new_table(
        f"membership: {found['members']} members, {found['others']} others, {found['references']} reference models",
        "attack",
        ">AUC",
        *(f">TPR at FPR {float(rate):.1%}" for rate in found["attacks"]["loss"]["tpr"]),
    )
    for name, facts in found["attacks"].items():
        table.add_row(ATTACKS[name], f"{facts['auc']:.3f}", *(f"{rate:.2%}" for rate in facts["tpr"].values()))
    if found["bound"]:
        table.add_row("no attack can do better", "", *(f"{rate:.2%}" for rate in found["bound"].values()))
    show(table)
    found = outcome["inversion"]
    table = new_table(
        f"one update, {found['trials']} tries: share of tokens, with their position, read by the server",
        ">records in the update",
        ">no privacy",
        f">with noise, z = {found['noise_multiplier']:.3g}",
        ">class read, no privacy",
        ">with noise",
    )
    for count in found["none"]:
        rows = [found[how][count] for how in ("none", "private")]
        tokens = [f"{row['tokens']:.0%}" if "tokens" in row else "–" for row in rows]
        classes = [f"{row['label']:.0%}" if "label" in row else "–" for row in rows]
        table.add_row(count, *tokens, *classes)
    show(table)
    embedding = found["embedding"]
    state = "is released" if embedding["released"] else "is frozen and not released; if it were trained"
    show(
        f"the embedding's gradient {state}: {embedding['none']:.0%} of tokens read without noise, "
        f"{embedding['private']:.0%} with"
    )


def print_ledgers(audits: list[LedgerAudit]) -> None:
    """One table of data sets, one of runs, and what does not hold."""
    budgets = new_table(
        "budgets", "site", "data set", ">limit", ">spent", "by", ">PLD", ">Opacus PRV", ">RDP", ">remaining", ">runs"
    )
    runs = new_table("runs", "site", "data set", "run", "model", ">ε reserved", ">ε used", ">steps", "unit")
    for outcome in audits:
        for facts in outcome.datasets:
            by, limit = facts["epsilon"], facts["limit"]
            budgets.add_row(
                outcome.site,
                facts["dataset"],
                _number(limit["epsilon"]),
                _number(facts["epsilon_spent"]),
                facts["accountant"],
                *(_number(by[name]) for name in ("pld", "opacus_prv", "rdp")),
                _number(facts["remaining"]),
                str(len(facts["runs"])),
            )
            for run in facts["runs"]:
                reserved = "given back" if run["aborted"] else _number(run["epsilon_reserved"])
                used = _used(run)
                runs.add_row(
                    outcome.site,
                    facts["dataset"],
                    run["run"][:12],
                    run["model"].rsplit("/", 1)[-1],
                    reserved,
                    _number(run["epsilon_used"]),
                    used,
                    " ".join(facts["unit"]),
                )
    if budgets.row_count:
        show(budgets)
        show(runs)
        show("spent: what runs have reserved, used or not. filter: what holds however the runs were chosen")
    for outcome in audits:
        state = "holds" if outcome.holds else "DOES NOT HOLD"
        show(f"{outcome.path}: {state}; {outcome.head.seq} entries, head {outcome.head.hash[:16] or '?'}")
        for finding in outcome.findings:
            show(f"  finding: {finding}")
        for note in outcome.notes:
            show(f"  note: {note}")


def print_account(content: dict[str, Any]) -> None:
    """A verified account."""
    columns = ("data set", ">limit", ">spent", "by", ">remaining", ">δ", ">runs")
    table = new_table(f"account of {content['site']}, {content['time']}", *columns)
    for facts in content["datasets"]:
        table.add_row(
            facts["dataset"],
            _number(facts["limit"]["epsilon"]),
            _number(facts["epsilon_spent"]),
            facts["accountant"],
            _number(facts["remaining"]),
            f"{facts['limit']['delta']:g}",
            str(len(facts["runs"])),
        )
    show(table)
    show(f"the signature holds, and the events give these ε; entry {content['head']['seq']} of the site's ledger")


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.4g}"


def print_runs(rows: list[RunRow]) -> None:
    """The runs of a federation."""
    table = new_table("runs", "name", "status", ">rounds done", "folder")
    for row in rows:
        table.add_row(row.name, row.status, str(row.rounds), row.folder)
    show(table)


def print_many(kind: str, folder: Path) -> None:
    """The tables of a recipe of many runs, and where its page is."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    {"sweep": _print_sweep, "active": _print_active, "compare": _print_compare}[kind](report)
    Terminal().print(f"report: {folder / 'report.html'}", soft_wrap=True)


def _print_sweep(report: dict[str, Any]) -> None:
    """Each defence under its worst attack."""
    for setting in report["settings"]:
        table = new_table(setting["name"], "defence", ">no attack", ">worst attack", "which", ">backdoor", ">ε")
        for row in setting["rows"]:
            shares = [
                f"{100 * row[key]:.1f} %" if row[key] is not None else "–" for key in ("clean", "worst", "backdoor")
            ]
            epsilon = "none" if row["epsilon"] is None else f"{row['epsilon']:.2f}"
            table.add_row(row["defence"], *shares[:2], row["worst_attack"] or "–", shares[2], epsilon)
        show(table)


def _print_active(report: dict[str, Any]) -> None:
    """Accuracy by strategy and number of labels."""
    title = f"accuracy, %; random choice ends at {100 * report['goal']:.1f}"
    table = new_table(title, "strategy", *(f">{count:,}" for count in report["labels"]), ">labels for that")
    for row in report["strategies"]:
        needed = "not reached" if row["labels_needed"] is None else f"{row['labels_needed']:,}"
        table.add_row(row["strategy"], *(f"{100 * value:.1f}" for value in row["accuracy"]), needed)
    show(table)


def _print_compare(report: dict[str, Any]) -> None:
    """What each way of learning reached, and what it cost."""
    figure = f">{report['main']['name']}"
    table = new_table("ways to learn", "way", figure, ">trained numbers", ">kB a site and round", ">seconds", ">ε")
    for row in report["ways"]:
        epsilon = "none" if row["epsilon"] is None else f"{row['epsilon']:.2f}"
        value = in_words(report["main"], row["value"], row["spread"])
        numbers = [f"{row['trained']:,}", f"{row['kilobytes']:,.0f}", f"{row['seconds']:.0f}"]
        table.add_row(row["way"], value, *numbers, epsilon)
    show(table)


def print_personal(facts: dict[str, Any]) -> None:
    """Each site's accuracy with the shared head and with its own."""
    table = new_table("public test set, in each site's mix of classes", "site", ">records", ">shared head", ">its own")
    for row in facts["sites"]:
        own = "shared is better" if row["strength"] is None else f"{100 * row['personal']:.1f} %"
        table.add_row(row["name"], f"{row['records']}", f"{100 * row['shared']:.1f} %", own)
    table.add_row("mean", "", f"{100 * facts['shared']:.1f} %", f"{100 * facts['personal']:.1f} %")
    show(table)


def print_compression(facts: dict[str, Any]) -> None:
    """Every variant, and the one to take."""
    noisy = f">{100 * facts['noise']:g} % spoiled"
    table = new_table(
        f"variants, {facts['rows']} test rows, {facts['threads']} threads",
        *("variant", ">MB", ">ms, 1 row", ">p95", ">ms, 32 rows", ">p95", ">memory MB", f">{facts['measure']}", noisy),
    )
    for row in facts["variants"]:
        times = [f"{row[key]:.1f}" for key in ("ms_1", "p95_1", "ms_32", "p95_32")]
        shares = ["–" if row[key] is None else f"{100 * row[key]:.1f} %" for key in ("accuracy", "noisy")]
        table.add_row(row["name"], f"{row['mb']:.1f}", *times, f"{row['memory_mb']:.0f}", *shares)
    show(table)
    if facts["recommended"] is None:
        show(f"nothing fits the limits; nearest: {facts['missed']}")
    else:
        show(f"recommended: {facts['recommended']}")


def print_explained(facts: dict[str, Any]) -> None:
    """The maps in colours where there are any, in signed numbers elsewhere; then the checks."""
    console = Terminal()
    images = facts.get("images", [])
    for found in images:
        why = f"the scores miss what they should add up to by {100 * found['delta']:.1f} %"
        end = f"withheld: {why}" if found["refused"] else "its map is in the report"
        show(f"{found['name']}: {found['label']} ({100 * found['probability']:.1f} %); {end}")
    for found in facts["texts"]:
        for title, one in (("", found), (f"{facts['against']}: ", found.get("against"))):
            if one is None:
                continue
            head = f"{title}{one['title']}: "
            if one["refused"]:
                show(f"{head}withheld: the scores miss what they should add up to by {100 * one['delta']:.1f} %")
            elif console.is_terminal:
                console.print(_coloured(head, one))
            else:
                pairs = zip(one["words"], one["scores"], strict=True)
                show(head + " ".join(f"{word}({score:+.2f})" for word, score in pairs))
    if facts["sample"]:
        held, kind = f"{100 * facts['held']:.1f} %", "images" if images else "texts"
        show(f"{held} of {facts['sample']} maps of public {kind} add up to within 1 %")
    if facts["areas"]:
        a, parts = facts["areas"], "squares" if images else "words"
        show(
            f"mean {facts['measure']} as {parts} go: {a['deletion']:.3f} by score, {a['deletion_random']:.3f} at "
            f"random; as they come: {a['insertion']:.3f}, {a['insertion_random']:.3f}"
        )


def _coloured(head: str, found: dict[str, Any]) -> Text:
    text, most = Text(head), max((abs(score) for score in found["scores"]), default=0.0) or 1.0
    for word, score in zip(found["words"], found["scores"], strict=True):
        strong = round(120 * abs(score) / most)
        colour = f"rgb({140 - strong},200,{140 - strong})" if score > 0 else f"rgb(235,{200 - strong},{160 - strong})"
        text.append(word, style=f"black on {colour}" if strong > 12 else "")
        text.append(" ")
    return text


def print_harness(found: dict[str, Any]) -> None:
    """Metrics of lm-eval's tasks, before and after."""
    table = new_table("lm-eval", "task", "metric", ">before", ">after")
    for task, metrics in found["after"].items():
        for name, value in metrics.items():
            table.add_row(task, name, f"{found['before'][task][name]:.4f}", f"{value:.4f}")
    show(table)


def print_robustness(facts: dict[str, Any]) -> None:
    """Accuracy under noise by strength, then checks and attacks."""
    strengths = sorted({row["strength"] for row in facts["perturbations"]})
    table = new_table(
        f"accuracy on {facts['rows']} test texts, {facts['seeds']} draws",
        "noise",
        ">none",
        *(f">{100 * strength:g} %" for strength in strengths),
    )
    for name in dict.fromkeys(row["name"] for row in facts["perturbations"]):
        found = {row["strength"]: row for row in facts["perturbations"] if row["name"] == name}
        shown = [f"{100 * found[s]['accuracy']:.1f} ± {100 * found[s]['spread']:.1f}" for s in strengths]
        table.add_row(name, f"{100 * facts['clean']:.1f}", *shown)
    show(table)
    if facts["spelling"]:
        changed = 100 * facts["spelling"]["changed"]
        show(f"spelling '{facts['spelling']['words']}': {changed:.1f} % of the words as they are become others")
    for check in facts["checks"]:
        wanted = "should" if check["should"] else "should not"
        show(f"{check['name']}: {100 * check['changed']:.1f} % of {check['rows']} answers change; they {wanted}")
    for what, rows in (("part of the test set", facts["slices"]), ("simulated site", facts["sites"] or [])):
        if rows:
            worst = min(rows, key=lambda row: row["accuracy"])
            show(f"worst {what}: {worst['name']}, {100 * worst['accuracy']:.1f} % of {worst['rows']} right")
    queries = facts["blackbox"]
    show(
        f"attack by queries: {100 * queries['success']:.1f} % of {queries['attacked']} texts turned, "
        f"{queries['queries']:.0f} queries a text of {queries['budget']} allowed"
    )
    for found in facts["embeddings"]:
        show(f"attack on embeddings, radius {found['radius']:g} of a token's norm: {100 * found['success']:.1f} %")


def print_server(status: ServerStatus) -> None:
    show(f"SuperLink: {'running' if status.running else 'not running'}")
    show(f"gateway: {'healthy' if status.healthy_gateway else 'does not answer'}")
    for name, end in status.certificates.items():
        show(f"{name}: valid until {end:%Y-%m-%d}")
    for name, state in status.sites.items():
        show(f"site {name}: {state}")
    show(f"fingerprint of the sites' list: {status.fingerprint}")


def print_check(check: Check) -> None:
    """One line; passed or failed."""
    mark = ("passed", "green") if check.passed else ("failed", "red")
    show(Text.assemble(mark, f"  {check.what}: {check.detail}"))


def _used(run: dict[str, Any]) -> str:
    """Of the steps that a run reserved; and of its evaluations of held-out records, where it has some."""
    counted = f" ({run['evaluated']} of {run['evaluations']} evaluations)" if run["evaluations"] else ""
    return f"{run['used']} of {run['steps']}{counted}"


def print_site(status: SiteStatus) -> None:
    connected = "connected" if status.state.get("connected") else "not connected"
    show(f"site {status.name}: {f'running, {connected}' if status.running else 'not running'}")
    budgets = new_table("budgets", "data set", ">limit", ">spent", ">remaining", ">runs")
    for facts in status.datasets:
        row = (facts["limit"]["epsilon"], facts["epsilon_spent"], facts["remaining"])
        budgets.add_row(facts["dataset"], *map(_number, row), str(len(facts["runs"])))
        for run in facts["runs"][-5:]:
            show(f"run {run['run'][:12]} on {facts['dataset']}: {_used(run)} steps")
    if budgets.row_count:
        show(budgets)
    for what in ("last_message", "last_error"):
        if what in status.state:
            show(f"{what.replace('_', ' ')}: {status.state[what]} ({status.state[what + '_at']})")
