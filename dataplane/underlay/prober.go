package underlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

const (
	// firstGap is between the first two rounds where answers are missing, and doubles up to lastGap:
	// one stall of a busy host or switch must not take all rounds. Measured on a machine with twice as
	// many busy processes as processors, Open vSwitch's userspace datapath: with 5 ms between rounds
	// sent at once, up to three quarters of all packets were lost at their own burst.
	firstGap, lastGap = 20 * time.Millisecond, 80 * time.Millisecond
	// burst is how many packets are sent at once, and pause is between two bursts.
	burst, pause = 8, time.Millisecond
	// knocks is from how many source ports packets are sent again while none was answered: with the first of
	// all ports, 44 of 128 bytes from 32 of them, which take 34 kB of a packet socket's 212,992 (net.core.rmem_default
	// of socket(7); measured, Open vSwitch's userspace datapath: with the large ones, 128 of each, it dropped them).
	knocks = 4
	// rungs is how many sizes are tried at once when the largest that passes is looked for: with 12,
	// 1,500 bytes take three steps, and 9,000 four.
	rungs = 12
	// rungRepeats is how often each is sent: one answer is enough, and a loss must not be taken for a bound.
	rungRepeats = 3
	// searches is how often the largest size is looked for: a stall takes one search, and where a second shows that it was lost
	// by chance as well, no size tells what passes.
	searches = 2
	// Bounds of an Exchange.
	maxSizes, maxSourcePorts, maxRepeats = 4, 128, 64
	maxWait                              = 5 * time.Second
)

// MaxExchange is how long an exchange may last, with what waits for its turn: all rounds, the wait after them, and
// the search for a size take 2 s where packets do not take long, and nothing holds them up. Whoever calls Probe must end it then, since a
// responder answers for no exchange if its socket had no room within this time.
const MaxExchange = 10 * time.Second

// Exchange is what is to be tried between two addresses.
type Exchange struct {
	// Src is an address of this host; the zero Addr is what the kernel would use.
	Src, Dst netip.Addr
	// Port where the responder is.
	Port uint16
	ToS  uint8
	// Sizes of whole IP packets, ascending. Each is sent from each of SourcePorts ports, Repeats times; but the others
	// than the first not before anything was answered, and only while they were not. Where FindMTU begins, the last is sent from
	// one port once more, by itself, or a few times. As long as nothing was,
	// the first goes from each port once, and from a few of them Repeats times.
	Sizes                []int
	SourcePorts, Repeats int
	// Wait is how long answers are waited for after the last round.
	Wait time.Duration
	// FindMTU has the largest size that is answered looked for, if the first is and the last never, by a source port
	// whose packets of the first all were. The search ends with the time of Probe's ctx.
	FindMTU bool
	// Session names it in its datagrams.
	Session uint64
	// Pace is waited for before each datagram, by its [Weight]; nil is no bound.
	Pace *rate.Limiter
}

// Serial numbers the questions of an exchange.
func (e *Exchange) Serial(repeat, port, size int) uint32 {
	return uint32((repeat*e.SourcePorts+port)*len(e.Sizes) + size)
}

// Validate says what is wrong, by the names of the contract's fields.
func (e *Exchange) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch {
	case !e.Dst.IsValid():
		bad("dst_ip: missing")
	case e.Src.IsValid() && e.Src.Is4() != e.Dst.Is4():
		bad("src_ip: %s and dst_ip %s are not of one IP version", e.Src, e.Dst)
	}
	if e.Port == 0 {
		bad("port: 0, want that of the other agent's responder")
	}
	if len(e.Sizes) < 1 || len(e.Sizes) > maxSizes {
		bad("sizes: %d of them, want 1 to %d", len(e.Sizes), maxSizes)
	}
	last := MinSize(e.Dst) - 1
	for _, s := range e.Sizes {
		if s <= last || s-headers(e.Dst) > maxPayload {
			bad("sizes: %d, want more than %d, and no more than UDP can carry", s, last)
		}
		last = s
	}
	if e.SourcePorts < 1 || e.SourcePorts > maxSourcePorts {
		bad("source_ports: %d, want 1 to %d", e.SourcePorts, maxSourcePorts)
	}
	if e.Repeats < 1 || e.Repeats > maxRepeats {
		bad("repeats: %d, want 1 to %d", e.Repeats, maxRepeats)
	}
	if e.Wait <= 0 || e.Wait > maxWait {
		bad("wait_ms: %v, want up to %v", e.Wait, maxWait)
	}
	return errors.Join(errs...)
}

