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

        rows, weights = [], []
        for name in known.names():
            model = known.create(name)
            rows.append(
                [
                    name,
                    f"{model.macs_per_pixel() / 1e3:.1f}",
                    f"{model.parameter_count():,}",
                    f"{model.halo}{' and all' if model.pools_globally else ''}",
                    str(model.stride),
                    {1: "gray", 3: "RGB", 4: "Bayer"}[model.channels] + (", blind" if model.blind else ""),
                ]
            )
        for name in sorted(known.shipped()):
            terms = of_weights(name)
            weights.append([name, known.checkpoints.preset(name), terms.use, terms.trained_on, terms.licence])
    screen = show.console()
    columns = ["model", "kMAC/px", "parameters", "halo px", "stride", "images"]
    show.put(screen, show.table(columns, rows, right="kMAC/px,parameters,halo px,stride"))
    screen.print(
        Text("halo: pixels around each output pixel that it depends on; and all: on averages of the whole image, too\n")
    )
    columns = ["weights", "of the model", "their use", "trained on", "licence"]
    show.put(screen, show.table(columns, weights, title="Weights that ship"))


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
    show.put(show.console(), show.table(["", "what", "works", "detail", "to mend it"], rows))
