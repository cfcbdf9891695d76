#!/bin/sh
# install.sh - make a Debian machine (12 or newer) able to build and test.
#
# Installs with apt what is missing, as root, and sees to a Go of at least the
# version below. Prints the path of the go command as its last line; gofmt lies
# beside it. All else goes to standard error. Where everything is there already
# it asks nobody and takes a moment, and needs no root.
#
# NIXBASTION_CACHE (/var/cache/nixbastion) is where a Go lies that had to be
# downloaded.
set -eu

go_major=1 go_minor=26  # at least
go_download=1.26.8      # this one if there is none
cache=${NIXBASTION_CACHE:-/var/cache/nixbastion}
PATH=$PATH:/usr/sbin:/sbin

say() { echo "setup: $*" >&2; }

# missing prints the packages that have to be installed. The pairs are what to
# look for, a command or an absolute path, and the package that has it.
missing() {
  while read -r what package; do
    command -v "$what" >/dev/null 2>&1 || test -e "$what" || echo "$package"
  done <<END
git git
make make
gcc gcc
/usr/include/features.h libc6-dev
/etc/ssl/certs/ca-certificates.crt ca-certificates
/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
ip iproute2
nsenter util-linux
mount mount
ssh openssh-client
tar tar
END
}

# update fetches the package lists. Their lock is one that apt does not wait for,
# and a machine that was just started may hold it for its own daily update.
update() {
  tries=60
  until answer=$(LC_ALL=C apt-get update 2>&1); do
    tries=$((tries - 1))
    case $tries:$answer in
    0:*) ;;
    *"Could not get lock"*)
      say "wait for another apt-get"
      sleep 5
      continue
      ;;
    esac
    echo "$answer" >&2
    exit 1
  done
}

# install PACKAGE... installs with apt.
install() {
  if test "$(id -u)" != 0; then
    say "missing: $*; run this as root, or: apt-get install $*"
    exit 1
  fi
  say "install $*"
  export DEBIAN_FRONTEND=noninteractive
  update
  apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@" >&2
}

# new_enough GO says whether that command is a Go that will do. It runs outside
# of any module, since a go.mod may ask for more than an old Go can read.
new_enough() {
  version=$(cd / && GOTOOLCHAIN=local "$1" version 2>/dev/null) || return 1
  version=${version#go version go}
  major=${version%%.*}
  minor=${version#*.} && minor=${minor%%[!0-9]*}
  case $major$minor in *[!0-9]* | '') return 1 ;; esac
  test "$major" -gt $go_major || { test "$major" -eq $go_major && test "$minor" -ge $go_minor; }
}

# find_go prints the first Go that will do.
find_go() {
  for go in "$(command -v go || true)" /usr/local/go/bin/go "$cache/go/bin/go" /usr/lib/go/bin/go; do
    if test -n "$go" && new_enough "$go"; then
      # The one beside which gofmt lies, whatever link or wrapper led there.
      echo "$(cd / && GOTOOLCHAIN=local "$go" env GOROOT)/bin/go"
      return
    fi
  done
  return 1
}

# download_go brings Go as a module, by the module proxy that this machine is
# set up for and with its checksum verified. Any Go since 1.16 can do that;
# Debian's own will. Modules hold no executable files, hence the chmod.
download_go() {
  command -v go >/dev/null || test -x /usr/lib/go/bin/go || install golang-go
  find_go >/dev/null && return # Debian's was new enough
  say "download Go $go_download"
  arch=$(cd / && GOTOOLCHAIN=local go env GOARCH)
  module=golang.org/toolchain@v0.0.1-go$go_download.linux-$arch
  modules=$cache/go.modules
  rm -rf "$modules" "$cache/go.partial"
  (cd / && GOTOOLCHAIN=local GOFLAGS=-modcacherw GOPATH="$modules" GOMODCACHE="$modules" go mod download -json "$module") >&2
  mv "$modules/$module" "$cache/go.partial"
  chmod +x "$cache"/go.partial/bin/* "$cache"/go.partial/pkg/tool/*/*
  rm -rf "$modules" "$cache/go"
  mv "$cache/go.partial" "$cache/go"
}

packages=$(missing)
# shellcheck disable=SC2086 # one word per package
test -z "$packages" || install $packages

if ! go=$(find_go); then
  if ! mkdir -p "$cache" 2>/dev/null || ! test -w "$cache"; then
    say "there is no Go $go_major.$go_minor and $cache is not yours; run this as root"
    exit 1
  fi
  exec 9>"$cache/setup.lock"
  flock 9 # another make may be at it
  find_go >/dev/null || download_go
  go=$(find_go)
fi
echo "$go"