// Cell is what became of one size from one source port.
type Cell struct {
	Sent, Answered int
	// RTT of the fastest answer.
	RTT time.Duration
}

// Report is what came of an exchange.
type Report struct {
	// Src is the address that was used.
	Src         netip.Addr
	SourcePorts []uint16
	// Cells are by source port and size: number source port * sizes + size.
	Cells    []Cell
	Refusals []Refusal
	// Passes is the largest size that was answered, where that was looked for; 0 where it was not found.
	Passes int
	// ToSSeen is what the questions had when they came, of the last answer.
	ToSSeen uint8
	// Sent counts all datagrams.
	Sent int
}

// prober is one exchange under way. One goroutine uses it.
type prober struct {
	Exchange
	codec    *Codec
	start    time.Time
	fds      []int
	poll     []unix.PollFd
	local    []netip.AddrPort
	remote   netip.AddrPort
	report   Report
	answered map[uint32]bool
	knocked  bool // each source port has sent once

	// rung is where those of the ladder begin, and of which size each is.
	rung    uint32
	ladder  []int
	fastest time.Duration
	latest  time.Duration // of the last answer
	out, in []byte
}

// Probe makes an exchange. It returns what it found out so far with the error of a ctx that ends.
func Probe(ctx context.Context, key Key, e Exchange) (Report, error) {
	if err := e.Validate(); err != nil {
		return Report{}, err
	}
	p := &prober{
		Exchange: e, codec: NewCodec(key), start: time.Now(), remote: netip.AddrPortFrom(e.Dst, e.Port),
		answered: map[uint32]bool{}, in: make([]byte, 65536),
		report: Report{Cells: make([]Cell, e.SourcePorts*len(e.Sizes))},
	}
	p.rung = e.Serial(e.Repeats, 0, 0)
	defer p.close()
	if err := p.sockets(); err != nil {
		return p.barred(err)
	}
	if err := p.rounds(ctx); err != nil || !e.FindMTU {
		return p.report, err
	}
	if err := p.climb(ctx); err != nil && ctx.Err() == context.Canceled {
		return p.report, err
	}
	return p.report, nil // a search that takes too long is given up
}

// sockets makes a socket for each source port. The kernel chooses the ports: at random, so that they
// spread over the paths (RFC 6056).
func (p *prober) sockets() error {
	src := p.Src
	if !src.IsValid() {
		var err error
		if src, err = SourceFor(p.Dst); err != nil {
			return err
		}
	}
	p.report.Src = src
	for range p.SourcePorts {
		fd, err := open(netip.AddrPortFrom(src, 0), asking(src, p.ToS))
		if err != nil {
			return err
		}
		p.fds = append(p.fds, fd)
		p.poll = append(p.poll, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		if err := unix.Connect(fd, sockaddr(p.remote)); err != nil {
			return fmt.Errorf("connect to UDP %s from %s: %w", p.remote, src, err)
		}
		at, err := localOf(fd)
		if err != nil {
			return err
		}
		p.local = append(p.local, at)
		p.report.SourcePorts = append(p.report.SourcePorts, at.Port())
	}
	return nil
}

// barred tells of a host that has no way to the other, or not the address that it should have: nothing was sent, since it cannot be.
// Any other error is one of ours.
func (p *prober) barred(err error) (Report, error) {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return Report{}, err
	}
	switch errno {
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.EADDRNOTAVAIL:
		p.refused(Refusal{Errno: errno, Size: p.Sizes[0], Count: 1})
		p.report.SourcePorts = make([]uint16, p.Exchange.SourcePorts)
		return p.report, nil
	}
	return Report{}, err
}

