#!/bin/sh
# Runs QEMU on the standard streams, and ends it with the input: nobody is attached any more.
#
#     start.sh QEMU OPTION...
set -eu
"$1" --version >&2
mkfifo /tmp/port
"$@" </tmp/port &
qemu=$!
exec 3<&0
{
    cat >/tmp/port || :
    kill -KILL "$qemu"
} <&3 &
wait "$qemu"
