"""How a repair changes FastReID: in place, once, and seen by everybody who imported the name."""

import functools
import inspect
import sys
from types import ModuleType
from typing import Any, Callable


def replace(
    owner: Any, attribute: str, make: Callable[[Any], Any], key: str = "", everywhere: bool = True
) -> None:
    """Puts ``make(stock)`` in the place of ``owner.attribute``; a second time does nothing.

    Where the owner is a module, every loaded module that imported the name from it gets the new
    object too, unless `everywhere` is False (for a name that `owner` only imported). A second time
    is recognised by `key`, or by the full name of `make`.
    """
    declared = inspect.getattr_static(owner, attribute)
    # A class method is wrapped unbound: it must stay one of the class that it is called on.
    bound = isinstance(declared, classmethod)
    stock = found = declared.__func__ if bound else getattr(owner, attribute)
    key = key or f"{make.__module__}.{make.__qualname__}"
    while hasattr(found, "__stock__"):  # several repairs may have mended the same name
        if found.__repair__ == key:
            return
        found = found.__stock__
    new = make(stock)
    new.__stock__, new.__repair__ = stock, key
    kind = type(declared) if isinstance(declared, (staticmethod, classmethod)) else None
    setattr(owner, attribute, kind(new) if kind else new)
    if everywhere and isinstance(owner, ModuleType):
        for module in list(sys.modules.values()):
            if getattr(module, "__dict__", {}).get(attribute) is stock:
                setattr(module, attribute, new)


def wrap(owner: Any, attribute: str, call: Callable[..., Any]) -> None:
    """Replaces a function or method by ``call(stock, *args, **kwargs)``, keeping name and docs.

    To a class method the class is passed, before the other arguments: ``stock(cls, ...)``.
    """

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(stock)
        def repaired(*args: Any, **kwargs: Any) -> Any:
            return call(stock, *args, **kwargs)

        return repaired

    replace(owner, attribute, make, key=f"{call.__module__}.{call.__qualname__}")


def own_class(thing: Any) -> Any:
    """The class of this one object: methods that are put there change no other object.

    Derived from what it was at the first call, and the same at every later one.
    """
    kind = type(thing)
    if "__own__" not in vars(kind):
        # The name stays: torch's profiler and FastReID's log show it.
        thing.__class__ = type(kind.__name__, (kind,), {"__own__": True})
    return type(thing)


class Overlay(ModuleType):
    """A module (or what is used as one) as one FastReID module sees it, with names replaced.

    So ``np.bool`` can be given back to the one function that wants it, without changing NumPy for
    the rest of the process.
    """

    def __init__(self, base: Any, **names: Any) -> None:
        super().__init__(getattr(base, "__name__", ""), base.__doc__)
        self.__dict__.update(names, __stock__=base)

    def __getattr__(self, name: str) -> Any:
        """Whatever is not replaced comes from the real module."""
        return getattr(self.__stock__, name)


def overlay(module: ModuleType, attribute: str, **names: Any) -> None:
    """Lets `module` alone see ``module.attribute``, which it imported, with `names` replaced."""
    base = getattr(module, attribute)
    if not isinstance(base, Overlay):
        setattr(module, attribute, Overlay(base, **names))
