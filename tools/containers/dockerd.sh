#!/usr/bin/env bash
# dockerd.sh start DIR | stop DIR: a Docker daemon of our own for tests; run as root after `install.sh docker`.
#
#   start  begins a daemon without bridge and firewall rules (containers need `--network host`), waits until it answers
#          and prints the value for DOCKER_HOST: unix://DIR/docker.sock. All its state lies under DIR.
#   stop   ends it; DIR/data (the images) stays for the next start, delete it by hand.
set -euo pipefail
[ $# = 2 ] && [[ $1 == start || $1 == stop ]] || { echo "usage: dockerd.sh start|stop DIR" >&2; exit 2; }
dir=$(realpath -m "$2") socket=unix://$(realpath -m "$2")/docker.sock
alive() { [ -f "$dir/pid" ] && kill -0 "$(cat "$dir/pid")" 2>/dev/null; }

if [ "$1" = stop ]; then
  alive || exit 0
  pid=$(cat "$dir/pid"); kill "$pid"
  for _ in $(seq 100); do
    [ -d "/proc/$pid" ] || { umount -q "$dir"/exec/netns/* 2>/dev/null || true; exit 0; }
    sleep 0.1
  done
  echo "dockerd.sh: the daemon $pid does not end; see $dir/log" >&2; exit 1
fi

mkdir -p "$dir"
alive || {
  /usr/sbin/dockerd --iptables=false --ip-masq=false --bridge=none --data-root "$dir/data" --exec-root "$dir/exec" \
    --pidfile "$dir/pid" --host "$socket" > "$dir/log" 2>&1 < /dev/null &
}
for _ in $(seq 100); do docker --host "$socket" version >/dev/null 2>&1 && { echo "$socket"; exit 0; }; sleep 0.1; done
echo "dockerd.sh: the daemon does not answer after 10 s; see $dir/log" >&2; tail -3 "$dir/log" >&2; exit 1
