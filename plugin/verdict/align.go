package verdict

import "github.com/dyetrace/dyetrace/plugin/plan"

// Aligned is a point of the path as it is shown: when the packet passed, on one time line.
type Aligned struct {
	plan.Expected
	Seen bool
	// AtNs is nanoseconds since the first sample of the probe; 0 where not seen.
	AtNs int64
	// TTL, TunSrc and TunID are as seen.
	Sample Sample
}

// align puts the samples of all hosts on the time line of the host that saw the probe first.
// Agents' clocks have nothing in common, so another host's samples are moved, all by the same
// amount, to where way out and way back take equally long: with a and b the last sample before
// and the first sample after them on the first host's clock, their middle comes to the middle
// of a and b. Where nothing was seen after them, they start at a, as if the way took no time.
// Points that do not exist are left out, unless they saw something all the same.
func align(path *plan.Path, t *trail) []Aligned {
	out := make([]Aligned, 0, len(path.Points))
	first := -1 // in out
	for i := range path.Points {
		s, seen := t.sample(i)
		if path.Points[i].Absent != "" && !seen {
			continue
		}
		if seen && first < 0 {
			first = len(out)
		}
		out = append(out, Aligned{path.Points[i], seen, 0, s})
	}
	if first < 0 {
		return out
	}
	// Not always the first point's: what a switch does in one pass through several bridges it may
	// hand over in another order, some microseconds apart (its userspace datapath sends in
	// batches, by port).
	zero := out[first].Sample.AtNs
	for i := range out {
		if a := &out[i]; a.Seen && a.Host == out[first].Host {
			zero = min(zero, a.Sample.AtNs)
		}
	}
	for i := range out {
		if a := &out[i]; a.Seen && a.Host == out[first].Host {
			a.AtNs = a.Sample.AtNs - zero
		}
	}
	for i := first; i < len(out); i++ {
		if a := &out[i]; a.Seen && a.Host != out[first].Host {
			i = shift(out, i, out[first].Host) - 1
		}
	}
	return out
}

// shift aligns the samples of one other host that start at from, and returns where they end.
func shift(out []Aligned, from int, home string) (end int) {
	host := out[from].Host
	early, late := out[from].Sample.AtNs, out[from].Sample.AtNs
	end = from
	for ; end < len(out) && (!out[end].Seen || out[end].Host == host); end++ {
		if out[end].Seen {
			early, late = min(early, out[end].Sample.AtNs), max(late, out[end].Sample.AtNs)
		}
	}
	var before, after int64
	back := false
	for i := range out {
		switch a := &out[i]; {
		case !a.Seen || a.Host != home:
		case i < from:
			before = a.AtNs
		case i >= end && !back:
			after, back = a.AtNs, true
		}
	}
	offset := before - early
	if back {
		offset += (after - before - (late - early)) / 2
	}
	for i := from; i < end; i++ {
		if out[i].Seen {
			out[i].AtNs = out[i].Sample.AtNs + offset
		}
	}
	return end
}
