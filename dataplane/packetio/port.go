package packetio

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// ErrClosed says that Close was called.
var ErrClosed = errors.New("port closed")

// Options of a Port; the zero value is good.
type Options struct {
	// BlockBytes is the size of one block of the receive ring: a power of two, and
	// at least a page. 0 is 64 KiB, which takes some 400 copies: with 200 bytes each
	// in the ring, a block is handed over full from 200,000 samples/s on.
	BlockBytes int
	// Blocks is their number, at least 2. 0 is 64: with 64 KiB each, 4 MiB, or
	// 26,000 copies, which a reader that sleeps for 100 ms survives at 250,000/s.
	Blocks int
	// RetireTimeout is how long a frame may wait for its block to fill, whole
	// milliseconds. 0 is 4 ms: a verdict waits that long for the last sample, whose
	// own time is not touched by it. It is a timer, which also costs when the ring is
	// idle: with 1 ms 0.45 % of a core, with 4 ms less than 0.1 % (Linux 6.18, 200 rings).
	RetireTimeout time.Duration
	// Filter replaces the filter that lets copies in (CopyFilter).
	Filter []bpf.Instruction
}

func (o Options) withDefaults() (Options, error) {
	if o.BlockBytes == 0 {
		o.BlockBytes = 64 << 10
	}
	if o.Blocks == 0 {
		o.Blocks = 64
	}
	if o.RetireTimeout == 0 {
		o.RetireTimeout = 4 * time.Millisecond
	}
	if o.Filter == nil {
		o.Filter = CopyFilter()
	}
	switch page := unix.Getpagesize(); {
	case o.BlockBytes < page || o.BlockBytes&(o.BlockBytes-1) != 0:
		return o, fmt.Errorf("option BlockBytes %d: want a power of two, at least %d", o.BlockBytes, page)
	case o.Blocks < 2:
		return o, fmt.Errorf("option Blocks %d: want at least 2", o.Blocks)
	case o.RetireTimeout < time.Millisecond || o.RetireTimeout > time.Minute:
		return o, fmt.Errorf("option RetireTimeout %v: want 1ms to 1m", o.RetireTimeout)
	}
	return o, nil
}

// Port is one network device, opened for sending and receiving.
type Port struct {
	name   string
	closed atomic.Bool
	wake   int // eventfd, readable once Close was called

	tx     sync.Mutex // guards sender
	sender sender

	rx     sync.Mutex // guards ring and its place in the blocks, and handed
	ring   ring
	handed uint64
	done   atomic.Uint64 // of handed

	// stats guards the counters, and the receive socket against Close while they
	// are read: reading them resets the kernel's.
	stats             sync.Mutex
	statsFD           int
	received, dropped uint64
}

// Open opens the device of that name, in the network namespace of the calling
// thread. It needs CAP_NET_RAW. The device may be down: nothing is received, and
// Send fails with ENETDOWN, until it is up.
func Open(ifname string, o Options) (_ *Port, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("packetio: %s: %w", ifname, err)
		}
	}()
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, err
	}
	p := &Port{name: ifname, wake: -1, sender: sender{fd: -1}, ring: ring{fd: -1}, statsFD: -1}
	defer func() {
		if err != nil {
			p.release()
		}
	}()
	if p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	if err = p.sender.open(ifi.Index); err != nil {
		return nil, fmt.Errorf("sending: %w", err)
	}
	if err = p.ring.open(ifi.Index, o); err != nil {
		return nil, fmt.Errorf("receiving: %w", err)
	}
	p.statsFD = p.ring.fd
	return p, nil
}

// Name returns the name of the device when it was opened.
func (p *Port) Name() string { return p.name }

// Send sends frames in order and returns how many left. Where that is not all of
// them it also returns why: ErrClosed, or the kernel's error for the first frame
// that did not leave. ENOBUFS says that the device's queue was full, and still was
// after some milliseconds; ENETDOWN that the device is down; ENXIO that it is gone.
func (p *Port) Send(frames [][]byte) (sent int, err error) {
	p.tx.Lock()
	defer p.tx.Unlock()
	if p.closed.Load() {
		return 0, ErrClosed
	}
	if sent, err = p.sender.send(frames, p.closed.Load); err != nil {
		return sent, fmt.Errorf("packetio: %s: sending frame %d of %d: %w", p.name, sent+1, len(frames), err)
	}
	return sent, nil
}

// Receive blocks until the kernel hands over a block of frames, or Close. It calls
// fn for every frame of the block, oldest first, and returns nil. at is when the
// frame arrived, in nanoseconds of CLOCK_MONOTONIC. frame is valid, and must not be
// changed, until fn returns. fn must not call Close.
//
// It returns ErrClosed after Close, and else an error that is about the device:
// ENETDOWN if it went down or away. Nothing that was received before is lost by
// it: calling Receive again works, as soon as the device is there again. (A device
// that comes back under its name is another one: Open it.)
func (p *Port) Receive(fn func(frame []byte, at int64)) error {
	p.rx.Lock()
	defer p.rx.Unlock()
	p.done.Store(p.handed)
	for {
		if p.closed.Load() {
			return ErrClosed
		}
		if n, ok := p.ring.readBlock(fn); ok {
			p.handed += n
			return nil
		}
		if err := p.ring.wait(p.wake); err != nil {
			return fmt.Errorf("packetio: %s: receiving: %w", p.name, err)
		}
	}
}

// Stats returns how many frames passed the filter into the ring, and how many
// passed it and found no room, since Open. After Close they stay as they were.
func (p *Port) Stats() (received, dropped uint64) {
	p.stats.Lock()
	defer p.stats.Unlock()
	p.readStats()
	return p.received, p.dropped
}

// Done returns how many of the frames received nobody has to do with any more: Receive has handed
// them over, and was called again since, so its caller is done with them too.
func (p *Port) Done() uint64 { return p.done.Load() }

// readStats adds what the kernel counted since it was last asked.
func (p *Port) readStats() {
	if p.statsFD < 0 {
		return
	}
	s, err := unix.GetsockoptTpacketStatsV3(p.statsFD, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return // cannot be: the socket is ours, open, and has a V3 ring
	}
	// The kernel counts dropped frames among the packets.
	p.received += uint64(s.Packets - s.Drops)
	p.dropped += uint64(s.Drops)
}

// Close wakes Receive and Send, waits until they have returned, and gives
// everything back. Closing again does nothing.
func (p *Port) Close() error {
	if p.closed.Swap(true) {
		return nil
	}
	one := [8]byte{1} // any number but 0, in either byte order
	if _, err := unix.Write(p.wake, one[:]); err != nil {
		return fmt.Errorf("packetio: %s: closing: %w", p.name, err)
	}
	return p.release()
}

func (p *Port) release() error {
	p.tx.Lock()
	defer p.tx.Unlock()
	p.rx.Lock()
	defer p.rx.Unlock()
	p.stats.Lock()
	defer p.stats.Unlock()
	p.readStats()
	p.statsFD = -1
	return errors.Join(p.sender.close(), p.ring.close(), closeFD(&p.wake))
}

// closeFD closes a descriptor that may be -1, and makes it so.
func closeFD(fd *int) error {
	if *fd < 0 {
		return nil
	}
	err := unix.Close(*fd)
	*fd = -1
	return err
}

// htons returns v so that its bytes in memory are in network order.
func htons(v uint16) uint16 {
	var b [2]byte
	b[0], b[1] = byte(v>>8), byte(v)
	return nativeUint16(b)
}
