package rib

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/dyetrace/dyetrace/bgp/slab"
)

// memory is where pages come from and go to. A snapshot sees the pages that there were when it was
// taken: epochs count snapshots, a page is born in one, and may be written to while no snapshot
// that was taken since is held. Else it is copied, and the copy changed; the old one is handed to the
// youngest snapshot that sees it, and from that, when nobody holds it, to the next older one, until
// there is none.
type memory struct {
	slab   *slab.Slab
	found  *index // that snapshots search
	epoch  uint64
	lives  []life // oldest first
	graves *graves
	// copied is how many bytes were copied since the collector was last asked.
	copied int
}

// life is a snapshot that somebody may hold.
type life struct {
	epoch uint64
	old   []oldPage // that it sees, and no younger one
	lost  []slot    // likewise, entries of the index
}

type oldPage struct {
	at   unsafe.Pointer
	size uintptr
	born uint64
}

// graves are the snapshots that nobody holds any more, as the collector finds them.
type graves struct {
	some    atomic.Bool
	mu      sync.Mutex
	epochs  []uint64
	digging atomic.Bool // the collector was asked
}

func newMemory() memory { return memory{slab: slab.New(), graves: &graves{}} }

// seen tells whether a snapshot that somebody may hold sees a page.
func (m *memory) seen(born uint64) bool {
	n := len(m.lives)
	return n > 0 && m.lives[n-1].epoch >= born
}

// retire takes a page that was copied, and is seen.
func (m *memory) retire(at unsafe.Pointer, size uintptr, born uint64) {
	l := &m.lives[len(m.lives)-1]
	l.old = append(l.old, oldPage{at, size, born})
	m.copied += int(size)
}

// lose takes an entry out of the index once no snapshot may look for it.
func (m *memory) lose(s slot) {
	if n := len(m.lives); n > 0 {
		m.lives[n-1].lost = append(m.lives[n-1].lost, s)
		return
	}
	m.found.remove(s.hash(), s.id())
}

// share begins the next epoch, for a snapshot that sees all of this one.
func (m *memory) share(s *Snapshot) {
	m.lives = append(m.lives, life{epoch: m.epoch})
	runtime.AddCleanup(s, m.graves.add, m.epoch)
	m.epoch++
}

func (g *graves) add(epoch uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.epochs = append(g.epochs, epoch)
	g.some.Store(true)
}

// atLeast is how much is copied before the collector is asked whether somebody holds the snapshots
// still that it was copied for. It costs milliseconds, as much as copying some MB.
const atLeast = 4 << 20

// reclaim takes back the pages of snapshots that nobody holds. The caller holds no record.
func (m *memory) reclaim() {
	g := m.graves
	if m.copied > max(atLeast, m.slab.Used()/32) && !g.digging.Swap(true) {
		// Pages are not on the collector's heap, so it would not come for their sake.
		m.copied = 0
		go func() { runtime.GC(); g.digging.Store(false) }()
	}
	if !g.some.Load() {
		return
	}
	g.mu.Lock()
	epochs := g.epochs
	g.epochs = nil
	g.some.Store(false)
	g.mu.Unlock()
	for _, e := range epochs {
		m.bury(e)
	}
}

func (m *memory) bury(epoch uint64) {
	i := slices.IndexFunc(m.lives, func(l life) bool { return l.epoch == epoch })
	for _, p := range m.lives[i].old {
		if i > 0 && m.lives[i-1].epoch >= p.born {
			m.lives[i-1].old = append(m.lives[i-1].old, p)
		} else {
			m.slab.Put(p.at, p.size)
		}
	}
	for _, s := range m.lives[i].lost {
		if i > 0 {
			m.lives[i-1].lost = append(m.lives[i-1].lost, s)
		} else {
			m.found.remove(s.hash(), s.id())
		}
	}
	m.lives = slices.Delete(m.lives, i, i+1)
}
