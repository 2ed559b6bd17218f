package packetio

import (
	"encoding/binary"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/stain"
)

// CopyFilter returns the filter that lets in what a hook sends: frames whose MAC
// addresses begin as those of a copy (package stain draws them) and that were not
// sent by this machine through this device. The latter are a packet socket's
// business as well (packet(7): PACKET_OUTGOING); our own frames pass the
// sockets by because of PACKET_QDISC_BYPASS, those of others do not.
func CopyFilter() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 5},
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: stain.CopyDst, SkipTrue: 3},
		bpf.LoadAbsolute{Off: 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: stain.CopySrc, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 18}, // more than any frame has: all of it
		bpf.RetConstant{Val: 0},
	}
}

// attach makes filter the one of socket fd.
func attach(fd int, filter []bpf.Instruction) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return err
	}
	program := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

func nativeUint16(b [2]byte) uint16 { return binary.NativeEndian.Uint16(b[:]) }
