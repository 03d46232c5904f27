"""``clipkit explain``: a method's table of the comparison for a real batch, to look at.

``samples.py`` draws a small batch where no data are given; ``sides.py`` says what each row and column is;
``table.py`` reads roles and gradients off the recipe's own comparison and objective; ``words.py`` puts them into
sentences; ``text.py``, ``page.py`` and ``markdown.py`` show them.
"""