func (p *prober) close() {
	for _, fd := range p.fds {
		unix.Close(fd)
	}
}

// rounds sends what is to be sent from all ports, and waits for what comes back.
func (p *prober) rounds(ctx context.Context) error {
	gap := firstGap
	for cells := p.due(); len(cells) > 0; cells = p.due() {
		err := p.sendAll(ctx, len(cells), func(n int) (port int, serial uint32, bytes int) {
			port, size := cells[n]/len(p.Sizes), cells[n]%len(p.Sizes)
			c := &p.report.Cells[cells[n]]
			c.Sent++
			return port, p.Serial(c.Sent-1, port, size), p.Sizes[size]
		})
		p.knocked = true
		wait, enough := gap, p.whole
		if len(p.due()) == 0 {
			// The last one, unless an answer comes yet where there was none.
			wait, enough = p.Wait, func() bool { return p.whole() || len(p.due()) > 0 }
		}
		if err == nil {
			err = p.collect(ctx, wait, enough)
		}
		if err != nil {
			return err
		}
		gap = min(2*gap, lastGap)
	}
	return nil
}

// due are the cells to be sent next. Whoever answers nothing is sent little: it may be a switch that stands still, as
// that of the userspace datapath does for a second when its database restarts, and what it has no room for it
// drops, whosever that is. The order is drawn: else a queue that overflows would always take the same ports.
func (p *prober) due() (cells []int) {
	heard := len(p.answered) > 0
	for i, c := range p.report.Cells {
		port, size := i/len(p.Sizes), i%len(p.Sizes)
		switch {
		case c.Sent == p.Repeats, size > 0 && c.Answered > 0:
		case !heard && (size > 0 || p.knocked && port >= knocks):
		default:
			cells = append(cells, i)
		}
	}
	rand.Shuffle(len(cells), func(i, j int) { cells[i], cells[j] = cells[j], cells[i] })
	return cells
}

// sendAll sends n questions, a few at a time.
func (p *prober) sendAll(ctx context.Context, n int, question func(int) (port int, serial uint32, bytes int)) error {
	for i := range n {
		if i > 0 && i%burst == 0 {
			if err := p.collect(ctx, pause, func() bool { return false }); err != nil {
				return err
			}
		}
		port, serial, size := question(i)
		if err := p.pace(ctx, size); err != nil {
			return err
		}
		p.send(port, serial, size)
	}
	return nil
}

// pace waits until one more datagram may be sent.
func (p *prober) pace(ctx context.Context, size int) error {
	if p.Pace == nil {
		return nil
	}
	if err := p.Pace.WaitN(ctx, int(Weight(size))); err != nil {
		return fmt.Errorf("this host has sent as much as it may (underlay_rate): %w", err)
	}
	return nil
}

// whole says that nothing is left to wait for.
func (p *prober) whole() bool {
	for i, c := range p.report.Cells {
		if c.Answered == 0 && c.Sent > 0 || i%len(p.Sizes) == 0 && c.Answered < c.Sent {
			return false
		}
	}
	return true
}

