"""`behemoth completion`: completion scripts for shells, and how their requests are turned into typer's form.

Output of such a script goes into the command line that is being edited, so its errors are discarded.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Annotated

import typer

from behemoth_cli.commands.candidates import one_of
from behemoth_cli.context import Context
from behemoth_cli.errors import choose

_BASH = """\
_behemoth_completion() {
    local IFS=$'\\n'
    COMPREPLY=($(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _BEHEMOTH_COMPLETE=complete_bash \\
        behemoth 2>/dev/null))
}
complete -o default -F _behemoth_completion behemoth kubectl-behemoth
"""
_ZSH = """\
#compdef behemoth kubectl-behemoth
_behemoth_completion() {
    eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _BEHEMOTH_COMPLETE=complete_zsh behemoth 2>/dev/null)
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _behemoth_completion "$@"
else
    compdef _behemoth_completion behemoth kubectl-behemoth
fi
"""
_FISH = """\
function __behemoth_complete
    env _BEHEMOTH_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=$argv[1] \\
        _TYPER_COMPLETE_ARGS=(commandline -cp) behemoth 2>/dev/null
end
complete --command behemoth --command kubectl-behemoth --no-files --arguments "(__behemoth_complete get-args)" \\
    --condition "__behemoth_complete is-args"
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_HINTS = {
    "bash": "behemoth completion bash > ~/.local/share/bash-completion/completions/behemoth",
    "zsh": 'behemoth completion zsh > "${fpath[1]}/_behemoth"',
    "fish": "behemoth completion fish > ~/.config/fish/completions/behemoth.fish",
}

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def completion(
    ctx: typer.Context,
    shell: Annotated[
        str,
        typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False, autocompletion=one_of(*SCRIPTS)),
    ],
) -> None:
    """Print a completion script for bash, zsh or fish."""
    context: Context = ctx.obj
    choose(shell, SCRIPTS, name="shell")
    context.console.write(SCRIPTS[shell])
    if context.console.is_terminal:
        context.console.note(f"hint: {_HINTS[shell]}")


def straighten(environment: MutableMapping[str, str], *, flags: Sequence[str]) -> None:
    """Puts the question of a script as typer's parser understands it; see `straightened`."""
    if "COMP_WORDS" in environment:
        words, position = environment["COMP_WORDS"].split("\n"), int(environment["COMP_CWORD"])
        if position < len(words):
            words = straightened(words[: position + 1], flags=flags)
            environment["COMP_WORDS"], environment["COMP_CWORD"] = "\n".join(words), str(len(words) - 1)
    elif "_TYPER_COMPLETE_ARGS" in environment:
        words = straightened(environment["_TYPER_COMPLETE_ARGS"].split(" "), flags=flags)
        environment["_TYPER_COMPLETE_ARGS"] = " ".join(words)


def straightened(words: Sequence[str], *, flags: Sequence[str]) -> list[str]:
    """The words of a line up to the one that is asked for. Options of the whole (`flags`, `--color`) may stand
    anywhere, and bash parts `--color=always` at the `=`."""
    program, *before, asked = words if len(words) > 1 else (*words, "")
    if asked == "=":
        asked = ""
    kept: list[str] = []
    rest = iter(word for word in before if word != "=")
    for word in rest:
        if word == "--color":
            if next(rest, None) is None:
                return [program, word, asked]
        elif word not in flags and not word.startswith("--color="):
            kept.append(word)
    return [program, asked] if asked.startswith("--color=") else [program, *kept, asked]
