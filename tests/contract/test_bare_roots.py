"""`make run` on a bare Debian, with what the README asks for and nothing else.

A root is made by mmdebstrap(1), with the mirror that this machine uses, and kept in the cache. Each
test unpacks it, puts this checkout in, and enters it by namespaces of its own. The network is the
machine's, since pip needs it; and pip's settings are the machine's, too.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from labctl.backends import debian
from labctl.backends.lease import alone
from labctl.ground.errors import LabError
from labctl.run.guests import assembled

pytestmark = [
    pytest.mark.netns, pytest.mark.slow, pytest.mark.ci, pytest.mark.xdist_group("bare roots"),
]  # fmt: skip

ROOT = Path(__file__).parents[2]
MINUTES = 10 * 60
LEFT_BEHIND = (".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "build", "dist")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER = 1000

# In a mount namespace: $1 is the root, $2 who is to run it, the others are FILE or FOLDER of this
# machine that stands at the same place there. It comes to the root by pivot_root(2): in a chroot(2)
# nobody may make user namespaces, which is what an unprivileged labctl does.
ENTER = """
root=$1 user=$2; shift 2
mount --bind "$root" "$root"
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

# What a newcomer does: the README's command, and then what its last line says.
NEWCOMER = """\
#!/bin/sh -e
cd /home/labctl
make run > /home/output || { status=$?; cat /home/output; exit $status; }
cat /home/output
command=$(tail -n 1 /home/output)
case $command in *"see it all: "*) ;; *) exit 99;; esac
sh -c "${command##*see it all: }"
"""


def packages() -> str:
    """What the README has installed, as mmdebstrap takes it."""
    (found,) = re.findall(r"apt-get install ([\w. -]+)", (ROOT / "README.md").read_text("utf-8"))
    return ",".join(found.split())


def prefix() -> list[str]:
    """How to be somebody who may mount, and who owns several uids; root is."""
    if os.geteuid() == 0:
        return []
    return ["unshare", "--user", "--map-root-user", "--map-auto", "--"]


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


@pytest.fixture
def unpacked(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Unpacks a suite's root, with this checkout in it; it is removed in the end."""
    root = tmp_path / "root"

    def unpack(suite: str) -> Path:
        root.mkdir()
        options = ["--extract", "--exclude=./dev/*", "--numeric-owner", "--preserve-permissions"]
        command = [*prefix(), "tar", *options, f"--file={made(suite)}", f"--directory={root}"]
        subprocess.run(command, check=True, capture_output=True)
        source = tmp_path / "labctl"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        (tmp_path / "enter").write_text(
            NEWCOMER.replace("\ncd", f"\nexport {shlex.join(variables())}\ncd", 1)
        )
        (tmp_path / "enter").chmod(0o755)
        for path in (source, tmp_path / "enter"):
            command = [*prefix(), "cp", "-r", str(path), str(root / "home")]
            subprocess.run(command, check=True, capture_output=True)
        return root

    yield unpack
    subprocess.run([*prefix(), "rm", "-rf", str(root)], check=True, capture_output=True)


def variables() -> list[str]:
    return [f"{name}={value}" for name, value in pip_settings().items()]


@pytest.mark.parametrize("user", [0, USER], ids=["root", "user"])
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_newcomer_sees_the_demo(suite: str, user: int, unpacked: Callable[[str], Path]) -> None:
    root = unpacked(suite)
    spaces = ["unshare", *prefix()[1:-1], "--mount", "--pid", "--ipc", "--fork", "--kill-child"]
    files = [path for path in files_of(pip_settings()) if not path.startswith(("/proc", "/sys"))]
    done = subprocess.run(
        [*spaces, "sh", "-ec", ENTER, "sh", str(root), str(user), *files],
        env={"PATH": PATH, "HOME": "/home"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=MINUTES,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    demo, _, ladder = done.stdout.partition("see it all: .venv/bin/labctl report ")
    assert "PASS" in demo and "on netns" in demo
    assert "FIN" in ladder and "│" in ladder
