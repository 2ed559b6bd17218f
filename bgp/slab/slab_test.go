package slab

import (
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"
)

func bytesOf(p unsafe.Pointer, size uintptr) []byte { return unsafe.Slice((*byte)(p), size) }

// Blocks are aligned, no two overlap, and what is put back is given out again: from the heap, from
// the kernel, and where a block is larger than what is asked for at a time.
func TestBlocks(t *testing.T) {
	for name, made := range map[string]func() *Slab{"any pages": New, "huge pages": NewHuge} {
		t.Run(name, func(t *testing.T) { testBlocks(t, made()) })
	}
}

func testBlocks(t *testing.T, s *Slab) {
	sizes := []uintptr{40, 2112, 16384, most + 1}
	type block struct {
		p    unsafe.Pointer
		size uintptr
		mark byte
	}
	var have []block
	used := 0
	for i := range 6000 {
		size := sizes[rand.IntN(3)]
		if i%2000 == 1999 {
			size = sizes[3]
		}
		b := block{s.Get(size), size, byte(i)}
		if uintptr(b.p)%line != 0 {
			t.Fatalf("a block of %d bytes at %p", size, b.p)
		}
		used += int(size)
		for _, at := range []uintptr{0, size - 1} {
			bytesOf(b.p, size)[at] = b.mark
		}
		have = append(have, b)
		if len(have) > 3000 {
			j := rand.IntN(len(have))
			b := have[j]
			if got := bytesOf(b.p, b.size); got[0] != b.mark || got[b.size-1] != b.mark {
				t.Fatalf("block %d was written to by another's owner", j)
			}
			s.Put(b.p, b.size)
			used -= int(b.size)
			have[j] = have[len(have)-1]
			have = have[:len(have)-1]
		}
	}
	if s.Used() != used {
		t.Errorf("Used() = %d, want %d", s.Used(), used)
	}
	p := s.Get(2112)
	s.Put(p, 2112)
	if again := s.Get(2112); again != p {
		t.Errorf("got %p, want %p, which was just put back", again, p)
	}
	runtime.KeepAlive(s)
}

func TestPoison(t *testing.T) {
	s := New()
	s.Poison = true
	p := s.Get(100)
	s.Put(p, 100)
	if got := string(bytesOf(p, 100)); got != strings.Repeat("\xdb", 100) {
		t.Errorf("% x", got)
	}
	runtime.KeepAlive(s)
}

// What came from the kernel goes back to it.
func TestCollected(t *testing.T) {
	mappings := func() int {
		text, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Skip(err)
		}
		return strings.Count(string(text), "\n")
	}
	before := mappings()
	for i := range 40 {
		s := New()
		if i%2 == 1 {
			s = NewHuge()
		}
		for s.chunks.all == nil {
			s.Get(1 << 16)
		}
		bytesOf(s.Get(1<<16), 1<<16)[0] = 1
	}
	for range 100 {
		runtime.GC() // cleanups run some time after it
		if mappings() < before+30 {
			return
		}
	}
	t.Errorf("%d mappings, and %d before", mappings(), before)
}
