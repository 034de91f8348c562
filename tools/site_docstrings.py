"""What the documentation site does to docstrings before it reads them as Markdown.

The roles of Sphinx become plain code (``:func:`attend``` is ``attend``), and the double colon in
front of a block of code goes.
"""

import re

import griffe

ROLE = re.compile(r":\w+:`~?([^`]+)`")
LONE_COLONS = re.compile(r"^[ \t]*::[ \t]*$", re.M)
COLONS = re.compile(r"::[ \t]*$", re.M)


def as_markdown(text):
    """A docstring without what only Sphinx reads.

    Args:
        text: a docstring.
    """
    text = ROLE.sub(r"`\1`", text)
    return COLONS.sub(":", LONE_COLONS.sub("", text))


class AsMarkdown(griffe.Extension):
    """Applies :func:`as_markdown` to the docstrings of everything that has one."""

    def on_object(self, *, obj, **kwargs):
        """Changes the docstring of an object, if it has one.

        Args:
            obj: what griffe has found.
        """
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
