"""The command ``python -m datasets.manifests``.

    python -m datasets.manifests meld FOLDER OUT.csv

reads the label form in which a set is published and writes a manifest (path, text, label.TASK, split, start, end),
which ``python -m datasets.prepare OUT.csv SHARDS`` takes. Every row or file that is missing, extra, double, empty, of
no length, malformed, without a label or known to be broken is listed in ``OUT.problems.csv``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets.console import quiet_end
from datasets.manifests.meld import read_meld
from datasets.manifests.rows import EXTRA, Found, ManifestError, write_manifest
from datasets.manifests.speech import read_crema_d, read_iemocap, read_mosei, read_ravdess
from datasets.manifests.vggsound import read_vggsound
from home_paths import command_line
from terminal import show_control_characters

READERS: dict[str, Callable[[Path], Found]] = {
    "meld": read_meld,
    "crema_d": read_crema_d,
    "ravdess": read_ravdess,
    "iemocap": read_iemocap,
    "mosei": read_mosei,
    "vggsound": read_vggsound,
}


@quiet_end()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m datasets.manifests``."""
    show_control_characters()
    parser = argparse.ArgumentParser(
        prog="python -m datasets.manifests",
        description="From a published set's label form to a manifest.",
        allow_abbrev=False,
    )
    parser.add_argument("form", choices=sorted(READERS), help="whose form the labels have")
    parser.add_argument("folder", type=Path, help="the set as it was unpacked")
    parser.add_argument("out", type=Path, help="the manifest to write, a CSV")
    parser.add_argument("--recut", action="store_true", help="MELD: use the re-cut test clips")
    options = parser.parse_args(command_line(arguments))
    if options.recut and options.form != "meld":
        parser.error("--recut is of meld alone")
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    try:
        found = (
            read_meld(options.folder, recut=True) if options.recut else READERS[options.form](options.folder)
        )
        if not found.rows:
            extra = [problem.where for problem in found.problems if problem.kind == EXTRA][:2]
            found_instead = f"found are files such as {', '.join(extra)}" if extra else "nor any other video"
            raise ManifestError(f"{options.folder} holds no clip of {options.form}, {found_instead}")
        problems = write_manifest(found, options.out)
    except (ManifestError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    counts = Counter(problem.kind for problem in found.problems)
    print(f"{options.out}: {len(found.rows)} rows")
    if counts:
        print(f"  {', '.join(f'{kind} {count}' for kind, count in counts.most_common())} (see {problems})")
    print(f"  next: python -m datasets.prepare {options.out} SHARDS --min_seconds 0.1")
