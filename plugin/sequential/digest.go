package sequential

import (
	"math"
	"time"
)

// RelativeError bounds how far a quantile of a Digest is off.
const RelativeError = 0.01

// growth is the factor between a bucket's bounds: its middle is off by RelativeError at either end.
const growth = (1 + RelativeError) / (1 - RelativeError)

// maxBuckets bounds a digest: from 1 ns, 1,300 buckets of 2 % reach 3 minutes, and no probe is
// waited for that long.
const maxBuckets = 1300

var logGrowth = math.Log(growth)

// Digest is a set of latencies, without their order. The zero Digest is empty.
type Digest struct {
	counts []uint32 // counts[i] are those of bucket first+i
	first  int
	n      uint64
	max    time.Duration
}

// bucket i holds latencies above growth^(i-1) and up to growth^i nanoseconds.
func bucket(d time.Duration) int {
	if d <= 1 {
		return 0
	}
	return min(int(math.Ceil(math.Log(float64(d))/logGrowth)), maxBuckets-1)
}

// Add takes in a latency. What two samples of one clock make negative, some bridges being passed in
// one go and told of in another order, is 0.
func (d *Digest) Add(v time.Duration) {
	v = max(v, 0)
	*d.at(bucket(v))++
	d.n++
	d.max = max(d.max, v)
}

// at returns the counter of a bucket, with room made for it.
func (d *Digest) at(i int) *uint32 {
	switch {
	case len(d.counts) == 0:
		d.counts, d.first = make([]uint32, 1, 16), i
	case i < d.first:
		more := make([]uint32, d.first-i, d.first-i+len(d.counts))
		d.counts, d.first = append(more, d.counts...), i
	case i >= d.first+len(d.counts):
		d.counts = append(d.counts, make([]uint32, i-d.first-len(d.counts)+1)...)
	}
	return &d.counts[i-d.first]
}

// Merge adds all latencies of o.
func (d *Digest) Merge(o *Digest) {
	for i, n := range o.counts {
		if n > 0 {
			*d.at(o.first + i) += n
		}
	}
	d.n += o.n
	d.max = max(d.max, o.max)
}

// Count returns how many latencies it has.
func (d *Digest) Count() uint64 { return d.n }

// Max returns the longest.
func (d *Digest) Max() time.Duration { return d.max }

// Quantile returns the latency that the share q of all do not exceed, within RelativeError; 0 if
// there is none.
func (d *Digest) Quantile(q float64) time.Duration {
	if d.n == 0 {
		return 0
	}
	rank := min(max(uint64(math.Ceil(q*float64(d.n))), 1), d.n)
	var seen uint64
	for i, n := range d.counts {
		if seen += uint64(n); seen >= rank {
			return min(middle(d.first+i), d.max)
		}
	}
	return d.max
}

// middle is the value whose relative distance to both bounds of a bucket is the same.
func middle(i int) time.Duration {
	if i == 0 {
		return 1
	}
	return time.Duration(math.Round(2 * math.Pow(growth, float64(i)) / (growth + 1)))
}
