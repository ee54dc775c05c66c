"""The main scenario on a bare Debian, with what the README asks for and nothing else: from a
checkout by `make run`, and from the wheel in an environment of its own.

A root is made by mmdebstrap(1), with the mirror that this machine uses, and kept in the cache. Each
test enters namespaces of its own, unpacks it there into memory, and puts the checkout or the wheel
in. The network is the machine's, since pip needs it; and pip's settings are the machine's, too.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from labctl.backends import debian
from labctl.backends.lease import alone
from labctl.ground.errors import LabError
from labctl.run.guests import assembled
from tests import CI

pytestmark = [
    pytest.mark.netns, pytest.mark.slow, pytest.mark.ci, pytest.mark.xdist_group("bare roots"),
]  # fmt: skip

ROOT = Path(__file__).parents[2]
MINUTES = 10 * 60
LEFT_BEHIND = (".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "build", "dist")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER = 1000

# In a mount namespace, with which all of it goes: $1 is an empty folder, $2 an archive of the root,
# $3 who is to run it, $4 and $5 what is put in, the others are FILE or FOLDER of this machine that
# stands at the same place there. It comes to the root by pivot_root(2): in a chroot(2) nobody may
# make user namespaces, which is what an unprivileged labctl does.
ENTER = """
root=$1 archive=$2 user=$3
mount -t tmpfs -o mode=755 tmpfs "$root"
tar --extract --exclude='./dev/*' --numeric-owner --preserve-permissions --file="$archive" \\
    --directory="$root"
cp -r "$4" "$5" "$root/home"
shift 5
for path; do
    if test -d "$path"; then mkdir -p "$root$path"
    else mkdir -p "$root${path%/*}"; touch "$root$path"; fi
    mount --bind "$path" "$root$path"
done
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
chown -R "$user:$user" "$root/home"
cd "$root"
pivot_root . mnt
umount --lazy /mnt
exec setpriv --reuid "$user" --regid "$user" --clear-groups /home/enter
"""

# What a newcomer does: what the README says, and then what the last line of that says.
NEWCOMER = """\
#!/bin/sh -e
export {variables}
cd /home/{folder}
{{ {commands}; }} > /home/output || {{ status=$?; cat /home/output; exit $status; }}
cat /home/output
command=$(tail -n 1 /home/output)
case $command in *"see it all: "*) ;; *) exit 99;; esac
sh -c "${{command##*see it all: }}"
"""
MAKE = "make run"
WHEEL = """\
python3 -m venv fresh && fresh/bin/pip install --quiet *.whl &&
    fresh/bin/labctl run fin_wait_2"""
PROGRAMS = {MAKE: ".venv/bin/labctl", WHEEL: "fresh/bin/labctl"}


def packages() -> str:
    """What the README has installed, as mmdebstrap takes it."""
    (found,) = re.findall(r"apt-get install ([\w. -]+)", (ROOT / "README.md").read_text("utf-8"))
    return ",".join(found.split())


def mapped() -> list[str]:
    """How unshare(1) makes somebody who may mount, and who owns several uids; root is."""
    return [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-auto"]


def made(suite: str) -> Path:
    """The root of a suite, from the cache; skips where none can be had, with the reason."""
    key = sha256(f"{suite} {packages()}".encode()).hexdigest()[:12]
    folder = debian.cache() / "bare" / f"{suite}-{key}"
    with alone("bare roots", print):
        if folder.exists():
            return folder / "root.tar"
        try:
            with assembled(folder) as new:
                archive = new / "root.tar"

                def take(tree: debian.Tree) -> None:
                    with archive.open("wb") as out:
                        while data := tree.read(1 << 20):
                            out.write(data)

                words = ["--variant=minbase", f"--include={packages()}", suite, "-"]
                debian.bootstrap(suite, words, take, print)
        except LabError as exc:
            pytest.skip(str(exc))
    return folder / "root.tar"


def pip_settings() -> dict[str, str]:
    """pip's settings on this machine, as variables: its index, its certificates."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    found = {}
    for line in asked.stdout.splitlines():
        name, _, value = line.partition("=")
        name = name.rpartition(".")[2].upper().replace("-", "_")
        found[f"PIP_{name}"] = " ".join(str(ast.literal_eval(value)).split())
    wanted = re.compile(r"(?i)(http|https|no|all)_proxy|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE")
    return found | {name: value for name, value in os.environ.items() if wanted.fullmatch(name)}


def files_of(settings: dict[str, str]) -> list[str]:
    """The files and folders that settings name, and those that names are resolved by. An index has
    its files beside it."""
    words = [word for value in settings.values() for word in value.split()]
    words = [str(Path(w[7:]).parent) if w.startswith("file://") else w for w in words]
    named = [word for word in words if word.startswith("/") and Path(word).exists()]
    here = [path for path in ("/etc/resolv.conf", "/etc/hosts") if Path(path).exists()]
    return list(dict.fromkeys([*here, *named]))


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is put into a root for each way: a copy of this checkout, and the wheel of it."""
    folder = tmp_path_factory.mktemp("brought")
    shutil.copytree(ROOT, folder / "labctl", ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not CI:
        pytest.skip(f"the package can't be built: {done.stdout.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return {MAKE: folder / "labctl", WHEEL: wheel}


@pytest.mark.parametrize(
    ("suite", "user", "commands"),
    [
        ("bookworm", 0, MAKE),
        ("bookworm", USER, WHEEL),
        ("trixie", 0, WHEEL),
        ("trixie", USER, MAKE),
    ],
    ids=["bookworm-root-make", "bookworm-user-wheel", "trixie-root-wheel", "trixie-user-make"],
)
def test_a_newcomer_sees_the_demo(
    suite: str, user: int, commands: str, brought: dict[str, Path], tmp_path: Path
) -> None:
    root, enter = tmp_path / "root", tmp_path / "enter"
    root.mkdir()
    folder = "labctl" if commands == MAKE else ""
    variables = shlex.join(f"{name}={value}" for name, value in pip_settings().items())
    enter.write_text(NEWCOMER.format(variables=variables, folder=folder, commands=commands))
    enter.chmod(0o755)
    spaces = ["unshare", *mapped(), "--mount", "--pid", "--ipc", "--fork", "--kill-child"]
    files = [path for path in files_of(pip_settings()) if not path.startswith(("/proc", "/sys"))]
    words = [root, made(suite), user, brought[commands], enter, *files]
    done = subprocess.run(
        [*spaces, "sh", "-ec", ENTER, "sh", *map(str, words)],
        env={"PATH": PATH, "HOME": "/home"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=MINUTES,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    demo, _, ladder = done.stdout.partition(f"see it all: {PROGRAMS[commands]} report ")
    assert "PASS" in demo and "on netns" in demo
    assert "FIN" in ladder and "│" in ladder
