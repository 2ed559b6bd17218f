package slab

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// line is what blocks are aligned to: a processor's cache line.
	line = 64
	// small is what a Slab takes from the heap before it asks the kernel.
	small = 1 << 20
	// least and most are what it asks the kernel for at a time: a sixteenth of what there is.
	least, most = 1 << 20, 8 << 20
	// huge is a huge page of the processor.
	huge = 2 << 20
)

// Slab gives out blocks. It is for one goroutine at a time. What it took from the kernel goes back
// when the Slab is collected, so who has a block must hold the Slab, too.
type Slab struct {
	chunks *chunks
	next   unsafe.Pointer // of the chunk at hand
	left   uintptr
	ahead  []byte  // the chunk after it
	heap   uintptr // taken from the heap
	used   int
	free   []class
	huge   bool
	// Poison overwrites blocks that are put back, so that tests find who reads them still.
	Poison bool
}

// class is the blocks of one size that were put back.
type class struct {
	size   uintptr
	blocks []unsafe.Pointer
}

// chunks are what was got from the kernel.
type chunks struct{ all [][]byte }

// New returns a Slab that has given out nothing.
func New() *Slab {
	s := &Slab{chunks: &chunks{}}
	runtime.AddCleanup(s, func(c *chunks) {
		for _, b := range c.all {
			unix.Munmap(b)
		}
	}, s.chunks)
	return s
}

// NewHuge returns a Slab for blocks that are read at random: those that it asks the kernel for are in huge
// pages, where it has them (MADV_HUGEPAGE, madvise(2)), so that to find them in memory costs less.
func NewHuge() *Slab {
	s := New()
	s.huge = true
	return s
}

// Get returns a block, which may hold anything. Pointers to what the collector manages must not be
// put into it.
func (s *Slab) Get(size uintptr) unsafe.Pointer {
	s.used += int(size)
	for i := range s.free {
		c := &s.free[i]
		if n := len(c.blocks); c.size == size && n > 0 {
			p := c.blocks[n-1]
			c.blocks = c.blocks[:n-1]
			return p
		}
	}
	room := (size + line - 1) / line * line
	if s.heap+room <= small || room > least {
		return s.fromHeap(room)
	}
	if s.left < room && !s.grow() {
		return s.fromHeap(room)
	}
	p := s.next
	s.next, s.left = unsafe.Add(p, room), s.left-room
	return p
}

// Put takes a block back, of the size that it was got with.
func (s *Slab) Put(p unsafe.Pointer, size uintptr) {
	s.used -= int(size)
	if s.Poison {
		b := unsafe.Slice((*byte)(p), size)
		for i := range b {
			b[i] = 0xdb
		}
	}
	for i := range s.free {
		if c := &s.free[i]; c.size == size {
			c.blocks = append(c.blocks, p)
			return
		}
	}
	s.free = append(s.free, class{size, []unsafe.Pointer{p}})
}

// Used returns how many bytes are given out.
func (s *Slab) Used() int { return s.used }

func (s *Slab) fromHeap(room uintptr) unsafe.Pointer {
	s.heap += room
	p := unsafe.Pointer(unsafe.SliceData(make([]byte, room+line-1)))
	return unsafe.Add(p, -uintptr(p)%line)
}

// grow turns to the next chunk, and gets the one after it; false: the kernel has none.
func (s *Slab) grow() bool {
	if s.ahead == nil && !s.reserve() {
		return false
	}
	b := s.ahead
	s.next, s.left = unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b))
	if s.ahead = nil; s.reserve() {
		// To have the kernel find and clear a page takes longer than to fill it. What another processor
		// can do meanwhile nobody waits for. Linux before 5.14 refuses it, and does it page by page.
		go func(b []byte) {
			unix.Madvise(b, unix.MADV_POPULATE_WRITE)
			runtime.KeepAlive(s) // until then nothing is given back
		}(s.ahead)
	}
	return true
}

// reserve asks the kernel for a chunk.
func (s *Slab) reserve() bool {
	size, spare := min(max(s.used/16, least), most)&^(os.Getpagesize()-1), 0
	if s.huge {
		size, spare = (size+huge-1)&^(huge-1), huge
	}
	b, err := unix.Mmap(-1, 0, size+spare, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return false
	}
	s.chunks.all = append(s.chunks.all, b)
	if s.huge {
		first := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % huge
		b = b[first:][:size]
		unix.Madvise(b, unix.MADV_HUGEPAGE) // without, it is slower
	}
	s.ahead = b
	return true
}
