package tap

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/dyetrace/dyetrace/stain"
)

var (
	// ErrClosed says that Close was called.
	ErrClosed = errors.New("sampler closed")
	// ErrUnsupported says that this kernel, or a device, cannot have the program.
	// Another error leaves open whether it can.
	ErrUnsupported = errors.New("not supported")
	// ErrForeign says that another's tc filter sits where ours belongs.
	ErrForeign = errors.New("held by a foreign filter")
	// ErrFull says that as many probes are withheld as Options.Withheld allows.
	ErrFull = errors.New("no room for more withheld probes")
)

// Options of a Sampler; the zero value is good.
type Options struct {
	// Stain is what marks a stained packet; it must be valid. The zero Stain is
	// stain.Default().
	Stain stain.Stain
	// RingBytes is the size of the ring: a power of two, and at least a page. A
	// digest takes 64. 0 is 1 MiB: 16,000 of them, which a reader that sleeps for
	// 100 ms survives at 160,000 stained packets/s.
	RingBytes int
	// Withheld is how many probes may be withheld at one time, 1 to 2²⁴. 0 is 65,536,
	// 5 MB of kernel memory if they are; none is taken before.
	Withheld int
}

// maxWithheld bounds what a host may spend on it: 1.3 GB, and 100 probes/s to each of
// 1,000 guests for 167 s.
const maxWithheld = 1 << 24

func (o Options) withDefaults() (Options, error) {
	if o.Stain == (stain.Stain{}) {
		o.Stain = stain.Default()
	}
	if o.RingBytes == 0 {
		o.RingBytes = 1 << 20
	}
	if o.Withheld == 0 {
		o.Withheld = 1 << 16
	}
	page := os.Getpagesize()
	switch err := o.Stain.Validate(); {
	case err != nil:
		return o, fmt.Errorf("option Stain: %w", err)
	case o.RingBytes < page || o.RingBytes > 1<<30 || o.RingBytes&(o.RingBytes-1) != 0:
		return o, fmt.Errorf("option RingBytes %d: want a power of two, %d to %d", o.RingBytes, page, 1<<30)
	case o.Withheld < 1 || o.Withheld > maxWithheld:
		return o, fmt.Errorf("option Withheld %d: want 1 to %d", o.Withheld, maxWithheld)
	}
	return o, nil
}

// Sampler is the program, loaded once for all devices of a host, and the ring that
// it fills.
type Sampler struct {
	closed atomic.Bool
	tcx    bool // the kernel has it

	rx     sync.Mutex // guards reader and record
	reader *ringbuf.Reader
	record ringbuf.Record

	// names is the device of each ifindex. It is replaced, never changed, so that
	// Receive reads it without a lock.
	names atomic.Pointer[map[int]string]

	mu          sync.Mutex // guards what follows, and objects against Close
	attached    map[int]device
	objects     objects
	last        Stats // as Close found them
	attachments atomic.Uint64
}

// objects is tapObjects without the variables: these map memory that only the garbage
// collector would give back.
type objects struct {
	tapPrograms
	tapMaps
}

func (o *objects) close() error { return errors.Join(o.tapPrograms.Close(), o.tapMaps.Close()) }

// device is one that the program is attached to.
type device struct {
	name string
	hold
}

// hold is what keeps the program attached.
type hold interface {
	// alive tells whether the program is attached still: it is not once the device
	// was deleted, or somebody removed it.
	alive() (bool, error)
	// release takes the program off. That it is off, or its device gone, is no error.
	release() error
}

// Open loads the program. It is attached to nothing yet. An error that the kernel's
// verifier gave has its log. The error is ErrUnsupported if the kernel cannot.
func Open(o Options) (*Sampler, error) {
	s, err := open(o, nil)
	if err != nil {
		return nil, fmt.Errorf("tap: %w", err)
	}
	return s, nil
}

