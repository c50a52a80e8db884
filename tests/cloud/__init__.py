"""A small cloud for the tests: what a device asks for, and a record of what it asked."""

from .fake import FakeCloud, Recorded

__all__ = ["FakeCloud", "Recorded"]
