"""Write pairs (signature → first sentence of its documentation) from the Python standard library of this interpreter.

    python demo/stdlib_pairs.py FOLDER

FOLDER gets train.jsonl and held_out.jsonl, rows {"input", "output", "module"}. The split is by module: no function of a
held-out module is in the training rows. The same interpreter always writes the same rows.
"""

import argparse
import importlib
import inspect
import json
import pathlib
import re
import warnings
from collections.abc import Iterator

TRAIN = """
    abc argparse array ast asyncio.tasks base64 bdb binascii bisect calendar cmd code codecs collections colorsys
    compileall concurrent.futures configparser contextlib copy csv dataclasses datetime decimal difflib dis doctest
    email.message email.utils enum filecmp fileinput fnmatch fractions ftplib functools getpass gettext glob gzip
    heapq hmac html http.client http.cookies imaplib importlib.util inspect io ipaddress itertools json linecache locale
    logging lzma mailbox math mimetypes multiprocessing.pool netrc numbers operator os optparse pathlib pdb pickle
    pickletools pkgutil platform plistlib poplib posixpath pprint profile pstats queue quopri random re reprlib sched
    secrets selectors shelve shlex shutil signal smtplib socket sqlite3 ssl stat string subprocess symtable sysconfig
    tarfile tempfile textwrap threading timeit token tokenize trace traceback types typing unittest.case unittest.mock
    urllib.parse urllib.request uuid venv warnings wave weakref webbrowser xml.dom.minidom xml.etree.ElementTree
    xmlrpc.client zipapp zlib
""".split()  # noqa: SIM905 (one name a line would fill two pages)
HELD_OUT = ["bz2", "cmath", "copyreg", "fcntl", "graphlib", "hashlib", "statistics", "unicodedata", "zipfile"]
LONGEST_INPUT, LONGEST_OUTPUT = 100, 110  # characters: a row stays near 60 tokens


def first_sentence(text: str) -> str | None:
    """The first sentence of a docstring on one line, or None where there is none worth learning."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    match = re.match(r"(.+?\.)(?:\s|$)", paragraph)
    sentence = match.group(1) if match else paragraph
    plain = sentence[:1].isalpha() and sentence.isascii() and "->" not in sentence
    return sentence if plain and 15 <= len(sentence) <= LONGEST_OUTPUT else None


def functions(module_name: str) -> Iterator[tuple[str, object]]:
    """Public functions of a module and public methods of its public classes, in order of their names."""
    try:
        module = importlib.import_module(module_name)
    except ImportError:  # not built into this interpreter
        return
    for name, member in sorted(vars(module).items()):
        if name.startswith("_"):
            continue
        home = getattr(member, "__module__", None)
        if home not in (module_name, f"_{module_name}", module_name.split(".")[0]):
            continue
        if inspect.isroutine(member):
            yield f"{module_name}.{name}", member
        elif inspect.isclass(member):
            for method, function in sorted(vars(member).items()):
                if not method.startswith("_") and inspect.isroutine(function):
                    yield f"{module_name}.{name}.{method}", function


def pairs(module_name: str) -> Iterator[dict[str, str]]:
    """The rows of one module."""
    for name, function in functions(module_name):
        function = getattr(function, "__func__", function)
        try:
            signature = str(inspect.signature(function))
        except (TypeError, ValueError):  # some builtins do not tell
            continue
        sentence = first_sentence(inspect.getdoc(function) or "")
        if sentence is None or len(name + signature) > LONGEST_INPUT or " at 0x" in signature:
            continue
        yield {"input": f"def {name}{signature}:\n    ", "output": f'"""{sentence}"""', "module": module_name}


def collect(modules: list[str], known: set[str]) -> list[dict[str, str]]:
    """The rows of some modules, each sentence once: `known` holds those that are taken already."""
    rows = []
    for module in modules:
        for row in pairs(module):
            if row["output"] not in known:
                known.add(row["output"])
                rows.append(row)
    return rows


def write_pairs(folder: pathlib.Path) -> None:
    """Write train.jsonl and held_out.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    sentences: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        held_out = collect(HELD_OUT, sentences)
        train = collect(TRAIN, sentences)
    for name, rows in (("held_out.jsonl", held_out), ("train.jsonl", train)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(train)} pairs of {len(TRAIN)} modules to train on, {len(held_out)} of {len(HELD_OUT)} others held out")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    write_pairs(parser.parse_args().folder)
