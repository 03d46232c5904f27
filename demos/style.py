"""The pages' own style sheet; colours are the theme's, so that dark mode follows."""

CSS = """
.gradio-container { width: 100% !important; max-width: 1200px !important; margin: 0 auto !important; }
.ck-head h1 { margin-bottom: 0; }
.ck-hidden {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
}
.ck-note { font-size: var(--text-sm); margin: 0.5rem 0 1.25rem; }

/* Galleries: as high as they need to be, below their label, two columns on a phone */
.ck-found .grid-wrap { max-height: none !important; }
.ck-found .grid-container, .ck-upload .grid-container { padding-top: 1.75rem !important; }
.ck-upload .grid-container { --grid-cols: 4 !important; }
/* The line of text below the picture, not over its feet */
.ck-found .thumbnail-lg > img { box-sizing: border-box; padding-bottom: 1.75rem; }
@media (max-width: 640px) { .ck-found .grid-container { --grid-cols: 2 !important; } }

.ck-scroll { overflow-x: auto; max-width: 100%; }

.ck-scroll table {
  border: 0 !important; border-collapse: separate; border-spacing: 2px; margin: 0.5rem 0; color: var(--body-text-color);
}
.ck-scroll caption { text-align: left; font-weight: 600; padding: 0.25rem 0; }
.ck-scroll th, .ck-scroll td {
  padding: 0.4rem 0.6rem; border: 0; text-align: left; font-weight: 400; vertical-align: middle;
}
.ck-scroll thead th { font-weight: 600; vertical-align: bottom; background: none; }
.ck-matrix thead th { min-width: 6rem; max-width: 12rem; overflow-wrap: anywhere; }
.ck-matrix th:first-child {
  position: sticky; left: 0; background: var(--background-fill-primary); max-width: 9rem; z-index: 1;
}
.ck-matrix tbody th img { display: block; margin: 0 0 0.2rem; border-radius: 4px; }
.ck-matrix tbody th span { display: block; font-size: var(--text-xs); overflow-wrap: anywhere; }
.ck-matrix td {
  background: color-mix(in srgb, var(--color-accent) var(--shade), transparent);
  font-variant-numeric: tabular-nums; white-space: nowrap; border-radius: 4px;
}
.ck-matrix td b { margin-left: 0.3rem; }
.ck-matrix td.ck-pair, .ck-key { outline: 2px solid var(--body-text-color); outline-offset: -2px; }
.ck-key { padding: 0.1rem 0.4rem; border-radius: 4px; }
.ck-list { width: 100%; table-layout: fixed; }
.ck-list tr > * { border-bottom: 1px solid var(--border-color-primary) !important; overflow-wrap: anywhere; }

.ck-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.ck-card {
  display: flex; gap: 1rem; align-items: flex-start; padding: 0.75rem;
  border: 1px solid var(--border-color-primary); border-radius: 8px; background: var(--block-background-fill);
}
.ck-card img { margin: 0; border-radius: 4px; flex: none; max-width: 35% !important; }
.ck-side { flex: 1; min-width: 0; }
.ck-side h3 { margin: 0 0 0.5rem; font-size: var(--text-md); overflow-wrap: anywhere; }
.ck-bars { list-style: none; margin: 0; padding: 0; }
.ck-bars li { display: grid; grid-template-columns: 1fr auto; gap: 0 0.75rem; margin: 0 0 0.5rem; padding: 0; }
.ck-label { overflow-wrap: anywhere; }
.ck-percent { font-variant-numeric: tabular-nums; }
.ck-track {
  grid-column: 1 / -1; height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden;
}
.ck-track span { display: block; height: 100%; background: var(--color-accent); }
"""
