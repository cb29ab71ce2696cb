# Sourced by deploy/up and deploy/down: where the local cluster lives, and whether it runs.

programs=(bazooka bazooka-pm bazooka-shim bazooka-rm bazooka-static bazooka-proxy)
if [ "$(id -u)" -eq 0 ]; then
  state=${BAZOOKA_DEV_STATE:-/var/lib/bazooka/dev}
  prefix=${BAZOOKA_DEV_PREFIX:-/usr/local}
else
  state=${BAZOOKA_DEV_STATE:-$HOME/.local/share/bazooka/dev}
  prefix=${BAZOOKA_DEV_PREFIX:-$HOME/.local}
fi
# Both scripts go to other folders.
state=$(realpath -m "$state")
prefix=$(realpath -m "$prefix")
libexec=$prefix/lib/bazooka
bin=$prefix/bin

# Whether the cluster that deploy/up started still runs. Its process id may be another program's by now.
running() {
  local pid
  pid=$(cat "$state/dev.pid" 2>/dev/null) || return 1
  { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF "bazooka dev --state $state "
}

# Whether the folder is one of a cluster's: another that was named by mistake is neither filled nor emptied.
is_a_clusters() { [ -e "$state/lock" ] || [ -e "$state/turn" ]; }

# Ends the script if a cluster runs on the folder that deploy/up did not start: it isn't ours to stop.
refuse_anothers() {
  running && return 0
  [ -e "$state/lock" ] || return 0
  flock --nonblock "$state/lock" true 2>/dev/null && return 0
  echo "a cluster that deploy/up did not start runs on $state (process $(cat "$state/lock" 2>/dev/null))" >&2
  echo "hint: stop it (Ctrl-C where it runs), then run this again" >&2
  exit 1
}

# Two of these scripts at once would undo each other's work: the second waits.
take_turn() {
  if ! mkdir -p "$state" || ! { : >>"$state/turn"; } 2>/dev/null; then
    echo "$state can't be written by $(id -un): it is $(stat -c %U "$state" 2>/dev/null || echo nobody)'s" >&2
    echo "hint: run this as that user, or name another folder with BAZOOKA_DEV_STATE" >&2
    exit 1
  fi
  exec 9>>"$state/turn"
  flock --nonblock 9 && return 0
  echo "another deploy/up or deploy/down is at work on $state: waiting for it" >&2
  flock 9
  mkdir -p "$state"
}

# Stops the cluster, instances included. False if it wasn't running.
stop_cluster() {
  local pid deadline
  running || return 1
  pid=$(cat "$state/dev.pid")
  kill -TERM "$pid"
  deadline=$((SECONDS + 60))
  while running; do
    if [ $SECONDS -ge $deadline ]; then
      echo "process $pid is still there after 60 s; see $state/dev.log" >&2
      exit 1
    fi
    sleep 0.1
  done
  rm -f "$state/dev.pid"
}
