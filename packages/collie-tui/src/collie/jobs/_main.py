"""`python -m collie.jobs._main RUN`: forks the supervisor of a run off and ends with 0 once it has taken hold."""

import os
import sys
import traceback
from pathlib import Path

from collie.events import RunFolder
from collie.jobs._supervisor import Supervisor


def main(path: str) -> int:
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
        code = Supervisor(RunFolder(Path(path)), ready).run()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
