package packetio

import (
	"math"
	"sync"

	"golang.org/x/sys/unix"
)

// offset is by how much CLOCK_REALTIME, with which the kernel stamps frames, is ahead of
// CLOCK_MONOTONIC. The kernel counts both by one counter, and slows down or speeds up both alike
// (kernel/time/timekeeping.c), so it is one number until somebody sets the clock. It cannot be read, but
// a reading of one clock between two of the other bounds it, and all readings together do so better
// than any one: a reader that lost its processor between the clocks spoils nothing.
//
// The zero value knows nothing.
type offset struct {
	mu          sync.Mutex
	known       bool
	least, most int64 // nanoseconds
	quickest    int64 // that a reading ever was
}

// tries is how many readings are taken at most, at a time, until one is about as quick as they ever were. One is
// enough nearly always; that a clock was set shows as soon as a reading is quicker than it was set by. The first
// time it is all of them: nothing tells yet how quick a reading is, and one that lost its processor by itself
// would be believed.
const tries = 8

// between returns the middle of the bounds, which is wrong by half of their distance at most, after another look
// at the clocks.
func (o *offset) between(clocks func() (before, real, after int64)) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	first := !o.known
	for try := 0; try < tries || !o.known; try++ {
		before, real, after := clocks()
		took := after - before
		if took < 0 {
			continue // clocks of two processors that do not agree
		}
		if !o.known {
			o.known, o.least, o.most, o.quickest = true, math.MinInt64, math.MaxInt64, took
		}
		least, most := max(o.least, real-after), min(o.most, real-before)
		if least > most { // the clock was set
			least, most = real-after, real-before
		}
		o.least, o.most, o.quickest = least, most, min(o.quickest, took)
		if took <= 2*o.quickest && !first {
			break
		}
	}
	return o.least + (o.most-o.least)/2
}

// realtime is this machine's.
var realtime offset

// realtimeAhead returns by how much CLOCK_REALTIME is ahead of CLOCK_MONOTONIC, as exactly as this process knows.
func realtimeAhead() int64 {
	return realtime.between(func() (before, real, after int64) {
		return clock(unix.CLOCK_MONOTONIC), clock(unix.CLOCK_REALTIME), clock(unix.CLOCK_MONOTONIC)
	})
}

func clock(id int32) int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(id, &t); err != nil {
		panic(err) // EINVAL or EFAULT: neither can be
	}
	return t.Nano()
}
