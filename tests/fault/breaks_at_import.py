"""A program whose import fails, as after a forgotten installation."""

raise ImportError("no module named nvidia_magic")
