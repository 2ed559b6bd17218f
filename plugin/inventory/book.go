package inventory

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Book holds the inventory as it stands. Its methods are safe for concurrent use; the zero
// Book is not, use NewBook.
type Book struct {
	now atomic.Pointer[Snapshot]

	mu      sync.Mutex // held to change, not to read
	changed chan struct{}
}

// NewBook returns an empty inventory.
func NewBook() *Book {
	b := &Book{changed: make(chan struct{})}
	b.now.Store(NewSnapshot(File{}))
	return b
}

// Snapshot returns the inventory as of now.
func (b *Book) Snapshot() *Snapshot { return b.now.Load() }

// Changed returns a channel that is closed at the next change. To miss none, take the channel
// first and the snapshot then.
func (b *Book) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// SetFile replaces all that files said.
func (b *Book) SetFile(f File) {
	b.change(func(s *Snapshot) *Snapshot { return newSnapshot(newIndex(f), s.hosts) })
}

// SetHost replaces what was known of h.Name. h's bridges and endpoints are the book's from
// then on: the caller no longer changes them.
func (b *Book) SetHost(h Host) {
	b.change(func(s *Snapshot) *Snapshot { return newSnapshot(s.index, with(s.hosts, h)) })
}

// DropHost records that the agent of a host is gone. What it said last is kept, so that a
// path through the host can still be planned and judged from the other side.
func (b *Book) DropHost(name string) {
	b.change(func(s *Snapshot) *Snapshot {
		x, ok := s.hosts[name]
		if !ok || !x.Connected {
			return s
		}
		gone := *x
		gone.Connected = false
		hosts := maps.Clone(s.hosts)
		hosts[name] = &gone
		return newSnapshot(s.index, hosts)
	})
}

func with(hosts map[string]*hostIndex, h Host) map[string]*hostIndex {
	hosts = maps.Clone(hosts)
	hosts[h.Name] = newHostIndex(h)
	return hosts
}

// change swaps the snapshot and wakes who waits, if it is another one.
func (b *Book) change(next func(*Snapshot) *Snapshot) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.now.Load()
	s := next(old)
	if s == old {
		return
	}
	b.now.Store(s)
	close(b.changed)
	b.changed = make(chan struct{})
}
