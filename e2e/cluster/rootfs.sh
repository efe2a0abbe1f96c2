#!/usr/bin/env bash
# Makes Debian root file systems from the package archive and imports them as docker images:
#   sallyport-debian:tools   base of everything that touches netfilter; the node agent's base where nothing can be pulled
#   sallyport-debian:node    what a kind node runs: systemd, containerd
#   sallyport-debian:host    a plain server with MariaDB
. "$(dirname "$0")/env.sh"

tools=iptables,nftables,iproute2,conntrack
node=$tools,systemd,systemd-sysv,dbus,containerd,runc,containernetworking-plugins,ethtool,socat,kmod,mount,procps,jq,hostname,ca-certificates
host=$tools,mariadb-server-core,mariadb-client-core,iputils-ping

rootfs() { # NAME PACKAGES
  local image=$name-debian:$1 wanted file
  wanted=$(key "$debian $2")
  file=$cache/$1-$wanted.tar
  [ "$(docker image inspect --format '{{.Config.Labels.key}}' "$image" 2>/dev/null)" = "$wanted" ] && return
  if [ ! -f "$file" ]; then
    need mmdebstrap mmdebstrap
    rm -f "$cache/$1"-*.tar
    mmdebstrap --quiet --variant=minbase --include="$2" --aptopt='APT::Install-Recommends "false"' \
      --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
      --dpkgopt='path-exclude=/usr/share/locale/*' --format=tar "$debian" - > "$file.unfinished"
    mv "$file.unfinished" "$file"
  fi
  docker import --change "LABEL key=$wanted" --change 'CMD ["sleep", "infinity"]' "$file" "$image" >/dev/null
  step "$image is made"
}

exclusively
[ $# -gt 0 ] || set -- tools node host
for one in "$@"; do rootfs "$one" "${!one}"; done
