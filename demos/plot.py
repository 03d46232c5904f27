"""The map as HTML: an SVG of points, a legend, and the neighbours of a query.

``SCRIPT`` makes it answer to pointers and keys; without it, it is still a picture with a list. Everything from outside
is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from clipkit.inference import Hit
from demos.space import Groups, Plane

_WIDTH, _HEIGHT, _MARGIN = 1000, 640, 24
# Paul Tol's bright and vibrant schemes: told apart with every kind of colour vision, on white and on black
COLOURS = ("#4477aa", "#ee7733", "#228833", "#cc3311", "#66ccee", "#aa3377", "#ccbb44", "#009988", "#ee99aa", "#888888")


def map_html(
    plane: Plane,
    groups: Groups | None,
    names: Sequence[str],
    rows: Sequence[int],
    found: Sequence[tuple[int, Hit]],
    address: Callable[[int], str],
    notes: Sequence[str],
) -> str:
    """The map.

    Args:
        plane: n points.
        groups: colours of the points; None for one colour.
        names: of the n pictures.
        rows: of the n pictures in the index.
        found: neighbours of a query as (point, hit), best first.
        address: row -> where its thumbnail is.
        notes: sentences below the map.
    """
    hits = {point: rank for rank, (point, _) in enumerate(found, 1)}
    # what is found is drawn last, over the others
    order = sorted(range(len(names)), key=lambda point: (point in hits, point))
    points = "".join(_point(i, plane, groups, names[i], address(rows[i]), hits.get(i)) for i in order)
    label = f"Map of {len(names):,} pictures. The arrow keys go from picture to picture, Home to the first."
    asked = " ck-asked" if found else ""
    return (
        f'<div class="ck-map{asked}"><div class="ck-plot">'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="listbox" tabindex="0" aria-label="{label}">{points}</svg>'
        '<div class="ck-tip" hidden><img alt=""><span></span></div></div>'
        '<p class="ck-hidden" aria-live="polite"></p>'
        f"{_legend(groups)}{_neighbours(found, address)}"
        f'<p class="ck-note">{escape(" ".join([plane.about, *notes]))}</p></div>'
    )


def _point(i: int, plane: Plane, groups: Groups | None, name: str, address: str, rank: int | None) -> str:
    x = _MARGIN + float(plane.points[i, 0]) * (_WIDTH - 2 * _MARGIN)
    y = _HEIGHT - _MARGIN - float(plane.points[i, 1]) * (_HEIGHT - 2 * _MARGIN)
    group = int(groups.of[i]) if groups is not None else 0
    said = name if groups is None else f"{name} ({groups.names[group]})"
    said = said if rank is None else f"{said}, result {rank}"
    found = "" if rank is None else ' class="ck-hit"'
    return (
        f'<circle id="ck-p{i}"{found} role="option" cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{COLOURS[group]}" '
        f'data-group="{group}" data-src="{escape(address)}" aria-label="{escape(said)}"></circle>'
    )


def _legend(groups: Groups | None) -> str:
    if groups is None:
        return ""
    entries = []
    for number, name in enumerate(groups.names):
        size = int((groups.of == number).sum())
        entries.append(
            f'<li><button type="button" aria-pressed="false" data-group="{number}">'
            f'<i style="background:{COLOURS[number]}"></i>{escape(name)} <span>{size:,}</span></button></li>'
        )
    return f'<ul class="ck-legend" aria-label="Groups; press one to see it alone">{"".join(entries)}</ul>'


def _neighbours(found: Sequence[tuple[int, Hit]], address: Callable[[int], str]) -> str:
    if not found:
        return ""
    entries = []
    for point, hit in found:
        name = escape(hit.caption or hit.key)
        entries.append(
            f'<li data-point="ck-p{point}"><img src="{escape(address(hit.row))}" alt="{name}" loading="lazy">'
            f"<span>{hit.score:.3f} {name}</span></li>"
        )
    return f'<ol class="ck-near" aria-label="Nearest pictures, best first">{"".join(entries)}</ol>'


CSS = """
.ck-plot { position: relative; }
.ck-plot svg {
  display: block; width: 100%; height: auto; border: 1px solid var(--border-color-primary); border-radius: 8px;
  background: var(--block-background-fill); touch-action: manipulation;
}
.ck-plot svg:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.ck-plot circle { stroke: var(--block-background-fill); stroke-width: 1; transition: opacity 0.15s; }
.ck-asked circle, .ck-plot circle.ck-dim { opacity: 0.25; }
.ck-plot circle.ck-hit { opacity: 1; r: 11px; stroke: var(--body-text-color); stroke-width: 3; }
.ck-plot circle.ck-here { opacity: 1; stroke: var(--body-text-color); stroke-width: 4; }
.ck-tip {
  position: absolute; z-index: 5; pointer-events: none; width: 9.5rem; padding: 0.4rem; border-radius: 8px;
  background: var(--background-fill-primary); border: 1px solid var(--border-color-primary);
  box-shadow: 0 2px 8px rgb(0 0 0 / 0.25); font-size: var(--text-xs); overflow-wrap: anywhere;
}
.ck-tip img { display: block; width: 100%; height: 7rem; object-fit: contain; margin: 0 0 0.25rem; }
.ck-legend, .ck-near { list-style: none; display: flex; flex-wrap: wrap; gap: 0.4rem; margin: 0.75rem 0; padding: 0; }
.ck-legend li, .ck-near li { margin: 0; padding: 0; }
.ck-legend button {
  display: flex; align-items: center; gap: 0.4rem; padding: 0.25rem 0.6rem; cursor: pointer; text-align: left;
  border: 1px solid var(--border-color-primary); border-radius: 1rem; font-size: var(--text-sm);
  color: var(--body-text-color); background: var(--block-background-fill);
}
.ck-legend button[aria-pressed=true] { border-color: var(--body-text-color); font-weight: 600; }
.ck-legend i { width: 0.8rem; height: 0.8rem; border-radius: 50%; flex: none; }
.ck-legend span { opacity: 0.75; }
.ck-near { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); }
.ck-near li { font-size: var(--text-xs); overflow-wrap: anywhere; }
.ck-near img {
  display: block; width: 100%; height: 5.5rem; object-fit: contain; margin: 0 0 0.2rem; border-radius: 4px;
  border: 1px solid var(--border-color-primary);
}
@media (max-width: 640px) { .ck-plot circle { r: 12px; } .ck-plot circle.ck-hit { r: 20px; } }
"""

# Listens on the component, not on the map in it: every redrawing brings a new one.
SCRIPT = r"""
const near = 24;  // pixels around a point that belong to it
const part = selector => element.querySelector(selector);
const points = () => [...element.querySelectorAll(".ck-plot circle")];
const at = circle => {
  const box = circle.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
};
let here = null;

