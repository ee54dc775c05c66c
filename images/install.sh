#!/bin/sh
# Installs what an image of the lab needs, by whatever package manager its base has.
#
#     install.sh PROGRAM...
#
# Where all of it is there already, it does nothing: such a base needs no network.
set -eu

complete() {
    for program in "$@"; do
        command -v "$program" >/dev/null || return 1
    done
    # Some distributions split the standard library, and the lab's programs need these.
    python3 -c 'import argparse, ctypes, json' 2>/dev/null
}

# The packages of a program: Debian's and Alpine's name, or Fedora's.
packages() {
    for program in "$@"; do
        case $program in
            ip | ss | tc) test "$manager" = dnf && echo iproute iproute-tc || echo iproute2 ;;
            nft) echo nftables ;;
            *) echo "$program" ;;
        esac
    done | sort -u
}

complete "$@" && exit
if command -v apt-get >/dev/null; then
    manager=apt
    apt-get update
    # shellcheck disable=SC2046 # a word a package
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(packages "$@")
    rm -rf /var/lib/apt/lists/*
elif command -v apk >/dev/null; then
    manager=apk
    # shellcheck disable=SC2046
    apk add --no-cache $(packages "$@")
else
    manager=dnf
    tool=$(command -v dnf || command -v microdnf) || {
        echo "install.sh: no apt-get, apk, dnf or microdnf here to install: $*" >&2
        exit 1
    }
    # shellcheck disable=SC2046
    "$tool" install -y $(packages "$@")
    "$tool" clean all
fi
complete "$@" || {
    echo "install.sh: still not there: one of $*, or python3's standard library" >&2
    exit 1
}