// send sends one question. One that the host refuses to send is told by the error queue, or here.
func (p *prober) send(port int, serial uint32, size int) {
	d := Datagram{Kind: Question, Session: p.Session, Serial: serial,
		Length: size - headers(p.Dst), SentNs: time.Since(p.start).Nanoseconds()}
	p.out = p.codec.Append(p.out[:0], d, p.local[port], p.remote)
	p.report.Sent++
	var err error
	// An error that is waiting is told by the next call, whatever that is (udp(7)).
	for range 3 {
		if err = unix.Send(p.fds[port], p.out, unix.MSG_DONTWAIT); err == nil {
			return
		}
		if p.complaints(port) == 0 {
			break
		}
		if err == unix.EMSGSIZE {
			return // was in the queue
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && err != unix.ECONNREFUSED {
		p.refused(Refusal{Errno: errno, Size: size, Count: 1})
	}
}

// collect takes in what comes until enough has, or time is up. What came while this process stood still came in time.
func (p *prober) collect(ctx context.Context, wait time.Duration, enough func() bool) error {
	for end := time.Now().Add(wait); ; {
		left := time.Until(end)
		if err := ctx.Err(); err != nil || enough() {
			return err
		}
		ms := 0
		if left > 0 { // in slices: a ctx that ends has no file descriptor
			ms = int(min(left, 50*time.Millisecond).Milliseconds()) + 1
		}
		if n, err := unix.Poll(p.poll, ms); n > 0 && err == nil {
			p.readAll()
		}
		if left <= 0 {
			return nil
		}
	}
}

// readAll takes in what waits at the ports that poll(2) tells of.
func (p *prober) readAll() {
	for port := range p.poll {
		switch events := p.poll[port].Revents; {
		case events&unix.POLLERR != 0:
			p.complaints(port)
			fallthrough
		case events&unix.POLLIN != 0:
			p.receive(port)
		}
	}
}

// receive takes in all answers that wait at a port.
func (p *prober) receive(port int) {
	for {
		n, _, err := unix.Recvfrom(p.fds[port], p.in, unix.MSG_DONTWAIT)
		if err != nil {
			return
		}
		d, err := p.codec.Parse(p.in[:n], p.remote, p.local[port])
		if err != nil || d.Kind != Answer || d.Session != p.Session || p.answered[d.Serial] {
			continue
		}
		p.answered[d.Serial] = true
		p.report.ToSSeen = d.ToS
		rtt := time.Since(p.start) - time.Duration(d.SentNs)
		p.latest = rtt
		if p.fastest == 0 || rtt < p.fastest {
			p.fastest = rtt
		}
		if d.Serial >= p.rung {
			continue
		}
		size := int(d.Serial) % len(p.Sizes)
		c := &p.report.Cells[int(d.Serial)/len(p.Sizes)%p.SourcePorts*len(p.Sizes)+size]
		c.Answered++
		if c.RTT == 0 || rtt < c.RTT {
			c.RTT = rtt
		}
	}
}

// complaints takes in what waits in a port's error queue, and returns how many that were.
func (p *prober) complaints(port int) (n int) {
	oob := make([]byte, 512)
	for {
		length, oobn, _, _, err := unix.Recvmsg(p.fds[port], p.in, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return n
		}
		n++
		r, ok := refusalOf(oob[:oobn])
		if !ok {
			continue
		}
		// It quotes the packet, at least the beginning of it.
		if length >= 22 && string(p.in[:3]) == "dyu" {
			r.Size = int(binary.BigEndian.Uint16(p.in[20:])) + headers(p.Dst)
		}
		p.refused(r)
	}
}

func (p *prober) refused(r Refusal) {
	for i := range p.report.Refusals {
		o := &p.report.Refusals[i]
		if o.From == r.From && o.Type == r.Type && o.Code == r.Code && o.Errno == r.Errno && o.MTU == r.MTU {
			o.Count++
			return
		}
	}
	const most = 16 // sorts; a path has not that many routers that complain
	if len(p.report.Refusals) < most {
		p.report.Refusals = append(p.report.Refusals, r)
	}
}

// climb looks for the largest size that is answered, where the smallest is from some port and the largest from none.
func (p *prober) climb(ctx context.Context) error {
	port, whole := p.passage()
	if port < 0 {
		return nil
	}
	if came, err := p.alone(ctx, port); err != nil || came || !whole {
		return err
	}
	return p.search(ctx, port)
}

// passage is the first port whose packets of the smallest size were all answered, which whole says, or else the first of which some
// were: one that loses small packets as well would lose a rung by chance. It is -1 where there is no size to be looked for.
func (p *prober) passage() (port int, whole bool) {
	port, last := -1, len(p.Sizes)-1
	for i := range p.SourcePorts {
		if p.report.Cells[i*len(p.Sizes)+last].Answered > 0 {
			return -1, false
		}
		if c := p.report.Cells[i*len(p.Sizes)]; !whole && c.Answered > 0 && (port < 0 || c.Answered == c.Sent) {
			port, whole = i, c.Answered == c.Sent
		}
	}
	if last == 0 {
		return -1, false
	}
	return port, whole
}

// alone tries the largest size by itself, and says whether it came: of many packets at once those may be lost for which there is no
// room, and these are the large ones.
func (p *prober) alone(ctx context.Context, port int) (came bool, err error) {
	last, before := len(p.Sizes)-1, p.report.Sent
	answered, err := p.try(ctx, port, p.Sizes[last:], p.Wait/rungRepeats)
	if err != nil {
		return false, err
	}
	c := &p.report.Cells[port*len(p.Sizes)+last]
	c.Sent += p.report.Sent - before
	if !answered(0) {
		return false, nil
	}
	c.Answered, c.RTT = 1, p.latest
	return true, nil
}

// search looks for the largest size that passes between the smallest, which does, and the largest, which does not.
func (p *prober) search(ctx context.Context, port int) error {
	passes, largest := p.Sizes[0], p.Sizes[len(p.Sizes)-1]
	for range searches {
		most, lost, err := p.narrow(ctx, port, passes, largest)
		if err != nil {
			return err
		}
		if lost == largest { // which has been tried often enough
			p.report.Passes = most
			return nil
		}
		// A stall may have taken all of a rung. What the search has come to counts if it is lost again.
		came, err := p.try(ctx, port, []int{lost}, p.Wait/rungRepeats)
		if err != nil {
			return err
		}
		if !came(0) {
			p.report.Passes = most
			return nil
		}
		passes = lost
	}
	return nil
}

// narrow brings two sizes, of which one passes and the other is lost, next to each other.
func (p *prober) narrow(ctx context.Context, port, passes, lost int) (int, int, error) {
	for lost-passes > 1 {
		steps := min(rungs, lost-passes-1)
		var sizes []int
		for i := range steps {
			sizes = append(sizes, passes+(lost-passes)*(i+1)/(steps+1))
		}
		// Four round trips, and no less than a host that is busy takes.
		came, err := p.try(ctx, port, sizes, min(p.Wait, 4*p.fastest+firstGap))
		if err != nil {
			return 0, 0, err
		}
		for i, size := range sizes {
			if came(i) {
				passes = size
			}
		}
		for i := steps - 1; i >= 0; i-- {
			if sizes[i] > passes {
				lost = sizes[i]
			}
		}
	}
	return passes, lost, nil
}

// try sends packets of sizes, ascending, rungRepeats times or until the last was answered, and waits
// for answers after each time. came says which were.
func (p *prober) try(ctx context.Context, port int, sizes []int, wait time.Duration) (came func(i int) bool, err error) {
	first := p.rung + uint32(len(p.ladder))*rungRepeats
	p.ladder = append(p.ladder, sizes...)
	came = func(i int) bool {
		for r := range rungRepeats {
			if p.answered[first+uint32(i*rungRepeats+r)] {
				return true
			}
		}
		return false
	}
	all := func() bool { return came(len(sizes) - 1) }
	for r := 0; r < rungRepeats && !all(); r++ {
		err := p.sendAll(ctx, len(sizes), func(i int) (int, uint32, int) {
			return port, first + uint32(i*rungRepeats+r), sizes[i]
		})
		if err == nil {
			err = p.collect(ctx, wait, all)
		}
		if err != nil {
			return nil, err
		}
	}
	return came, nil
}
