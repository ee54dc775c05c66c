"""Gathers this Python in a folder from which it runs in any image of this machine's architecture:
python3 portable.py FOLDER PROGRAM

That is the interpreter with its own dynamic loader and libraries, the program with what stands
beside it, and the modules that it has loaded once it has run. FOLDER/start is a link to
the loader. Started as below, it needs nothing else of an image:

    FOLDER/start --inhibit-cache --library-path FOLDER/lib FOLDER/bin/python3 -IS FOLDER/PROGRAM

A program that may write to the image's files must not get into this one: the loader looks nowhere
else for libraries, and not into /etc/ld.so.preload.
"""

import glob
import os
import shutil
import sys
import sysconfig

PRELOAD, NOWHERE = b"/etc/ld.so.preload", b"/proc/-/ld.preload"
EXAMPLE = ["run", "--watch=calls", "--", "true"]


def gather(folder, program):
    """Copies all of it."""
    beside = os.path.dirname(program)
    sys.path.insert(0, beside)
    try:  # some modules are loaded on the way
        __import__(os.path.basename(program)[: -len(".py")]).main(EXAMPLE)
    except SystemExit:
        pass
    home = sysconfig.get_path("stdlib")
    modules = os.path.join("lib", os.path.basename(home))
    places = {os.path.realpath(sys.executable): "bin/python3"}
    for path in glob.glob(os.path.join(beside, "*.py*")):
        places[path] = os.path.basename(path)
    for module in list(sys.modules.values()):
        for path in getattr(module, "__file__", None), getattr(module, "__cached__", None):
            if path and path.startswith(home + os.sep) and os.path.exists(path):
                places[path] = os.path.join(modules, os.path.relpath(path, home))
    with open("/proc/self/maps") as maps:
        mapped = {line.split()[-1] for line in maps if ".so" in line}
    for path in mapped.difference(places):
        name = _linked(path)
        places[path] = os.path.join("lib", name)
        if name.startswith("ld-"):
            loader = places[path]
    os.makedirs(os.path.join(folder, modules, "lib-dynload"))  # or Python warns
    for source, place in places.items():
        target = os.path.join(folder, place)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy2(source, target)
    with open(os.path.join(folder, loader), "r+b") as file:
        content = file.read()
        file.seek(0)
        file.write(content.replace(PRELOAD, NOWHERE))
    os.symlink(loader, os.path.join(folder, "start"))


def _linked(path):
    """The name by which others ask for a library: often that of a symbolic link beside it."""
    folder, name = os.path.split(path)
    aliases = (
        alias
        for alias in sorted(os.listdir(folder))
        if ".so" in alias
        and os.path.realpath(os.path.join(folder, alias)) == os.path.realpath(path)
    )
    return next((alias for alias in aliases if ".so." in alias), name)


if __name__ == "__main__":
    gather(sys.argv[1], os.path.realpath(sys.argv[2]))
