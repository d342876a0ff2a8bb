"""coordvlm: teach Qwen vision-language models to say where things are, and show honestly which way of teaching works."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordvlm.api import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """``coordvlm.load``, looked up when it is used: importing the package stays cheap."""
    if name == "load":
        from coordvlm.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
