# Sourced by the scripts of this folder: versions, names and places.
set -euo pipefail

# Kubernetes 1.34 is the last whose kubelet starts with cgroup v1 unasked. go/kubernetes/go.mod names it too.
kubernetes=v1.34.4
kind=v0.33.0
helm=v4.3.1
helm3=v3.22.0
debian=bookworm

# The commit of the version that upgrades are tested from, and rolled back to: the last that was given out.
previous=21ae4356d709a6a1ffe6a57526b9dd26b0ba7de0

# All that is made here has this name or begins with it; nothing else is ever touched.
name=sallyport

# The network of the story. Docker gives addresses of the first half to the nodes; the hosts have fixed ones.
subnet=10.30.0.0/23 nodes_range=10.30.0.0/24 subnet_v6=fd00:30::/64
app1=10.30.1.80 app1_v6=fd00:30::1:80
db1=10.30.1.79 db1_v6=fd00:30::1:79

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SALLYPORT_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sallyport-e2e}
mkdir -p "$cache"
export KUBECONFIG=$cache/kubeconfig
export KIND_EXPERIMENTAL_DOCKER_NETWORK=$name
# Debian's docker has the classic builder only.
export DOCKER_BUILDKIT=0

step() { printf '          [%4d s] %s\n' "$SECONDS" "$*" >&2; }
fail() { echo "error: $*" >&2; exit 1; }

# key TEXT FILE… : a short hash of the text and the files, so that what is cached is what would be built
key() {
  local text=$1; shift
  { echo "$text"; [ $# = 0 ] || find "$@" -type f | sort | xargs cat; } | sha256sum | cut -c1-12
}

# need PROGRAM PACKAGE … : installs the Debian packages of the programs that are not there
need() {
  local packages=()
  while [ $# -gt 0 ]; do
    command -v "$1" >/dev/null || packages+=("$2")
    shift 2
  done
  [ ${#packages[@]} = 0 ] && return
  command -v apt-get >/dev/null || fail "install ${packages[*]} (this machine has no apt-get)"
  step "apt-get install ${packages[*]}"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >&2
}

# exclusively [LOCK] : two runs at once would build the same things twice; the second waits
exclusively() {
  exec 9>"$cache/${1:-lock}"
  flock 9
}
