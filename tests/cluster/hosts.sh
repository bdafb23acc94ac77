#!/usr/bin/env bash
# Two hosts on this machine, as root: network namespaces NAME-0 (10.77.0.1) and NAME-1 (10.77.0.2)
# joined by a cable.
#   hosts.sh start|cut|stop NAME
#   hosts.sh on NAME HOST FOLDER COMMAND...    where the host sees nothing of what is in FOLDER
set -euo pipefail
name=$2
case $1 in
  start)
    for host in 0 1; do
      ip netns add "$name-$host"
      ip -n "$name-$host" link set lo up
    done
    ip -n "$name-0" link add cable type veth peer name cable netns "$name-1"
    for host in 0 1; do
      ip -n "$name-$host" address add "10.77.0.$((host + 1))/24" dev cable
      ip -n "$name-$host" link set cable up
    done
    ;;
  on)
    # in the mount namespace that `ip netns exec` makes
    exec ip netns exec "$name-$3" sh -c 'mount -t tmpfs none "$0" && exec "$@"' "${@:4}"
    ;;
  cut) ip -n "$name-0" link set cable down ;;
  stop)
    for host in 0 1; do
      ip netns del "$name-$host"
    done
    ;;
esac
