"""Settings that are chosen by their name; a file of the user's own may add to them."""

from typing import Any, Generic, TypeVar

import pydantic

from dit_moe.config.rules import ConfigError, describe

T = TypeVar("T")
S = TypeVar("S")


class Registry(Generic[T]):
    """The pydantic dataclasses that a field of a config may hold, by the default of their `name`.

    Args:
      kind: what they have in common: the class that all derive from.
    """

    def __init__(self, kind: type[T]):
        self._kind = kind
        self._classes: dict[str, type[T]] = {}

    def add(self, settings: type[S]) -> type[S]:
        """Makes a class known; a decorator.

        Raises:
          ValueError: its name is taken by another class.
        """
        name = settings.__dataclass_fields__["name"].default  # pyright: ignore
        known = self._classes.get(name, settings)
        if known.__qualname__ != settings.__qualname__:
            raise ValueError(f"{name!r} is the name of {known.__qualname__} already")
        # The file that defines it may run more than once.
        self._classes[name] = settings  # pyright: ignore[reportArgumentType]
        return settings

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order in which they were added."""
        return tuple(self._classes)

    def __getitem__(self, name: str) -> type[T]:
        """The class of this name.

        Raises:
          ConfigError: there is none.
        """
        if name not in self._classes:
            allowed = ", ".join(map(repr, self._classes))
            raise ConfigError(f"name is {name!r}; allowed: {allowed}, or what --extend adds")
        return self._classes[name]

    def parse(self, value: Any) -> T:
        """Settings from plain values, validated; settings as they are.

        Raises:
          ConfigError: naming the first wrong field.
        """
        if isinstance(value, self._kind):
            return value
        if not isinstance(value, dict):
            raise ConfigError(f"name is missing in {value!r}; allowed: fields by name")
        settings = self[str(value.get("name"))]
        try:
            return pydantic.TypeAdapter(settings).validate_python(value)
        except pydantic.ValidationError as error:
            raise ConfigError(describe(error)) from None