function show(circle, speak) {
  if (here) { here.classList.remove("ck-here"); here.removeAttribute("aria-selected"); }
  here = circle;
  const tip = part(".ck-tip"), svg = part(".ck-plot svg");
  if (!tip) return;
  tip.hidden = !circle;
  if (!circle) { svg.removeAttribute("aria-activedescendant"); return; }
  circle.classList.add("ck-here");
  circle.setAttribute("aria-selected", "true");
  svg.setAttribute("aria-activedescendant", circle.id);
  const label = circle.getAttribute("aria-label"), image = tip.querySelector("img");
  image.src = circle.dataset.src;
  image.alt = label;
  tip.querySelector("span").textContent = label;
  if (speak) part(".ck-map [aria-live]").textContent = label;
  const box = part(".ck-plot").getBoundingClientRect(), [x, y] = at(circle), gap = 14;
  const left = x - box.x + gap, top = y - box.y + gap;
  tip.style.left = Math.max(0, left + tip.offsetWidth > box.width ? left - 2 * gap - tip.offsetWidth : left) + "px";
  tip.style.top = Math.max(0, top + tip.offsetHeight > box.height ? top - 2 * gap - tip.offsetHeight : top) + "px";
}

function nearest(x, y, reach) {
  let best = null, least = reach;
  for (const circle of points()) {
    const [cx, cy] = at(circle), away = Math.hypot(cx - x, cy - y);
    if (away <= least) { best = circle; least = away; }
  }
  return best;
}

function beside(from, dx, dy) {
  const [x, y] = at(from);
  let best = null, least = Infinity;
  for (const circle of points()) {
    const [cx, cy] = at(circle), along = (cx - x) * dx + (cy - y) * dy;
    const across = Math.abs((cx - x) * dy) + Math.abs((cy - y) * dx);
    if (circle === from || along <= 0 || across > along) continue;  // a quarter of all directions
    if (Math.hypot(along, across) < least) { best = circle; least = Math.hypot(along, across); }
  }
  return best;
}

element.addEventListener("pointermove", event => {
  const svg = part(".ck-plot svg");
  if (svg && svg.contains(event.target)) show(nearest(event.clientX, event.clientY, near));
  const entry = event.target.closest("li[data-point]");
  if (entry) show(document.getElementById(entry.dataset.point));
});
element.addEventListener("pointerout", event => {
  if (!event.relatedTarget || !event.relatedTarget.closest(".ck-plot, li[data-point]")) show(null);
});
element.addEventListener("click", event => {
  const svg = part(".ck-plot svg");
  if (svg && svg.contains(event.target)) show(nearest(event.clientX, event.clientY, near), true);
  const button = event.target.closest(".ck-legend button");
  if (!button) return;
  const alone = button.getAttribute("aria-pressed") !== "true";
  for (const other of element.querySelectorAll(".ck-legend button")) other.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", String(alone));
  const group = button.dataset.group;
  for (const circle of points()) circle.classList.toggle("ck-dim", alone && circle.dataset.group !== group);
});
element.addEventListener("focusin", event => {
  if (event.target === part(".ck-plot svg") && !here && event.target.matches(":focus-visible"))
    show(part(".ck-plot .ck-hit") || points()[0], true);
});
element.addEventListener("focusout", () => show(null));
element.addEventListener("keydown", event => {
  if (event.target !== part(".ck-plot svg")) return;
  const way = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]}[event.key];
  const all = points();
  let next = null;
  if (event.key === "Home") next = all[0];
  else if (event.key === "End") next = all[all.length - 1];
  else if (event.key === "Escape") { show(null); return; }
  else if (way) next = here && here.isConnected ? beside(here, ...way) : all[0];
  else return;
  event.preventDefault();
  if (next) show(next, true);
});
"""
