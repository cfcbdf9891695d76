# Third stage of a host that systemd runs: makes the place that systemd expects of a
# container manager, and becomes systemd. Of the machine it sees nothing that it
# could change: /dev and /proc/sys are of its own or read-only, and it runs in a
# control group below that of the host.
set -eu

mount -t tmpfs -o mode=755,nosuid tmpfs /mnt
for node in null zero full random urandom tty; do
  : >"/mnt/$node"
  mount --bind "/dev/$node" "/mnt/$node"
done
ln -s /proc/self/fd /mnt/fd
umount -R -l /dev
mount --move /mnt /dev
mkdir /dev/shm /dev/pts
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts /dev/pts
ln -s pts/ptmx /dev/ptmx

mkdir -p /sys
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=$(sed -n 's/^0:://p' /proc/self/cgroup)
# On a machine that has no such hierarchy mounted the host has no group.
test "$group" != / || group=/nixbastion-$(cat /proc/sys/kernel/random/uuid)
mkdir -p "/sys/fs/cgroup$group/systemd"
echo $$ >"/sys/fs/cgroup$group/systemd/cgroup.procs"
umount /sys/fs/cgroup

# What it starts sees its mounts, as of credentials.
mount --make-rshared /
export container=testbed
exec unshare --cgroup --propagation unchanged /bin/sh -euc '
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mount -o remount,bind,ro /sys
  mount --bind /proc/sys /proc/sys
  mount -o remount,bind,ro /proc/sys
  mkdir -p /etc/systemd/journald.conf.d /var/log
  printf "[Journal]\nReadKMsg=no\nStorage=volatile\n" >/etc/systemd/journald.conf.d/testbed.conf
  # Nothing of this Debian is new to it.
  touch /etc/.updated /var/.updated
  systemd-machine-id-setup
  (
    until systemctl is-system-running --wait 2>/dev/null | grep -q -e running -e degraded; do sleep 0.05; done
    echo ready >&4
  ) </dev/null >/dev/null 2>&1 &
  exec 4>&-
  exec /usr/lib/systemd/systemd --unit=multi-user.target
'
