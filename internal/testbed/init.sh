#!/bin/sh
# Second stage of a host: process 1 within its own file system. Starts what the
# kind of host wants, tells the testbed on descriptor 4 that it answers, and
# stays to reap orphans. Descriptors 5 and 6 are the logs of sshd and nix-daemon.
# The testbed sets kind and address in the environment.
set -eu
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
kind=$TESTBED_KIND address=$TESTBED_ADDRESS
unset TESTBED_KIND TESTBED_ADDRESS
export PATH HOME=/root USER=root LANG=C.UTF-8

umount -l /mnt
read -r hostname </etc/hostname
echo "$hostname" >/proc/sys/kernel/hostname
ip -batch - <<END
link set lo up
addr add $address dev eth0
link set eth0 up
END
ulimit -n "$(ulimit -Hn)"
mkdir -p /run/sshd

case $kind in
builder | client)
  nix-daemon </dev/null >&6 2>&1 3<&- 4>&- 5>&- 6>&- &
  nix_daemon=$!
  until test -S /nix/var/nix/daemon-socket/socket; do
    kill -0 $nix_daemon || { echo "nix-daemon ended" >&2; exit 1; }
    sleep 0.02
  done
  ;;
esac
case $kind in
builder)
  /usr/sbin/sshd -D -e </dev/null >&5 2>&1 3<&- 4>&- 5>&- 6>&- &
  sshd=$!
  until test -e /run/sshd.pid; do # written once it listens
    kill -0 $sshd || { echo "sshd ended" >&2; exit 1; }
    sleep 0.02
  done
  ;;
esac

case $kind in systemd) exec /bin/sh /etc/testbed/systemd 3<&- 5>&- 6>&- ;; esac

sleep infinity </dev/null >/dev/null 2>&1 3<&- 4>&- 5>&- 6>&- &
echo ready >&4
exec 3<&- 4>&- 5>&- 6>&-
wait $! # the shell reaps whatever comes by while it waits
