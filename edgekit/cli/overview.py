"""models and doctor: what there is, and what works here."""

from __future__ import annotations

from rich.text import Text

from edgekit.cli import show
from edgekit.extras import needed


def models() -> None:
    """List the models: cost, size, receptive radius, shipped weights, their licence and what they were trained on."""
    with needed("the list of models"):
        from edgekit import models as known
        from edgekit.models.licences import of_weights

        shipped = known.shipped()
        rows, weights = [], []
        for name in sorted({*known.names(), *shipped}):
            model = known.create(name) if name in known.names() else known.load(name)
            terms = of_weights(name) if name in shipped else None
            rows.append(
                [
                    name,
                    f"{model.macs_per_pixel() / 1e3:.1f}",
                    f"{model.parameter_count():,}",
                    str(model.halo),
                    str(model.stride),
                    {1: "gray", 3: "RGB", 4: "Bayer"}[model.channels],
                ]
            )
            if terms is not None:
                weights.append([name, terms.use, terms.trained_on, terms.licence])
    screen = show.console()
    columns = ["model", "kMAC/px", "parameters", "halo px", "stride", "images"]
    screen.print(show.table(columns, rows, right="kMAC/px,parameters,halo px,stride"))
    screen.print(show.table(["weights", "their use", "trained on", "licence"], weights, title="Weights that ship"))


def doctor() -> None:
    """Show what works here, and the pip line for each thing that does not."""
    from edgekit.doctor import examine

    findings = examine()
    rows = [
        [
            finding.area,
            finding.name,
            Text("yes", style="green") if finding.works else Text("no", style="red"),
            finding.detail,
            finding.fix,
        ]
        for finding in findings
    ]
    show.console().print(show.table(["", "what", "works", "detail", "to mend it"], rows))
