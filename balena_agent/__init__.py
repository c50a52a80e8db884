"""balena_agent: keeps the applications of a device in the state that its target asks for."""

__version__ = "0.1.0"
