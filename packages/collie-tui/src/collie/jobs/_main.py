"""`python -m collie.jobs._main RUN [--adopt]`: forks a run's supervisor off, ends with 0 once it has taken hold."""

import os
import sys
import traceback
from pathlib import Path

from collie.events import RunFolder
from collie.jobs._adopt import found_processes
from collie.jobs._supervisor import Supervisor


def main(path: str, *, adopt: bool = False) -> int:
    """Fork twice removed from whoever asked: the supervisor has no parent that could take it along, and no terminal."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        return 0 if os.read(reading, 1) else 1
    os.close(reading)

    def ready() -> None:
        os.write(writing, b"1")
        os.close(writing)

    code = 1
    try:
        run = RunFolder(Path(path))
        code = Supervisor(run, ready, found_processes(run) if adopt else None).run()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], adopt="--adopt" in sys.argv[2:]))
