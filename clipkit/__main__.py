"""``python -m clipkit`` is the ``clipkit`` command."""

from clipkit.cli import entry

entry()
