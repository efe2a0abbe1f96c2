#!/usr/bin/env bash
# Prints the name of the image that kind's nodes are to run: the published one where it can be pulled, else one that is
# built here, from Go modules and Debian packages.
. "$(dirname "$0")/env.sh"

# The image that belongs to this version of kind. Not the one that the tests were developed with, which is built below.
published=kindest/node:v1.37.0
if docker image inspect "$published" >/dev/null 2>&1 || timeout 300 docker pull --quiet "$published" >/dev/null 2>&1; then
  echo "$published"
  exit
fi

image=$name-node:$kubernetes
worker=(kube-proxy)
control_plane=(etcd kube-apiserver kube-controller-manager kube-scheduler)
on_node=(kubeadm kubelet kubectl)
bin=$("$here/binaries.sh" "${worker[@]}" "${control_plane[@]}" "${on_node[@]}")
"$here/rootfs.sh" tools node
bases=$(docker image inspect --format '{{.Id}}' "$name-debian:tools" "$name-debian:node")
wanted=$(key "$bases $bin" "$here/node" "$here/node-image.sh")

build() { # TAG FOLDER OPTION…
  docker build --quiet --tag "$1" "${@:3}" "$2" > "$cache/build.log" 2>&1 || fail "docker build: $(cat "$cache/build.log")"
}
programs() { # NAME BASE PROGRAM… : an image of the programs, as an archive in the node's folder
  local folder=$context/$1
  mkdir "$folder"
  (cd "$bin" && cp --link "${@:3}" "$folder")
  printf 'FROM %s\nCOPY . /usr/local/bin/\nENV PATH=/usr/sbin:/usr/bin:/usr/local/bin\n' "$2" > "$folder.dockerfile"
  build "$name-$1:1" "$folder" --file "$folder.dockerfile"
  docker save --output "$node/$1.tar" "$name-$1:1"
}

exclusively
if [ "$(docker image inspect --format '{{.Config.Labels.key}}' "$image" 2>/dev/null)" != "$wanted" ]; then
  context=$(mktemp -d "$cache/context.XXXX")
  trap 'rm -rf "$context"' EXIT
  node=$context/node
  mkdir "$node"
  programs worker "$name-debian:tools" "${worker[@]}"
  programs control-plane scratch "${control_plane[@]}"
  (cd "$bin" && cp --link "${on_node[@]}" "$node")
  cp "$here"/node/* "$node"
  build "$image" "$node" --build-arg "VERSION=$kubernetes" --label "key=$wanted"
  step "$image is made"
fi
echo "$image"
