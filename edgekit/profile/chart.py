"""The measured noise and the fitted lines as a page that needs no network."""

from __future__ import annotations

import html
from collections.abc import Sequence

from edgekit.bundle.report_style import STYLE
from edgekit.profile.folder import IsoProfile

_WIDTH, _HEIGHT, _LEFT, _BELOW = 720, 380, 62, 56
# Told apart by those who see no red and green, too (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1d2530")


def name(found: IsoProfile) -> str:
    """What a profile is called."""
    return "all images" if found.iso is None else f"ISO {found.iso}"


def render(profiles: Sequence[IsoProfile], source: str, notes: Sequence[str] = ()) -> str:
    """The page as HTML: a chart of noise over brightness, and a table.

    Args:
        profiles: one line of the chart each.
        source: what the images are called.
        notes: what a reader of the figures must know.
    """
    doubts = "".join(f'<p class="note">{html.escape(note[:1].upper() + note[1:])}.</p>' for note in notes)
    rows = "".join(
        f'<tr><td>{name(p)}</td><td class="n">{p.images}</td><td class="n">{p.line.shot:.3g}</td>'
        f'<td class="n">{p.line.read:.2f}</td><td class="n">{p.sigma:.1f}</td>'
        f"<td>{'correlated' if p.correlated else 'white'}</td></tr>"
        for p in profiles
    )
    heads = ("", "images", "shot", "read", "sigma", "noise")
    head = "".join(f"<th{' class=n' if 0 < k < 5 else ''}>{text}</th>" for k, text in enumerate(heads))
    title = f"Noise of {html.escape(source)}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main><header><h1>{title}</h1></header>"
        '<section><h2>Noise over brightness</h2><p class="note">Standard deviation in 8-bit units against brightness: '
        "points are measured, lines are sqrt(shot * x + read²).</p>"
        f'<div class="scroll">{_chart(profiles)}</div></section><section><h2>Lines</h2><p class="note">shot: variance '
        "per unit of signal (0..1); read and sigma in 8-bit units; sigma is what a denoiser is told.</p>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f"{doubts}</section>"
        "</main></body></html>\n"
    )


def _chart(profiles: Sequence[IsoProfile]) -> str:
    highest = max(max((*p.line.deviation, p.line.at(1.0))) for p in profiles)
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50) if highest / s <= 6 or s == 50)
    top = step * (int(highest / step) + 1)

    def place(brightness: float, deviation: float) -> tuple[float, float]:
        across = _LEFT + brightness * (_WIDTH - _LEFT - 16)
        return round(across, 1), round((_HEIGHT - _BELOW) * (1 - deviation / top) + 8, 1)

    parts = []
    for k in range(round(top / step) + 1):
        (x0, y), (x1, _) = place(0, k * step), place(1, 0)
        parts.append(f'<line x1="{x0}" y1="{y}" x2="{x1}" y2="{y}" stroke="#e3e8ee"/>')
        parts.append(f'<text x="{x0 - 8}" y="{y + 4}" text-anchor="end">{k * step:g}</text>')
    for k in range(5):
        x, y = place(k / 4, 0)
        parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{round(255 * k / 4)}</text>')
    across, middle = place(0.5, 0), place(0, top / 2)[1]
    parts.append(f'<text x="{across[0]}" y="{across[1] + 38}" text-anchor="middle">brightness, 0 to 255</text>')
    turned = f'text-anchor="middle" transform="rotate(-90 14 {middle})"'
    parts.append(f'<text x="14" y="{middle}" {turned}>standard deviation, 8-bit units</text>')
    for k, found in enumerate(profiles):
        colour = COLOURS[k % len(COLOURS)]
        curve = " ".join(f"{x},{y}" for x, y in (place(i / 64, found.line.at(i / 64)) for i in range(65)))
        parts.append(f'<polyline points="{curve}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for brightness, deviation in zip(found.line.brightness, found.line.deviation, strict=True):
            x, y = place(brightness, deviation)
            parts.append(f'<circle cx="{x}" cy="{y}" r="2.6" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + 12}" y="{22 + 16 * k}" fill="{colour}">{html.escape(name(found))}</text>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" font-size="12" fill="#5d6b7c" '
        f'font-family="system-ui, sans-serif"><title>noise over brightness</title>{"".join(parts)}</svg>'
    )
