#!/bin/sh
# boot.sh LOWER LAYER TOP SHARED [disk:OUTER=INNER | file:OUTER=INNER]...
#
# First stage of a host, run as process 1 of its own namespaces while it still
# sees the machine's files: puts the host's file system together below TOP and
# moves into it. LOWER is the suite's root, perhaps with a folder of more packages
# and a colon before it, LAYER what only this host has, SHARED the bed's folder
# with the lists of host names and host keys.
# All mounts are in this mount namespace and end with it.
set -eu
lower=$1 layer=$2 top=$3 shared=$4
shift 4

read -r plugged <&3 # the testbed tells that the network cable is in

mount --make-rprivate /
mount -t tmpfs -o mode=755,size=75% tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/host" "$top/nix"
mount -t overlay overlay -o "lowerdir=$layer:$lower,upperdir=$top/upper,workdir=$top/work" "$top/host"
cd "$top/host"

mount --bind "$top/nix" nix # not through the overlay: a store has many files
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount --bind "$shared/hosts" etc/hosts
mount --bind "$shared/known_hosts" etc/ssh/ssh_known_hosts

for pair; do
  outer=${pair#*:} && outer=${outer%%=*}
  inner=.${pair#*=}
  case $pair in
  disk:*) mkdir -p "$inner" ;;
  file:*) mkdir -p "${inner%/*}" && { test -e "$inner" || : >"$inner"; } ;;
  esac
  mount --bind "$outer" "$inner"
  case $pair in file:*) mount -o remount,bind,ro "$inner" ;; esac
done

pivot_root . mnt
exec chroot . /bin/sh /etc/testbed/init
