#!/usr/bin/env bash
# Builds the images of the operator and the node agent from this checkout, or from the version that upgrades are tested
# from; prints the folder of that version. With `load` the cluster's nodes have them afterwards.
#   images.sh [load] [previous]
#   images.sh programs            builds only the programs, of both, which takes no docker
. "$(dirname "$0")/env.sh"

checkout=$(cd "$here/../.." && pwd)
version() { sed -n 's/^version = "\(.*\)"/\1/p' "$1/Cargo.toml"; }
target=$(rustc --version --verbose | sed -n 's/^host: //p')
tree=$checkout tag=$(version "$checkout") programs=$checkout/target/images/$target/release
if [[ " $* " = *" previous "* ]]; then
  tag=previous
  if git -C "$checkout" cat-file -e "$previous^{commit}" 2>/dev/null; then
    tree=$cache/previous-${previous:0:12} programs=$tree/programs
    mkdir -p "$tree"
    [ -d "$tree/charts" ] || git -C "$checkout" archive "$previous" | tar --extract --directory "$tree"
  else
    step "the history here does not reach back to ${previous:0:12}: this version stands in for it"
  fi
fi

# Static programs, in a folder of their own: other builds keep what they have. Optimised a little: more of it would take
# minutes more, and these images are for trying out. `cargo run` sets variables for the program that runs this script, and
# build scripts would start all over when they change.
build() (
  unset $(compgen -e CARGO_PKG_; compgen -e CARGO_MANIFEST_)
  export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
  cd "$tree"
  RUSTFLAGS='-C target-feature=+crt-static' \
    cargo build --quiet --release --target "$target" --target-dir target/images \
    --package sallyport-operator --package sallyport-node-agent
)
exclusively programs.lock
# What was built of another version does not change any more.
if [[ $tree = "$checkout" ]]; then
  build
elif [ ! -d "$programs" ]; then
  step "building the programs of ${previous:0:12}"
  build
  unfinished=$(mktemp -d "$tree/unfinished.XXXX")
  cp "$tree/target/images/$target/release"/sallyport-{operator,node-agent} "$unfinished"
  mv "$unfinished" "$programs"
  rm -r "$tree/target"
fi
if [ "${1:-}" = programs ]; then
  [ "$tag" = previous ] || exec "$0" programs previous
  exit 0
fi
exec 9>&-

"$here/docker.sh"
base=debian:$debian-slim
if ! docker image inspect "$base" >/dev/null 2>&1 && ! timeout 60 docker pull --quiet "$base" >/dev/null 2>&1; then
  "$here/rootfs.sh" tools
  base=$name-debian:tools
fi

for program in operator node-agent; do
  image=sallyport/$program:$tag
  context=$(mktemp -d "$cache/context.XXXX")
  cp "$programs/sallyport-$program" "$context"
  docker build --quiet --tag "$image" --build-arg "BASE=$base" --file "$tree/$program/Dockerfile" "$context" \
    > "$cache/build.log" 2>&1 || fail "docker build: $(cat "$cache/build.log")"
  rm -r "$context"
  step "$image is built"
done

if [ "${1:-}" = load ]; then
  images=("sallyport/operator:$tag" "sallyport/node-agent:$tag")
  loaded=$(docker image inspect --format '{{.Id}}' "${images[@]}")
  mark=/kind/sallyport-images-$tag
  lacking=()
  for node in "$name-control-plane" "$name-worker" "$name-worker2"; do
    [ "$(docker exec "$node" cat "$mark" 2>/dev/null)" = "$loaded" ] || lacking+=("$node")
  done
  if [ ${#lacking[@]} != 0 ]; then
    "$("$here/binaries.sh" kind)/kind" load docker-image --quiet --name "$name" --nodes "$(IFS=,; echo "${lacking[*]}")" \
      "${images[@]}" > "$cache/load.log" 2>&1 || fail "kind load: $(cat "$cache/load.log")"
    for node in "${lacking[@]}"; do docker exec -i "$node" tee "$mark" <<< "$loaded" >/dev/null; done
    step "${lacking[*]} have both images"
  fi
fi
[ "$tag" != previous ] || echo "$tree"
