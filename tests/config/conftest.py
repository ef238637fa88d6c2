"""The toy project."""

from toy_project import command, conf, fake_run, trained  # noqa: F401
