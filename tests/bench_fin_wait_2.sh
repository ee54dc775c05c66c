#!/bin/sh
# scenarios/fin_wait_2.yaml written by hand, with ip, ss, sysctl and the peer program alone: what
# bench.py compares labctl with. All of it happens in namespaces that end with this process.
set -eu

if [ "${1-}" != inside ]; then
    as_root=
    [ "$(id -u)" = 0 ] || as_root='--user --map-root-user'
    # shellcheck disable=SC2086 # none or two words
    exec unshare $as_root --net --mount --pid --fork --kill-child --mount-proc "$0" inside
fi

peer=$(dirname "$0")/../images/peer/peer.py
server_calls='socket; bind :8000; listen 20; accept; recv; send "I am server" x 24; wait'
client_calls='socket; connect 198.18.0.2:8000; send "I am client"; wait'

say() {
    echo "$(cut -d ' ' -f 1 /proc/uptime) $*"
}

finish() {
    status=$?
    [ "$status" = 0 ] || tail -n 50 /run/*.log >&2
    # shellcheck disable=SC2046 # one word a job
    kill -9 $(jobs -p) 2>/dev/null || true
}

# await COMMAND...: until it succeeds, for about 10 s at most
await() {
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ "$tries" -lt 200 ] || { echo "never came true: $*" >&2; exit 1; }
        sleep 0.05
    done
}

# has HOST STATE: whether it has a socket in a state, as ss spells it
has() {
    [ -n "$(ss --net "$1" --tcp --all --numeric --no-header state "$2")" ]
}

has_none() {
    [ -z "$(ss --net "$1" --tcp --all --numeric --no-header)" ]
}

start() {
    ip netns exec "$1" python3 "$peer" --text calls "$2" >"/run/$1.log" 2>&1 &
}

mount -t tmpfs tmpfs /run # for the namespaces' names, and the logs
trap finish EXIT
trap 'exit 130' INT TERM HUP

ip netns add server
ip netns add client
ip -batch - <<'COMMANDS'
link add bridge type bridge
link set bridge up
link add port1 type veth peer name eth0 netns server
link add port2 type veth peer name eth0 netns client
link set port1 master bridge up
link set port2 master bridge up
COMMANDS
for host in server:198.18.0.2 client:198.18.0.3; do
    ip -netns "${host%:*}" -batch - <<COMMANDS
address add ${host#*:}/16 dev eth0
link set lo up
link set eth0 up
COMMANDS
done
ip netns exec server sysctl -qw net.ipv4.tcp_fin_timeout=5

start server "$server_calls"
server=$!
await has server listening
say 'server: LISTEN'

start client "$client_calls"
await has server established
await has client established
await grep -q 'send .* = ' /run/server.log # sooner, unread data would make the FIN an RST
say 'server and client: ESTAB'

kill -9 "$server"
await has server fin-wait-2
await has client close-wait
say 'server killed: FIN-WAIT-2, client: CLOSE-WAIT'
for host in server client; do
    echo "$host:"
    ss --net "$host" --tcp --all --numeric --options --extended --info
done

start server "$server_calls"
status=0
wait $! || status=$?
[ "$status" = 98 ] && grep EADDRINUSE /run/server.log

await has_none server
say 'server: no sockets'

start server "$server_calls"
await has server listening
say 'server: LISTEN'
