"""The command `infer`. One file a command; a command's file is imported when it is called."""

from __future__ import annotations

from infer.cli import interrupts  # isort: skip  it acts before what takes time to import

import contextlib
import errno
import importlib
import io
import os
import re
import signal
import sys
import traceback

import click

from infer.errors import InferError

interrupts.imported()

COMMANDS: dict[str, tuple[str, str]] = {
    "convert": ("infer.cli.convert", "Make an artifact from a trained model, proved equal to it."),
    "inspect": ("infer.cli.inspect", "Show what an artifact is, takes, gives, and what was proved."),
    "run": ("infer.cli.run", "Answer inputs: pictures, texts, rows, or arrays."),
    "eval": ("infer.cli.eval", "Say how good an artifact is, on data whose answers are known."),
    "optimize": ("infer.cli.optimize", "Make an artifact faster on this machine, and prove that it is."),
    "compare": ("infer.cli.compare", "Say where two graphs of one model part."),
    "bench": ("infer.cli.bench", "Say how fast candidates answer, beside each other."),
    "serve": ("infer.cli.serve", "Answer over HTTP."),
    "verify": ("infer.cli.verify", "Prove an artifact again on this machine."),
    "package": ("infer.cli.package", "Write what serves an artifact elsewhere: Triton, KServe, Docker."),
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
    """The entry point. Exit codes: 0 done, 1 the work failed, 2 wrong usage, 128 + n for signal n."""
    interrupts.while_running()
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # an encoding may lack what there is to say
                stream.reconfigure(errors="backslashreplace")
        color = (
            False if os.environ.get("NO_COLOR") else None
        )  # no-color.org; None: where there is a terminal
        # not cli.main(), which ends the program itself when the reader of a pipe goes away
        with cli.make_context("infer", sys.argv[1:], color=color) as context:
            cli.invoke(context)
        sys.stdout.flush()
        status = 0
    except click.exceptions.Exit as end:  # --help and --version end so
        status = end.exit_code
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except InferError as error:
        status = _interrupted() if interrupts.came else _fail(f"{error}.")
    except (KeyboardInterrupt, click.Abort):
        status = _interrupted()
    except BrokenPipeError:
        # the reader of our output went away, which is its right; keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        if interrupts.came and error.errno == errno.EIO:  # the terminal was closed: nobody is told
            sys.exit(interrupts.status())
        where = f" '{error.filename}'" if error.filename else ""
        status = _fail(f"cannot read or write{where}: {error.strerror or error}.")
    except SystemExit as error:
        status = _fail(f"code of the model ended the program (SystemExit: {error}).")
    except MemoryError:
        status = _fail("there is not enough memory for this; give smaller inputs, or fewer at once.")
    except Exception as error:
        if interrupts.came:
            sys.exit(_interrupted())
        if os.environ.get("INFER_TRACEBACK"):
            traceback.print_exc()
        status = _fail(
            f"infer itself failed ({type(error).__name__}: {error}). This is a bug; please report it"
            f" with what INFER_TRACEBACK=1 prints."
        )
    sys.exit(status)


def _interrupted() -> int:
    """Say so to whoever pressed Ctrl-C, not to whoever terminates processes; the exit code."""
    status = interrupts.status()
    if status == 128 + signal.SIGINT:
        click.echo(interrupts.MESSAGE, err=True)
    return status


def _fail(message: str) -> int:
    """Say what went wrong in one paragraph on stderr; the exit code for it."""
    from infer.wording import shown

    message = shown(re.sub(r"\s*\n\s*", " ", f"Error: {message}"))
    with contextlib.suppress(OSError):
        click.echo(message[:-1] if message.endswith("..") else message, err=True)
    return 1
