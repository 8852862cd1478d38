"""collie-tui resume and collie-tui adopt: go on with a run that has ended, or that nobody looks after."""

import argparse

from collie.jobs._adopt import adopt
from collie.jobs._json import to_json
from collie.jobs._resume import last_checkpoint, resume
from collie.jobs._summary import summary
from collie.jobs.cli._command import Commands, chosen_run
from collie.jobs.cli._exit import EXIT_CODES
from collie.jobs.cli._run import follow, printer_for


def add(commands: Commands) -> None:
    """Tell the parser of them."""
    parser = commands.add_for_run(
        "resume",
        resume_command,
        help="start a run that has ended again, from its last checkpoint, and follow it",
        description="Start RUN again as the next attempt of the same run: the same command, folder and environment. "
        "Its Trainer goes on from the newest whole checkpoint that it finds.",
    )
    parser.add_argument("--anew", action="store_true", help="begin at the beginning, whatever checkpoints there are")
    parser.add_argument("--detach", action="store_true", help="start the job and return at once")
    commands.add_for_run(
        "adopt",
        adopt_command,
        help="give a supervisor to a run that has none: its own was killed, or plain torchrun started it",
    )


def resume_command(options: argparse.Namespace) -> int:
    """Start the next attempt; follow it to its end unless asked not to."""
    run = chosen_run(options)
    checkpoint = None if options.anew else last_checkpoint(run)
    resume(run, anew=options.anew)
    if not options.json:
        print(
            f"{run.id} begins anew." if checkpoint is None else f"{run.id} goes on; its last checkpoint: {checkpoint}"
        )
    return follow(run, printer_for(options), detach=options.detach)


def adopt_command(options: argparse.Namespace) -> int:
    """Leave a supervisor behind."""
    run = chosen_run(options)
    adopt(run)
    after = summary(run)
    if options.json:
        print(to_json(after.as_dict(), indent=2))
    else:
        print(f"{run.id} has a supervisor: {after.status.sentence()}")
    return EXIT_CODES.get(str(after.status.state), 0)
