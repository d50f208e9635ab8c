"""A completion script for bash, generated from the parser itself."""

from __future__ import annotations

import argparse

HEAD = """# bash completion for csnap; made by: csnap completion bash
_csnap() {
    local current="${COMP_WORDS[COMP_CWORD]}" line="${COMP_WORDS[*]:1:COMP_CWORD-1}" words=""
    case "$line" in
"""
TAIL = """    esac
    COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current"))
}
complete -o filenames -F _csnap csnap
"""


def bash(parser: argparse.ArgumentParser) -> str:
    """Return the script: the words that may follow each command, and file names."""
    cases: list[tuple[str, list[str]]] = []
    _walk(parser, "", cases)
    # Longer commands first: bash takes the first pattern that matches.
    lines = [
        f'        "{path}"*) words="{" ".join(words)}" ;;\n' for path, words in sorted(cases, reverse=True) if path
    ]
    lines += [f'        "") words="{" ".join(words)}" ;;\n' for path, words in cases if not path]
    return HEAD + "".join(lines) + TAIL


def _walk(parser: argparse.ArgumentParser, path: str, cases: list[tuple[str, list[str]]]) -> None:
    words = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words = list(action.choices)
            for name, child in action.choices.items():
                _walk(child, f"{path} {name}".strip(), cases)
    cases.append((path, words))
