"""Commands for a finished model: distil, compress, explain, export, predict, serve. `cli` adds them to its own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer()
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
Column = Annotated[str, typer.Option(help="Column, or key, of the texts.")]
_STEPS, _ALL_STEPS = 100, 1000


@app.command()
def distill(
    run: Run,
    public: Annotated[
        str, typer.Option(metavar="SOURCE", help="Public or unlabelled text: csv, jsonl, parquet, hub id.")
    ],
    student: Annotated[str, typer.Option(help="How many of the model's own layers, or a backbone: hub id or folder.")],
    text: Column = "text",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps, 64 texts each; otherwise 100 (--full: 1000).")
    ] = None,
    learning_rate: Annotated[float, typer.Option()] = 3e-4,
    temperature: Annotated[float, typer.Option()] = 2.0,
    hidden: Annotated[float, typer.Option(min=0, help="Weight of hidden states beside the answers.")] = 0.0,
    full: Annotated[bool, typer.Option("--full", help="As many steps as a student learns from: 1000.")] = False,
) -> None:
    """Teach a smaller model what the federated one answers, on public text; nothing private is read."""
    from ..common.data.sources import read_texts
    from ..common.whole import require_writable
    from ..server.ship.compress import make_student
    from ..server.ship.distil import DistillationConfig
    from .progress import bar

    _check_positive("--learning-rate", learning_rate)
    _check_positive("--temperature", temperature)
    require_writable(run, "RUN")
    steps = steps or (_ALL_STEPS if full else _STEPS)
    settings = DistillationConfig(steps=steps, learning_rate=learning_rate, temperature=temperature, hidden=hidden)
    with bar(f"distilling, {steps} steps of {settings.batch} texts{'' if full else ' (--full: 1000)'}") as progress:
        names = make_student(run, student, read_texts(public, text), settings, progress=progress)
    typer.echo(f"made {', '.join(names)} in {run / 'variants'}; measure them with: confide compress {run}")


@app.command()
def compress(
    run: Run,
    public: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Public text, to see what may be cut and to recover.")
    ] = None,
    text: Column = "text",
    layers: Annotated[int | None, typer.Option(min=1, help="Keep so many layers, those that matter most.")] = None,
    heads: Annotated[float, typer.Option(min=0, max=0.9, help="Share of attention heads to cut.")] = 0.0,
    ffn: Annotated[float, typer.Option(min=0, max=0.95, help="Share of feed-forward neurons to cut.")] = 0.0,
    factors: Annotated[
        float | None, typer.Option(help="Share of each matrix's numbers to keep, as two low-rank factors.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=0, help="Steps of recovery after cutting, 64 texts each; otherwise 100 (--full: 500)."),
    ] = None,
    max_ms: Annotated[float | None, typer.Option(help="Limit: median milliseconds of one text.")] = None,
    max_mb: Annotated[float | None, typer.Option(help="Limit: MB of the file.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Limit: accuracy on the public test set.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Test rows behind the accuracies; otherwise all.")] = None,
    full: Annotated[bool, typer.Option("--full", help="500 steps of recovery.")] = False,
) -> None:
    """Make variants (float32, int8, pruned), measure all there are, and say which to take under the limits."""
    from ..common.data.sources import read_texts
    from ..common.whole import require_writable
    from ..server.ship.compress import Limits, make_variants, measure
    from ..server.ship.distil import DistillationConfig
    from .printing import print_compression
    from .progress import bar

    for name, value in (("--max-ms", max_ms), ("--max-mb", max_mb), ("--min-accuracy", min_accuracy)):
        if value is not None:
            _check_positive(name, value)
    require_writable(run, "RUN")
    steps = (5 * _STEPS if full else _STEPS) if steps is None else steps
    settings = DistillationConfig(steps=steps) if steps else None
    texts = None if public is None else read_texts(public, text)
    with bar() as progress:
        cuts = {"layers": layers, "heads": heads, "neurons": ffn, "factors": factors}
        make_variants(run, public=texts, **cuts, settings=settings, progress=progress)
        limits = Limits(max_ms, max_mb, min_accuracy)
        facts = measure(run, limit=rows, limits=limits, progress=progress)
    print_compression(facts)
    typer.echo(f"report: {run / 'report.html'}")
    if facts["recommended"] is None:
        raise typer.Exit(1)


@app.command("explain-model")
def explain_model(
    run: Run,
    texts: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT...",
            help="Texts to explain; of a model of images, their paths, or #N: row N of the test set.",
        ),
    ],
    against: Annotated[Path | None, typer.Option(metavar="RUN", help="Another run, whose maps stand beside.")] = None,
    sample: Annotated[
        int | None,
        typer.Option(min=0, help="Public texts behind the checks and the words of a class; otherwise 20 (--full: 60)."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Checks on as many public texts as a report needs: 60.")] = False,
) -> None:
    """Show which words, or which parts of an image, spoke for an answer, whether the map adds up, and is faithful."""
    from ..common.errors import ConfigError
    from ..common.whole import require_writable
    from ..server.report import amend_report, read_report
    from ..server.ship.attribute import explain_run, explained
    from ..server.ship.attribute_images import explain_images, explained_images
    from ..server.ship.finished import FinishedRun
    from .printing import print_explained
    from .progress import bar

    require_writable(run, "RUN")
    task = read_report(run)["model"]["task"]
    images = task in explained_images()
    if images and against is not None:
        raise ConfigError(
            "--against: received for a model of images; two maps side by side are for texts; leave it out"
        )
    sample = (60 if full else 20) if sample is None else sample
    kind = "images" if images else "texts"
    what = f"explaining {len(texts)} {kind}, and checks on {sample} public ones"
    with bar(what if full else f"{what} (--full: 60)") as progress:
        if images:
            facts = explain_images(FinishedRun(run, task), texts, sample=sample, progress=progress)
        else:
            finished = FinishedRun(run, *explained(), *explained_images())
            other = None if against is None else FinishedRun(against, task)
            facts = explain_run(finished, texts, against=other, sample=sample, progress=progress)
    amend_report(run, "explanation", facts)
    print_explained(facts)
    typer.echo(f"report: {run / 'report.html'}; it quotes the {kind} that you gave")


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="A new folder.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="hub: a model card, the adapter, and onnx/ variants; transformers: a plain model, LoRA merged, for "
            "pipeline() and the auto classes; sentence-transformers: the same for a head over pooled vectors.",
        ),
    ] = "hub",
    variant: Annotated[
        list[str] | None, typer.Option(help="hub: variants to ship; otherwise the recommended one.")
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="transformers: the adapter, too, for PEFT on the backbone.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="The backbone's name on a hub, where the run had it from a folder.")
    ] = None,
    intended: Annotated[str | None, typer.Option(help="What the model is for, in a sentence, for the card.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the backbone; otherwise what its folder says.")] = None,
) -> None:
    """Write a folder that can be pushed to a hub: model card, tokenizer, and an adapter with variants, or a model."""
    from ..common.errors import ConfigError
    from ..server.ship.card import export_hub

    formats = ("hub", "transformers", "sentence-transformers")
    if format_ not in formats:
        raise ConfigError(f"--format: received '{format_}'; allowed: {', '.join(formats)}")
    if base is not None and base.startswith((".", "/", "~")):
        raise ConfigError(f"--base: received '{base}'; allowed: a name on a hub, such as google/gemma-3-270m")
    if adapter and format_ != "transformers":
        why = "which is the adapter" if format_ == "hub" else "whose model PEFT alone cannot build"
        raise ConfigError(f"--adapter: received with --format {format_}, {why}; leave it out")
    if variant and format_ != "hub":
        raise ConfigError(f"--variant: received with --format {format_}, which is torch's; leave it out")
    said = {"base": base, "intended": intended, "licence": licence}
    if format_ == "hub":
        names = export_hub(run, out, variants=variant, **said)
    elif format_ == "transformers":
        from ..server.ship.plain import export_plain

        names = export_plain(run, out, adapter=adapter, **said)
    else:
        from ..server.ship.sentences import export_sentences

        names = export_sentences(run, out, **said)
    for name in names:
        typer.echo(out / name)


@app.command("predict")
def predict_(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, or a variant's folder.")],
    source: Annotated[
        str,
        typer.Argument(
            help="Rows, from whatever a run reads: csv, tsv, json, jsonl, parquet, txt …; - is standard input."
        ),
    ] = "-",
    out: Annotated[
        Path | None, typer.Option(help="Where the answers go (csv, tsv or jsonl); otherwise standard output.")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Of the rows: csv, tsv, json, jsonl, conll, parquet or text; otherwise by name."),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Column, or key, of the texts; otherwise as in the run.")] = None,
    pair: Annotated[
        str | None, typer.Option("--text-pair", help="Of the second texts; otherwise as in the run.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Of the images, or their paths; otherwise as in the run.")] = None,
    variant: Annotated[str | None, typer.Option(help="torch, or a variant; otherwise the recommended one.")] = None,
) -> None:
    """Answer rows, which are read and refused as in a run; a terminal shows texts while they are written."""
    from contextlib import nullcontext

    from ..server.ship.predict import Columns, columns_of, format_of, load, predict_file, tells
    from .progress import bar
    from .terminal import carry_rows

    carry_rows()
    name = format_of(source, format_)
    with bar():
        model, _ = load(run, variant)
    with nullcontext(lambda *_: None) if tells(model, out) else bar() as progress:

        def columns(names: Sequence[str]) -> Columns:
            usual = columns_of(run, names)
            return Columns(text or usual.text, pair or usual.pair, image or usual.image)

        done = predict_file(
            model, source, out, name, columns=columns, progress=lambda done, total: progress("rows", done, total)
        )
    if out is not None:
        typer.echo(f"{done:,} rows: {out}")


@app.command()
def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, or a variant's folder.")],
    variant: Annotated[str | None, typer.Option(help="torch, or a variant; otherwise the recommended one.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8008,
    explain: Annotated[bool, typer.Option("--explain", help="Also answer why: one text at a time, by torch.")] = False,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests a second of one address.")] = 1000.0,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name", help="A name by which others reach it, beside its address and the certificate's; repeat."
        ),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Other machines may send texts without TLS.")] = False,
) -> None:
    """Answer over HTTP and JSON: /predict, /health, a page for trying a text, and, of a model that writes texts,
    OpenAI's /v1/chat/completions."""
    from ..common.errors import ConfigError
    from ..server.ship.predict import load
    from ..server.ship.serve import Bounds, check_address, make_app
    from ..server.ship.serve import run as run_

    if (certificate is None) != (key is None):
        raise ConfigError("--certificate, --key: give both or neither")
    check_address(host, tls=certificate is not None, insecure=insecure)
    if insecure:
        typer.echo("INSECURE: texts and answers travel unencrypted; anybody on the way can read them", err=True)
    model, name = load(run, variant)
    why: Callable[[str, int | None], dict[str, Any]] | None = None
    if explain:
        from ..server.ship.attribute import explained, explainer_of
        from ..server.ship.finished import FinishedRun

        why = explainer_of(FinishedRun(run, *explained())).as_json
    scheme = "http" if certificate is None else "https"
    served = make_app(model, run.resolve().name, name, Bounds(rate=rate), why)
    typer.echo(f"{name} of {run}: {scheme}://{host}:{port}/ (Ctrl-C ends it)")
    pair = (None, None) if certificate is None else (str(certificate), str(key))
    run_(served, host, port, *pair, names or ())


def _check_positive(name: str, value: float) -> None:
    from ..common.errors import ConfigError

    if not value > 0:
        raise ConfigError(f"{name}: received {value:g}; allowed: more than 0")
