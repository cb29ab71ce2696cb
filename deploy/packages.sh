# Sourced by deploy/up and tests/run: installs missing Debian packages, and only those.

# missing_packages COMMAND PACKAGE ... : prints each PACKAGE whose COMMAND is missing.
missing_packages() {
  local missing=()
  while [ $# -gt 0 ]; do
    case $1 in
      python3-venv) dpkg-query -W -f='${Status}' "$2" 2>/dev/null | grep -q 'ok installed' || missing+=("$2") ;;
      /*) [ -e "$1" ] || missing+=("$2") ;;
      *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1 || missing+=("$2") ;;
    esac
    shift 2
  done
  printf '%s\n' "${missing[@]}"
}

# install_packages COMMAND PACKAGE ... : installs each PACKAGE whose COMMAND is missing, and says so.
install_packages() {
  local missing
  mapfile -t missing < <(missing_packages "$@" | sed '/^$/d' | sort -u)
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" -ne 0 ]; then
    echo "missing packages: ${missing[*]}" >&2
    echo "hint: as root, apt-get install --no-install-recommends ${missing[*]}" >&2
    return 1
  fi
  echo "installing ${missing[*]}"
  (
    # Debian starts a service with its package, but etcd and haproxy are needed only as programs. The policy
    # must not stay: it would keep every later package's service from starting.
    policy=/usr/sbin/policy-rc.d ours='# of bazooka, while it installs packages'
    log=$(mktemp)
    trap 'rm -f "$log"; ! grep -qsF "$ours" $policy || rm -f $policy' EXIT
    if [ ! -e $policy ]; then
      printf '#!/bin/sh\n%s\nexit 101\n' "$ours" >$policy
      chmod 755 $policy
    fi
    # A machine that has just booted may be updating itself.
    if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      -o DPkg::Lock::Timeout=300 "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
      tail -20 "$log" >&2
      echo "hint: fix what apt-get reports, then run this again" >&2
      exit 1
    fi
  )
}

# For the build, and for the cluster.
BUILD_PACKAGES=(cc gcc make make pkg-config pkg-config protoc protobuf-compiler
  /usr/include/google/protobuf/any.proto libprotobuf-dev)
CLUSTER_PACKAGES=(etcd etcd-server etcdctl etcd-client haproxy haproxy git git curl curl python3 python3
  /etc/ssl/certs/ca-certificates.crt ca-certificates)
# For builds of apps: Node and Python.
APP_PACKAGES=(node nodejs npm npm python3-venv python3-venv)

# The oldest Rust that builds Bazooka. Debian 12's is older.
RUST_MINOR=85

# Finds cargo, also in rustup's folder when the shell has not read its profile.
find_cargo() {
  local version
  command -v cargo >/dev/null 2>&1 || PATH=$PATH:$HOME/.cargo/bin
  if ! command -v cargo >/dev/null 2>&1; then
    echo "no cargo found" >&2
    echo "hint: install a Rust toolchain, 1.$RUST_MINOR or later (https://rustup.rs), and run this again" >&2
    return 1
  fi
  # rustup's cargo reports a missing toolchain itself.
  version=$(cargo --version) || return 1
  if [[ $version =~ ^cargo\ 1\.([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -lt $RUST_MINOR ]; then
    echo "$(command -v cargo) is too old: $version" >&2
    echo "hint: install Rust 1.$RUST_MINOR or later (https://rustup.rs), and run this again" >&2
    return 1
  fi
}
