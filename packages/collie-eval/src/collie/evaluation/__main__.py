"""`python -m collie.evaluation`: what torchrun starts on every rank of collie-eval."""

import sys

from collie.evaluation._main import main

if __name__ == "__main__":
    sys.exit(main())
