"""The error of what a user can mend."""


class ConfigError(ValueError):
    """A config that cannot be used; the message is one sentence for the user."""
