#!/usr/bin/env bash
# Makes the network, the cluster (one control plane, two workers) and beside it two plain hosts, app1 and db1.
# A cluster that answers is used again; the hosts are always made anew.
. "$(dirname "$0")/env.sh"

need jq jq
"$here/docker.sh"
bin=$("$here/binaries.sh" kind kubectl)
image=$("$here/node-image.sh")
"$here/rootfs.sh" host
PATH=$bin:$PATH

docker network inspect "$name" >/dev/null 2>&1 ||
  docker network create --subnet "$subnet" --ip-range "$nodes_range" --ipv6 --subnet "$subnet_v6" "$name" >/dev/null

nodes=("$name-control-plane" "$name-worker" "$name-worker2")
ready() { kubectl wait --for=condition=Ready nodes --all --timeout="$1"; }
# One that docker has just started again, after a run that was killed, may never find its nodes at their old addresses.
usable() {
  [ "$(docker inspect --format '{{.State.Running}} {{.Image}}' "${nodes[@]}" | sort -u)" = \
    "true $(docker image inspect --format '{{.Id}}' "$image")" ] && kubectl get --raw /readyz --request-timeout=5s && ready 10s
}
if ! usable >/dev/null 2>&1; then
  kind delete cluster --quiet --name "$name"
  # Our node image brings a simpler pod network: pods reach everything outside their node, but not pods of other nodes.
  built_here=$([[ $image = "$name"-* ]] && echo true || echo false)
  kind create cluster --quiet --name "$name" --image "$image" --config - <<K >&2
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes: [{ role: control-plane }, { role: worker }, { role: worker }]
networking: { disableDefaultCNI: $built_here }
kubeadmConfigPatches:
# No DNS: nothing here asks for the name of a Service.
- '{ kind: InitConfiguration, skipPhases: [preflight, addon/coredns] }'
# kind's own choice is a group that somebody would have to make where cgroups are of version 1.
- '{ kind: KubeletConfiguration, cgroupRoot: / }'
K
  step "the cluster is made"
fi
ready 120s >/dev/null
kubectl --namespace kube-system rollout status daemonset/kube-proxy --timeout=120s >/dev/null
step "all nodes are Ready"

host() { # NAME ADDRESS ADDRESS_V6 COMMAND…
  docker rm --force --volumes "$name-$1" >/dev/null 2>&1 || true
  docker run --detach --init --name "$name-$1" --hostname "$1" --network "$name" --ip "$2" --ip6 "$3" \
    "$name-debian:host" "${@:4}" >/dev/null
}
host app1 "$app1" "$app1_v6" sleep infinity
host db1 "$db1" "$db1_v6" sh -c '
  mariadb-install-db --no-defaults --user=root --skip-test-db --auth-root-authentication-method=normal --datadir=/data
  exec mariadbd --no-defaults --user=root --skip-name-resolve --skip-log-bin --performance-schema=OFF \
    --innodb-buffer-pool-size=16M --bind-address=0.0.0.0 --datadir=/data --socket=/run/mariadb.sock'
step "app1 and db1 run"
