package packetio

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring is the receiving socket and the memory that it shares with the kernel:
//
//	block 0                                    block 1
//	+----------------+--------+--------+-----+----------------+------
//	| TpacketBlock-  | Tpkt3- | frame, | …   | TpacketBlock-  |
//	| Desc + HdrV1   | Hdr    | padded |     | Desc …         |
//	+----------------+--------+--------+-----+----------------+------
//	  block_status     next_offset ──────▶
//
// A block is ours while TP_STATUS_USER is set in its status and the kernel's
// after we set it to TP_STATUS_KERNEL. The kernel fills them round and round.
type ring struct {
	fd     int
	mem    []byte
	size   int // of a block
	blocks int
	next   int // the block that will be handed over next
}

// frameBytes is the size of a frame's slot as the ring is set up. TPACKET_V3 packs
// frames whatever their size, so it only has to divide a block.
const frameBytes = 2048

func (r *ring) open(ifindex int, o Options) (err error) {
	// Protocol 0: nothing is received until bind, when the filter is in place.
	r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("TPACKET_V3: %w", err)
	}
	if err := attach(r.fd, o.Filter); err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	err = unix.SetsockoptTpacketReq3(r.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq3{
		Block_size:     uint32(o.BlockBytes),
		Block_nr:       uint32(o.Blocks),
		Frame_size:     frameBytes,
		Frame_nr:       uint32(o.BlockBytes / frameBytes * o.Blocks),
		Retire_blk_tov: uint32(o.RetireTimeout / time.Millisecond),
	})
	if err != nil {
		return fmt.Errorf("ring of %d blocks of %d bytes: %w", o.Blocks, o.BlockBytes, err)
	}
	r.mem, err = unix.Mmap(r.fd, 0, o.BlockBytes*o.Blocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap of the ring: %w", err)
	}
	r.size, r.blocks = o.BlockBytes, o.Blocks
	return unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifindex})
}

// readBlock hands the frames of the next block to fn and the block back to the
// kernel, and says how many they were. It returns false if the block is still the kernel's.
func (r *ring) readBlock(fn func(frame []byte, at int64)) (frames uint64, ok bool) {
	block := r.mem[r.next*r.size:][:r.size]
	// struct tpacket_block_desc: version, offset_to_priv, and a union of which
	// tpacket_hdr_v1 is the only member.
	header := (*unix.TpacketHdrV1)(unsafe.Pointer(&block[unsafe.Offsetof(unix.TpacketBlockDesc{}.Hdr)]))
	if atomic.LoadUint32(&header.Block_status)&unix.TP_STATUS_USER == 0 {
		return 0, false
	}
	ahead := realtimeAhead()
	offset, n := header.Offset_to_first_pkt, header.Num_pkts
	for range n {
		p := (*unix.Tpacket3Hdr)(unsafe.Pointer(&block[offset]))
		frame := block[offset+uint32(p.Mac):][:p.Snaplen:p.Snaplen]
		fn(frame, int64(p.Sec)*int64(time.Second)+int64(p.Nsec)-ahead)
		offset += p.Next_offset
	}
	atomic.StoreUint32(&header.Block_status, unix.TP_STATUS_KERNEL)
	r.next = (r.next + 1) % r.blocks
	return uint64(n), true
}

// wait returns when a block may have been handed over, or wake is readable.
func (r *ring) wait(wake int) error {
	fds := []unix.PollFd{
		{Fd: int32(r.fd), Events: unix.POLLIN},
		{Fd: int32(wake), Events: unix.POLLIN},
	}
	if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("poll: %w", err)
	}
	if fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) == 0 {
		return nil
	}
	// Reading SO_ERROR clears it, so that the next wait is a wait again.
	errno, err := unix.GetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	switch {
	case err != nil:
		return fmt.Errorf("SO_ERROR: %w", err)
	case errno != 0:
		return unix.Errno(errno)
	}
	return nil // it was read already; the next poll does not report it
}

func (r *ring) close() error {
	var err error
	if r.mem != nil {
		err = unix.Munmap(r.mem)
		r.mem = nil
	}
	return errors.Join(err, closeFD(&r.fd))
}
