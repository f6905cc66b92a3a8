"""The command `infer`. One file a command; a command's file is imported when it is called."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import traceback

import click

from infer.errors import InferError

COMMANDS: dict[str, tuple[str, str]] = {
    "convert": ("infer.cli.convert", "Make an artifact from a trained model, proved equal to it."),
    "inspect": ("infer.cli.inspect", "Show what an artifact is, takes, gives, and what was proved."),
    "run": ("infer.cli.run", "Answer inputs: pictures, texts, rows, or arrays."),
    "verify": ("infer.cli.verify", "Prove an artifact again on this machine."),
    "doctor": ("infer.cli.doctor", "Say what this machine can run, and what is in the way."),
}
"""Command → its module, and its line in the list of commands (kept here to keep --help fast)."""


class _Commands(click.Group):
    """Commands from the table, imported when needed; errors of ours in one paragraph, never a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="infer-onnx", prog_name="infer")
def cli() -> None:
    """From a trained PyTorch model to fast inference that is proved equal to it.

    \b
    Examples:
      infer convert net.py:Net --weights net.safetensors --input x=2x10 -o net.infer
      infer convert ./my-bert-folder -o bert.infer
      infer run bert.infer --text "a sentence"
      infer verify bert.infer
    """


def main() -> None:
    """The entry point. Exit codes: 0 done, 1 the work failed, 2 wrong usage, 130 interrupted."""
    try:
        status = cli.main(prog_name="infer", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        error.show()
        status = 2
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except InferError as error:
        _say(f"Error: {error}.")
        status = 1
    except (KeyboardInterrupt, click.Abort):
        _say("Interrupted. Nothing was left half done.")
        status = 130
    except BrokenPipeError:
        # the reader of our output went away, which is its right; keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        _say(f"Error: cannot read or write{where}: {error.strerror or error}.")
        status = 1
    except SystemExit as error:
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # click's answer to a broken pipe
            status = 0
        else:
            _say(f"Error: code of the model ended the program (SystemExit: {error}).")
            status = 1
    except MemoryError:
        _say("Error: there is not enough memory for this; give smaller inputs, or fewer at once.")
        status = 1
    except Exception as error:
        if os.environ.get("INFER_TRACEBACK"):
            traceback.print_exc()
        _say(
            f"Error: infer itself failed ({type(error).__name__}: {error}). This is a bug; please report it"
            f" with what INFER_TRACEBACK=1 prints."
        )
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def _say(message: str) -> None:
    """One paragraph on stderr."""
    from infer.cli.output import shown

    message = shown(re.sub(r"\s*\n\s*", " ", message))
    with contextlib.suppress(OSError):
        click.echo(message[:-1] if message.endswith("..") else message, err=True)
