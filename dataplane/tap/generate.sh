#!/bin/sh
# Compiles sampler.c for both byte orders, and writes the Go that loads it. Called by `go generate`;
# what it makes is committed, so only those who change sampler.c need a compiler for it, on Debian:
# apt-get install clang llvm libbpf-dev linux-libc-dev
set -eu
cd "$(dirname "$0")"

newest() { # newest NAME: the command without a version, else the highest that Debian has
	command -v "$1" || ls /usr/bin/"$1"-[0-9]* 2>/dev/null | sort -V | tail -n 1
}
clang=$(newest clang) strip=$(newest llvm-strip)
[ -n "$clang" ] && [ -n "$strip" ] && [ -e /usr/include/bpf/bpf_helpers.h ] || {
	echo "generate.sh: needs clang, llvm-strip and libbpf's headers: apt-get install clang llvm libbpf-dev linux-libc-dev" >&2
	exit 1
}
# Debian keeps asm/ in a folder named by the architecture; other distributions need no more.
asm=$(ls -d /usr/include/"$(uname -m)"-linux-gnu 2>/dev/null || true)
sha256=$(sha256sum sampler.c | cut -d ' ' -f 1)

../../tools/go run github.com/cilium/ebpf/cmd/bpf2go -cc "$clang" -strip "$strip" -target bpfel,bpfeb \
	-type digest -type counters -type probe tap sampler.c -- \
	-Wall -Werror -DSOURCE_SHA256="\"$sha256\"" ${asm:+-idirafter "$asm"}