// open is Open; change, where there is one, changes the program before it is loaded.
func open(o Options, change func(*ebpf.CollectionSpec)) (_ *Sampler, err error) {
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	spec, err := loadTap()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(
		spec.Variables[tapVarStainTos].Set(o.Stain.TOS),
		spec.Variables[tapVarStainPort].Set(o.Stain.Port),
	); err != nil {
		return nil, err
	}
	spec.Maps[tapMapSamples].MaxEntries = uint32(o.RingBytes)
	spec.Maps[tapMapWithheld].MaxEntries = uint32(o.Withheld)
	if change != nil {
		change(spec)
	}
	s := &Sampler{attached: make(map[int]device)}
	s.names.Store(&map[int]string{})
	if err := s.load(spec); err != nil {
		return nil, fmt.Errorf("loading: %w", explain(err))
	}
	if s.reader, err = ringbuf.NewReader(s.objects.Samples); err != nil {
		return nil, errors.Join(fmt.Errorf("ring: %w", err), s.objects.close())
	}
	s.tcx = haveTCX(s.objects.ToInstance)
	return s, nil
}

// load loads the program and its maps. Before Linux 5.11 their memory counts against RLIMIT_MEMLOCK,
// and what is too much is refused with EPERM. (Package rlimit of ebpf knows by bpf(2) what this kernel
// does, but asks as soon as it is linked, for every verb; a seccomp filter that has no bpf(2), as that
// of the controller's unit, ends the process then.)
func (s *Sampler) load(spec *ebpf.CollectionSpec) error {
	err := spec.LoadAndAssign(&s.objects, nil)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if limit := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); limit != nil {
		return fmt.Errorf("%w (and raising RLIMIT_MEMLOCK: %w)", err, limit)
	}
	return spec.LoadAndAssign(&s.objects, nil)
}

