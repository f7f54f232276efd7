#!/usr/bin/env python3
"""Holds the rooms of src/ to their tiers: reads every #include and prints each one that breaks a wall.

A room includes only rooms of a strictly lower tier, and third-party names stay in the rooms listed
here. This table is the one place; docs/architecture.md explains it.

    tools/check_rooms.py [REPOSITORY]     exit code 1 if there is an offence
"""

import pathlib
import re
import sys

TIERS = {
    "base": 0,
    "spec": 1,
    "memory": 1,
    "text": 2,
    "checkpoint": 2,
    "fabric": 2,
    "ops": 2,
    "protocol": 2,
    "scoring": 3,
    "experts": 3,
    "cluster": 3,
    "kvcache": 3,
    "routing": 3,
    "workplane": 4,
    "model": 4,
    "engine": 5,
    "scheduler": 6,
    "gateway": 6,
    "planner": 7,
    "apps": 8,
}

# Headers that start with the first part may be included only below these paths of src/.
WALLS = {
    "CLI/": ["apps/"],
    "boost/asio": ["gateway/", "apps/demo", "apps/load"],
    "boost/beast": ["gateway/", "apps/demo", "apps/load"],
    "boost/json": ["text/", "checkpoint/", "gateway/", "apps/"],
    "dnnl": ["ops/cpu/"],
    "oneapi/dnnl": ["ops/cpu/"],
    "hwy/": ["ops/cpu/"],
    "immintrin.h": ["ops/cpu/"],
    "x86intrin.h": ["ops/cpu/"],
    "omp.h": ["ops/cpu/"],
    "pcre2": ["text/"],
    "utf8proc": ["text/"],
    "prometheus/": ["base/"],
    "spdlog/": ["base/"],
    "liburing": ["fabric/"],
    "ucp/": ["fabric/"],
    "ucs/": ["fabric/"],
    "uct/": ["fabric/"],
    "xxhash": ["base/"],
    "grpc": ["cluster/", "workplane/"],
    "google/protobuf": ["cluster/", "workplane/"],
    "cluster/control_plane": ["cluster/"],
    "workplane/work_plane": ["workplane/"],
    "openssl/": ["cluster/"],
}

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')


def room_offence(room, header):
    """Why `room` must not include `header`, or None."""
    included = header.split("/")[0]
    if "/" not in header or included not in TIERS or included == room:
        return None
    if TIERS[included] < TIERS[room]:
        return None
    return f"{room} (tier {TIERS[room]}) must not include {included} (tier {TIERS[included]})"


def wall_offence(path, header):
    """Why the file at `path` (below src/) must not include `header`, or None."""
    for prefix, allowed in WALLS.items():
        if header.startswith(prefix) and not any(path.startswith(place) for place in allowed):
            return f"<{prefix}...> belongs to {', '.join(allowed)} alone"
    return None


def check_file(path, lines):
    """The offences of one file, as (line number, header, why)."""
    room = path.split("/")[0]
    if room not in TIERS:
        return [(1, "", f"room {room} has no tier in tools/check_rooms.py")]
    offences = []
    for number, line in enumerate(lines, start=1):
        match = INCLUDE.match(line)
        if not match:
            continue
        header = match.group(1)
        why = room_offence(room, header) or wall_offence(path, header)
        if why:
            offences.append((number, header, why))
    return offences


def check_tree(repository):
    """All offences below REPOSITORY/src, as printable lines; and how many files were read."""
    source = pathlib.Path(repository) / "src"
    files = sorted(path for suffix in ("*.h", "*.cc") for path in source.rglob(suffix))
    lines = []
    for file in files:
        path = file.relative_to(source).as_posix()
        for number, header, why in check_file(path, file.read_text(encoding="utf-8").splitlines()):
            lines.append(f"src/{path}:{number}: {header}: {why}")
    return lines, len(files)


def main(arguments):
    repository = arguments[0] if arguments else pathlib.Path(__file__).resolve().parent.parent
    offences, file_count = check_tree(repository)
    for offence in offences:
        print(offence)
    if file_count == 0:
        print(f"no sources below {repository}/src")
        return 1
    print(f"rooms: {file_count} files, {len(offences)} offences")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
