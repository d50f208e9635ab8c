"""The dashboards as data: a module each, in words of ``parts``."""
