#!/usr/bin/env bash
# Installs the Debian packages the test cluster needs, and only those that are
# missing. Services that come with them (lighttpd, ssh, containerd,
# docker-registry, postgresql) must not start on the host: policy-rc.d forbids it meanwhile.
set -euo pipefail

packages=(
    containerd runc containernetworking-plugins iptables iproute2 conntrack # nodes
    buildah skopeo docker-registry debootstrap busybox-static               # images
    lighttpd apache2-utils openssh-server              # git servers, password files
    git git-lfs uidmap libcap2-bin openssl gcc libc6-dev jq curl ca-certificates postgresql
)

missing=()
for package in "${packages[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "error: please install: ${missing[*]}" >&2
    exit 1
fi

policy=/usr/sbin/policy-rc.d
saved=$(mktemp)
had_policy=
if [[ -e $policy ]]; then
    cp -p "$policy" "$saved"
    had_policy=yes
fi
restore() {
    if [[ $had_policy ]]; then cp -p "$saved" "$policy"; else rm -f "$policy"; fi
    rm -f "$saved"
}
trap restore EXIT
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod +x "$policy"

export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --no-install-recommends -y "${missing[@]}"
