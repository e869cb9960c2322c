"""Commands about the installation: facts for bug reports, and completion in the shell."""

from typing import Literal

from ditlab.cli.terminal import Json, app, print_json, show


@app.command(group="Setup")
def env(*, json: Json = False) -> None:
    """Print versions and hardware, for a bug report. It reads no files of yours and sends nothing.

    Parameters
    ----------
    json
        Print one JSON object.
    """
    from ditlab.core.environment import environment

    facts = environment()
    if json:
        print_json(facts)
        return
    for extra, versions in facts.pop("packages").items():
        facts[extra] = ", ".join(f"{name} {found or 'not installed'}" for name, found in versions.items())
    facts |= facts.pop("variables")
    width = max(map(len, facts))
    for name, value in facts.items():
        show(f"{name:{width}}  {value}")


@app.command(group="Setup")
def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script with which the Tab key completes commands and options of ditlab.

    For bash: ditlab completion bash > ~/.local/share/bash-completion/completions/ditlab; for zsh: write it to a file
    _ditlab in a folder of $fpath; for fish: to ~/.config/fish/completions/ditlab.fish. Then open a new terminal.

    Parameters
    ----------
    shell
        The shell.
    """
    from ditlab.cli import import_commands

    import_commands("")
    show(app.generate_completion(shell=shell))
