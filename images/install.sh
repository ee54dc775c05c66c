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
    case " $* " in
        # Some distributions split the standard library, and the lab's programs need these.
        *" python3 "*) python3 -c 'import argparse, ctypes, json' 2>/dev/null ;;
    esac
}

# The packages of these programs, as the distributions of a package manager call them.
packages() {
    for program in "$@"; do
        case $manager:$program in
            dnf:tc | microdnf:tc | yum:tc) echo iproute-tc ;;
            dnf:ip | microdnf:ip | yum:ip | dnf:ss | microdnf:ss | yum:ss) echo iproute ;;
            *:ip | *:ss | *:tc) echo iproute2 ;;
            *:nft) echo nftables ;;
            dnf:sysctl | microdnf:sysctl | yum:sysctl) echo procps-ng ;;
            *:sysctl) echo procps ;;
            *:qemu-system-x86_64) echo qemu-system-x86 ;;
            *) echo "$program" ;;
        esac
    done | sort -u
}

bring() {
    case $manager in
        apt-get)
            apt-get update
            DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
            rm -rf /var/lib/apt/lists/*
            ;;
        apk) apk add --no-cache "$@" ;;
        dnf | microdnf | yum)
            "$manager" install -y "$@"
            "$manager" clean all
            ;;
        zypper)
            zypper --non-interactive install --no-recommends "$@"
            zypper clean --all
            ;;
    esac
}

complete "$@" && exit
for manager in apt-get apk dnf microdnf yum zypper none; do
    if command -v "$manager" >/dev/null; then break; fi
done
if test "$manager" = none; then
    echo "install.sh: no apt-get, apk, dnf, microdnf, yum or zypper here to install: $*" >&2
    exit 1
fi
# shellcheck disable=SC2046 # a word a package
bring $(packages "$@")
complete "$@" || {
    echo "install.sh: still not there: one of $*, or python3's standard library" >&2
    exit 1
}
