# Sourced by deploy/up and deploy/down: the folders of the local cluster, and whether it runs.

programs=(bazooka bazooka-pm bazooka-shim bazooka-rm bazooka-static bazooka-proxy)
if [ "$(id -u)" -eq 0 ]; then
  state=${BAZOOKA_DEV_STATE:-/var/lib/bazooka/dev}
  prefix=${BAZOOKA_DEV_PREFIX:-/usr/local}
else
  state=${BAZOOKA_DEV_STATE:-$HOME/.local/share/bazooka/dev}
  prefix=${BAZOOKA_DEV_PREFIX:-$HOME/.local}
fi
# Both scripts change folders.
state=$(realpath -m "$state")
prefix=$(realpath -m "$prefix")
libexec=$prefix/lib/bazooka
bin=$prefix/bin

# Whether the cluster that deploy/up started still runs. Another program may have its process id by now.
running() {
  local pid
  pid=$(cat "$state/dev.pid" 2>/dev/null) || return 1
  { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF "bazooka dev --state $state "
}

# Whether the folder is a cluster's. The scripts never fill or empty any other folder.
is_a_clusters() { [ -e "$state/lock" ] || [ -e "$state/turn" ]; }

# Ends the script if the folder has a running cluster that deploy/up did not start: that one is not ours to stop.
refuse_anothers() {
  running && return 0
  [ -e "$state/lock" ] || return 0
  flock --nonblock "$state/lock" true 2>/dev/null && return 0
  echo "a cluster that deploy/up did not start runs on $state (process $(cat "$state/lock" 2>/dev/null))" >&2
  echo "hint: stop it (Ctrl-C where it runs), then run this again" >&2
  exit 1
}

# Two of these scripts at once would undo each other's work, so the second one waits.
take_turn() {
  if ! mkdir -p "$state" || ! { : >>"$state/turn"; } 2>/dev/null; then
    echo "$(id -un) can't write to $state, which belongs to $(stat -c %U "$state" 2>/dev/null || echo nobody)" >&2
    echo "hint: run this as that user, or name another folder with BAZOOKA_DEV_STATE" >&2
    exit 1
  fi
  exec 9>>"$state/turn"
  flock --nonblock 9 && return 0
  echo "another deploy/up or deploy/down is at work on $state: waiting for it" >&2
  flock 9
  mkdir -p "$state"
}

# Stops the cluster, instances included. Fails if it was not running.
stop_cluster() {
  local pid deadline
  running || return 1
  pid=$(cat "$state/dev.pid")
  kill -TERM "$pid"
  deadline=$((SECONDS + 60))
  while running; do
    if [ $SECONDS -ge $deadline ]; then
      echo "process $pid still runs after 60 s; see $state/dev.log" >&2
      exit 1
    fi
    sleep 0.1
  done
  rm -f "$state/dev.pid"
}
