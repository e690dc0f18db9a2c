#!/bin/sh
# Put promtool, which checks Prometheus' files, at the path that is given: the installed one, or that of Debian's package.
# Any user may run this, and nothing is installed. It fails on hosts without apt-get, and without a network.
set -eu

target=$1
if installed=$(command -v promtool); then
    ln -sf "$installed" "$target"
    exit
fi
command -v apt-get > /dev/null

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
cd "$work"
# With its own lists of packages: those of a clean machine are empty or old, and only root may renew them. The script
# that apt may run as another user must reach the folder.
chmod 755 "$work"
apt="apt-get -qq -o Dir::State::Lists=$work/lists -o Dir::Cache=$work/cache -o APT::Sandbox::User=$(id -un)"
apt="$apt -o Acquire::Languages=none -o Acquire::Retries=1 -o Acquire::http::Timeout=10"
$apt update
$apt download prometheus
dpkg-deb --extract prometheus_*.deb root
mv root/usr/bin/promtool "$target"
