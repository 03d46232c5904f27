"""The pages' own style sheet; colours are the theme's, so that dark mode follows. And what its markup lacks."""

from clipkit.inference.match_sheet import CSS as TABLES
from demos.plot import CSS as MAP
from demos.run import CSS as RUN

_PAGES = """
.gradio-container { width: 100% !important; max-width: 1200px !important; margin: 0 auto !important; }
.ck-head h1 { margin-bottom: 0; }

/* Galleries: as high as they need to be, below their label, two columns on a phone */
.ck-found .grid-wrap { max-height: none !important; }
.ck-found .grid-container, .ck-upload .grid-container { padding-top: 1.75rem !important; }
.ck-several .grid-container { grid-template-columns: repeat(auto-fill, minmax(5rem, 1fr)) !important; }
/* The line of text below the picture, not over its feet */
.ck-found .caption-label { max-width: 100%; }
.ck-found .thumbnail-lg > img { box-sizing: border-box; padding-bottom: 1.75rem; }
@media (max-width: 640px) { .ck-found .grid-container { --grid-cols: 2 !important; } }

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
.ck-none { margin: 0 0 0.5rem; }
.ck-unknown .ck-track span { opacity: 0.45; }
.ck-track {
  position: relative; grid-column: 1 / -1; height: 8px; border-radius: 4px; overflow: hidden;
  background: var(--border-color-primary);
}
.ck-track span { display: block; height: 100%; background: var(--color-accent); }
.ck-track i { position: absolute; top: 0; bottom: 0; width: 2px; background: var(--body-text-color); }
"""

CSS = TABLES + MAP + RUN + _PAGES

# Gradio gives an upload without a caption no alternative text: its file's name is better than nothing.
HEAD = """
<script>
new MutationObserver(() => {
  for (const image of document.querySelectorAll('.ck-upload img:not([alt]), .ck-upload img[alt=""]'))
    image.alt = decodeURIComponent(image.src.split("/").pop());
}).observe(document, {childList: true, subtree: true});
</script>
"""
