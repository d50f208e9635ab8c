"""A completion script for bash, generated from the parser itself."""

from __future__ import annotations

import argparse

from snapd.config import DIRECTORY

HEAD = """# bash completion for csnap; made by: csnap completion bash
_csnap() {
    local current="${COMP_WORDS[COMP_CWORD]}" line="${COMP_WORDS[*]:1:COMP_CWORD-1} "
    local command="" words="" options="" file
    case "$line" in
"""
TAIL = f"""    esac
    if [[ "$current" == -* ]]; then
        words="$options"
    elif [[ "$line" != "$command" ]]; then
        words=""
    elif [[ "$words" == CONFIG ]]; then
        words=""
        for file in {DIRECTORY}/*.toml; do
            [[ -e "$file" ]] && file="${{file##*/}}" && words+=" ${{file%.toml}}"
        done
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}
complete -o default -F _csnap csnap
"""
"""Where it has no words (``-o default``), readline completes names of files."""


def bash(parser: argparse.ArgumentParser) -> str:
    """Return the script: subcommands, volumes where a CONFIG belongs, options, and names of files everywhere else."""
    cases: list[tuple[str, str, str]] = []
    _walk(parser, "", cases)
    # Longer commands first: bash takes the first pattern that matches.
    lines = [
        f'        "{path}"*) command="{path}" words="{words}" options="{options}" ;;\n'
        for path, words, options in sorted(cases, reverse=True)
    ]
    return HEAD + "".join(lines) + TAIL


def _walk(parser: argparse.ArgumentParser, path: str, cases: list[tuple[str, str, str]]) -> None:
    """``path`` ends with a blank; the case without one is the last, and of csnap itself: its line is one blank."""
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    words = ""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words = " ".join(action.choices)
            for name, child in action.choices.items():
                _walk(child, f"{path}{name} ", cases)
        elif not action.option_strings and not words:  # what comes first
            words = " ".join(action.choices or ()) or ("CONFIG" if action.metavar == "CONFIG" else "")
    cases.append((path or " ", words, " ".join(options)))
