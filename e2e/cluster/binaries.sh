#!/usr/bin/env bash
# Builds the named programs from their Go modules, static, unless they are there; prints the folder that holds them.
#   binaries.sh etcd kube-apiserver kubectl helm …
. "$(dirname "$0")/env.sh"

export CGO_ENABLED=0
bin=$cache/bin-$(key "$kubernetes $kind $helm $helm3" "$here/go")

# Without this stamp every program claims to be v0.0.0, and kubeadm and kind compare versions.
stamp=
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  stamp+=" -X $package.gitVersion=$kubernetes -X $package.gitMajor=1 -X $package.gitMinor=${kubernetes:3:2}"
done

pinned() { # MODULE PACKAGE: a package of a module of go/
  (cd "$here/go/$1" && go build -trimpath -buildvcs=false -ldflags "-s -w $stamp" -o "$unfinished/" "$2")
}
published() { # PACKAGE@VERSION
  GOBIN=$unfinished go install -trimpath -ldflags "-s -w" "$1"
}
build() {
  case $1 in
    kube*) pinned kubernetes "k8s.io/kubernetes/cmd/$1" ;;
    etcd) stamp='' pinned etcd go.etcd.io/etcd/server/v3 && mv "$unfinished/server" "$unfinished/etcd" ;;
    kind) published "sigs.k8s.io/kind@$kind" ;;
    helm) published "helm.sh/helm/v4/cmd/helm@$helm" ;;
    helm3) published "helm.sh/helm/v3/cmd/helm@$helm3" && mv "$unfinished/helm" "$unfinished/helm3" ;;
    *) fail "binaries.sh cannot build $1" ;;
  esac
}

exclusively
mkdir -p "$bin"
for program in "$@"; do
  [ -x "$bin/$program" ] && continue
  command -v go >/dev/null || fail "Go 1.26 or newer is needed to build $program: see https://go.dev/dl"
  step "building $program"
  unfinished=$(mktemp -d "$bin/unfinished.XXXX")
  build "$program"
  mv "$unfinished/$program" "$bin/"
  rmdir "$unfinished"
  step "$program is built"
done
echo "$bin"
