#!/usr/bin/env bash
# Builds the images of the operator and the node agent from this checkout. `images.sh load` also puts them into the
# cluster, where nodes do not have them yet.
. "$(dirname "$0")/env.sh"

cd "$here/../.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
# `cargo run` sets these for the program that runs this script, and build scripts would start all over when they change.
unset $(compgen -e CARGO_PKG_; compgen -e CARGO_MANIFEST_)
target=$(rustc --version --verbose | sed -n 's/^host: //p')
# Static programs, in a folder of their own: other builds keep what they have. Optimised a little: more of it would take
# minutes more, and these images are for trying out.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
RUSTFLAGS='-C target-feature=+crt-static' \
  cargo build --quiet --release --target "$target" --target-dir target/images \
  --package sallyport-operator --package sallyport-node-agent
programs=target/images/$target/release

"$here/docker.sh"
base=debian:$debian-slim
if ! docker image inspect "$base" >/dev/null 2>&1 && ! timeout 60 docker pull --quiet "$base" >/dev/null 2>&1; then
  "$here/rootfs.sh" tools
  base=$name-debian:tools
fi

for program in operator node-agent; do
  image=sallyport/$program:$version
  context=$(mktemp -d "$cache/context.XXXX")
  cp "$programs/sallyport-$program" "$context"
  docker build --quiet --tag "$image" --build-arg "BASE=$base" --file "$program/Dockerfile" "$context" \
    > "$cache/build.log" 2>&1 || fail "docker build: $(cat "$cache/build.log")"
  rm -r "$context"
  step "$image is built"
done

[ "${1:-}" = load ] || exit 0
images=("sallyport/operator:$version" "sallyport/node-agent:$version")
loaded=$(docker image inspect --format '{{.Id}}' "${images[@]}")
mark=/kind/sallyport-images
lacking=()
for node in "$name-control-plane" "$name-worker" "$name-worker2"; do
  [ "$(docker exec "$node" cat "$mark" 2>/dev/null)" = "$loaded" ] || lacking+=("$node")
done
[ ${#lacking[@]} != 0 ] || exit 0
"$("$here/binaries.sh" kind)/kind" load docker-image --quiet --name "$name" --nodes "$(IFS=,; echo "${lacking[*]}")" \
  "${images[@]}" > "$cache/load.log" 2>&1 || fail "kind load: $(cat "$cache/load.log")"
for node in "${lacking[@]}"; do docker exec -i "$node" tee "$mark" <<< "$loaded" >/dev/null; done
step "${lacking[*]} have both images"
