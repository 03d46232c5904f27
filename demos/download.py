"""JavaScript of the download buttons: the browser has the result already, so no file of it is made on the server."""

from __future__ import annotations

# A field that starts like a formula is one to a spreadsheet, so it gets an apostrophe in front.
_CSV = r"""rows.map(cells => cells.map(cell => {
  const text = String(cell ?? ""), formula = /^[=+@\t\r-]/.test(text) && !/^-?[0-9.]+$/.test(text);
  return '"' + (formula ? "'" : "") + text.replaceAll('"', '""') + '"';
}).join(",")).join("\r\n")"""


def json_button(name: str) -> str:
    """For an event's ``js`` with a JSON component as its input: saves what it holds as ``name``.json."""
    return _save(f"{name}.json", "application/json", "JSON.stringify(data, null, 2)")


def csv_button(name: str, rows: str) -> str:
    """Likewise as ``name``.csv.

    Args:
        rows: JavaScript that makes a list of lists of cells, the head among them, of ``data``.
    """
    return _save(f"{name}.csv", "text/csv", f"(rows => {_CSV})({rows})")


def _save(file: str, kind: str, expression: str) -> str:
    return f"""(data) => {{
        if (data === null || data === undefined || data === "") return;
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([{expression}], {{type: "{kind}"}}));
        link.download = "{file}";
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }}"""
