# Boots a systemd as process 1 of namespaces of its own, on a copy of this machine's files that is kept in memory: what it
# writes is gone with it. FOLDER is empty and on a real file system; GROUP names its control groups; BUILT is a folder with
# programs, which the machine sees read-only in /opt/built; NAME is its own; NET says whether it gets a network of its own
# (--net) or stays in the one where this is started; FILES is a folder that machines share, in /srv/bazooka, or nothing.
set -eu
folder=$1 group=$2 built=$3 machine=$4 net=$5 files=${6:-}
say() { echo "boot: $*" >&2; exit 90; }

[ "$(id -u)" -eq 0 ] || say "this takes root"
if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then hierarchies=/sys/fs/cgroup; else hierarchies=$(echo /sys/fs/cgroup/*/); fi
for hierarchy in $hierarchies; do
  hierarchy=${hierarchy%/}
  [ ! -L "$hierarchy" ] || continue
  mkdir "$hierarchy/$group" || say "$hierarchy has no room for a group; run this where control groups can be made"
  if [ -e "$hierarchy/$group/cpuset.cpus" ] && [ -z "$(cat "$hierarchy/$group/cpuset.cpus")" ]; then
    cat "$hierarchy/cpuset.cpus" >"$hierarchy/$group/cpuset.cpus"
    cat "$hierarchy/cpuset.mems" >"$hierarchy/$group/cpuset.mems"
  fi
  echo $$ >"$hierarchy/$group/cgroup.procs"
done

export folder hierarchies built machine files
exec unshare --cgroup --mount --pid --fork --kill-child --uts --ipc $net --propagation private bash -eu -c '
mount -t tmpfs tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" overlay "$folder/root"
cd "$folder/root"
mount -t proc proc proc; mount -t sysfs sysfs sys; mount -t tmpfs -o mode=755 tmpfs run; mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev; mkdir dev/pts dev/shm
for device in null zero full random urandom tty; do cp -a /dev/$device dev/; done
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts; mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd; ln -s /proc/1/fd/1 dev/console
if [ "$hierarchies" = /sys/fs/cgroup ]; then
  mount -t cgroup2 cgroup2 sys/fs/cgroup
else
  mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
  for hierarchy in $hierarchies; do
    name=$(basename "$hierarchy"); [ ! -L "${hierarchy%/}" ] || continue
    mkdir "sys/fs/cgroup/$name"
    case $name in
      unified) mount -t cgroup2 cgroup2 sys/fs/cgroup/unified ;;
      systemd) mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd ;;
      *) mount -t cgroup -o "$name" cgroup "sys/fs/cgroup/$name" ;;
    esac
  done
fi
mkdir opt/built; mount --bind "$built" opt/built; mount -o remount,ro,bind opt/built
[ -z "$files" ] || { mkdir -p srv/bazooka; mount --bind "$files" srv/bazooka; }
# The settings of the kernel stay as they are.
mount --bind proc/sys proc/sys; mount -o remount,ro,bind proc/sys
# None of what this machine runs, and of what it wrote, is there.
rm -rf etc/fstab etc/systemd/system etc/bazooka root/.ssh root/.config root/.gitconfig var/lib/bazooka* var/lib/etcd/* var/log/journal usr/sbin/policy-rc.d
mkdir -p etc/systemd/system etc/systemd/journald.conf.d
printf "[Journal]\nStorage=volatile\nForwardToConsole=no\n" >etc/systemd/journald.conf.d/volatile.conf
for unit in systemd-modules-load systemd-udevd systemd-udev-trigger systemd-resolved systemd-timesyncd systemd-networkd getty@tty1 serial-getty@ttyS0 console-getty; do
  ln -s /dev/null etc/systemd/system/$unit.service
done
mkdir .old; pivot_root . .old; umount -l /.old; rmdir /.old; hostname "$machine"; echo "$machine" >etc/hostname
exec env -i container=bazooka PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=0 --log-level=notice'
