"""How a setting is declared, and how its value is checked.

A class of settings is a frozen dataclass whose fields are made by :func:`setting`::

    @dataclass(frozen=True)
    class RIBSettings(Settings):
        beta: float = setting(5.0, above(0), "Sharpness of the soft assignment.", symbol="beta")

The checks of constructors, the keys of a config, their checks at start and the table in the
documentation all read these fields.
"""

import dataclasses
import difflib
import math
import re
from typing import (
    Any,
    Callable,
    Collection,
    Dict,
    Iterable,
    Iterator,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
    Type,
    TypeVar,
)


class Range(NamedTuple):
    """The values that a setting can have.

    Attributes:
        text: what follows "must be" in an error.
        holds: whether a value is one of them.
    """

    text: str
    holds: Callable[[Any], bool]


class Setting(NamedTuple):
    """What is declared of a setting, except its name and type.

    Attributes:
        default: its value where nobody says another.
        range: its values.
        meaning: Markdown, for the documentation.
        symbol: in the paper or in docs/understand/loss.md; may be empty.
        is_key: whether there is a key for it in a config.
    """

    default: Any
    range: Range
    meaning: str
    symbol: str
    is_key: bool


def setting(
    default: Any, range: Range, meaning: str, *, symbol: str = "", is_key: bool = True
) -> Any:
    """A field of a class of settings; the arguments are those of :class:`Setting`."""
    declared = Setting(default, range, meaning, symbol, is_key)
    return dataclasses.field(default=default, metadata={"setting": declared})


def above(least: float, note: str = "") -> Range:
    """Finite numbers above one."""
    return Range(f"> {least}{_in_brackets(note)}", lambda value: least < value < math.inf)


def at_least(least: float, note: str = "") -> Range:
    """Finite numbers from one on."""
    return Range(f">= {least}{_in_brackets(note)}", lambda value: least <= value < math.inf)


def between(least: float, most: float) -> Range:
    """Numbers from one to another, both included."""
    return Range(f"between {least} and {most}", lambda value: least <= value <= most)


def one_of(*choices: str) -> Range:
    """Some words."""
    return Range(f"one of {', '.join(choices)}", lambda value: value in choices)


def text(expected: str) -> Range:
    """Any text; ``expected`` says what it should be."""
    return Range(expected, lambda value: isinstance(value, str))


yes_or_no = Range("True or False", lambda value: isinstance(value, bool))


def _in_brackets(note: str) -> str:
    return f" ({note})" if note else ""


class SettingError(ValueError):
    """A setting is out of its range.

    Args:
        name: of the field.
        expected: what follows "must be", with the names of other fields in braces.
        value: what came.
    """

    def __init__(self, name: str, expected: str, value: Any) -> None:
        super().__init__(name, expected, value)
        self.name, self.expected, self.value = name, expected, value

    def of_keys(self, node: str) -> str:
        """The message where the settings are keys of a config.

        Args:
            node: where the keys are, such as "MODEL.LOSSES.RIB"; "": at the top.
        """
        expected = re.sub(r"{(\w+)}", lambda name: name[1].upper(), self.expected)
        path = f"{node}.{self.name.upper()}".lstrip(".")
        return f"{path} must be {expected}, but is {self.value!r}."

    def __str__(self) -> str:
        """The message where the settings are arguments."""
        return f"{self.name} must be {re.sub(r'[{}]', '', self.expected)}, got {self.value!r}"


S = TypeVar("S", bound="Settings")


class Settings:
    """Base of the classes of settings: frozen dataclasses, checked when they are made.

    Raises:
        SettingError: a value is out of its range.
    """

    gone: Mapping[str, str] = {}
    """Settings of earlier versions, by name, and what to write instead."""

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, of in declared(type(self)).items():
            if not of.range.holds(getattr(self, name)):
                raise SettingError(name, of.range.text, getattr(self, name))
        for name, expected in self.conflicts():
            raise SettingError(name, expected, getattr(self, name))

    def conflicts(self) -> Iterator[Tuple[str, str]]:
        """Settings that do not go together: a name, and what it must be beside the others."""
        return iter(())


def declared(settings: Type[Settings]) -> Dict[str, Setting]:
    """What is declared of each setting of a class, in order."""
    fields = dataclasses.fields(settings)  # type: ignore[arg-type]
    return {field.name: field.metadata["setting"] for field in fields}


def keys_of(settings: Type[Settings]) -> Dict[str, Any]:
    """The keys of a config that a class of settings declares, with their defaults, in order."""
    return {name.upper(): of.default for name, of in declared(settings).items() if of.is_key}


def from_keys(settings: Type[S], node: Mapping[str, Any], path: str) -> S:
    """The settings that the keys of a config hold.

    Args:
        settings: the class that declares them.
        node: holds the keys, in capital letters; what is declared without a key has its default.
        path: of the node in the config, for messages.

    Raises:
        ValueError: a key is out of its range; the message names it, what was expected, and the
            value.
    """
    try:
        return settings(**{key.lower(): node[key] for key in keys_of(settings)})
    except SettingError as error:
        raise ValueError(error.of_keys(path)) from None


def did_you_mean(written: str, known: Iterable[str]) -> str:
    """``" Did you mean 'DCS'?"``, or an empty string if nothing is close; case does not matter."""
    by_case = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(written).lower(), list(by_case), n=1, cutoff=0.5)
    return f" Did you mean '{by_case[close[0]]}'?" if close else ""


def check_settings(
    owner: str,
    given: Iterable[str],
    known: Collection[str],
    gone: Optional[Mapping[str, str]] = None,
) -> None:
    """Checks the names of keyword arguments that `owner` takes as settings.

    Raises:
        TypeError: one of them is not a setting, or not any more (`gone` says what to write).
    """
    for name in given:
        if gone and name in gone:
            raise TypeError(f"{owner} no longer has the setting '{name}'. {gone[name]}")
        if name not in known:
            raise TypeError(
                f"{owner} has no setting '{name}'.{did_you_mean(name, known)} It has "
                f"{', '.join(known) or 'none'}."
            )