// explain makes an error of package ebpf one of ours: with the verifier's whole log,
// and ErrUnsupported where it says so.
func explain(err error) error {
	var refused *ebpf.VerifierError
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("%w\nthe verifier's log:\n%+v", err, refused)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// Supported tells whether this kernel can sample at to-instance: nil if it can,
// ErrUnsupported with the reason if it cannot, and another error where that could not
// be found out, as without the capabilities to ask. It loads the program to see. That
// a kernel without tcx has clsact is taken for granted: Attach tells.
func Supported() error {
	for _, err := range []error{features.HaveProgramType(ebpf.SchedCLS), features.HaveMapType(ebpf.RingBuf)} {
		if err != nil {
			return fmt.Errorf("tap: %w", explain(err))
		}
	}
	s, err := Open(Options{RingBytes: os.Getpagesize(), Withheld: 1})
	if err != nil {
		return err
	}
	return s.Close()
}

// Attach puts the program on the device of that name: a tap, a veth, or any other
// that carries Ethernet. Where it is already, nothing changes; so calling it again
// and again keeps it there, when a device came back under its name (then it is
// another), or when somebody took the program off. The error is ErrUnsupported if
// the device or the kernel cannot have it, ErrForeign if another's filter is in the
// way, ErrClosed after Close.
func (s *Sampler) Attach(ifname string) error {
	ifi, err := ethernet(ifname)
	if err != nil {
		return fmt.Errorf("tap: %s: %w", ifname, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return fmt.Errorf("tap: %s: %w", ifname, ErrClosed)
	}
	if err := s.attach(ifname, ifi); err != nil {
		return fmt.Errorf("tap: %s: attaching: %w", ifname, err)
	}
	return nil
}

func (s *Sampler) attach(ifname string, ifindex int) error {
	for i, d := range s.attached {
		// One that has lost the name to another was deleted, or renamed; then its
		// next Attach finds it by its index.
		if d.name == ifname && i != ifindex {
			if err := s.forget(i); err != nil {
				return err
			}
		}
	}
	if d, found := s.attached[ifindex]; found {
		switch alive, err := d.alive(); {
		case err != nil:
			return err
		case alive:
			s.remember(ifindex, device{ifname, d.hold})
			return nil
		}
		if err := s.forget(ifindex); err != nil {
			return err
		}
	}
	var h hold
	var err error
	if s.tcx {
		h, err = holdTCX(ifindex, s.objects.ToInstance)
	} else {
		h, err = holdClsact(ifindex, s.objects.ToInstance)
	}
	if err != nil {
		return explain(err)
	}
	s.remember(ifindex, device{ifname, h})
	s.attachments.Add(1)
	return nil
}

// Attachments counts how often Attach had to put the program on a device, since Open.
// A device where it did so between two readings was not sampled all the time.
func (s *Sampler) Attachments() uint64 { return s.attachments.Load() }

// Detach takes the program off the device of that name, with what an agent that was
// killed may have left there. That nothing is there, or no such device, is no error.
// What the ring holds already is still received.
func (s *Sampler) Detach(ifname string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return nil // and it was taken off all of them
	}
	var errs []error
	for i, d := range s.attached {
		if d.name == ifname {
			errs = append(errs, s.forget(i))
		}
	}
	if ifi, err := net.InterfaceByName(ifname); err == nil {
		errs = append(errs, removeLeftovers(ifi.Index))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("tap: %s: detaching: %w", ifname, err)
	}
	return nil
}

// Attached returns the names of the devices that Attach was called for and Detach was
// not, sorted. Whether they exist still is not asked.
func (s *Sampler) Attached() []string { return slices.Sorted(maps.Values(*s.names.Load())) }

func (s *Sampler) remember(ifindex int, d device) {
	s.attached[ifindex] = d
	s.rename()
}

// forget takes the program off a device, and the device off the list.
func (s *Sampler) forget(ifindex int) error {
	if err := s.attached[ifindex].release(); err != nil {
		return err
	}
	delete(s.attached, ifindex)
	s.rename()
	return nil
}

func (s *Sampler) rename() {
	names := make(map[int]string, len(s.attached))
	for i, d := range s.attached {
		names[i] = d.name
	}
	s.names.Store(&names)
}

// Stats are counts since Open, of all devices together.
type Stats struct {
	// Received is how many stained packets went into the ring, Lost how many found
	// no room there.
	Received, Lost uint64
	// Withheld is how many of both were dropped on their way to a guest.
	Withheld uint64
}

// Stats returns the counts. After Close they stay as they were.
func (s *Sampler) Stats() (Stats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return s.last, nil
	}
	return s.stats()
}

func (s *Sampler) stats() (sum Stats, err error) {
	var each []tapCounters // by CPU
	if err := s.objects.Stats.Lookup(uint32(0), &each); err != nil {
		return sum, fmt.Errorf("tap: counters: %w", err)
	}
	for _, c := range each {
		sum.Received += c.Received
		sum.Lost += c.Lost
		sum.Withheld += c.Withheld
	}
	return sum, nil
}

// Close detaches from all devices, wakes Receive, waits until it has returned, and
// gives everything back. Closing again does nothing.
func (s *Sampler) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Swap(true) {
		return nil
	}
	var errs []error
	for i, d := range s.attached {
		if err := s.forget(i); err != nil {
			errs = append(errs, fmt.Errorf("tap: %s: detaching: %w", d.name, err))
		}
	}
	errs = append(errs, s.reader.Close())
	s.rx.Lock() // Receive has returned
	defer s.rx.Unlock()
	var err error
	s.last, err = s.stats()
	return errors.Join(append(errs, err, s.objects.close())...)
}

// haveTCX asks the kernel to attach to a device that cannot be. That package link
// looks for tcx first of all is how we learn.
func haveTCX(p *ebpf.Program) bool {
	l, err := link.AttachTCX(link.TCXOptions{Interface: math.MaxInt32, Program: p, Attach: ebpf.AttachTCXEgress})
	if err == nil {
		l.Close() // cannot be
	}
	return !errors.Is(err, ebpf.ErrNotSupported)
}
